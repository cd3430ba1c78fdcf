"""The baseline: no mask, both blocks train and both ship."""

from __future__ import annotations

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.routers.base import Router
from vgrout_pl.types import Labels, Rollouts


class NoRouting(Router):
    """Plain GRPO at rank 2r: nothing is sampled ablated, nothing is ablated at the end."""

    name = "none"
    ships_quarantine = True
    gives = (Route.NONE,)

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Leave every row unmasked."""
        return torch.full((len(rollouts),), int(Route.NONE))
