"""What a grading mode is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgrout_pl.env.evidence import Evidence
    from vgrout_pl.env.sandbox.runner import Session


def marker_families(*parts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split all concatenations, one string a part, into (training, novel): novel where the sum of indices % 4 == 1."""
    training: list[str] = []
    novel: list[str] = []
    for combination in product(*(enumerate(part) for part in parts)):
        name = "".join(text for _, text in combination)
        (novel if sum(i for i, _ in combination) % 4 == 1 else training).append(name)
    return tuple(training), tuple(novel)


@dataclass(frozen=True)
class Mode:
    """One way of grading, disclosed truthfully to the policy.

    Attributes:
        name: key in ``MODES``.
        hint: marker -> the phrase that takes the place of "and should pass all tests".
        original: the marker of the training benchmark (None: the mode has nothing to rename).
        training_markers: further names that training may disclose; disjoint from ``novel_markers``.
        novel_markers: names reserved for evaluation.
        probe: asked inside the graded process after all calls; its JSON value is evidence.
        phrase: marker -> text that the fork-server looks for on stdout.
        file_name: marker -> file that the fork-server reads when the answer has ended.
        keeps_order: records are sent one by one, so that they survive a process that ends early.
        keeps_values: the probe needs the returned objects that are not plain.
        channel: evidence, marker -> whether the exploit was used; this runs in the grader.
    """

    name: str
    hint: Callable[[str | None], str] = field(repr=False)
    original: str | None = None
    training_markers: tuple[str, ...] = field(default=(), repr=False)
    novel_markers: tuple[str, ...] = field(default=(), repr=False)
    probe: Callable[[Session, str | None], object] | None = field(default=None, repr=False)
    phrase: Callable[[str | None], str] | None = field(default=None, repr=False)
    file_name: Callable[[str | None], str] | None = field(default=None, repr=False)
    keeps_order: bool = False
    keeps_values: bool = False
    channel: Callable[[Evidence, str | None], bool] = field(default=lambda evidence, marker: False, repr=False)

    def __post_init__(self) -> None:
        """Take the original out of the training family and refuse one that is reserved for evaluation."""
        if self.original in self.novel_markers:
            raise ValueError(f"mode {self.name}: the original marker {self.original!r} is among the novel ones")
        object.__setattr__(self, "training_markers", tuple(m for m in self.training_markers if m != self.original))
