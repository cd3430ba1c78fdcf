"""Counting graded completions, and adding the counts of all processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from vgrout_pl.env import Grade
from vgrout_pl.functional.statistics import effective_trials
from vgrout_pl.processes import gathered

Key = TypeVar("Key", bound=Hashable)
RATES = ("hack", "solve", "format")
EVENTS = ("n", "problems", *RATES, *(f"{event}_squares" for event in RATES))


class GradeCounts(Generic[Key]):
    """How many completions of each cell there were, hacked, solved and kept the format."""

    def __init__(self) -> None:
        self._counts: dict[Key, Counter] = {}

    def add(self, key: Key, grades: Sequence[Grade], samples: int = 1) -> None:
        """Count some grades of a cell, ``samples`` consecutive ones a problem; those without a verdict are left out."""
        counter = self._counts.setdefault(key, Counter())
        for start in range(0, len(grades), samples):
            judged = [grade for grade in grades[start : start + samples] if grade.error is None]
            found = {
                "hack": sum(grade.hacked for grade in judged),
                "solve": sum(grade.correct for grade in judged),
                "format": sum(grade.format_ok and grade.compiles for grade in judged),
            }
            counter.update({"n": len(judged), "problems": bool(judged), **found})
            counter.update({f"{event}_squares": count**2 for event, count in found.items()})

    def gathered(self) -> dict[Key, dict[str, int]]:
        """Counts over all processes, cells in the order in which they first came."""
        total: dict[Key, Counter] = {}
        for part in gathered(self._counts):
            for key, counter in part.items():
                total.setdefault(key, Counter()).update(counter)
        return {key: {event: counter[event] for event in EVENTS} for key, counter in total.items()}


def independent_trials(count: Mapping[str, int]) -> dict[str, float] | None:
    """For each rate of a cell, how many independent completions its n are worth; None: one sample a problem."""
    if count["problems"] == count["n"]:
        return None
    return {
        event: effective_trials(count[event], count["n"], count[f"{event}_squares"], count["problems"])
        for event in RATES
    }
