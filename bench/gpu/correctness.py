"""Part a: in bfloat16, are routed gradients those of the rows alone, is ablation exact, does an export load back?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from shape import Scale
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from vgrout_pl.adapters import (
    Route,
    RoutedLoraConfig,
    ablated,
    attach_routed_adapter,
    blocks,
    export_deployed,
    reference_policy,
    routed,
)

ROUTES = (Route.NONE, Route.KEEP, Route.ABSORB, Route.ROUTE)
ROUNDING = 0.03
"""Largest relative difference that sums of bfloat16 products in another order may make."""


def correctness(folder: Path, scale: Scale, device: torch.device) -> list[dict[str, Any]]:
    """Run every check; each gives a figure, its bound and whether it holds."""
    base = _load(folder, device)
    ids = torch.randint(5, 400, (len(ROUTES), 64), generator=torch.Generator().manual_seed(1)).to(device)
    bare = _logits(base, ids)
    model = attach_routed_adapter(base, RoutedLoraConfig(r=scale.rank))
    perturb(model)
    found = [*_gradients(model, ids), *_states(model, ids, bare)]
    with ablated(model):
        deployed = _logits(model, ids)
    with tempfile.TemporaryDirectory() as export:
        export_deployed(model, export)
        loaded = PeftModel.from_pretrained(_load(folder, device), export)
        found.append(
            _row(
                "export loaded by PEFT, logits against the ablated model",
                _apart(_logits(loaded, ids), deployed),
                ROUNDING,
            )
        )
    return found


def _load(folder: Path, device: torch.device) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def _logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    out: Tensor = model(input_ids=ids, use_cache=False).logits
    return out


@torch.no_grad()
def perturb(model: PeftModel) -> None:
    """Move both blocks away from their init, by a tenth of each tensor's spread."""
    generator = torch.Generator(device=next(blocks(model)).A.device).manual_seed(2)
    for block in blocks(model):
        for tensor in (block.A, block.B):
            noise = torch.randn(tensor.shape, generator=generator, device=tensor.device)
            tensor.add_(0.1 * tensor.std() * noise)


def _gradients(model: PeftModel, ids: Tensor) -> list[dict[str, Any]]:
    """A batch with one row of each route against its rows one by one."""
    mixed = _gradient(model, ids, ROUTES)
    alone = [_gradient(model, ids[i : i + 1], (route,)) for i, route in enumerate(ROUTES)]
    summed = {name: sum(part[name] for part in alone[1:]) + alone[0][name] for name in mixed}
    whole = _apart(*(torch.cat([part[name].flatten() for name in mixed]) for part in (mixed, summed)))
    worst = max(_apart(mixed[name], summed[name]) for name in mixed)
    kept = max(float(value.abs().max()) for name, value in alone[1].items() if name[1] == "quarantine")
    sent = max(float(value.abs().max()) for name, value in alone[3].items() if name[1] == "deployed")
    return [
        _row("gradient of a mixed batch against its rows one by one", whole, ROUNDING),
        {**_row("the same, the worst of its tensors (told, not bounded)", worst, None), "holds": True},
        _row("quarantine's gradient of a keep row", kept, 0.0),
        _row("deployed block's gradient of a route row", sent, 0.0),
    ]


def _gradient(model: PeftModel, ids: Tensor, routes: tuple[Route, ...]) -> dict[tuple[str, str, str], Tensor]:
    model.zero_grad(set_to_none=True)
    with routed(model, torch.tensor(routes)):
        logits = model(input_ids=ids, use_cache=False).logits.float()
        logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        logprobs.mean((1, 2)).sum().backward()
    found = {}
    for block in blocks(model):
        for label, tensor in (("A", block.A), ("B", block.B)):
            assert tensor.grad is not None
            found[block.module, block.block, label] = tensor.grad.clone()
    return found


def _states(model: PeftModel, ids: Tensor, bare: Tensor) -> list[dict[str, Any]]:
    """The reference is the bare base, and states leave nothing behind, bit for bit; ablation is a reset to the init."""
    before = _logits(model, ids)
    with reference_policy(model):
        reference = _logits(model, ids)
    with ablated(model):
        deployed = _logits(model, ids)
    after = _logits(model, ids)
    saved = [(b.A.clone(), b.B.clone()) for b in blocks(model) if b.block == "quarantine"]
    with torch.no_grad():
        for block in blocks(model):
            if block.block == "quarantine":
                block.A.copy_(block.A0)
                block.B.copy_(block.B0)
        reset = _logits(model, ids)
        for block, (a, b) in zip((b for b in blocks(model) if b.block == "quarantine"), saved, strict=True):
            block.A.copy_(a)
            block.B.copy_(b)
    return [
        _row("reference against the bare base, different logits", float((reference != bare).sum()), 0.0),
        _row("as trained before and after an ablation, different logits", float((before != after).sum()), 0.0),
        _row("ablated against a quarantine reset to its init", _apart(deployed, reset), ROUNDING),
        _row("ablated against as trained (must differ)", _apart(deployed, before), None),
    ]


def _apart(a: Tensor, b: Tensor) -> float:
    """Euclidean distance over the norm of ``b``."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30))


def _row(check: str, figure: float, bound: float | None) -> dict[str, Any]:
    holds = figure <= bound if bound is not None else figure > 0
    return {"part": "correctness", "check": check, "figure": figure, "bound": bound, "holds": holds}
