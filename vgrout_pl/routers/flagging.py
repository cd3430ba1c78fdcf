"""Routers that flag rows: a flagged row routes, every other keeps (or is absorbed)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.routers.base import Router
from vgrout_pl.seeding import derived_uniform
from vgrout_pl.types import Labels, Rollouts

if TYPE_CHECKING:
    from collections.abc import Sequence

Rest = Literal["keep", "absorb"]


class FlaggingRouter(Router):
    """Route the rows that :meth:`flags` marks.

    Args:
        rest: the route of all other rows.
    """

    def __init__(self, rest: Rest = "keep"):
        if rest not in ("keep", "absorb"):
            raise ValueError(f"router.rest: expected keep | absorb; got {rest!r}")
        self.rest = rest
        self.gives = (Route.KEEP if rest == "keep" else Route.ABSORB, Route.ROUTE)
        self.seed = self.rank = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take seed and rank from the run: draws are a function of (seed, rank, step, row)."""
        from vgrout_pl.preflight import data_of

        self.seed, self.rank = data_of(trainer).seed, trainer.global_rank

    @abstractmethod
    def flags(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Rows to route: bool [N]."""

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Flagged rows to the quarantine, the others as ``rest`` says."""
        rest, route = self.gives
        return torch.where(self.flags(rollouts, labels).cpu(), int(route), int(rest))

    def uniforms(self, rollouts: Rollouts, what: str) -> Tensor:
        """One number in [0, 1) a row, float64 [N], the same whenever this step is taken."""
        rows: Sequence[int] = range(len(rollouts))
        drawn = [derived_uniform(what, self.seed, self.rank, rollouts.step, row) for row in rows]
        return torch.tensor(drawn, dtype=torch.float64)
