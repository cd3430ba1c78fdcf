"""Checkpoints between whole windows, and the end of a run that was asked to stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vgrout_pl.callbacks.guard import suspicious
from vgrout_pl.checkpoint_io import LAST, DurableCheckpointIO, set_aside_later
from vgrout_pl.resume import apply_options, count_batches_anew
from vgrout_pl.signals import DeferredStop
from vgrout_pl.types import Window, WindowBoundary

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule


class WindowCheckpoint(WindowBoundary, Checkpoint):
    """Save ``<dirpath>/last.ckpt`` between two windows: every few steps, after the last one, and when asked to stop.

    A checkpoint is written when everything of the steps before it is on the disk (metrics, rollouts, validation) and
    nothing of the next window has been drawn, so that a run that is killed at any moment goes on from it bit for bit.
    The one before it stays as ``previous.ckpt``. While the guard sees the sign of a runaway, a checkpoint that is due
    waits until the sign is gone. On SIGTERM or SIGINT the window under way is finished, saved, and the process ends
    with exit code 143 or 130; a second Ctrl-C ends it at once.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints; with several updates a window, the first end of a
            window at or after each multiple.
        keep_every_n_steps: keep the checkpoint of every so many steps as ``step<k>.ckpt``; 0: none.
        dirpath: directory; None: ``checkpoints`` in the run directory.
    """

    def __init__(self, every_n_train_steps: int = 10, keep_every_n_steps: int = 0, dirpath: str | None = None):
        if every_n_train_steps < 1 or keep_every_n_steps < 0:
            raise ValueError(
                "checkpoint: expected every_n_train_steps of at least 1 and keep_every_n_steps of 0 (none) or more; "
                f"got {every_n_train_steps} and {keep_every_n_steps}"
            )
        self.every_n_train_steps, self.keep_every_n_steps = every_n_train_steps, keep_every_n_steps
        self.dirpath = dirpath
        self._stop = DeferredStop()
        self._boundary = 0
        self._due = False
        self._saved: int | None = None
        self._whole = True

    # ---------------------------------------------------------------- when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have checkpoint files written whole and read without running code, unless another way is configured."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set aside what an earlier start left of steps that will be taken again."""
        if trainer.is_global_zero:
            resumed = trainer.ckpt_path is not None
            set_aside_later(self._directory(trainer), cast("GRPOModule", pl_module).trained_steps if resumed else 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the restored step; from here on a signal waits for the end of a window."""
        apply_options(trainer)
        self._boundary, self._whole = trainer.global_step, True
        own = trainer.ckpt_path is not None and Path(trainer.ckpt_path).parent == self._directory(trainer)
        self._saved = trainer.global_step if own else None
        self._stop.install(trainer)

    def on_window_boundary(self, trainer: Trainer, module: LightningModule) -> None:
        """Save where it is due, and stop where that was asked for."""
        before, self._boundary = self._boundary, trainer.global_step
        stop = self._stop.asked(trainer)
        self._due = self._due or stop or self._passed(before, self.every_n_train_steps)
        if self._due:
            self.save(trainer)
        if self._passed(before, self.keep_every_n_steps):
            self._write(trainer, f"step{self._boundary:06d}.ckpt")
        if stop:
            self._end(trainer)

    def _passed(self, before: int, every: int) -> bool:
        return every > 0 and self._boundary // every > before // every

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count logged steps like optimizer steps: after a resume at a validation step Lightning is one ahead."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Window, batch_idx: int
    ) -> None:
        """Keep in mind whether training ends at the end of a window."""
        self._whole = batch.is_last

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished training; a signal that came meanwhile ends the run before its final evaluation."""
        self._boundary = trainer.global_step
        if self._whole:
            self.save(trainer, finished=True)
        if self._stop.asked(trainer):
            self._end(trainer)
        self._stop.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Obey signals at once again."""
        self._stop.restore()

    # ---------------------------------------------------------------- what

    def save(self, trainer: Trainer, finished: bool = False) -> None:
        """Write ``last.ckpt``, on all processes together.

        Not where nothing was trained since it was written, and not yet while the guard suspects the weights, unless
        training is finished: what is evaluated and exported then is what the checkpoint holds.
        """
        if trainer.global_step not in (0, self._saved):
            if not finished and trainer.strategy.reduce_boolean_decision(suspicious(trainer), all=False):
                return
            self._write(trainer, LAST)
        self._saved, self._due = trainer.global_step, False

    def _write(self, trainer: Trainer, name: str) -> None:
        trainer.save_checkpoint(self._directory(trainer) / name, weights_only=False)

    def _directory(self, trainer: Trainer) -> Path:
        return Path(self.dirpath) if self.dirpath is not None else Path(trainer.default_root_dir) / "checkpoints"

    def _end(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            saved = "" if self._saved == trainer.global_step else f"; the last checkpoint is of step {self._saved or 0}"
            print(f"stopped after step {trainer.global_step}{saved}: resume with --ckpt_path last", flush=True)
        self._stop.obey()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Begin with a whole window, whatever the number of micro-batches was."""
        count_batches_anew(checkpoint, trainer.accumulate_grad_batches)
