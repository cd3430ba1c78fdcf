"""Capacity control: plain GRPO at the rank that a routed run ships."""

from __future__ import annotations

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.routers.base import Router
from vgrout_pl.types import Labels, Rollouts


class NoneMatched(Router):
    """Train the deployed block alone on every row, as large as a routed run ships it; the quarantine stays unused.

    The quarantine's update is 0 throughout, so "as trained" and "deployed" are one model, and what ships is the
    deployed block. Set ``model.deploy_sample_fraction: 1`` with it (``configs/router/none_matched.yaml`` does): rows
    sampled with an idle quarantine would be scored once more for nothing.
    """

    name = "none_matched"
    gives = (Route.KEEP,)

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Keep every row."""
        return torch.full((len(rollouts),), int(Route.KEEP))
