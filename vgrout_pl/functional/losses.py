"""Per-token terms of the GRPO objective. Shapes: n rows, T tokens; log-ratios are [n, T], or [n, 1] for whole rows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Importance = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence"]


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Mean log-ratio of each row, log s = sum_t log r_t / |o|: [n, T] -> [n, 1]; 0 for a row without a token.

    exp of it is the length-normalised likelihood ratio (p(o) / p_old(o))^(1 / |o|).

    Source: Zheng et al. 2025 (GSPO).
    """
    total = torch.where(mask, log_ratio, 0.0).sum(1, keepdim=True)
    return total / mask.sum(1, keepdim=True).clamp_min(1)


def clipped_policy_loss(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, delta: float | None = None
) -> Tensor:
    """Clipped surrogate: L = -min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(log_ratio).

    Without ``delta`` the loss of a token with A < 0 has no bound in r: one token that is far likelier now than in the
    state that sampled it can own the whole step.

    Args:
        log_ratio: [n, T] or [n, 1], with gradient.
        advantages: [n].
        clip_low: distance of the lower bound from 1.
        clip_high: distance of the upper bound from 1.
        delta: largest ratio where the surrogate is not clipped otherwise (two-sided clip); None: no bound.

    Returns:
        shaped as ``log_ratio``, unmasked.

    Source: Schulman et al. 2017; separate bounds: Yu et al. 2025 (DAPO); delta: Prime Intellect 2025 (INTELLECT-2).
    """
    ratio = torch.exp(log_ratio)
    advantages = advantages.unsqueeze(-1)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantages, clipped * advantages)


def cispo_loss(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, clip_high: float) -> Tensor:
    """Weighted likelihood: L = -stop_gradient(min(r, 1 + clip_high)) A logp; no token loses its gradient.

    Args:
        logprobs: [n, T], with gradient.
        log_ratio: [n, T].
        advantages: [n].
        clip_high: distance of the largest weight from 1.

    Returns:
        [n, T], unmasked.

    Source: MiniMax 2025 (MiniMax-M1, CISPO; no lower bound, as used there).
    """
    weight = torch.exp(log_ratio.detach()).clamp(max=1 + clip_high)
    return -weight * advantages.unsqueeze(-1) * logprobs


@torch.no_grad()
def importance_weights(log_ratio: Tensor, mask: Tensor, mode: Importance, cap: float, level: Level = "token") -> Tensor:
    """Weights that correct for another state than the trained one having sampled, without gradient.

    w = exp(log p_trained - log p_sampled) of a token (``level="token"``) or, summed over a row's tokens, of the row.
    ``truncate``: min(w, cap); ``mask``: w where w <= cap, else 0; ``none``: 1.

    Args:
        log_ratio: [n, T], log p_trained - log p_sampled at the window's start; 0 for rows that train where they were
            sampled.
        mask: bool [n, T].
        mode: what happens above the cap.
        cap: largest weight.
        level: of a token or of a row.

    Returns:
        [n, T], or [n, 1] for rows.

    Source: truncated: Yao et al. 2025 (TIS); masked: Ling Team 2025 (IcePop).
    """
    log_ratio = torch.where(mask, log_ratio, 0.0)
    weights = torch.exp(log_ratio.sum(1, keepdim=True) if level == "sequence" else log_ratio)
    if mode == "none":
        return torch.ones_like(weights)
    return weights.clamp(max=cap) if mode == "truncate" else torch.where(weights <= cap, weights, 0.0)


def k3_divergence(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate KL(policy || reference) of one sampled token: k3 = exp(ref - logp) - (ref - logp) - 1 >= 0 (nats).

    Args:
        logprobs: [N, T], with gradient.
        reference_logprobs: [N, T], without gradient.

    Returns:
        [N, T], unmasked.

    Source: Schulman 2020, "Approximating KL divergence" (estimator k3).
    """
    gap = reference_logprobs - logprobs
    return torch.exp(gap) - gap - 1


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` where ``mask`` holds; entries outside the mask are ignored even where they are not finite."""
    return torch.where(mask.bool(), values, 0.0).sum()


@torch.no_grad()
def clip_counts(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float, delta: float | None = None
) -> dict[str, Tensor]:
    """Count the masked tokens of :func:`clipped_policy_loss` that get no gradient through their ratio.

    Args:
        log_ratio: [n, T] or [n, 1].
        advantages: [n].
        mask: bool [n, T].
        clip_low: distance of the lower bound from 1.
        clip_high: distance of the upper bound from 1.
        delta: bound on the ratio of tokens with A < 0; None: no bound.

    Returns:
        ``low`` (r < 1 - clip_low and A < 0), ``high`` (r > 1 + clip_high and A > 0), ``delta`` (r > delta and A < 0)
        and ``tokens``.
    """
    ratio = torch.exp(log_ratio)
    advantages = advantages.unsqueeze(-1)
    mask = mask.bool()
    low = (ratio < 1 - clip_low) & (advantages < 0) & mask
    high = (ratio > 1 + clip_high) & (advantages > 0) & mask
    bounded = (ratio > (torch.inf if delta is None else delta)) & (advantages < 0) & mask
    return {"low": low.sum(), "high": high.sum(), "delta": bounded.sum(), "tokens": mask.sum()}
