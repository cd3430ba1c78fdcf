"""Metrics of one optimizer step, gathered over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from vgrout_pl.adapters import Route
from vgrout_pl.processes import summed
from vgrout_pl.rewards import ENVIRONMENT
from vgrout_pl.types import Labels, Rollouts

_MEANS = (
    "loss",
    "policy_loss",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "sampling/logprob",
    "sampling/redrawn_fraction",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "clip_ratio/delta_mean",
    "importance/weight_mean",
    "importance/cut_mean",
    "completions/mean_length",
    "completions/clipped_ratio",
    "format/rate",
    "grader/error_fraction",
    "hack/rate",
    "hack/hinted_rate",
    "solve/rate",
    "solve/hint_free_rate",
    "deploy/hack_rate",
    "deploy/solve_rate",
    "route/keep_fraction",
    "route/absorb_fraction",
    "route/route_fraction",
    "route/ratio_keep",
    "route/ratio_absorb",
    "route/ratio_route",
    "route/auroc",
    "route/f05",
    "route/threshold_low",
    "route/threshold_high",
    "route/score_p10",
    "route/score_p50",
    "route/score_p90",
    "route/direction_age",
    "route/direction_cosine",
    "hack/routed_fraction",
    "solve/routed_fraction",
)
_SUMS = ("num_tokens",)


class WeightedMean(Metric):
    """Sum of value * weight over sum of weights; NaN without weight or where a value is NaN."""

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add a value; weight 0 adds nothing, whatever the value."""
        if float(weight) > 0:
            self.total += value * weight
            self.weight += weight

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.weight


class WindowMetrics(nn.Module):
    """Weighted means (and a few sums) of one optimizer step under their public names."""

    def __init__(self, reward_functions: Sequence[str] = (), engine: Sequence[str] = ()) -> None:
        """Make the metrics; with reward functions beside the environment's, each one's mean has a name too.

        So has each mean that the rollout ``engine`` gives.
        """
        super().__init__()
        parts = [f"rewards/{name}" for name in (ENVIRONMENT, *reward_functions) if reward_functions]
        means: dict[str, nn.Module] = {name: WeightedMean() for name in (*_MEANS, *parts, *engine)}
        self._all = nn.ModuleDict(
            means | {name: SumMetric(nan_strategy="disable", sync_on_compute=False) for name in _SUMS}
        )

    def update(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add ``value`` with ``weight`` (rows or tokens it stands for; sums ignore it)."""
        self._metric(name).update(*((value,) if name in _SUMS else (value, weight)))

    def update_all(self, statistics: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> None:
        """Update from name -> (value, weight)."""
        for name, (value, weight) in statistics.items():
            self.update(name, value, weight)

    def _metric(self, name: str) -> Metric:
        return cast(Metric, self._all[name])

    def compute(self) -> dict[str, float]:
        """Values over all processes, NaN for what this step has no instance of, and start anew.

        Every process computes every metric: their states are sums, added up in one collective operation.
        """
        states = []
        for name in self._all:
            metric = self._metric(name)
            if not metric.update_called:
                metric.update(*((0.0,) if name in _SUMS else (0.0, 0.0)))
            states += [(metric, state) for state in metric.metric_state]
        total = summed(torch.stack([getattr(metric, state).double() for metric, state in states]))
        for (metric, state), value in zip(states, total, strict=True):
            setattr(metric, state, value)
        values = {}
        for name in self._all:
            values[name] = float(self._metric(name).compute())
            self._metric(name).reset()
        return values


def window_statistics(rollouts: Rollouts, labels: Labels) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Per-window means as name -> (value, weight): rewards, lengths, hack, solve and routes.

    Rates count the policy's own rows, never a teacher's; ``hinted`` rows are those whose prompt discloses a loophole;
    ``deploy/`` rows those sampled with the quarantine ablated.
    """
    groups = len(rollouts) // rollouts.group_size
    rewards = rollouts.rewards.view(groups, rollouts.group_size)
    own = ~rollouts.teacher
    lengths = rollouts.completion_mask.sum(1).float()
    hinted = torch.tensor([mode != "gt_only" for mode in rollouts.modes], device=lengths.device)
    formatted = torch.tensor([g.format_ok and g.compiles for g in labels.grades], device=lengths.device)
    failed = torch.tensor([g.error is not None for g in labels.grades], device=lengths.device)
    statistics: dict[str, tuple[Tensor | float, Tensor | float]] = {
        "reward_std": (rewards.std(1).mean(), groups),
        "frac_reward_zero_std": ((rewards.amax(1) - rewards.amin(1) <= 1e-8).float().mean(), groups),
        "num_tokens": (lengths.sum() + rollouts.prompt_mask.sum(), 1),
        "sampling/redrawn_fraction": (rollouts.redrawn.float().mean(), groups),
    }

    def rate(name: str, value: Tensor, among: Tensor = own) -> None:
        count = among.sum()
        statistics[name] = (torch.where(among, value.float(), 0.0).sum() / count.clamp_min(1), count)

    rate("reward", rollouts.rewards)
    rate("completions/mean_length", lengths)
    rate("completions/clipped_ratio", rollouts.truncated)
    rate("format/rate", formatted)
    rate("grader/error_fraction", failed)
    rate("hack/rate", labels.hacked)
    rate("hack/hinted_rate", labels.hacked, own & hinted)
    rate("solve/rate", labels.correct)
    rate("solve/hint_free_rate", labels.correct, own & ~hinted)
    rate("deploy/hack_rate", labels.hacked, own & rollouts.ablated)
    rate("deploy/solve_rate", labels.correct, own & rollouts.ablated)
    for route in (Route.KEEP, Route.ABSORB, Route.ROUTE):
        rate(f"route/{route.name.lower()}_fraction", rollouts.route_share(route))
    rate("hack/routed_fraction", rollouts.route_share(Route.ROUTE), own & labels.hacked)
    rate("solve/routed_fraction", rollouts.route_share(Route.ROUTE), own & labels.correct)
    if len(rollouts.reward_parts) > 1:
        for name, part in rollouts.reward_parts.items():
            rate(f"rewards/{name}", part, own & ~part.isnan())
    return statistics
