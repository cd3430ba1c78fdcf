"""What a person follows while a run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from vgrout_pl.report import StepTable

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule


class StepLog(Callback):
    """Print one line of metrics every few optimizer steps and one after each validation; readable in a log file.

    Args:
        every_n_steps: optimizer steps between lines; 0: no lines.
    """

    def __init__(self, every_n_steps: int = 5):
        self.every_n_steps = every_n_steps
        self._table = StepTable()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print the line of a step when it is due."""
        step = trainer.global_step
        stepped = batch.micro == batch.micro_batches - 1
        if not (self.every_n_steps and stepped and (step % self.every_n_steps == 0 or step == trainer.max_steps)):
            return
        for line in self._table.lines(step, cast("GRPOModule", pl_module).step_metrics):
            self._print(trainer, line)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the rates of a validation."""
        metrics = trainer.callback_metrics
        parts = []
        for state in ("as_trained", "deployed"):
            if f"val/{state}/hack" in metrics:
                hack, solve = float(metrics[f"val/{state}/hack"]), float(metrics[f"val/{state}/solve"])
                parts.append(f"{state.replace('_', ' ')} hack {hack:.3f} solve {solve:.3f}")
        if parts:
            step = trainer.global_step or cast("GRPOModule", pl_module).trained_steps
            self._print(trainer, f"{step:>6} validation: {' | '.join(parts)}")

    @staticmethod
    def _print(trainer: Trainer, line: str) -> None:
        if not trainer.is_global_zero:
            return
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            tqdm.write(line)
        else:
            print(line, flush=True)
