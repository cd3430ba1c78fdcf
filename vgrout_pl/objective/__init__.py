"""The GRPO objective: its options, which rows and tokens it acts on, its loss over one micro-batch, its statistics."""

from vgrout_pl.objective.loss import MicroBatchLoss, grpo_loss, sampled_elsewhere
from vgrout_pl.objective.normalizer import Normalizer, window_normalizer
from vgrout_pl.objective.options import Baseline, LossType, Objective
from vgrout_pl.objective.rows import compared_states, loss_mask, trained_rows, window_advantages
from vgrout_pl.objective.statistics import loss_statistics

__all__ = [
    "Baseline",
    "LossType",
    "MicroBatchLoss",
    "Normalizer",
    "Objective",
    "compared_states",
    "grpo_loss",
    "loss_mask",
    "loss_statistics",
    "sampled_elsewhere",
    "trained_rows",
    "window_advantages",
    "window_normalizer",
]
