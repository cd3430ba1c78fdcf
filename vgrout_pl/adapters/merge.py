"""Runs a model with its blocks inside the base weights, for generation at the cost of the bare model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vgrout_pl.adapters.attach import route_state, routed_layers
from vgrout_pl.adapters.layer import RoutedLayer
from vgrout_pl.adapters.state import BLOCKS, Plan


@contextmanager
def merged(model: nn.Module, blocks: tuple[str, ...] | None = None) -> Iterator[None]:
    """Add blocks to the base weights for as long as the context lasts; no gradients inside.

    By default all blocks in force, the same for all rows: ``with ablated(model), merged(model): model.generate(..)``.
    Named blocks must be seen by all rows; rows may differ in the others, which stay beside the weights. The very
    weights come back on exit, bit for bit, also after an exception. Costs one copy of the target weights.

    Raises:
        ValueError: rows differ in a block to merge, a base weight is not fp32 (rounding would lose the update),
            sharded or shared between layers, or the model is merged already.
    """
    layers = [layer for _, layer in routed_layers(model)]
    originals: list[tuple[Tensor, Tensor]] = []
    with merge_state(model, blocks) as names:
        try:
            for layer in layers:
                weight = layer.base_weight
                originals.append((weight, weight.data))
                weight.data = merged_weight(layer, names)
            yield
        finally:
            for weight, original in originals:
                weight.data = original


@contextmanager
def merge_state(model: nn.Module, blocks: tuple[str, ...] | None) -> Iterator[tuple[str, ...]]:
    """Have the layers leave out blocks that the weights they are given hold; yields their names.

    Args:
        model: with a routed adapter.
        blocks: as :func:`merged` takes them.

    Raises:
        ValueError: as :func:`merged` does.
    """
    state = route_state(model)
    if state.merged:
        raise ValueError("the adapter is merged already: expected merged(model) once")
    if blocks is None and state.plan.rows is not None:
        raise ValueError("merged: expected one state for all rows; got rows that differ; group the rows by state")
    names = state.plan.blocks if blocks is None else blocks
    unknown = [name for name in names if name not in BLOCKS]
    if unknown:
        raise ValueError(f"merged: expected blocks out of {', '.join(BLOCKS)}; got {unknown[0]!r}")
    if blocks is not None and (state.routes is not None or any(state.without[name] is not False for name in blocks)):
        raise ValueError(
            f"merged: expected {' and '.join(blocks)} to be seen by all rows; got rows without; name others"
        )
    _check_mergeable([layer for _, layer in routed_layers(model)])
    saved = state.snapshot()
    if blocks is None:
        state.merged = BLOCKS
        state.plan = Plan(blocks=(), merged=True)
    else:
        state.merge(names)
    try:
        yield names
    finally:
        state.restore(saved)


@torch.no_grad()
def merged_weight(layer: RoutedLayer, blocks: tuple[str, ...]) -> Tensor:
    """The layer's weight [d_out, d_in] plus the update of ``blocks``, fp32; the weight itself where there are none."""
    weight = layer.base_weight.detach()
    if not blocks:
        return weight
    left, right = layer.factors(blocks, torch.float32)
    return torch.addmm(weight, right, left)


def check_not_packed(layers: list[RoutedLayer]) -> None:
    """ValueError inside :func:`~vgrout_pl.adapters.packing.packed`, where nobody reads the weights themselves."""
    if any(layer.is_packed for layer in layers):
        raise ValueError("the weights are packed already: expected packed(model) once, and merged(model) outside it")


def _check_mergeable(layers: list[RoutedLayer]) -> None:
    check_not_packed(layers)
    seen: set[int] = set()
    for layer in layers:
        weight = layer.base_weight
        if weight.dtype != torch.float32:
            raise ValueError(
                f"merged: expected a float32 base; {layer.module_name} is {str(weight.dtype).removeprefix('torch.')}, "
                "into which the update would be rounded away; generate unmerged"
            )
        if hasattr(weight, "full_tensor"):
            raise ValueError(f"merged: expected whole weights; {layer.module_name} is sharded; generate unmerged")
        if id(weight) in seen:
            raise ValueError(
                f"merged: expected separate weights; {layer.module_name} shares its own; generate unmerged"
            )
        seen.add(id(weight))
