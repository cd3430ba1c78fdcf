"""What one can ask of, and do to, the two blocks of every layer: walk, decay, norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.layer import RoutedLayer, whole_tensor
from vgrout_pl.adapters.lora import RoutedLinear
from vgrout_pl.adapters.state import BLOCKS, DEPLOYED, QUARANTINE


class BlockTensors(NamedTuple):
    """One LoRA block of one module; the live tensors, not copies.

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


class TrainedTensor(NamedTuple):
    """One trainable tensor of any parametrisation, with the init that it decays to."""

    module: str
    block: str
    label: str
    parameter: Tensor
    init: Tensor


def blocks(model: nn.Module) -> Iterator[BlockTensors]:
    """Every LoRA block of every routed module, in model order, deployed first; ValueError for antipasto."""
    for name, layer in routed_layers(model):
        if not isinstance(layer, RoutedLinear):
            raise ValueError(f"blocks: expected LoRA blocks; {name} is {type(layer).__name__}; use trained_tensors")
        for block in BLOCKS:
            yield BlockTensors(name, block, *layer.block(block), layer.scaling[block])


def trained_tensors(model: nn.Module) -> Iterator[TrainedTensor]:
    """Every trainable tensor of every block, whatever the parametrisation."""
    for name, layer in routed_layers(model):
        for block in BLOCKS:
            for trainable in layer.trainables(block):
                yield TrainedTensor(name, block, *trainable)


@torch.no_grad()
def decay_toward_init(model: nn.Module, rate: float) -> None:
    """Decay every trained tensor in place, p -= rate * (p - p0); ``rate`` is learning rate times weight decay."""
    for tensor in trained_tensors(model):
        tensor.parameter.lerp_(placed_as(tensor.init, tensor.parameter), rate)


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
        inits = {id(tensor.parameter): tensor.init for tensor in trained_tensors(model)}
        for group in optimizer.param_groups:
            rate = float(group["lr"]) * weight_decay
            for parameter in group["params"]:
                if rate and id(parameter) in inits:
                    parameter.lerp_(placed_as(inits[id(parameter)], parameter), rate)

    return optimizer.register_step_post_hook(decay)


def placed_as(init: Tensor, parameter: Tensor) -> Tensor:
    """``init`` placed as a sharded ``parameter`` is; itself where the parameter is a plain tensor."""
    if not hasattr(parameter, "device_mesh"):
        return init
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(init, parameter.device_mesh, parameter.placements, src_data_rank=None)


def block_gradient_norms(model: nn.Module) -> dict[str, float]:
    """Euclidean norm of the gradients of each block over all modules; 0 where there are none."""
    squares: dict[str, list[Tensor]] = {block: [] for block in BLOCKS}
    for tensor in trained_tensors(model):
        if tensor.parameter.grad is not None:
            squares[tensor.block].append(whole_tensor(tensor.parameter.grad).double().square().sum())
    return {name: float(torch.stack(found).sum().sqrt()) if found else 0.0 for name, found in squares.items()}


def block_delta_norms(model: nn.Module) -> dict[str, float]:
    """Frobenius norm of each block's update (B A - B0 A0, or U diag(S tanh g) R V) over all modules."""
    squares = dict.fromkeys(BLOCKS, 0.0)
    for _, layer in routed_layers(model):
        for block in BLOCKS:
            squares[block] += delta_norm(layer, block) ** 2
    return {name: value**0.5 for name, value in squares.items()}


@torch.no_grad()
def delta_norm(layer: RoutedLayer, block: str) -> float:
    """Frobenius norm of one block's update, scaling included.

    From two Gram matrices as wide as the stacked rank: |right left|^2 = <right^T right, left left^T>.
    """
    left, right = layer.factors((block,), torch.float64, whole=True)
    return max(float(((right.T @ right) * (left @ left.T)).sum()), 0.0) ** 0.5


def quarantine_share(norms: dict[str, float]) -> float:
    """|Q| / (|D| + |Q|) of a pair of norms per block; NaN where both are 0."""
    total = norms[DEPLOYED] + norms[QUARANTINE]
    return norms[QUARANTINE] / total if total else float("nan")
