"""What a rule of the guard is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

Action = Literal["stop", "warn", "off"]
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """A sign in the metrics of one step that matters once it has stood for ``steps`` steps in a row.

    Args:
        action: stop the run, warn (on the console, in guard.json and in the report), or off.
        steps: steps in a row that show the sign before the rule acts.
    """

    action: Action = "warn"
    steps: int = 10

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    memory: ClassVar[int] = 0
    spoils: ClassVar[bool] = False
    advice: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        self._check("action", self.action in get_args(Action), " | ".join(get_args(Action)))
        self._check("steps", self.steps >= 1, "at least 1")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"guard.{self.name}.{name}: expected {expected}; got {getattr(self, name)!r}")

    def sign(self, now: Metrics, healthy: Sequence[Metrics]) -> bool | None:
        """Whether this step shows the sign; None where its metrics do not say.

        Args:
            now: the step's metrics, those without a value left out.
            healthy: what the rule reads of the last ``memory`` steps that did not show the sign.
        """
        raise NotImplementedError

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """Say what is seen, in a clause."""
        raise NotImplementedError
