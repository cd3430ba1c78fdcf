"""Absorption alone: both blocks learn from every row, the quarantine is thrown away at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.routers.base import Router
from vgrout_pl.types import Labels, Rollouts


class Absorb(Router):
    """Every row updates both blocks; which of them learns the hack is left to the initialisation."""

    name = "absorb"
    gives = (Route.ABSORB,)

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Absorb every row."""
        return torch.full((len(rollouts),), int(Route.ABSORB))
