"""Group-relative advantages."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RewardScale = Literal["none", "group", "batch"]


def constant_groups(rewards: Tensor, group_size: int, tolerance: float = 1e-8) -> Tensor:
    """Mark the rows of groups whose rewards are all equal: they carry no policy gradient.

    Args:
        rewards: [N], groups of ``group_size`` consecutive rows.
        group_size: G.
        tolerance: largest spread (reward units) that counts as equal.

    Returns:
        bool [N].
    """
    grouped = rewards.view(-1, group_size)
    spread = grouped.amax(1) - grouped.amin(1)
    return (spread <= tolerance).repeat_interleave(group_size)


def group_advantages(rewards: Tensor, group_size: int, scale: RewardScale = "none", eps: float = 1e-4) -> Tensor:
    """Advantage of a completion over its group: A = R - mean_group(R), optionally divided by a standard deviation.

    ``scale="none"`` is Dr. GRPO; ``"group"`` divides by std_group + eps (GRPO); ``"batch"`` by the std over all N
    rows + eps. Standard deviations are unbiased (n - 1), as in TRL.

    Args:
        rewards: [N], groups of ``group_size`` consecutive rows.
        group_size: G >= 2.
        scale: what to divide by.
        eps: added to the divisor (reward units).

    Returns:
        [N]; exactly 0 for the rows of a constant group.

    Source: Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr. GRPO: no division).
    """
    if group_size < 2 or rewards.numel() % group_size:
        raise ValueError(
            f"group_size: expected at least 2 and a divisor of the {rewards.numel()} rewards; got {group_size}"
        )
    grouped = rewards.view(-1, group_size)
    advantages = grouped - grouped.mean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (grouped.std(1, keepdim=True) + eps)
    elif scale == "batch":
        advantages = advantages / (rewards.std() + eps)
    elif scale != "none":
        raise ValueError(f"scale: expected none, group or batch; got {scale!r}")
    return torch.where(constant_groups(rewards, group_size), 0.0, advantages.flatten())
