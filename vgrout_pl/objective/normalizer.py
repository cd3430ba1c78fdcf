"""What a window's sum of token losses is divided by, whatever micro-batches it is summed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vgrout_pl.objective.options import Objective


@dataclass(frozen=True)
class Normalizer:
    """Weights of tokens, from the numbers of one whole window.

    Args:
        by_row: tokens are weighted by 1 / (tokens of their row) first.
        denominator: rows, or tokens, that the sum is divided by.
        tokens: tokens of the step a process (mean over processes), which the entropy bonus is a mean over.
    """

    by_row: bool
    denominator: float
    tokens: float

    def weights(self, mask: Tensor) -> Tensor:
        """Weight of each token of a row: [n, T] -> [n, 1]; ``mask`` must hold every token of its rows that has loss."""
        lengths = (
            mask.sum(1, keepdim=True).clamp_min(1) if self.by_row else torch.ones_like(mask[:, :1], dtype=torch.long)
        )
        return 1.0 / (lengths * self.denominator)


def window_normalizer(
    objective: Objective,
    mask: Tensor,
    max_new_tokens: int,
    world_tokens: Tensor | float | None = None,
    world_size: int = 1,
) -> Normalizer:
    """Normalise one process' share of a step, so that the mean over processes is the whole step's loss.

    All N rows of the window count, as in TRL: those of groups without reward variance, which are never trained on, and
    (as rows, without tokens) those that ``mask_truncated`` silences. Processes have equally many rows.

    | loss_type   | a token of row i weighs               |
    | dr_grpo     | 1 / (N max_new_tokens)                |
    | grpo, gspo  | 1 / (N tokens of row i)               |
    | dapo, cispo | processes / tokens of all processes   |
    | bnpo        | 1 / tokens of this process            |

    By definition bnpo alone depends on how rows are dealt to processes; with one process it equals dapo.

    Args:
        objective: its loss type.
        mask: bool [N, T], tokens that carry loss (:func:`vgrout_pl.objective.loss_mask`) of the whole window.
        max_new_tokens: longest completion (tokens).
        world_tokens: sum of ``mask`` over all processes; None: there is one.
        world_size: number of processes.

    Raises:
        ValueError: several processes, but no ``world_tokens``.

    Source: grpo: Shao et al. 2024; dr_grpo: Liu et al. 2025; dapo: Yu et al. 2025; gspo: Zheng et al. 2025; cispo:
    MiniMax 2025.
    """
    if world_tokens is None and world_size > 1:
        raise ValueError(f"world_tokens: expected the sum over all {world_size} processes; got none")
    own = max(1.0, float(mask.sum()))
    tokens = own if world_tokens is None else max(1.0, float(world_tokens)) / world_size
    by_row = objective.loss_type in ("grpo", "gspo")
    if objective.loss_type == "dr_grpo":
        denominator = float(mask.shape[0] * max_new_tokens)
    elif by_row:
        denominator = float(mask.shape[0])
    else:
        denominator = own if objective.loss_type == "bnpo" else tokens
    return Normalizer(by_row, denominator, tokens)
