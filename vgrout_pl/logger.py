"""metrics.csv of a run: Lightning's CSV logger, kept over a resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from vgrout_pl.report.files import write_atomically


class _KeepingWriter(ExperimentWriter):
    """Lightning's writer, which would delete the file of an earlier run in the same directory, going on with it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class RunCSVLogger(CSVLogger):
    """Write ``<run>/metrics.csv``, one row a step; a resumed run appends to it.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    def log_dir(self) -> str:
        """The run directory itself."""
        return self.save_dir

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer, made at first use."""
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _KeepingWriter(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)

    @rank_zero_only
    def drop_from_step(self, step: int) -> None:
        """Drop the rows that a run resumed at ``step`` will write again."""
        path = Path(self.experiment.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        kept = [row for row in lines if (row.get("step") or "").isdigit() and int(row["step"]) < step]
        keys = self.experiment.metrics_keys
        text = "\r\n".join([",".join(keys), *(",".join(row.get(key) or "" for key in keys) for row in kept)]) + "\r\n"
        write_atomically(path, text)
