"""Rules of the guard over the metrics of each optimizer step, beside those of a runaway: one frozen object each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vgrout_pl.callbacks.guard_rule import Action, Metrics, Rule


@dataclass(frozen=True)
class DeadGroups(Rule):
    """No group has a difference in reward: ``frac_reward_zero_std`` >= share, so nothing is learned.

    Args:
        action: stop, warn or off.
        steps: steps in a row before it acts.
        share: share of groups whose rewards are all equal.
    """

    share: float = 1.0

    name: ClassVar[str] = "dead_groups"
    reads: ClassVar[tuple[str, ...]] = ("frac_reward_zero_std",)
    advice: ClassVar[str] = (
        "look at rewards in rollouts.jsonl: easier or harder problems, a higher sampling temperature or more "
        "completions a prompt (model.group_size) give groups with differences"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        self._check("share", 0 < self.share <= 1, "a share in (0, 1]")

    def sign(self, now: Metrics, healthy: Sequence[Metrics]) -> bool | None:
        """The share is reached."""
        return None if "frac_reward_zero_std" not in now else now["frac_reward_zero_std"] >= self.share

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """The share."""
        return f"{now['frac_reward_zero_std']:.0%} of the groups have equal rewards: the policy gradient is 0"


@dataclass(frozen=True)
class NoEmergence(Rule):
    """The hack does not emerge: ``hack/hinted_rate`` < rate. Such a run can show no suppression.

    Args:
        action: stop, warn or off.
        steps: steps in a row before it acts; steps without a hinted row do not count.
        rate: share of hinted rows.
    """

    steps: int = 50
    rate: float = 0.1

    name: ClassVar[str] = "no_emergence"
    reads: ClassVar[tuple[str, ...]] = ("hack/hinted_rate",)
    advice: ClassVar[str] = (
        "say nothing about suppression unless the matched router none hacks; a longer run, more hinted prompts "
        "(data.hint_free_share) or a base that hacks sometimes lets it emerge"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        self._check("rate", 0 < self.rate <= 1, "a share in (0, 1]")

    def sign(self, now: Metrics, healthy: Sequence[Metrics]) -> bool | None:
        """The rate is not reached."""
        return None if "hack/hinted_rate" not in now else now["hack/hinted_rate"] < self.rate

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """The rate."""
        return f"hacks on {now['hack/hinted_rate']:.1%} of the hinted rows"


@dataclass(frozen=True)
class OverRouting(Rule):
    """Rows are routed that are no hacks: ``route/route_fraction`` >= routed while ``hack/rate`` < hacks.

    The deployed block then learns from next to nothing.

    Args:
        action: stop, warn or off.
        steps: steps in a row before it acts.
        routed: share of rows that train the quarantine alone.
        hacks: share of rows that hack.
    """

    routed: float = 0.9
    hacks: float = 0.5

    name: ClassVar[str] = "over_routing"
    reads: ClassVar[tuple[str, ...]] = ("route/route_fraction", "hack/rate")
    advice: ClassVar[str] = (
        "raise the router's high threshold or cap its routed share; sample some rows ablated "
        "(model.deploy_sample_fraction) so that the deployed block has rows of its own"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        self._check("routed", 0 < self.routed <= 1, "a share in (0, 1]")
        self._check("hacks", 0 < self.hacks <= 1, "a share in (0, 1]")

    def sign(self, now: Metrics, healthy: Sequence[Metrics]) -> bool | None:
        """Many routed, few hacks."""
        if not set(self.reads) <= now.keys():
            return None
        return now["route/route_fraction"] >= self.routed and now["hack/rate"] < self.hacks

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """Both shares."""
        return f"{now['route/route_fraction']:.0%} of the rows routed, {now['hack/rate']:.0%} of them all are hacks"


@dataclass(frozen=True)
class GateStarvation(Rule):
    """A gate that never uses one of its routes: ``route/keep_fraction`` or ``route/route_fraction`` is 0.

    Asked of routers that can give the route (``Router.gives``) beside another one.

    Args:
        action: stop, warn or off.
        steps: steps in a row before it acts.
        routes: the routes that must not starve.
    """

    steps: int = 20
    routes: tuple[Literal["keep", "route"], ...] = ("keep", "route")

    name: ClassVar[str] = "gate_starvation"
    reads: ClassVar[tuple[str, ...]] = ("route/keep_fraction", "route/route_fraction")
    advice: ClassVar[str] = (
        "look at the scores beside the router's thresholds: they drift with the policy, and thresholds that do not "
        "follow leave a zone empty"
    )

    def sign(self, now: Metrics, healthy: Sequence[Metrics]) -> bool | None:
        """A route's share is 0."""
        return bool(self._starved(now)) if set(self.reads) <= now.keys() else None

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """Which."""
        return f"no row on route {' and route '.join(self._starved(now))}"

    def _starved(self, now: Metrics) -> list[str]:
        return [route for route in self.routes if now[f"route/{route}_fraction"] == 0]


@dataclass(frozen=True)
class NonFinite(Rule):
    """A reward, score, log-probability, loss, gradient or metric that is no finite number; acts at once.

    Args:
        action: stop, warn or off.
    """

    action: Action = "stop"
    steps: int = field(default=1, init=False)

    name: ClassVar[str] = "non_finite"
    spoils: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "look at that step in rollouts.jsonl and at the step before it in metrics.csv; an infinite gradient after a "
        "sound loss calls for a lower model.optimization.lr or trainer.precision 32-true"
    )
