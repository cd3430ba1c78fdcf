"""Rules of the guard over the metrics of each optimizer step: one frozen object each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
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


@dataclass(frozen=True)
class Runaway(Rule):
    """The policy runs away: log-probability far down, with a high gradient norm or divergence.

    A step shows it where ``sampling/logprob`` < min(logprob, logprob_ratio m) and either ``grad_norm`` > grad_ratio m
    or ``kl`` > kl_ratio m; each m is that metric's median over the run's own last 50 healthy steps. Absolute levels of
    the gradient norm and the divergence mean nothing, and single spikes heal.

    Args:
        action: stop, warn or off.
        steps: steps in a row before it acts.
        grad_ratio: gradient norm, in medians.
        kl_ratio: divergence to the reference, in medians; not asked where a step does not measure it.
        logprob: mean log-probability of the sampled tokens (nats).
        logprob_ratio: the same, in medians.
        healthy_steps: healthy steps needed to compare with; before them it is silent.
    """

    action: Action = "stop"
    steps: int = 2
    grad_ratio: float = 4.0
    kl_ratio: float = 2.0
    logprob: float = -0.6
    logprob_ratio: float = 1.5
    healthy_steps: int = 3

    name: ClassVar[str] = "runaway"
    reads: ClassVar[tuple[str, ...]] = ("sampling/logprob", "grad_norm", "kl")
    memory: ClassVar[int] = 50
    spoils: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "resume from there with a third of model.optimization.lr (--allow_changed '[model.optimization.lr]'), or start "
        "anew with more rollouts a step (data.prompts_per_step)"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        for name in ("grad_ratio", "kl_ratio", "logprob_ratio"):
            self._check(name, getattr(self, name) >= 1, "a multiple of the median, at least 1")
        self._check("logprob", self.logprob <= 0, "a log-probability, at most 0")
        self._check("healthy_steps", 1 <= self.healthy_steps <= self.memory, f"1 to {self.memory}")

    def sign(self, now: Metrics, healthy: Sequence[Metrics]) -> bool | None:
        """Low log-probability with a high gradient norm or divergence."""
        if "sampling/logprob" not in now:
            return None
        if len(healthy) < self.healthy_steps:
            return False
        low = min(self.logprob, self.logprob_ratio * (_median("sampling/logprob", healthy) or 0.0))
        return now["sampling/logprob"] < low and (
            _exceeds("grad_norm", self.grad_ratio, now, healthy) or _exceeds("kl", self.kl_ratio, now, healthy)
        )

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """Values beside their medians."""
        texts = {"sampling/logprob": "mean log-probability", "kl": "KL", "grad_norm": "gradient norm"}
        parts = []
        for key, text in texts.items():
            usual = _median(key, healthy)
            if key in now and usual is not None:
                parts.append(f"{text} {now[key]:.3g} (usually {usual:.3g})")
        return ", ".join(parts)


@dataclass(frozen=True)
class Surge(Rule):
    """The divergence surges before the policy shows it: twice in a row it multiplies, and the gradient with it.

    A step shows it where ``kl`` > kl_growth times that of the step before, that > kl_growth times that of the one
    before it, ``grad_norm`` likewise with grad_growth, and ``kl`` > kl_ratio medians over the last 50 healthy steps.
    A spike from one step to the next does not; steps that do not measure the divergence are passed over.

    Args:
        action: stop, warn or off.
        steps: steps in a row before it acts; one looks at three windows already.
        kl_growth: of the divergence, from step to step.
        grad_growth: of the gradient norm, from step to step.
        kl_ratio: divergence to the reference, in medians.
        healthy_steps: healthy steps needed to compare with; before them it is silent.
    """

    action: Action = "stop"
    steps: int = 1
    kl_growth: float = 2.0
    grad_growth: float = 1.5
    kl_ratio: float = 10.0
    healthy_steps: int = 8

    name: ClassVar[str] = "surge"
    reads: ClassVar[tuple[str, ...]] = ("kl", "grad_norm")
    memory: ClassVar[int] = 50
    spoils: ClassVar[bool] = True
    advice: ClassVar[str] = Runaway.advice

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        for name in ("kl_growth", "grad_growth", "kl_ratio"):
            self._check(name, getattr(self, name) >= 1, "a factor of at least 1")
        self._check("healthy_steps", 2 <= self.healthy_steps <= self.memory, f"2 to {self.memory}")

    def sign(self, now: Metrics, healthy: Sequence[Metrics]) -> bool | None:
        """Both have multiplied twice."""
        if not set(self.reads) <= now.keys():
            return None
        if len(healthy) < self.healthy_steps:
            return False
        first, second = healthy[-2], healthy[-1]
        grown = all(
            later[name] > factor * earlier[name]
            for earlier, later in ((first, second), (second, now))
            for name, factor in (("kl", self.kl_growth), ("grad_norm", self.grad_growth))
        )
        return grown and _exceeds("kl", self.kl_ratio, now, healthy)

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """Three values of each."""
        last = [*list(healthy)[-2:], now]
        kl, norm = (", ".join(f"{metrics[name]:.3g}" for metrics in last) for name in self.reads)
        return f"KL {kl} and gradient norm {norm} in three steps"


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


def _median(name: str, healthy: Sequence[Metrics]) -> float | None:
    values = [metrics[name] for metrics in healthy if name in metrics]
    return median(values) if values else None


def _exceeds(name: str, ratio: float, now: Metrics, healthy: Sequence[Metrics]) -> bool:
    usual = _median(name, healthy)
    return name in now and usual is not None and now[name] > ratio * usual
