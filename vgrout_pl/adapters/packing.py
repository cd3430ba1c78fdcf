"""Runs a model on the CPU with its weights laid out for few rows, which is how tokens are sampled.

The product of a few rows with a weight costs what reading the weight costs, and oneDNN's own layout is read faster
than a weight as it lies: 1.2 to 2 times for 8 rows (``bench/decode.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import nn

from vgrout_pl.adapters.attach import routed_layers
from vgrout_pl.adapters.merge import check_not_packed, merge_state, merged_weight
from vgrout_pl.adapters.packed_linear import PackedLinear

LEAST_WEIGHT = 2**16
"""Mean number of elements of the target weights below which a call costs more than the bytes it saves."""


def is_packable(model: nn.Module) -> bool:
    """Whether :func:`packed` can hold the model, and pays.

    That takes whole float32 or bfloat16 weights on the CPU which no autocast rounds before they are used.
    """
    weights = [layer.base_weight for _, layer in routed_layers(model)]
    return (
        all(PackedLinear.can_hold(weight) for weight in weights)
        and not torch.is_autocast_enabled("cpu")
        and sum(weight.numel() for weight in weights) >= LEAST_WEIGHT * len(weights)
    )


@contextmanager
def packed(model: nn.Module, merge: tuple[str, ...] | Literal["all"] = ()) -> Iterator[None]:
    """Multiply by packed copies of the target weights for as long as the context lasts; no gradients inside.

    The blocks ``merge`` are added to the copies as :func:`~vgrout_pl.adapters.merge.merged` adds them to the weights
    ("all": those in force, the same for all rows); the others stay beside them and may change. The weights themselves
    are not touched, and must not be changed, inside. Costs one copy of the target weights. What watches the base
    layers themselves (hooks, parametrizations) is passed by.

    Raises:
        ValueError: a weight cannot be packed or is so already, or the blocks cannot be merged.
    """
    layers = [layer for _, layer in routed_layers(model)]
    unfit = next((layer for layer in layers if not PackedLinear.can_hold(layer.base_weight)), None)
    if unfit is not None:
        raise ValueError(
            f"packed: expected whole float32 or bfloat16 weights on a CPU with oneDNN; {unfit.module_name} is "
            f"{str(unfit.base_weight.dtype).removeprefix('torch.')} on {unfit.base_weight.device}; use it unpacked"
        )
    check_not_packed(layers)
    with ExitStack() as stack:
        names: tuple[str, ...] = ()
        if merge:
            names = stack.enter_context(merge_state(model, None if merge == "all" else merge))
        try:
            for layer in layers:
                layer.pack(merged_weight(layer, names))
            yield
        finally:
            for layer in layers:
                layer.pack(None)
