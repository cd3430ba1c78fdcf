"""The router callback: one overridable method from rollouts to routes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch import Callback
from peft import PeftModel
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.directions.evidence import LabelsUsed
from vgrout_pl.types import Labels, Rollouts, WindowObserver

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

__all__ = ["LabelsUsed", "Router"]


class Router(Callback):
    """Assign a route to every rollout of a window.

    Override :meth:`route`; :meth:`read` too where the decision needs passes through the model. ``labels`` are handed
    only to routers that declare ``ORACLE`` or ``NOISY``. All others get None, and rollouts whose rewards and advantages
    are NaN: a reward on a hint-free row is a label. A router cannot be a ``WindowObserver``, which is shown labels.

    Attributes:
        name: short name, used for run directories and tables.
        labels_used: what the routing decision rests on; recorded in the run's provenance.
        gives: the routes that it can give.
        ships_quarantine: True: both blocks ship, nothing is ever ablated.
        ships_as_trained: "deployed" means "as trained"; by default where the quarantine ships.
        scores: float [N] of this process' rows of the latest window, higher is more like a hack; None: it has none.
    """

    name: ClassVar[str] = "router"
    labels_used: LabelsUsed = LabelsUsed.NONE
    gives: tuple[Route, ...] = (Route.KEEP, Route.ABSORB, Route.ROUTE)
    ships_quarantine: ClassVar[bool] = False
    scores: Tensor | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a router that would be shown labels by another way."""
        super().__init_subclass__(**kwargs)
        if issubclass(cls, WindowObserver):
            raise ValueError(
                f"{cls.__name__}: expected a router that sees labels by declaring labels_used alone; it is a "
                "WindowObserver as well, which is shown the labels of every window; make that a callback of its own"
            )

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Name of an instance with these arguments, for its run directory; those that differ should be told apart."""
        return cls.name

    @property
    def ships_as_trained(self) -> bool:
        """Whether what ships is the model as trained."""
        return self.ships_quarantine

    def shipped(self, policy: PeftModel) -> AbstractContextManager[None]:
        """The state in which the adapter is exported, beside what :attr:`ships_quarantine` says of its blocks."""
        return nullcontext()

    @property
    def sees_labels(self) -> bool:
        """Whether :meth:`route` is given the grader's labels."""
        return self.labels_used in (LabelsUsed.NOISY, LabelsUsed.ORACLE)

    def read(self, module: GRPOModule, rollouts: Rollouts, varied: Tensor) -> Tensor | None:
        """Look at a window's rows through the model, before :meth:`route`.

        Args:
            module: the policy and its settings.
            rollouts: N rows, as :meth:`route` sees them.
            varied: bool [N], rows whose rewards differ from those that they are compared with: one bit a group (a
                group's sampling state, under ``baseline: state``), no row's reward.

        Returns:
            log-probabilities [N, T] of rows that were scored in the very state that sampled them, NaN in all others;
            the step then spares a pass over those rows. None: no row.
        """
        return None

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Return the route of each row: int [N], values of :class:`~vgrout_pl.adapters.Route`.

        Or [N, T] for a route of each completion token: it gates what is computed at that token's position, and the
        prompt's positions see and train both blocks.
        """
        raise NotImplementedError

    def visible(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts as this router may see them.

        Unless it declares labels: without rewards and advantages, and without what tells of them, which rows a teacher
        gave (its hacks come first) and which groups were drawn again (their rewards were equal).
        """
        if self.sees_labels:
            return rollouts
        return dataclasses.replace(
            rollouts,
            rewards=torch.full_like(rollouts.rewards, torch.nan),
            advantages=torch.full_like(rollouts.advantages, torch.nan),
            reward_parts={},
            teacher=torch.zeros_like(rollouts.teacher),
            redrawn=torch.zeros_like(rollouts.redrawn),
        )

    def assign(self, rollouts: Rollouts, labels: Labels) -> Tensor:
        """Call :meth:`route` with what this router may see, and check what it answers.

        Raises:
            ValueError: the answer has the wrong shape or unknown values.
        """
        routes = self.route(self.visible(rollouts), labels if self.sees_labels else None).cpu()
        known = [int(route) for route in Route]
        whole = routes.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
        shapes = ((len(rollouts),), tuple(rollouts.completion_ids.shape))
        if not whole or routes.shape not in shapes or not bool(torch.isin(routes, torch.tensor(known)).all()):
            raise ValueError(
                f"{type(self).__name__}.route: expected {len(rollouts)} routes out of {known}, or as many for each of "
                f"{shapes[1][1]} tokens; got shape {tuple(routes.shape)} of {routes.dtype} with values "
                f"{sorted(set(routes.flatten().tolist()))[:8]}"
            )
        routes = routes.to(rollouts.completion_ids.device)
        return routes if routes.dim() == 1 else routes.where(rollouts.completion_mask, int(Route.ABSORB))

    def measurements(self) -> dict[str, float]:
        """Label-free numbers about the latest window, under their public names in the log."""
        return {}

    def provenance(self) -> dict[str, object]:
        """Facts for the run's record."""
        return {"router": type(self).__name__, "labels_used": str(self.labels_used)}
