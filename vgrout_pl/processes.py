"""What several processes of one run tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """One value a process, in the order of their ranks; a collective operation."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    parts: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts  # type: ignore[return-value]  # filled now
