"""Reading ``metrics.csv``: one row per logging event, a ``step`` column, empty cells where a metric was not logged."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Metrics:
    """The logged numbers, by name and step.

    Attributes:
        columns: metric name -> {step: value}, steps ascending, without empty cells.
    """

    columns: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a metric; two empty lists where it was never logged."""
        column = self.columns.get(name, {})
        return list(column), list(column.values())

    def tail(self, name: str, last: int) -> list[float]:
        """Return the last ``last`` logged values of a metric, NaN where that step had no instance of it."""
        return self.series(name)[1][-last:]

    def occurs(self, name: str) -> bool:
        """Return whether a metric has a finite value at any step."""
        return any(map(math.isfinite, self.series(name)[1]))

    @property
    def last_step(self) -> int | None:
        """The highest step of any metric."""
        return max((step for column in self.columns.values() for step in column), default=None)

    @classmethod
    def load(cls, path: str | Path) -> Metrics:
        """Read a ``metrics.csv``; of a step that was logged twice (a resumed run) the later value counts.

        A last line that was cut off while it was being written is kept as far as it goes.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no ``step`` column, or a cell that is not a number; with file, line and column.
        """
        path = Path(path)
        columns: dict[str, dict[int, float]] = {}
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "step" not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: expected a header line with a column step; got {reader.fieldnames}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                step = row.pop("step", None)
                if not step:
                    continue
                at = _step(step, where)
                for name, cell in row.items():
                    if name and cell:
                        columns.setdefault(name, {})[at] = _number(cell, where, name)
        return cls({name: dict(sorted(column.items())) for name, column in columns.items()})


def _step(cell: str, where: str) -> int:
    value = _number(cell, where, "step")
    if not value.is_integer():
        raise ValueError(f"{where}, column step: expected a whole number; got {cell!r}")
    return int(value)


def _number(cell: str, where: str, column: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{where}, column {column}: expected a number; got {cell!r}") from None
