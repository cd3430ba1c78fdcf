"""What a gate remembers: pooled features of the run's rollouts, bounded in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class FeatureBuffer:
    """Features [n, F] of the latest rollouts, their age in rollouts, and marks on them; the oldest give way.

    Features, not scores, are kept, so that a refreshed direction scores them all anew. Memory is allocated as rows
    come, to ``capacity`` x F numbers at most: 8,192 rollouts of 252 modules x rank 32 take 252 MiB in float32 and
    126 MiB in float16 or bfloat16; a second copy lives for as long as rows enter or are scored.

    Args:
        capacity: rollouts kept at most.
        dtype: of the stored features.
    """

    def __init__(self, capacity: int, dtype: torch.dtype):
        self.capacity, self.dtype = capacity, dtype
        self.features = torch.empty(0, 0, dtype=dtype)
        self.stamps = torch.empty(0, dtype=torch.long)
        self.marks = torch.empty(0, 2, dtype=torch.bool)
        self.seen = 0

    def __len__(self) -> int:
        return len(self.stamps)

    def bytes_when_full(self, features: int) -> int:
        """Bytes of ``capacity`` rows of so many features."""
        return self.capacity * features * self.dtype.itemsize

    def add(self, features: Tensor, marks: Tensor) -> None:
        """Let the rows of one window enter: features [n, F], marks bool [n, 2] (shows the lever, is a hack).

        Raises:
            ValueError: a feature is not finite, in itself or in the buffer's dtype.
        """
        stored = features.to(self.dtype)
        if not bool(stored.isfinite().all()):
            wide = bool(features.isfinite().all())
            raise ValueError(
                f"router: expected finite features; got {int((~stored.isfinite()).any(1).sum())} rows of {len(stored)} "
                + (f"too large for bands.storage {self.dtype}; use float32" if wide else "with NaN or infinity")
            )
        self.seen += len(stored)
        device = stored.device
        stamps = torch.full((len(stored),), self.seen, device=device)
        if not len(self):
            self.features, self.stamps, self.marks = stored, stamps, marks.to(device)
        else:
            room = max(self.capacity - len(stored), 0)
            first = max(len(self) - room, 0)
            self.features = torch.cat([self.features[first:].to(device), stored])
            self.stamps = torch.cat([self.stamps[first:].to(device), stamps])
            self.marks = torch.cat([self.marks[first:].to(device), marks.to(device)])
        if len(self) > self.capacity:
            kept = slice(len(self) - self.capacity, None)
            self.features = self.features[kept].clone()  # a view would keep the rows that give way
            self.stamps, self.marks = self.stamps[kept], self.marks[kept]

    def weights(self, halflife: float) -> Tensor:
        """``0.5 ** (age / halflife)``, float64 [n]; the age of a row is how many rows entered in later windows."""
        return torch.pow(0.5, (self.seen - self.stamps).double() / halflife)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and numbers."""
        return {"features": self.features, "stamps": self.stamps, "marks": self.marks, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring back :meth:`state_dict` bit for bit."""
        self.features = state["features"].to(self.dtype)
        self.stamps, self.marks, self.seen = state["stamps"], state["marks"], int(state["seen"])
