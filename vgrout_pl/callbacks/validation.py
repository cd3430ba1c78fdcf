"""Validation during training: as trained and deployed, on common prompts and sampling seeds."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from vgrout_pl.callbacks.counts import GradeCounts
from vgrout_pl.evaluation import StateChooser
from vgrout_pl.types import EvalBatch


class PeriodicValidation(StateChooser, Callback):
    """Log ``val/<state>/{hack,solve,format}`` whenever Lightning validates (``trainer.val_check_interval``).

    Args:
        states: model states to sample in: ``as_trained``, ``deployed``, ``quarantine_only``, ``base``.
    """

    stage = "validate"

    def __init__(self, states: tuple[str, ...] = ("as_trained", "deployed")):
        super().__init__(states)
        self._counts: GradeCounts[str] = GradeCounts()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._counts = GradeCounts()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count one batch."""
        for state, grades in outputs.items():
            self._counts.add(state, grades, batch.samples)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rates over all processes."""
        for state, count in self._counts.gathered().items():
            if not count["n"]:
                rank_zero_warn(f"validation: the grader could not judge a single answer of {state}; nothing is logged")
                continue
            for event in ("hack", "solve", "format"):
                rate = count[event] / count["n"]
                pl_module.log(f"val/{state}/{event}", rate, batch_size=count["n"], rank_zero_only=True)
