"""The upper bound of any router: the true label decides."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.routers.base import LabelsUsed, Router
from vgrout_pl.types import Labels, Rollouts


class Oracle(Router):
    """Route the rows that the grader labels ``hacked`` to the quarantine; the others keep (or absorb).

    Args:
        rest: the route of rows that are not hacks.
    """

    name = "oracle"
    labels_used = LabelsUsed.ORACLE

    def __init__(self, rest: Literal["keep", "absorb"] = "keep"):
        self.rest = rest
        self.gives = (Route.KEEP if rest == "keep" else Route.ABSORB, Route.ROUTE)

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Route by ``labels.hacked``."""
        assert labels is not None
        rest, route = self.gives
        return torch.where(labels.hacked.cpu(), int(route), int(rest))
