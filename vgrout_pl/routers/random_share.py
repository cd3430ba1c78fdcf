"""Placebo without any score: a given share of the rows, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vgrout_pl.report.metrics import Metrics
from vgrout_pl.routers.flagging import FlaggingRouter, Rest
from vgrout_pl.types import Labels, Rollouts

ROUTED = "route/route_fraction"


class RandomShare(FlaggingRouter):
    """Route a share of each window's rows at random: what routing so much does when it knows nothing.

    The number of rows, over all processes, is share x N, rounded at random so that its mean is exact.

    Args:
        share: share of the rows, for all windows.
        matched: run directory (or its metrics.csv) whose routed share is followed step by step; steps beyond its end
            take its mean.
        rest: the route of all other rows.
    """

    name = "random_share"

    def __init__(self, share: float | None = None, matched: str | None = None, rest: Rest = "keep"):
        super().__init__(rest)
        if (share is None) == (matched is None):
            raise ValueError(f"router: expected either share or matched; got share {share} and matched {matched}")
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"router.share: expected a share in [0, 1]; got {share}")
        self.share, self.matched = share, matched
        self.by_step = {} if matched is None else logged(matched, ROUTED)

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Append the share: ``random_share-0.25``."""
        share = settings.get("share")
        return f"{cls.name}-matched" if share is None else f"{cls.name}-{share:g}"

    def flags(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """The rows with the smallest draws."""
        share = self.share
        if share is None:
            share = self.by_step.get(rollouts.step, sum(self.by_step.values()) / len(self.by_step))
        drawn = self.uniforms(rollouts, "random share")
        wanted = share * len(drawn)
        carry = self.uniforms(rollouts, "random share, rounding")[0]
        count = int(wanted) + int(bool(carry < wanted - int(wanted)))
        flags = torch.zeros(len(drawn), dtype=torch.bool)
        flags[drawn.argsort()[:count]] = True
        return flags[self.own(rollouts)]


def logged(run: str, name: str) -> dict[int, float]:
    """Finite values of a metric of another run, by step.

    Raises:
        ValueError: there is no such run, or it never logged the metric.
    """
    path = Path(run) / "metrics.csv" if Path(run).is_dir() else Path(run)
    try:
        steps, values = Metrics.load(path).series(name)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"router.matched: expected a run directory; could not read {path} ({why})") from None
    found = {step: value for step, value in zip(steps, values, strict=True) if value == value}
    if not found:
        raise ValueError(f"router.matched: expected {name} in {path}; it has no value; give a finished run")
    return found
