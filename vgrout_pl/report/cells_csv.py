"""Every cell of many runs as one CSV file, counts rather than rates: small enough to publish, enough for the table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from vgrout_pl.report.results import RATES, CellResult, Results

LABELS = ("state", "problems", "markers", "mode", "heal")
HEADER = ("experiment", "seed", "config", *LABELS, "n", *RATES)

Finished = tuple[str, int | None, Results]


def to_csv(runs: Iterable[Finished]) -> str:
    """Return one line per cell of each (experiment, seed, evaluation); ``config`` is the hash of its configuration."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    for experiment, seed, results in runs:
        origin = (experiment, "" if seed is None else seed, results.provenance.get("config_hash") or "")
        for cell in results.cells:
            table.writerow((*origin, *cell.key, cell.n, *(cell.count(name) for name in RATES)))
    return text.getvalue()


def from_csv(path: Path) -> list[Finished]:
    """Read :func:`to_csv`; intervals are those of independent completions.

    Raises:
        ValueError: not such a file; one line with file, line, what was expected and what came.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        found = tuple(lines.fieldnames or ())
        if found != HEADER:
            raise ValueError(f"{path}: expected the columns {', '.join(HEADER)}; got {', '.join(found)}")
        runs: dict[tuple[str, int | None, str], list[CellResult]] = {}
        for line in lines:
            try:
                run = (line["experiment"], int(line["seed"]) if line["seed"] else None, line["config"])
                counts = {name: int(line[name]) for name in ("n", *RATES)}
                cell = CellResult.from_counts(**{name: line[name] for name in LABELS}, **counts)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {lines.line_num}: {error}") from None
            runs.setdefault(run, []).append(cell)
    return [(name, seed, Results(tuple(cells), {"config_hash": of})) for (name, seed, of), cells in runs.items()]
