"""What the two blocks learned, module by module: sizes, shares, and how far they overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.config import RoutedLoraConfig
from vgrout_pl.adapters.inits import init_strategy
from vgrout_pl.adapters.layer import RoutedLayer, whole_tensor
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE

NAN = float("nan")


@dataclass(frozen=True)
class ModuleDiagnostics:
    """One module's blocks; shares are NaN where there is nothing to share.

    Attributes:
        module: its name in the bare model.
        deployed_delta: Frobenius norm of the deployed block's update Delta_D.
        quarantine_delta: of the quarantine's, Delta_Q.
        delta_share: |Delta_Q| / (|Delta_D| + |Delta_Q|).
        deployed_gradient: Euclidean norm of the gradients of the deployed block's trained tensors.
        quarantine_gradient: of the quarantine's.
        gradient_share: as ``delta_share``.
        seeded_share: |Delta u|^2 / |Delta|^2 for Delta = Delta_D + Delta_Q and u the signed input directions of the
            seeded block: the share of the update's energy that reads the seeded channel. NaN for other inits.
        cosine: <Delta_D, Delta_Q> / (|Delta_D| |Delta_Q|).
        input_overlap: |V_D^T V_Q|^2 / r for the r leading input directions of both updates: 0 orthogonal, 1 the same.
        output_overlap: likewise for the output directions.
    """

    module: str
    deployed_delta: float
    quarantine_delta: float
    delta_share: float
    deployed_gradient: float
    quarantine_gradient: float
    gradient_share: float
    seeded_share: float
    cosine: float
    input_overlap: float
    output_overlap: float


def module_diagnostics(model: nn.Module) -> list[ModuleDiagnostics]:
    """Diagnostics of every routed module, in model order; costs small matrices only, a few ms a module."""
    seeds = _seeds(model)
    return [_diagnose(name, layer, seeds) for name, layer in routed_layers(model)]


def diagnostics(modules: Iterable[ModuleDiagnostics]) -> dict[str, float]:
    """The model's summary for a log, under ``quarantine/``.

    Norms are taken over all modules (root of the sum of squares) before a share is made; the seeded share is weighted
    by the energy of each update, overlaps are means over the modules where they are defined.
    """
    rows = [asdict(module) for module in modules]

    def norm(name: str) -> float:
        return math.sqrt(sum(row[name] ** 2 for row in rows))

    energy = [row["deployed_delta"] ** 2 + row["quarantine_delta"] ** 2 for row in rows]
    shares = [row["seeded_share"] for row in rows]
    seeded = [(share, e) for share, e in zip(shares, energy, strict=True) if not math.isnan(share)]
    total = sum(e for _, e in seeded)
    summary = {
        "deployed_delta": norm("deployed_delta"),
        "quarantine_delta": norm("quarantine_delta"),
        "delta_share": _share(norm("deployed_delta"), norm("quarantine_delta")),
        "gradient_share": _share(norm("deployed_gradient"), norm("quarantine_gradient")),
        "seeded_share": sum(share * e for share, e in seeded) / total if total else NAN,
    }
    for name in ("cosine", "input_overlap", "output_overlap"):
        defined = [row[name] for row in rows if not math.isnan(row[name])]
        summary[name] = sum(defined) / len(defined) if defined else NAN
    return {f"quarantine/{name}": value for name, value in summary.items()}


def _seeds(model: nn.Module) -> tuple[str, int] | None:
    """(seeded block, k) of a signed init, else None."""
    config = getattr(model, "peft_config", {}).get(DEPLOYED)
    if not isinstance(config, RoutedLoraConfig):
        return None
    block = init_strategy(config.init).seeded_block
    return None if block is None else (block, config.signed_directions)


@torch.no_grad()
def _diagnose(name: str, layer: RoutedLayer, seeds: tuple[str, int] | None) -> ModuleDiagnostics:
    factors = {block: layer.factors((block,), torch.float64, whole=True) for block in BLOCKS}
    deltas = {block: _norm(*factors[block]) for block in BLOCKS}
    gradients = {block: _gradient_norm(layer, block) for block in BLOCKS}
    (left_d, right_d), (left_q, right_q) = factors[DEPLOYED], factors[QUARANTINE]
    both = deltas[DEPLOYED] > 0 and deltas[QUARANTINE] > 0
    inner = float(((right_d.T @ right_q) * (left_d @ left_q.T)).sum())
    axes = {block: _leading(*factors[block], layer.r[block]) for block in BLOCKS} if both else {}
    return ModuleDiagnostics(
        module=name,
        deployed_delta=deltas[DEPLOYED],
        quarantine_delta=deltas[QUARANTINE],
        delta_share=_share(deltas[DEPLOYED], deltas[QUARANTINE]),
        deployed_gradient=gradients[DEPLOYED],
        quarantine_gradient=gradients[QUARANTINE],
        gradient_share=_share(gradients[DEPLOYED], gradients[QUARANTINE]),
        seeded_share=_seeded_share(layer, factors, seeds),
        cosine=inner / (deltas[DEPLOYED] * deltas[QUARANTINE]) if both else NAN,
        input_overlap=_overlap(axes[DEPLOYED][1], axes[QUARANTINE][1]) if both else NAN,
        output_overlap=_overlap(axes[DEPLOYED][0], axes[QUARANTINE][0]) if both else NAN,
    )


def _share(deployed: float, quarantine: float) -> float:
    return quarantine / (deployed + quarantine) if deployed + quarantine else NAN


def _norm(left: Tensor, right: Tensor) -> float:
    return max(float(((right.T @ right) * (left @ left.T)).sum()), 0.0) ** 0.5


def _gradient_norm(layer: RoutedLayer, block: str) -> float:
    grads = [t.parameter.grad for t in layer.trainables(block) if t.parameter.grad is not None]
    return sum(float(whole_tensor(grad).double().square().sum()) for grad in grads) ** 0.5


def _seeded_share(
    layer: RoutedLayer, factors: dict[str, tuple[Tensor, Tensor]], seeds: tuple[str, int] | None
) -> float:
    if seeds is None:
        return NAN
    block, count = seeds
    axes, _ = torch.linalg.qr(layer.sources(block)[2][:count].double().T)
    left = torch.cat([factors[b][0] for b in BLOCKS])
    right = torch.cat([factors[b][1] for b in BLOCKS], dim=1)
    total = _norm(left, right)
    return (float((right @ (left @ axes)).norm()) / total) ** 2 if total else NAN


def _leading(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Orthonormal (output [d_out, rank], input [d_in, rank]) directions of the product's leading singular triples."""
    out_basis, out_core = torch.linalg.qr(right)
    in_basis, in_core = torch.linalg.qr(left.T)
    u, _, vh = torch.linalg.svd(out_core @ in_core.T)
    return out_basis @ u[:, :rank], in_basis @ vh[:rank].T


def _overlap(first: Tensor, second: Tensor) -> float:
    return float((first.T @ second).square().sum()) / first.shape[1]
