"""Pure functions. Shapes: P prompts, G completions a prompt, N = P G rows, T tokens, V words."""

from vgrout_pl.functional.advantages import comparison_sets, constant_groups, group_advantages
from vgrout_pl.functional.logprobs import completion_logprobs
from vgrout_pl.functional.losses import (
    cispo_loss,
    clip_counts,
    clipped_policy_loss,
    importance_weights,
    k3_divergence,
    masked_sum,
    sequence_log_ratio,
)
from vgrout_pl.functional.statistics import wilson_interval

__all__ = [
    "cispo_loss",
    "clip_counts",
    "clipped_policy_loss",
    "comparison_sets",
    "completion_logprobs",
    "constant_groups",
    "group_advantages",
    "importance_weights",
    "k3_divergence",
    "masked_sum",
    "sequence_log_ratio",
    "wilson_interval",
]
