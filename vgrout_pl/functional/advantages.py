"""Group-relative advantages."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RewardScale = Literal["none", "group", "batch"]


def comparison_sets(rows: int, group_size: int, states: Tensor | None = None) -> Tensor:
    """Say which rows each row's reward is compared with: bool [P, G, G], the row itself included.

    Without ``states`` it is the whole group. With them (bool [N], the sampling states) it is the rows of the group that
    share the row's state; a row that is alone in its state has nothing to be compared with there and is compared with
    the whole group.

    Raises:
        ValueError: ``group_size`` is below 2 or does not divide ``rows``.
    """
    if group_size < 2 or rows % group_size:
        raise ValueError(f"group_size: expected at least 2 and a divisor of the {rows} rewards; got {group_size}")
    if states is None:
        return torch.ones(rows // group_size, group_size, group_size, dtype=torch.bool)
    grouped = states.view(-1, group_size)
    same = grouped.unsqueeze(2) == grouped.unsqueeze(1)
    return same | (same.sum(2, keepdim=True) < 2)


def constant_groups(rewards: Tensor, group_size: int, tolerance: float = 1e-8, states: Tensor | None = None) -> Tensor:
    """Mark the rows whose comparison set has one reward: they carry no policy gradient.

    Args:
        rewards: [N], groups of ``group_size`` consecutive rows.
        group_size: G.
        tolerance: largest spread (reward units) that counts as equal.
        states: bool [N], compare within each group's sampling states; None: within groups.

    Returns:
        bool [N].
    """
    sets = comparison_sets(len(rewards), group_size, states).to(rewards.device)
    values = rewards.view(-1, 1, group_size)
    highest = values.masked_fill(~sets, -torch.inf).amax(2)
    lowest = values.masked_fill(~sets, torch.inf).amin(2)
    return (highest - lowest <= tolerance).flatten()


def group_advantages(
    rewards: Tensor,
    group_size: int,
    scale: RewardScale = "none",
    eps: float = 1e-4,
    states: Tensor | None = None,
    batch_rewards: Tensor | None = None,
) -> Tensor:
    """Advantage of a completion over its comparison set S: A = R - mean_S(R), optionally over a standard deviation.

    ``scale="none"`` is Dr. GRPO; ``"group"`` divides by std_S + eps (GRPO); ``"batch"`` by the std over all rows of
    the step + eps. Standard deviations are unbiased (n - 1), as in TRL. S is the row's group, or with ``states`` the
    rows of its group that were sampled in the same state (:func:`comparison_sets`).

    Args:
        rewards: [N], groups of ``group_size`` consecutive rows.
        group_size: G >= 2.
        scale: what to divide by.
        eps: added to the divisor (reward units).
        states: bool [N], rows sampled ablated; None: the group is its own baseline.
        batch_rewards: rewards of all rows of the step, those of other processes included; None: ``rewards``.

    Returns:
        [N]; exactly 0 for the rows of a constant comparison set.

    Source: Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr. GRPO: no division).
    """
    sets = comparison_sets(len(rewards), group_size, states).to(rewards.device)
    values = rewards.view(-1, 1, group_size)
    count = sets.sum(2)
    mean = (values * sets).sum(2) / count
    advantages = rewards - mean.flatten()
    if scale == "group":
        variance = ((values - mean.unsqueeze(2)).square() * sets).sum(2) / (count - 1)
        advantages = advantages / (variance.sqrt().flatten() + eps)
    elif scale == "batch":
        advantages = advantages / ((rewards if batch_rewards is None else batch_rewards).std() + eps)
    elif scale != "none":
        raise ValueError(f"scale: expected none, group or batch; got {scale!r}")
    return torch.where(constant_groups(rewards, group_size, states=states), 0.0, advantages)
