"""Pure functions. Shapes: P prompts, G completions a prompt, N = P G rows, T tokens, V words."""

from vgrout_pl.functional.advantages import constant_groups, group_advantages
from vgrout_pl.functional.logprobs import completion_logprobs
from vgrout_pl.functional.losses import clip_fractions, clipped_policy_loss, k3_divergence, masked_sum
from vgrout_pl.functional.statistics import wilson_interval

__all__ = [
    "clip_fractions",
    "clipped_policy_loss",
    "completion_logprobs",
    "constant_groups",
    "group_advantages",
    "k3_divergence",
    "masked_sum",
    "wilson_interval",
]
