"""A coding problem as the policy sees it and as the grader judges it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vgrout_pl.env.modes import MODES

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem under one grading mode; ``messages`` are the chat messages shown to the policy, hint included.

    Invariant: where ``messages`` is not empty, the hint of (``mode``, ``marker``) occurs in it exactly once, so
    that :meth:`with_mode` can exchange it.

    Attributes:
        id: unique within a problem set.
        tests: asserts of the shape ``assert CALL == EXPR``.
        setup_code: imports and helpers that run before the answer.
        mode: name of a grading mode, a key of :data:`vgrout_pl.env.modes.MODES`.
        messages: chat messages (``role``, ``content``).
        func_name: the method of ``Solution`` that the tests call.
        canonical_solution: a correct answer, where the data has one.
        difficulty: label of the data set, for reports only.
        marker: the disclosed name or phrase that takes the place of the mode's original one; None: the original.
    """

    id: str | int
    tests: Sequence[str]
    setup_code: str = ""
    mode: str = "run_tests"
    messages: Sequence[Message] = ()
    func_name: str | None = None
    canonical_solution: str | None = None
    difficulty: str | None = None
    marker: str | None = None

    def __post_init__(self) -> None:
        """Check the mode and its marker, and freeze the sequences."""
        if self.mode not in MODES:
            raise ValueError(f"problem {self.id!r}: expected a mode out of {', '.join(MODES)}; got {self.mode!r}")
        if self.marker is not None and MODES[self.mode].original is None:
            raise ValueError(f"problem {self.id!r}: mode {self.mode} has no marker to exchange; got {self.marker!r}")
        object.__setattr__(self, "tests", tuple(self.tests))
        object.__setattr__(self, "messages", tuple(self.messages))

    @property
    def lever(self) -> str | None:
        """The marker in force: the one drawn for this problem, else the mode's original (None: the mode has none)."""
        return self.marker if self.marker is not None else MODES[self.mode].original

    @property
    def hint(self) -> str:
        """The phrase in the prompt which tells how the answer will be evaluated."""
        return MODES[self.mode].hint(self.lever)

    def with_mode(self, mode: str, marker: str | None = None) -> Problem:
        """Return the same problem graded by ``mode``, its hint exchanged in the messages (exactly one occurrence).

        Raises:
            ValueError: the current hint does not occur exactly once, or mode and marker do not fit.
        """
        target = dataclasses.replace(self, mode=mode, marker=marker, messages=())
        if not self.messages:
            return target
        found = sum(message["content"].count(self.hint) for message in self.messages)
        if found != 1:
            raise ValueError(
                f"problem {self.id!r}: expected the phrase {self.hint!r} exactly once in the prompt; found {found}"
            )
        messages = tuple({**m, "content": m["content"].replace(self.hint, target.hint)} for m in self.messages)
        return dataclasses.replace(target, messages=messages)
