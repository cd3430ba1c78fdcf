"""Signed contrastive seeds: the mean hack-minus-clean activation, with its sign, in one chosen block."""

from __future__ import annotations

import torch
from torch import Tensor

from vgrout_pl.adapters.inits.base import BlockFactors, InitRequest, InitStrategy, unit
from vgrout_pl.adapters.inits.linalg import top_singular

_DEGENERATE = 1e-3


def signed_axes(request: InitRequest) -> tuple[Tensor, Tensor]:
    """The k signed directions: u_in [k, d_in] and u_out [k, d_out], orthonormal each.

    u_in_1 = unit(mean Delta over group 1), u_out_1 = unit(W u_in_1); group by group, each orthogonalised against
    those before it, keeping its sign. ValueError where groups are missing or a direction vanishes.
    """
    means = _group_means(request)
    inputs = _orthogonalise(means, request.name, "the mean difference of its pairs")
    return inputs, _orthogonalise(inputs @ request.weight.T, request.name, "the weight's image of it")


def _group_means(request: InitRequest) -> Tensor:
    deltas, groups, k = request.deltas, request.groups, request.signed_directions
    if deltas is None:
        raise ValueError(f"{request.name}: expected contrastive differences; got none; pass a calibration")
    if k == 1:
        return deltas.mean(dim=0, keepdim=True)
    labels = [] if groups is None else sorted(set(groups.tolist()))
    if len(labels) != k:
        raise ValueError(
            f"signed_directions: expected pairs in {k} groups; got {len(labels)}; label the pairs or set it"
        )
    return torch.stack([deltas[(groups == label).to(deltas.device)].mean(dim=0) for label in labels])


def _orthogonalise(rows: Tensor, name: str, what: str) -> Tensor:
    done: list[Tensor] = []
    for index, row in enumerate(rows):
        rest = row
        for _ in range(2):
            for other in done:
                rest = rest - (rest @ other) * other
        if not bool(rest.norm() > 1e-6 * row.norm()):
            raise ValueError(f"{name}: signed direction {index + 1} vanishes ({what}); use other pairs or groups")
        done.append(unit(rest))
    return torch.stack(done)


def _remove(rows: Tensor, axes: Tensor) -> Tensor:
    """``rows`` without their components along the orthonormal ``axes`` (twice, for rounding)."""
    for _ in range(2):
        rows = rows - (rows @ axes.T) @ axes
    return rows


def _seeded(request: InitRequest, *, seed_quarantine: bool) -> BlockFactors:
    rank, k = request.rank, request.signed_directions
    inputs, outputs = signed_axes(request)
    available = min(2 * rank, min(request.weight.shape))
    u, _, vh = top_singular(request.weight, available)
    rows, columns = _remove(vh, inputs), _remove(u.T, outputs)
    keep = (rows.norm(dim=1) > _DEGENERATE) & (columns.norm(dim=1) > _DEGENERATE)
    rows, columns = unit(rows[keep]), unit(columns[keep])
    deployed_share = rank if seed_quarantine else rank - k
    a = [rows[:deployed_share], rows[deployed_share : 2 * rank - k]]
    b = [columns[:deployed_share], columns[deployed_share : 2 * rank - k]]
    seeded = 1 if seed_quarantine else 0
    a[seeded], b[seeded] = torch.cat([inputs, a[seeded]]), torch.cat([outputs, b[seeded]])
    return BlockFactors((a[0], b[0].T), (a[1], b[1].T))


def _scorda(request: InitRequest) -> BlockFactors:
    """Quarantine: (u_in, u_out) with its sign first; everything else top singular directions of W without them.

    The remaining rows and columns lose their u_in and u_out component and are renormalised; the deployed block gets
    the leading ones, the seeded block those after them.
    """
    return _seeded(request, seed_quarantine=True)


def _scorda_rev(request: InitRequest) -> BlockFactors:
    """The reverse control: the same signed seed in the deployed block."""
    return _seeded(request, seed_quarantine=False)


SCORDA = InitStrategy("scorda", _scorda, calibrated=True, seeded_block="quarantine")
SCORDA_REV = InitStrategy("scorda_rev", _scorda_rev, calibrated=True, seeded_block="deployed")
