"""Rules that see a policy run away, and stop it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from vgrout_pl.callbacks.guard_rule import Action, Metrics, Rule


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
    before it, ``grad_norm`` likewise with grad_growth, and both are far above their usual: ``kl`` > kl_ratio and
    ``grad_norm`` > grad_ratio medians over the last 50 healthy steps. A spike of the divergence while the gradient is
    in its usual range does not, however it came; steps that do not measure the divergence are passed over. It only
    warns by default: what looks like it has healed more often than not.

    Args:
        action: stop, warn or off.
        steps: steps in a row before it acts; one looks at three windows already.
        kl_growth: of the divergence, from step to step.
        grad_growth: of the gradient norm, from step to step.
        kl_ratio: divergence to the reference, in medians.
        grad_ratio: gradient norm, in medians.
        healthy_steps: healthy steps needed to compare with; before them it is silent.
    """

    action: Action = "warn"
    steps: int = 1
    kl_growth: float = 2.0
    grad_growth: float = 1.5
    kl_ratio: float = 10.0
    grad_ratio: float = 4.0
    healthy_steps: int = 20

    name: ClassVar[str] = "surge"
    reads: ClassVar[tuple[str, ...]] = ("kl", "grad_norm")
    memory: ClassVar[int] = 50
    spoils: ClassVar[bool] = True
    advice: ClassVar[str] = Runaway.advice

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        for name in ("kl_growth", "grad_growth", "kl_ratio", "grad_ratio"):
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
        high = _exceeds("kl", self.kl_ratio, now, healthy) and _exceeds("grad_norm", self.grad_ratio, now, healthy)
        return grown and high

    def describe(self, now: Metrics, healthy: Sequence[Metrics]) -> str:
        """Three values of each."""
        last = [*list(healthy)[-2:], now]
        kl, norm = (", ".join(f"{metrics[name]:.3g}" for metrics in last) for name in self.reads)
        return f"KL {kl} and gradient norm {norm} in three steps"


def _median(name: str, healthy: Sequence[Metrics]) -> float | None:
    values = [metrics[name] for metrics in healthy if name in metrics]
    return median(values) if values else None


def _exceeds(name: str, ratio: float, now: Metrics, healthy: Sequence[Metrics]) -> bool:
    usual = _median(name, healthy)
    return name in now and usual is not None and now[name] > ratio * usual
