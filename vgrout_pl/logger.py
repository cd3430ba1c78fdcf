"""metrics.csv of a run: Lightning's CSV logger, kept over a resume."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from vgrout_pl.report.files import write_atomically
from vgrout_pl.run_directory import append


class _RunWriter(ExperimentWriter):
    """Lightning's writer, which would delete the file of an earlier run and could leave half of one, made durable."""

    def _check_log_dir_exists(self) -> None:
        """Go on with the columns of the file that is there."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def save(self) -> None:
        """Append the rows that came since the last time; a new column rewrites the file."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        if self._record_new_keys() or not path.is_file():
            self.rewrite([*self.read(), *self.metrics])
        else:
            append(path, self._text(self.metrics).encode())
        self.metrics = []

    def read(self) -> list[dict[str, str]]:
        """The whole rows of the file; a torn last line is left out."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return []
        text = path.read_bytes()
        return list(csv.DictReader(io.StringIO(text[: text.rfind(b"\n") + 1].decode(), newline="")))

    def rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put a header and ``rows`` in the place of the file."""
        header = self._text([dict(zip(self.metrics_keys, self.metrics_keys, strict=True))])
        write_atomically(Path(self.metrics_file_path), header + self._text(rows))

    def _text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, fieldnames=self.metrics_keys).writerows(rows)
        return text.getvalue()


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
        return self._writer

    @property
    def _writer(self) -> _RunWriter:
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _RunWriter(log_dir=self.log_dir)
        return cast(_RunWriter, self._experiment)

    @rank_zero_only
    def drop_from_step(self, step: int) -> None:
        """Drop the rows that a run resumed at ``step`` will write again, and a torn last line."""
        writer = self._writer
        if Path(writer.metrics_file_path).is_file():
            rows = writer.read()
            writer.rewrite([row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) < step])
