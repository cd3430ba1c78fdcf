"""How long the sign of a rule of the guard has stood, and what is recorded when the rule acts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vgrout_pl.callbacks.guard_rule import Metrics, Rule


@dataclass(frozen=True)
class Finding:
    """A rule that acted.

    Attributes:
        step: optimizer step whose numbers showed it.
        since: first step of the row that showed the sign.
        rule: name of the rule.
        action: "stop" or "warn".
        happened: what was seen, in a clause.
        advice: what to try.
        values: the numbers that the rule reads, at that step.
    """

    step: int
    since: int
    rule: str
    action: str
    happened: str
    advice: str
    values: Mapping[str, float]

    def __str__(self) -> str:
        steps = f"at step {self.step}" if self.since == self.step else f"at steps {self.since} to {self.step}"
        return f"{self.rule.replace('_', ' ')} {steps}: {self.happened}"

    def record(self) -> dict[str, Any]:
        """Itself as JSON data; numbers that JSON lacks as text."""
        values = {name: value if math.isfinite(value) else str(value) for name, value in self.values.items()}
        return {**asdict(self), "values": values}


class Watch:
    """One rule's state in a run: how long its sign has stood, and the healthy steps that it compares with."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self.streak = 0
        self.since = 0
        self._healthy: deque[dict[str, float]] = deque(maxlen=rule.memory)

    def observe(self, step: int, metrics: Metrics) -> Finding | None:
        """Take a step's metrics; the finding, once, at the step that completes a row."""
        sign = self.rule.sign(metrics, self._healthy)
        read = {name: metrics[name] for name in self.rule.reads if name in metrics}
        if sign is False:
            self._healthy.append(read)
        described = self.rule.describe(metrics, self._healthy) if sign else ""
        return self.count(step, sign, described, read)

    def count(self, step: int, sign: bool | None, happened: str, values: Metrics) -> Finding | None:
        """Take a step whose sign is known; None leaves the row as it is."""
        if sign is None:
            return None
        if not sign:
            self.streak = 0
            return None
        if not self.streak:
            self.since = step
        self.streak += 1
        if self.streak != self.rule.steps:
            return None
        rule = self.rule
        return Finding(step, self.since, rule.name, rule.action, happened, rule.advice, dict(values))

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"streak": self.streak, "since": self.since, "healthy": list(self._healthy)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.streak, self.since = state["streak"], state["since"]
        self._healthy = deque(state["healthy"], maxlen=self.rule.memory)
