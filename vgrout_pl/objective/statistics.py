"""What a micro-batch says about the objective."""

from __future__ import annotations

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.functional import clip_counts, masked_sum
from vgrout_pl.objective.loss import MicroBatchLoss, sampled_elsewhere
from vgrout_pl.objective.options import Objective
from vgrout_pl.objective.rows import loss_mask
from vgrout_pl.types import Rollouts


@torch.no_grad()
def loss_statistics(
    objective: Objective, rows: Rollouts, logprobs: Tensor, entropy: Tensor, result: MicroBatchLoss
) -> dict[str, tuple[Tensor, Tensor]]:
    """Metrics of a micro-batch's live rows as name -> (value, number of tokens it is the mean over).

    ``clip_ratio/{low,high,region}_mean`` are as in TRL, per token of a row for gspo; ``clip_ratio/delta_mean`` counts
    the tokens at the two-sided bound; cispo counts every token whose weight is cut under ``high``. ``importance/``
    covers the tokens of rows that train in another state than they were sampled in. ``sampling/logprob`` leaves
    teachers' rows out.
    """
    mask = loss_mask(objective, rows)
    tokens = mask.sum()
    some = tokens.clamp_min(1)
    statistics = {
        "entropy": (masked_sum(entropy, mask) / some, tokens),
    }
    own = mask & ~rows.teacher.unsqueeze(-1) if len(rows.teacher) else mask
    statistics["sampling/logprob"] = (masked_sum(logprobs, own) / own.sum().clamp_min(1), own.sum())
    if objective.loss_type == "cispo":
        high = ((torch.exp(result.log_ratio) > 1 + objective.clip_high) & mask).sum()
        low = delta = torch.zeros_like(high)
    else:
        bounds = objective.clip_low, objective.clip_high, objective.delta
        counts = clip_counts(result.log_ratio, rows.advantages, mask, *bounds)
        low, high, delta = counts["low"], counts["high"], counts["delta"]
    for name, count in (("low", low), ("high", high), ("region", low + high)):
        statistics[f"clip_ratio/{name}_mean"] = (count / some, tokens)
    if objective.delta is not None and objective.loss_type != "cispo":
        statistics["clip_ratio/delta_mean"] = (delta / some, tokens)
    if result.kl is not None:
        statistics["kl"] = (result.kl / some, tokens)
    ratio = torch.exp(result.off_policy)
    for route in (Route.KEEP, Route.ABSORB, Route.ROUTE):
        chosen = mask & (rows.routes == route).view(len(rows), -1)
        count = chosen.sum()
        statistics[f"route/ratio_{route.name.lower()}"] = (masked_sum(ratio, chosen) / count.clamp_min(1), count)
    if objective.importance != "none":
        chosen = mask & sampled_elsewhere(rows.routes, rows.ablated).unsqueeze(-1)
        count = chosen.sum()
        weights = result.weights.expand_as(mask)
        cut = weights == (objective.importance_cap if objective.importance == "truncate" else 0.0)
        statistics["importance/weight_mean"] = (masked_sum(weights, chosen) / count.clamp_min(1), count)
        statistics["importance/cut_mean"] = ((cut & chosen).sum() / count.clamp_min(1), count)
    return statistics
