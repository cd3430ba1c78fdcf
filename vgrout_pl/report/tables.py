"""The evaluation as a table for terminals and for Markdown, and the step table of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vgrout_pl.report.results import CellResult, Rate, Results

CELLS = (("test", "novel"), ("test", "training"), ("test", "none"), ("train", "training"))
STATE_NAMES = {
    "as_trained": "as trained",
    "deployed": "deployed",
    "quarantine_only": "quarantine only",
    "base": "base",
}
MARKER_NAMES = {"novel": "novel", "training": "training", "none": "hint-free"}
PHASE_NAMES = {"none": "", "before": "before retain-heal", "after": "after retain-heal"}
MISSING = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a pair of problems and markers, and its cell for every state that was evaluated."""

    problems: str
    markers: str
    cells: Mapping[str, CellResult | None]

    @property
    def n(self) -> str:
        """The completions per state: one number, or several where the states differ."""
        return "/".join(dict.fromkeys(str(cell.n) for cell in self.cells.values() if cell is not None))


def table_rows(results: Results, *, mode: str | None = None, heal: str | None = None) -> list[Row]:
    """Return the rows that have at least one cell, each with the same states, in the order of the table.

    Args:
        results: the evaluation.
        mode: one grading mode; None pools all.
        heal: one phase; None takes the first present of ``none``, ``before``, ``after``.
    """
    grid = {
        (problems, markers): {
            state: results.cell(state=state, problems=problems, markers=markers, mode=mode, heal=heal)
            for state in STATE_NAMES
        }
        for problems, markers in CELLS
    }
    states = [state for state in STATE_NAMES if any(cells[state] is not None for cells in grid.values())]
    rows = [Row(*key, {state: cells[state] for state in states}) for key, cells in grid.items()]
    return [row for row in rows if any(cell is not None for cell in row.cells.values())]


def rate_text(rate: Rate | None) -> str:
    """Return ``0.44 [0.39, 0.50]``, or a dash for a cell that was not evaluated."""
    return MISSING if rate is None else f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def cells_text(results: Results, *, mode: str | None = None, heal: str | None = None) -> str:
    """Return the table for a terminal: two lines (hack, solve) per row, one column per state; ends in its legend."""
    rows = table_rows(results, mode=mode, heal=heal)
    if not rows:
        return "no cell was evaluated"
    table = [["problems", "markers", "n", "", *(STATE_NAMES[state] for state in rows[0].cells)]]
    for row in rows:
        hack, solve = ([_rate_of(cell, name) for cell in row.cells.values()] for name in _METRICS)
        table.append([row.problems, MARKER_NAMES[row.markers], row.n, "hack", *hack])
        table.append(["", "", "", "solve", *solve])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(_aligned(text, i, widths[i]) for i, text in enumerate(line)).rstrip() for line in table]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0], rule, *lines[1:], rule, "rates of completions, 95 % Wilson intervals"])


def cells_markdown(results: Results, *, mode: str | None = None, heal: str | None = None) -> str:
    """Return the same table in Markdown: one line per row, a hack and a solve column per state."""
    rows = table_rows(results, mode=mode, heal=heal)
    if not rows:
        return "No cell was evaluated."
    columns = [f"{STATE_NAMES[state]}: {name}" for state in rows[0].cells for name in _METRICS]
    lines = [["problems", "markers", "n", *columns], ["---", "---", *["---:"] * (len(columns) + 1)]]
    for row in rows:
        rates = [_rate_of(cell, name) for cell in row.cells.values() for name in _METRICS]
        lines.append([row.problems, MARKER_NAMES[row.markers], row.n, *rates])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class StepTable:
    """Fixed-width lines of a training run, made to be read while they scroll by and afterwards in a log file.

    ``for line in table.lines(metrics): print(line)`` prints a row, and the header before the first row and after
    every ``repeat`` rows. A metric that a step lacks is shown as a dash.
    """

    COLUMNS = (
        # title, width, decimals, metric
        ("hack", 6, 3, "hack/rate"),
        ("hinted", 6, 3, "hack/hinted_rate"),
        ("solve", 6, 3, "solve/rate"),
        ("reward", 7, 3, "reward"),
        ("kl", 8, 4, "kl"),
        ("grad", 7, 3, "grad_norm"),
        ("keep", 5, 2, "route/keep_fraction"),
        ("absorb", 6, 2, "route/absorb_fraction"),
        ("route", 5, 2, "route/route_fraction"),
        ("s/step", 6, 2, "step_time"),
    )

    def __init__(self, repeat: int = 20) -> None:
        if repeat < 1:
            raise ValueError(f"expected to repeat the header every 1 or more rows; got {repeat}")
        self.repeat = repeat
        self._rows = 0

    @property
    def header(self) -> str:
        """The titles, right-aligned over their columns."""
        return " ".join([f"{'step':>6}", *(f"{title:>{width}}" for title, width, _, _ in self.COLUMNS)])

    def row(self, step: int, metrics: Mapping[str, float]) -> str:
        """Return the line of one step."""
        cells = [_number(metrics.get(name), width, decimals) for _, width, decimals, name in self.COLUMNS]
        return " ".join([f"{step:>6}", *cells])

    def lines(self, step: int, metrics: Mapping[str, float]) -> Iterator[str]:
        """Yield the header when it is due, then the row of this step; counts the rows."""
        due, self._rows = self._rows % self.repeat == 0, self._rows + 1
        if due:
            yield self.header
        yield self.row(step, metrics)


_METRICS = ("hack", "solve")
_LEFT_COLUMNS = {0, 1, 3}


def _rate_of(cell: CellResult | None, name: str) -> str:
    return rate_text(None if cell is None else getattr(cell, name))


def _aligned(text: str, column: int, width: int) -> str:
    return f"{text:<{width}}" if column in _LEFT_COLUMNS else f"{text:>{width}}"


def _number(value: float | None, width: int, decimals: int) -> str:
    """Return a number right-aligned in ``width`` characters, in powers of ten where it would not fit."""
    if value is None:
        return f"{MISSING:>{width}}"
    value = float(value)
    if not math.isfinite(value):
        return f"{value:>{width}}"
    text = f"{value:.{decimals}f}"
    if len(text) > width:
        text = f"{value:.0e}".replace("e+0", "e+").replace("e-0", "e-")
    return f"{text:>{width}}"
