"""Options of the GRPO objective, each with one effect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vgrout_pl.functional.advantages import RewardScale
from vgrout_pl.functional.losses import Importance, Level

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"]
Baseline = Literal["group", "state"]


@dataclass(frozen=True)
class Objective:
    """The GRPO objective.

    Args:
        loss_type: surrogate and length normalisation. The clipped surrogate of each token, as a mean over all tokens
            that could have been sampled (dr_grpo: rows x max_new_tokens, constant), over each row's tokens and then
            over rows (grpo), over the active tokens of the whole step (dapo) or of one process (bnpo); the clipped
            surrogate of each row's length-normalised ratio, as a mean over rows (gspo; meant for bounds near 3e-4);
            likelihoods weighted by the ratio, at most 1 + clip_high and without gradient, over the active tokens of
            the whole step (cispo; meant for clip_high near 4).
        reward_scale: divide advantages by no standard deviation, the group's or the step's.
        baseline: subtract the mean reward of the group, or of the group's rows sampled in the same state (ablated or as
            trained; a row alone in its state keeps the group); the group's standard deviation is over the same rows.
        clip_low: lower bound of the ratio is 1 - clip_low; cispo has none.
        clip_high: upper bound of the ratio is 1 + clip_high.
        delta: bound on the ratio of tokens with a negative advantage (two-sided clip); matters where rows train in
            another state than they were sampled in, as routing does; null: no bound.
        importance: rows that train in another state than they were sampled in; none: their ratio is taken to the
            sampling state, and clipped; truncate, mask: it is taken to the training state at the start of the window,
            and their policy loss is weighted by p_trained / p_sampled, cut at the cap or set to 0 above it.
        importance_cap: largest importance weight.
        importance_level: weights of tokens, or of whole rows (the product over their tokens).
        beta: weight of the k3 divergence to the policy without its adapter; at the first step, where it has an end.
        beta_end: its weight after beta_steps steps, reached linearly; null: constant.
        beta_steps: steps from beta to beta_end.
        unbiased_kl: multiply k3 by the ratio that the surrogate clips, unclipped and with its gradient, so that its
            mean gradient is the divergence's own (TRL's use_bias_correction_kl; Liu et al. 2025, DeepSeek-V3.2).
        kl_every: measure the divergence at every n-th step even where its weight is 0; 0: only where it is not.
        kl_constant_groups: rows without reward differences to compare keep their k3 (and entropy) term.
        entropy_bonus: weight of the mean entropy of the step's tokens (nats), which the loss rewards.
        mask_truncated: completions cut off at max_new_tokens carry no loss and no tokens of its denominators.
    """

    loss_type: LossType = "dr_grpo"
    reward_scale: RewardScale = "none"
    baseline: Baseline = "group"
    clip_low: float = 0.2
    clip_high: float = 0.2
    delta: float | None = None
    importance: Importance = "none"
    importance_cap: float = 2.0
    importance_level: Level = "token"
    beta: float = 1e-3
    beta_end: float | None = None
    beta_steps: int = 0
    unbiased_kl: bool = False
    kl_every: int = 0
    kl_constant_groups: bool = False
    entropy_bonus: float = 0.0
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        choices = {
            "loss_type": LossType,
            "reward_scale": RewardScale,
            "baseline": Baseline,
            "importance": Importance,
            "importance_level": Level,
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(
                    f"model.objective.{name}: expected {' | '.join(get_args(choice))}; got {getattr(self, name)!r}"
                )
        upper = 1 + self.clip_high
        ends = self.beta_end is not None
        checks = {
            "clip_low": (0 <= self.clip_low <= 1, "a distance in [0, 1]"),
            "clip_high": (0 <= self.clip_high < math.inf, "a distance of at least 0"),
            "delta": (self.delta is None or self.delta > upper, f"a bound above 1 + clip_high = {upper:g}, or null"),
            "importance_cap": (0 < self.importance_cap < math.inf, "a weight above 0"),
            "beta": (0 <= self.beta < math.inf, "a weight of at least 0"),
            "beta_end": (not ends or 0 <= (self.beta_end or 0) < math.inf, "a weight of at least 0, or null"),
            "beta_steps": (
                self.beta_steps >= 1 if ends else self.beta_steps == 0,
                "at least 1 step with beta_end, else 0",
            ),
            "kl_every": (self.kl_every >= 0, "a number of steps, or 0"),
            "entropy_bonus": (0 <= self.entropy_bonus < math.inf, "a weight of at least 0"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"model.objective.{name}: expected {expected}; got {getattr(self, name)}")

    def beta_at(self, step: int) -> float:
        """Weight of the divergence at optimizer step ``step``: beta + (beta_end - beta) min(1, step / beta_steps)."""
        if self.beta_end is None:
            return self.beta
        done = min(1.0, step / self.beta_steps)
        return (1 - done) * self.beta + done * self.beta_end

    def measures_kl(self, step: int, updates: int = 1) -> bool:
        """Whether one of ``updates`` steps from ``step`` on needs the reference's log-probabilities.

        For the loss, or for their own sake.
        """
        steps = range(step, step + updates)
        return any(self.beta_at(s) > 0 or (self.kl_every > 0 and s % self.kl_every == 0) for s in steps)
