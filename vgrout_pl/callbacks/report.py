"""The run's report, written when its numbers are there."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from vgrout_pl.report.run_report import write_report


class RunReport(Callback):
    """Write ``report.md`` with its plots into the run directory after the final evaluation."""

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read config.yaml, metrics.csv and eval.json of the run, and write the report."""
        path = write_report(Path(trainer.default_root_dir))
        print(f"report: {path}", flush=True)
