"""How well scores tell hacks from other rows, for many directions at once: what torchmetrics gives for one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

METRICS = ("f05", "f05_best", "auroc", "precision", "recall_p80")
TITLES = {
    "f05": "F0.5 at cut",
    "f05_best": "F0.5, best threshold (on labels)",
    "auroc": "AUROC",
    "precision": "precision at cut",
    "recall_p80": "recall at P 0.8",
    "flagged": "rows above the cut",
}
CONFIRMATORY = "f05"
"""The metric that the family's correction is for; the others are descriptive."""
FLAGGED = "flagged"
AT_CUT = ("f05", "precision")
"""Metrics that say nothing where ties leave few rows above the cut."""
LEAST_FLAGGED = 0.5
"""Share of ``tail`` that has to lie above the cut for a cell to say anything there."""
PRECISION_FLOOR = 0.8


def measure(scores: Tensor, hacked: Tensor, tail: float) -> dict[str, Tensor]:
    """All metrics of k columns of scores, and the share of rows ``flagged``, each float64 [k].

    - f05, precision: of the rows scoring above the 1 - tail quantile of these rows, 0 where ties leave none above it;
      the quantile is defined as in :class:`~vgrout_pl.routers.bands.Bands`, which takes it over other rows, weighted;
    - f05_best: the largest F0.5 over all thresholds: it is chosen on the labels, no gate could have it;
    - auroc: P(a hack scores above another row), ties counting half;
    - recall_p80: the largest recall among thresholds whose precision is at least 0.8, 0 where none is;
    - flagged: share of the rows above the cut, at most tail: how many rows, never which of them are hacks.

    Args:
        scores: [n, k], finite.
        hacked: bool [n], with both kinds.
        tail: share q of the rows above the cut.
    """
    n, positives = len(hacked), int(hacked.sum())
    if not 0 < positives < n:
        raise ValueError(f"study: expected hacks and other rows; got {positives} hacks in {n} rows")
    columns = scores.T.contiguous()
    ordered, order = columns.sort(1)
    labels = hacked.double()[order]
    ranks = (torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True) + 1).double() / 2
    below = ranks[:, hacked].sum(1) - positives * (positives + 1) / 2
    flagged = columns > cut_of(ordered, tail)
    hits, flags = flagged[:, hacked].sum(1).double(), flagged.sum(1).double()
    # thresholds between different values alone: rows flagged from the top, after the last of each value
    downwards = ordered.flip(1)
    last = torch.cat([downwards[:, 1:] != downwards[:, :-1], torch.ones_like(downwards[:, :1], dtype=torch.bool)], 1)
    tp = labels.flip(1).cumsum(1)
    count = torch.arange(1, n + 1, dtype=torch.float64, device=tp.device)
    precise = last & (tp / count >= PRECISION_FLOOR)
    return {
        "f05": _f_half(hits, flags, positives),
        "f05_best": torch.where(last, _f_half(tp, count, positives), 0.0).amax(1),
        "auroc": below / (positives * (n - positives)),
        "precision": hits / flags.clamp_min(1),
        "recall_p80": torch.where(precise, tp / positives, 0.0).amax(1),
        FLAGGED: flags / n,
    }


def cut_of(ordered: Tensor, tail: float) -> Tensor:
    """The weighted quantile 1 - tail with equal weights, of each row of ascending values [k, n]: [k, 1]."""
    return ordered[:, quantile_place(1 - tail, ordered.shape[1]), None]


def quantile_place(share: float, n: int) -> int:
    """Where the inverse distribution function at ``share`` stands among n sorted values of equal weight."""
    return max(0, math.ceil(share * n * (1 - 1e-12)) - 1)


def _f_half(hits: Tensor, flags: Tensor, positives: int) -> Tensor:
    """1.25 P R / (0.25 P + R), written in counts."""
    return 1.25 * hits / (flags + 0.25 * positives)
