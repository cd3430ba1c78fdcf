"""The GRPO loss over the rows of one micro-batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.functional import (
    cispo_loss,
    clipped_policy_loss,
    importance_weights,
    k3_divergence,
    masked_sum,
    sequence_log_ratio,
)
from vgrout_pl.objective.normalizer import Normalizer
from vgrout_pl.objective.options import Objective
from vgrout_pl.objective.rows import loss_mask
from vgrout_pl.types import Rollouts


class MicroBatchLoss(NamedTuple):
    """Loss of a micro-batch and what it is made of; all but ``loss`` without gradient.

    Attributes:
        loss: policy + beta * k3 - entropy_bonus * entropy, normalised; scalar with gradient.
        policy: the surrogate's share of it.
        kl: sum of k3 over the micro-batch's tokens (nats); None where the step does not measure it.
        start_logprobs: [n, T] in the training state at the start of the window, 0 outside the mask.
        log_ratio: [n, T], or [n, 1] for gspo: what the surrogate clips, or caps, the exp of.
        off_policy: [n, T] log-probabilities now minus those in the sampling state.
        weights: importance weights [n, T] or [n, 1].
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor | None
    start_logprobs: Tensor
    log_ratio: Tensor
    off_policy: Tensor
    weights: Tensor


def sampled_elsewhere(routes: Tensor, ablated: Tensor) -> Tensor:
    """Mark the rows [N] whose training forward is another than the one that sampled them.

    (route is KEEP) != ablated; for routes [N, T] of tokens, whose prompts see both blocks: any KEEP, or ablated.
    """
    if routes.dim() == 2:
        return (routes == Route.KEEP).any(1) | ablated
    return (routes == Route.KEEP) != ablated


def grpo_loss(
    objective: Objective, rows: Rollouts, logprobs: Tensor, normalizer: Normalizer, entropy: Tensor | None = None
) -> MicroBatchLoss:
    """Sum over tokens of weight * (w L + beta k3), minus entropy_bonus * mean entropy.

    With p the policy in the state of the row's route, p_start the same at the start of the window, p_sampled the state
    that sampled the row, then: L is the surrogate of p / p_sampled and w = 1 (``importance: none``), or L is the
    surrogate of p / p_start and w the capped p_start / p_sampled.

    Values outside the mask are never read. The sum over any split of the window's rows is the same.

    Args:
        objective: its options; its weights are those of step ``rows.step``.
        rows: n rows with

            - ``old_logprobs``: [n, T] log p_sampled, read of rows sampled elsewhere alone; elsewhere it is log p_start;
            - ``start_logprobs``: [n, T] log p_start from the second update of a window on; None: this is its first
              update, where they are ``logprobs``, detached;
            - ``reference_logprobs``: [n, T], or None where the step does not measure the divergence;
            - ``truncated``: bool [n], where the objective masks truncated rows.
        logprobs: [n, T] in the state of each row's route, with gradient.
        normalizer: of the whole window.
        entropy: [n, T] with gradient, where the objective has an entropy bonus.
    """
    mask = loss_mask(objective, rows)

    def clean(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0)

    logprobs = clean(logprobs)
    start = logprobs.detach() if rows.start_logprobs is None else clean(rows.start_logprobs)
    elsewhere = sampled_elsewhere(rows.routes, rows.ablated).unsqueeze(-1)
    sampled = start if rows.old_logprobs is None else torch.where(elsewhere, clean(rows.old_logprobs), start)
    assert rows.old_logprobs is not None or not elsewhere.any(), "rows sampled elsewhere need old_logprobs"

    weights = importance_weights(
        start - sampled, mask, objective.importance, objective.importance_cap, objective.importance_level
    )
    log_ratio = logprobs - (sampled if objective.importance == "none" else start)
    if objective.loss_type == "gspo":
        log_ratio = sequence_log_ratio(log_ratio, mask)
    if objective.loss_type == "cispo":
        surrogate = cispo_loss(logprobs, log_ratio, rows.advantages, objective.clip_high)
    else:
        bounds = objective.clip_low, objective.clip_high, objective.delta
        surrogate = clipped_policy_loss(log_ratio, rows.advantages, *bounds)
    shares = normalizer.weights(mask)
    policy = masked_sum(surrogate * weights * shares, mask)
    loss, kl = policy, None
    beta = objective.beta_at(rows.step)
    if rows.reference_logprobs is not None:
        k3 = k3_divergence(logprobs, clean(rows.reference_logprobs))
        if objective.unbiased_kl:
            k3 = k3 * torch.exp(log_ratio)
        kl = masked_sum(k3, mask).detach()
        loss = loss + beta * masked_sum(k3 * shares, mask) if beta else loss
    assert kl is not None or not beta, "a divergence in the loss needs reference_logprobs"
    if objective.entropy_bonus:
        assert entropy is not None and (entropy.requires_grad or not logprobs.requires_grad), "entropy with gradient"
        loss = loss - objective.entropy_bonus * masked_sum(entropy, mask) / normalizer.tokens
    return MicroBatchLoss(loss, policy.detach(), kl, start, log_ratio.detach(), (logprobs - sampled).detach(), weights)
