"""What several processes of one run tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from vgrout_pl.adapters import adapter_state

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """One value a process, in the order of their ranks; a collective operation."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    parts: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts  # type: ignore[return-value]  # filled now


@torch.no_grad()
def agree(policy: nn.Module, device: torch.device) -> None:
    """Give every process the first one's adapter: inits computed apart may differ in their last bits.

    Collective; tensors travel by way of ``device``, the one that the processes' group works on.
    """
    for tensor in adapter_state(policy).values():
        there = tensor.to(device)
        dist.broadcast(there, src=0)
        tensor.copy_(there)
