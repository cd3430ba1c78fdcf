"""Routers that flag rows: a flagged row routes, every other keeps (or is absorbed)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.routers.base import Router
from vgrout_pl.seeding import derived_uniform
from vgrout_pl.types import Labels, Rollouts

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
        self.seed, self.rank, self.world_size = 0, 0, 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the seed from the run: draws are a function of (seed, step, row among those of all processes)."""
        from vgrout_pl.preflight import data_of

        self.seed, self.rank, self.world_size = data_of(trainer).seed, trainer.global_rank, trainer.world_size

    @abstractmethod
    def flags(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Rows to route: bool [N]."""

    def route(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Flagged rows to the quarantine, the others as ``rest`` says."""
        rest, route = self.gives
        return torch.where(self.flags(rollouts, labels).cpu(), int(route), int(rest))

    def own(self, rollouts: Rollouts) -> slice:
        """Places of this process' rows among those of all processes, which have equally many."""
        return slice(self.rank * len(rollouts), (self.rank + 1) * len(rollouts))

    def uniforms(self, rollouts: Rollouts, what: str) -> Tensor:
        """One number in [0, 1) for each row of all processes, float64 [N'], the same whenever this step is taken."""
        rows = range(self.world_size * len(rollouts))
        drawn = [derived_uniform(what, self.seed, 0, rollouts.step, row) for row in rows]
        return torch.tensor(drawn, dtype=torch.float64)
