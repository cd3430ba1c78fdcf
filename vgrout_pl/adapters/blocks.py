"""What one can ask of, and do to, the two blocks of every layer: walk, decay, norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE


class BlockTensors(NamedTuple):
    """One block of one module; the live tensors, not copies.

    Attributes:
        module: the module's name in the bare model.
        block: ``deployed`` or ``quarantine``.
        A: trainable [r, d_in].
        B: trainable [d_out, r].
        A0: frozen init of A.
        B0: frozen init of B.
        scaling: PEFT's factor on the update.
    """

    module: str
    block: str
    A: Tensor
    B: Tensor
    A0: Tensor
    B0: Tensor
    scaling: float


def blocks(model: nn.Module) -> Iterator[BlockTensors]:
    """Every block of every routed module, in model order, deployed first."""
    for name, layer in routed_layers(model):
        for block in BLOCKS:
            yield BlockTensors(name, block, *layer.block(block), layer.scaling[block])


@torch.no_grad()
def decay_toward_init(model: nn.Module, rate: float) -> None:
    """Decay every A and B in place, p -= rate * (p - p0); ``rate`` is learning rate times weight decay."""
    for block in blocks(model):
        block.A.lerp_(_placed_as(block.A0, block.A), rate)
        block.B.lerp_(_placed_as(block.B0, block.B), rate)


def install_decay_toward_init(optimizer: torch.optim.Optimizer, model: nn.Module, weight_decay: float) -> Any:
    """Decay toward the init after every step of ``optimizer``: p -= lr * weight_decay * (p - p0), lr per group.

    Returns the handle of the hook (``.remove()``). ValueError where the optimizer decays by itself toward zero.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay: expected a number >= 0; got {weight_decay!r}")
    if any(group.get("weight_decay", 0.0) for group in optimizer.param_groups):
        raise ValueError("optimizer: expected weight_decay 0 (toward zero drives the update to -B0 A0); got another")

    @torch.no_grad()
    def decay(optimizer: torch.optim.Optimizer, *_: object) -> None:
        inits = {id(p): p0 for b in blocks(model) for p, p0 in ((b.A, b.A0), (b.B, b.B0))}
        for group in optimizer.param_groups:
            rate = float(group["lr"]) * weight_decay
            for parameter in group["params"]:
                if rate and id(parameter) in inits:
                    parameter.lerp_(_placed_as(inits[id(parameter)], parameter), rate)

    return optimizer.register_step_post_hook(decay)


def _placed_as(init: Tensor, parameter: Tensor) -> Tensor:
    """``init`` placed as a sharded ``parameter`` is; itself where the parameter is a plain tensor."""
    if not hasattr(parameter, "device_mesh"):
        return init
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(init, parameter.device_mesh, parameter.placements, src_data_rank=None)


def block_gradient_norms(model: nn.Module) -> dict[str, float]:
    """Euclidean norm of the gradients of each block over all modules; 0 where there are none."""
    squares = dict.fromkeys(BLOCKS, torch.zeros((), dtype=torch.float64))
    for block in blocks(model):
        for parameter in (block.A, block.B):
            if parameter.grad is not None:
                squares[block.block] = squares[block.block] + _whole(parameter.grad).double().square().sum().cpu()
    return {name: float(value.sqrt()) for name, value in squares.items()}


def block_delta_norms(model: nn.Module) -> dict[str, float]:
    """Frobenius norm of each block's update B A - B0 A0 over all modules, times PEFT's scaling."""
    squares = dict.fromkeys(BLOCKS, 0.0)
    for block in blocks(model):
        squares[block.block] += delta_norm(block) ** 2
    return {name: value**0.5 for name, value in squares.items()}


@torch.no_grad()
def delta_norm(block: BlockTensors) -> float:
    """Frobenius norm of scaling * (B A - B0 A0), from two [2r, 2r] Gram matrices: |R L|^2 = <R^T R, L L^T>."""
    a, b = _whole(block.A).double(), _whole(block.B).double()
    a0, b0 = block.A0.double(), block.B0.double()
    left, right = torch.cat([a, a - a0]), torch.cat([b - b0, b0], dim=1)
    square = float(((right.T @ right) * (left @ left.T)).sum())
    return abs(block.scaling) * max(square, 0.0) ** 0.5


def quarantine_share(norms: dict[str, float]) -> float:
    """|Q| / (|D| + |Q|) of a pair of norms per block; NaN where both are 0."""
    total = norms[DEPLOYED] + norms[QUARANTINE]
    return norms[QUARANTINE] / total if total else float("nan")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
