"""Checkpoints at the end of whole windows."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class WindowCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, kept from saving between the micro-batches of a window.

    After a resume Lightning would save once more at the first micro-batch, in the middle of a window that cannot be
    resumed from.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due, after a window's last micro-batch and update only."""
        if batch.is_last:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
