"""How well a router's scores and routes tell hacks from other rows: measurement alone, never shown to a router."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_fbeta_score

from vgrout_pl.adapters import Route
from vgrout_pl.types import Labels, Rollouts

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule
    from vgrout_pl.routers.base import Router


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive row scores above another one, ties counting half; NaN with one class alone.

    Args:
        scores: [n] on any scale: their ranks go to torchmetrics, which takes numbers outside [0, 1] for logits and
            would saturate them.
        positive: bool [n].
    """
    if not 0 < int(positive.sum()) < len(positive):
        return math.nan
    _, ranks = scores.unique(return_inverse=True)
    return float(binary_auroc(ranks.double() / max(int(ranks.max()), 1), positive.long()))


def f_half(flagged: Tensor, positive: Tensor) -> float:
    """F0.5 of bool ``flagged`` [n] as a detector of ``positive`` [n]: precision counts more; NaN without positives."""
    if not bool(positive.any()):
        return math.nan
    return float(binary_fbeta_score(flagged.long(), positive.long(), beta=0.5))


def routing_statistics(
    module: GRPOModule, router: Router, rollouts: Rollouts, labels: Labels
) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Name -> (value, weight) for the step's metrics, over the rows of all processes.

    AUROC of the scores and F0.5 of the routes are taken among rewarded rows of the policy, those that hack or solve:
    both were paid, and the router has to tell them apart. A row's hack counts, not its group's.
    """
    rewarded = labels.hacked | labels.correct
    if len(rollouts.teacher):
        rewarded = rewarded & ~rollouts.teacher
    statistics: dict[str, float] = {}
    if Route.ROUTE in router.gives:
        routed = rollouts.route_share(Route.ROUTE) >= 0.5
        statistics["route/f05"] = f_half(*_of_all(module, routed, labels.hacked, rewarded))
    if router.scores is not None:
        scores = router.scores.to(rewarded.device)
        statistics["route/auroc"] = auroc(*_of_all(module, scores, labels.hacked, rewarded))
    measured = {**statistics, **router.measurements()}
    return {name: (value, 0.0 if math.isnan(value) else 1.0) for name, value in measured.items()}


def _of_all(module: GRPOModule, values: Tensor, hacked: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Values and labels of all processes' rows that are ``among``."""
    columns = torch.stack([values.float(), hacked.float(), among.float()], 1)
    if module.trainer.world_size > 1:
        columns = module.all_gather(columns).flatten(0, 1)  # type: ignore[union-attr]
    chosen = columns[columns[:, 2] > 0]
    return (chosen[:, 0] if values.is_floating_point() else chosen[:, 0] > 0), chosen[:, 1] > 0
