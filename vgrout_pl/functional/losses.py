"""Per-token terms of the GRPO objective."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    delta: float | None = None,
) -> Tensor:
    """Clipped surrogate of one token: L = -min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A).

    r = exp(logp - logp_old). Without ``delta`` the loss of a token with A < 0 has no bound in r: one token that is far
    likelier now than in the state that sampled it can own the whole step.

    Args:
        logprobs: [N, T] under the policy, with gradient.
        old_logprobs: [N, T] under the state in which each row was sampled, without gradient.
        advantages: [N].
        clip_low: distance of the lower bound from 1.
        clip_high: distance of the upper bound from 1.
        delta: largest ratio where the surrogate is not clipped otherwise (two-sided clip); None: no bound.

    Returns:
        [N, T], unmasked.

    Source: Schulman et al. 2017; separate bounds: Yu et al. 2025 (DAPO); delta: Prime Intellect 2025 (INTELLECT-2).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    advantages = advantages.unsqueeze(-1)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantages, clipped * advantages)


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
def clip_fractions(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> dict[str, Tensor]:
    """Count the masked tokens whose clipped branch is the active one.

    Returns:
        ``low`` (r < 1 - clip_low and A < 0), ``high`` (r > 1 + clip_high and A > 0) and ``tokens``, as counts.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    advantages = advantages.unsqueeze(-1)
    mask = mask.bool()
    low = (ratio < 1 - clip_low) & (advantages < 0) & mask
    high = (ratio > 1 + clip_high) & (advantages > 0) & mask
    return {"low": low.sum(), "high": high.sum(), "tokens": mask.sum()}
