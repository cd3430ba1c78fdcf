"""What a run goes through: training windows, and batches of evaluation cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L

from vgrout_pl.types import EvalBatch, Window

if TYPE_CHECKING:
    from vgrout_pl.datamodule import ProblemDataModule


class WindowLoader:
    """Yields the windows of a run, each once a micro-batch, from the trainer's present step on.

    A window is a function of (seed, step), so the loader needs no state to resume.
    """

    def __init__(self, data: ProblemDataModule, trainer: L.Trainer):
        self.data, self.trainer = data, trainer

    def __len__(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Window]:
        trainer, updates = self.trainer, updates_of(self.trainer)
        for step in range(trainer.global_step, trainer.max_steps, updates):
            problems = self.data.window(step // updates, trainer.global_rank, trainer.world_size)
            for update in range(updates):
                for micro in range(trainer.accumulate_grad_batches):
                    yield Window(step, micro, trainer.accumulate_grad_batches, problems, update, updates)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: the trainer's step says where to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def updates_of(trainer: L.Trainer) -> int:
    """Optimizer steps that the trainer's module makes on one window."""
    return int(getattr(getattr(trainer, "lightning_module", None), "updates_per_window", 1))


class EvalLoader:
    """This process' share of each batch of some evaluation cells."""

    def __init__(self, batches: Sequence[EvalBatch], rank: int, world_size: int):
        self.batches = [batch.share(rank, world_size) for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        return iter(self.batches)
