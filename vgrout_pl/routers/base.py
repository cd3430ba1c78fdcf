"""The router callback: one overridable method from rollouts to routes."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.types import Labels, Rollouts


class LabelsUsed(StrEnum):
    """What a router knows beyond the rollouts themselves."""

    NONE = "none"
    AUTHORED_PAIRS = "authored pairs"
    SELF_GENERATED_PAIRS = "self-generated pairs"
    NOISY = "noisy labels"
    ORACLE = "oracle labels"


class Router(Callback):
    """Assign a route to every rollout of a window.

    Override :meth:`route`. The module hands ``labels`` only to routers that declare ``ORACLE`` or ``NOISY``; the
    others get None, so a label-free router cannot see a label by mistake.

    Attributes:
        name: short name, used for run directories and tables.
        labels_used: what the routing decision rests on; recorded in the run's provenance.
        gives: the routes that it can give.
        ships_quarantine: True: both blocks ship, nothing is ever ablated ("deployed" means "as trained").
    """

    name: ClassVar[str] = "router"
    labels_used: ClassVar[LabelsUsed] = LabelsUsed.NONE
    gives: tuple[Route, ...] = (Route.KEEP, Route.ABSORB, Route.ROUTE)
    ships_quarantine: ClassVar[bool] = False

    @property
    def sees_labels(self) -> bool:
        """Whether :meth:`route` is given the grader's labels."""
        return self.labels_used in (LabelsUsed.NOISY, LabelsUsed.ORACLE)

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Return the route of each row: int [N], values of :class:`~vgrout_pl.adapters.Route`."""
        raise NotImplementedError

    def assign(self, rollouts: Rollouts, labels: Labels) -> Tensor:
        """Call :meth:`route` with what this router may see, and check what it answers.

        Raises:
            ValueError: the answer has the wrong shape or unknown values.
        """
        routes = self.route(rollouts, labels if self.sees_labels else None).cpu()
        known = [int(route) for route in Route]
        whole = routes.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        if not whole or routes.shape != (len(rollouts),) or not bool(torch.isin(routes, torch.tensor(known)).all()):
            raise ValueError(
                f"{type(self).__name__}.route: expected {len(rollouts)} routes out of {known}; got shape "
                f"{tuple(routes.shape)} of {routes.dtype} with values {sorted(set(routes.flatten().tolist()))[:8]}"
            )
        return routes.to(rollouts.completion_ids.device)
