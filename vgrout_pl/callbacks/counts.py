"""Counting graded completions, and adding the counts of all processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

import torch.distributed as dist

from vgrout_pl.env import Grade

Key = TypeVar("Key", bound=Hashable)
EVENTS = ("n", "hack", "solve", "format")


class GradeCounts(Generic[Key]):
    """How many completions of each cell there were, hacked, solved and kept the format."""

    def __init__(self) -> None:
        self._counts: dict[Key, Counter] = {}

    def add(self, key: Key, grades: Iterable[Grade]) -> None:
        """Count some grades of a cell; those that the grader could not judge are left out."""
        counter = self._counts.setdefault(key, Counter())
        for grade in (grade for grade in grades if grade.error is None):
            counter.update(
                {"n": 1, "hack": grade.hacked, "solve": grade.correct, "format": grade.format_ok and grade.compiles}
            )

    def gathered(self) -> dict[Key, dict[str, int]]:
        """Counts over all processes, cells in the order in which they first came."""
        parts = [self._counts]
        if dist.is_available() and dist.is_initialized():
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._counts)
        total: dict[Key, Counter] = {}
        for part in parts:
            for key, counter in part.items():
                total.setdefault(key, Counter()).update(counter)
        return {key: {event: counter[event] for event in EVENTS} for key, counter in total.items()}
