"""The GRPO objective over the rows of one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.functional import clip_fractions, clipped_policy_loss, k3_divergence, masked_sum
from vgrout_pl.functional.advantages import RewardScale
from vgrout_pl.types import Rollouts


@dataclass(frozen=True)
class Objective:
    """The GRPO objective.

    Args:
        beta: weight of the k3 divergence to the policy without its adapter; 0: not computed.
        clip_low: lower bound of the ratio is 1 - clip_low.
        clip_high: upper bound of the ratio is 1 + clip_high.
        delta: bound on the ratio of tokens with a negative advantage (two-sided clip); matters where rows train in
            another state than they were sampled in, as routing does; null: no bound.
        reward_scale: divide advantages by no standard deviation, the group's or the batch's.
    """

    beta: float = 1e-3
    clip_low: float = 0.2
    clip_high: float = 0.2
    delta: float | None = None
    reward_scale: RewardScale = "none"

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.beta < 0 or self.clip_high < 0 or not 0 <= self.clip_low <= 1:
            raise ValueError(
                "model.objective: expected beta >= 0, clip_high >= 0 and clip_low in [0, 1]; got "
                f"{self.beta}, {self.clip_high} and {self.clip_low}"
            )
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ValueError(
                f"model.objective.delta: expected a bound above 1 + clip_high = {1 + self.clip_high:g}, or null; got "
                f"{self.delta}"
            )


class MicroBatchLoss(NamedTuple):
    """Loss of a micro-batch and what it is made of.

    Attributes:
        loss: policy + beta * kl, both over the step's constant denominator; scalar with gradient.
        policy: the surrogate's share of it, without gradient.
        kl: sum of k3 over the micro-batch's tokens (nats), without gradient.
        old_logprobs: [n, T] under each row's sampling state.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    old_logprobs: Tensor


def sampled_elsewhere(routes: Tensor, ablated: Tensor) -> Tensor:
    """Mark the rows whose training forward is another than the one that sampled them: (route is KEEP) != ablated."""
    return (routes == Route.KEEP) != ablated


def grpo_loss(objective: Objective, rows: Rollouts, logprobs: Tensor, denominator: int) -> MicroBatchLoss:
    """Sum over tokens of L + beta k3, over the constant ``denominator`` = G max_new_tokens P of the whole step.

    The log-probabilities of rows that train in the state that sampled them are their own old ones, detached.

    Args:
        objective: clip bounds and beta.
        rows: n rows, with old log-probabilities where they differ and the reference's where beta > 0.
        logprobs: [n, T] in the state of each row's route, with gradient.
        denominator: tokens.

    Source: Liu et al. 2025 (Dr. GRPO): constant normalisation, no division by lengths.
    """
    mask = rows.completion_mask
    elsewhere = sampled_elsewhere(rows.routes, rows.ablated).unsqueeze(-1) & mask
    assert rows.old_logprobs is not None
    old = torch.where(elsewhere, rows.old_logprobs, logprobs.detach())
    per_token = clipped_policy_loss(
        logprobs, old, rows.advantages, objective.clip_low, objective.clip_high, objective.delta
    )
    policy = masked_sum(per_token, mask) / denominator
    kl = torch.zeros_like(policy)
    if objective.beta:
        assert rows.reference_logprobs is not None
        kl = masked_sum(k3_divergence(logprobs, torch.where(mask, rows.reference_logprobs, 0.0)), mask)
    return MicroBatchLoss(policy + objective.beta * kl / denominator, policy.detach(), kl.detach(), old)


@torch.no_grad()
def loss_statistics(
    objective: Objective, rows: Rollouts, logprobs: Tensor, entropy: Tensor, result: MicroBatchLoss
) -> dict[str, tuple[Tensor, Tensor]]:
    """Metrics of a micro-batch's live rows as name -> (value, number of tokens it is the mean over)."""
    mask = rows.completion_mask
    tokens = mask.sum()
    old = result.old_logprobs
    clipped = clip_fractions(logprobs, old, rows.advantages, mask, objective.clip_low, objective.clip_high)
    statistics = {
        "entropy": (masked_sum(entropy, mask) / tokens, tokens),
        "sampling/logprob": (masked_sum(logprobs, mask) / tokens, tokens),
        "clip_ratio/low_mean": (clipped["low"] / tokens, tokens),
        "clip_ratio/high_mean": (clipped["high"] / tokens, tokens),
        "clip_ratio/region_mean": ((clipped["low"] + clipped["high"]) / tokens, tokens),
    }
    if objective.beta:
        statistics["kl"] = (result.kl / tokens, tokens)
    ratio = torch.exp(logprobs - old)
    for route in (Route.KEEP, Route.ABSORB, Route.ROUTE):
        chosen = mask & (rows.routes == route).unsqueeze(-1)
        count = chosen.sum()
        statistics[f"route/ratio_{route.name.lower()}"] = (masked_sum(ratio, chosen) / count.clamp_min(1), count)
    return statistics
