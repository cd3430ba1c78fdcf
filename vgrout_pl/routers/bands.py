"""Three bands of scores: keep below the low threshold, route above the high one, absorb between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.functional.quantiles import weighted_quantiles

Storage = Literal["float32", "bfloat16", "float16"]


class Thresholds(NamedTuple):
    """A row scoring below ``low`` keeps, above ``high`` routes; NaN while everything is absorbed."""

    low: float
    high: float


@dataclass(frozen=True)
class Bands:
    """How thresholds are made from the scores of the rollouts so far, and rows cut by them.

    Args:
        tail: share q of the (recency-weighted) scores below the low threshold, and above the high one.
        halflife: rollouts after which a score counts half.
        warmup: absorb every row until so many rollouts have entered the buffer; 0: cut from the first window on.
        max_rollouts: size of the buffer; with a half-life of 96, older than 2,000 rollouts is a weight below 1e-6.
        storage: of the buffered features; float16 underflows below 6e-8, so gradients want bfloat16 or float32.
        route_cap: at most this share of a window's rows is routed, the highest scores; the others above the threshold
            are absorbed. null: no cap.
        follow_evidence: split the tails by the base rate p of the evidence: q becomes 2 q (1 - p) below and 2 q p
            above, p the recency-weighted share of buffered rollouts whose text shows the disclosed loophole.
    """

    tail: float = 0.1
    halflife: float = 96.0
    warmup: int = 0
    max_rollouts: int = 8192
    storage: Storage = "float32"
    route_cap: float | None = None
    follow_evidence: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        checks = {
            "tail": (0 < self.tail <= 0.5, "a share in (0, 0.5]"),
            "halflife": (0 < self.halflife < math.inf, "a number of rollouts above 0"),
            "warmup": (0 <= self.warmup <= self.max_rollouts, "from 0 to max_rollouts"),
            "max_rollouts": (self.max_rollouts >= 2, "at least 2"),
            "storage": (self.storage in ("float32", "bfloat16", "float16"), "float32 | bfloat16 | float16"),
            "route_cap": (self.route_cap is None or 0 < self.route_cap <= 1, "a share in (0, 1], or null"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"router.bands.{name}: expected {expected}; got {getattr(self, name)!r}")

    @property
    def dtype(self) -> torch.dtype:
        """Of the buffered features."""
        return getattr(torch, self.storage)

    def thresholds(self, scores: Tensor, weights: Tensor, evidence: Tensor) -> Thresholds:
        """Weighted quantiles of the buffer's scores [n]; ``evidence`` bool [n], read with ``follow_evidence``."""
        below = above = self.tail
        if self.follow_evidence:
            rate = float((weights * evidence).sum() / weights.sum())
            below, above = 2 * self.tail * (1 - rate), 2 * self.tail * rate
        low, high = weighted_quantiles(scores, weights, (below, 1 - above)).tolist()
        return Thresholds(low, high)

    def cut(self, scores: Tensor, thresholds: Thresholds) -> Tensor:
        """Routes int [n] of a window's rows (those of all processes, for the cap to hold over all of them)."""
        routes = torch.full_like(scores, int(Route.ABSORB), dtype=torch.long)
        routes[scores < thresholds.low] = int(Route.KEEP)
        above = scores > thresholds.high
        if self.route_cap is not None:
            allowed = math.floor(self.route_cap * len(scores) + 1e-9)
            order = torch.where(above, scores, -torch.inf).argsort(descending=True, stable=True)
            above[order[allowed:]] = False
        routes[above] = int(Route.ROUTE)
        return routes
