"""What the two blocks learn, module by module, while a run goes on."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from vgrout_pl.adapters import diagnostics, module_diagnostics
from vgrout_pl.callbacks.jsonl import append_records, drop_from_step
from vgrout_pl.run_directory import BLOCKS_FILE

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

EVERY_STEP = {"quarantine/delta_share", "quarantine/gradient_share"}
"""What the module itself logs at every step."""


class BlockDiagnostics(Callback):
    """Sizes, shares and overlaps of the two blocks, taken every few optimizer steps and before the last one.

    Appends one line a module to ``<run>/blocks.jsonl``: the fields of
    :class:`~vgrout_pl.adapters.ModuleDiagnostics` with ``step``; what is undefined is null. The model's summary goes to
    the loggers as ``quarantine/{deployed_delta, quarantine_delta, seeded_share, cosine, input_overlap,
    output_overlap}``, NaN in the steps between. Gradients are those before clipping; deltas those before the step.
    One measurement takes 0.02 CPU seconds on the embedded organism, 15 on a 4B model.

    Args:
        every_n_steps: optimizer steps between two measurements; 0: none.
    """

    def __init__(self, every_n_steps: int = 10):
        if every_n_steps < 0:
            raise ValueError(f"diagnostics.every_n_steps: expected 0 (none) or more; got {every_n_steps}")
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the steps that a resumed run takes again."""
        if trainer.is_global_zero:
            drop_from_step(Path(trainer.default_root_dir) / BLOCKS_FILE, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure where it is due."""
        if not self.every_n_steps:
            return
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps - 1
        modules = module_diagnostics(cast("GRPOModule", pl_module).policy) if due else []
        summary = {name: value for name, value in diagnostics(modules).items() if name not in EVERY_STEP}
        pl_module.log_dict(summary if due else dict.fromkeys(summary, math.nan))
        if trainer.is_global_zero:
            records = ({"step": step, **asdict(module)} for module in modules)
            append_records(Path(trainer.default_root_dir) / BLOCKS_FILE, map(_without_nan, records))


def _without_nan(record: dict[str, object]) -> dict[str, object]:
    return {name: None if value != value else value for name, value in record.items()}
