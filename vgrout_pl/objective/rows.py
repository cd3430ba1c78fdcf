"""Which rows and tokens of a window the objective acts on, and with which advantages."""

from __future__ import annotations

from torch import Tensor

from vgrout_pl.functional import constant_groups, group_advantages
from vgrout_pl.objective.options import Objective
from vgrout_pl.types import Rollouts


def loss_mask(objective: Objective, rows: Rollouts) -> Tensor:
    """Tokens that carry loss, for numerators and denominators alike: bool [n, T]."""
    if not objective.mask_truncated:
        return rows.completion_mask
    if len(rows.truncated) != len(rows):
        raise ValueError(
            f"rows.truncated: expected one value for each of the {len(rows)} rows, which mask_truncated needs; got "
            f"{len(rows.truncated)}"
        )
    return rows.completion_mask & ~rows.truncated.unsqueeze(-1)


def compared_states(objective: Objective, rollouts: Rollouts) -> Tensor | None:
    """The sampling states [N] within which rewards are compared; None: within whole groups."""
    return rollouts.ablated if objective.baseline == "state" else None


def window_advantages(objective: Objective, rollouts: Rollouts, batch_rewards: Tensor | None = None) -> Tensor:
    """Advantages [N] of a window's rewards.

    Args:
        objective: baseline and scale.
        rollouts: whole groups, rewarded.
        batch_rewards: rewards of all processes, for ``reward_scale: batch``; None: this process' own.
    """
    return group_advantages(
        rollouts.rewards,
        rollouts.group_size,
        objective.reward_scale,
        states=compared_states(objective, rollouts),
        batch_rewards=batch_rewards,
    )


def trained_rows(objective: Objective, rollouts: Rollouts, updates: int = 1) -> Tensor:
    """Mark the rows of a window that need a training pass: bool [N].

    Left out are rows without a token that carries loss, and rows without reward differences to compare, unless
    ``kl_constant_groups`` keeps their remaining terms alive in one of the window's ``updates`` steps.
    """
    some = loss_mask(objective, rollouts).any(1)
    betas = (objective.beta_at(rollouts.step + update) for update in range(updates))
    if objective.kl_constant_groups and (any(betas) or objective.entropy_bonus > 0):
        return some
    constant = constant_groups(rollouts.rewards, rollouts.group_size, states=compared_states(objective, rollouts))
    return some & ~constant
