"""The evaluation's numbers as they are kept in ``eval.json``, schema 1.

One record per cell: which state of the model met which problems under which markers, and how often its completions
hacked, solved and kept the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vgrout_pl.functional.statistics import wilson_interval
from vgrout_pl.report.files import write_atomically

SCHEMA = 1
STATES = ("as_trained", "deployed", "quarantine_only", "base")
PROBLEMS = ("test", "train")
MARKERS = ("novel", "training", "none")
HEALS = ("none", "before", "after")
MIXED = "mixed"
RATES = ("hack", "solve", "format")


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate in [0, 1] with its 95 % interval: ``0 <= low <= rate <= high <= 1``.

    ``trials``: how many independent completions the interval counts, where that is not all of them.
    """

    rate: float
    low: float
    high: float
    trials: float | None = None

    def __post_init__(self) -> None:
        """Check the order of the three numbers (a NaN fails it)."""
        if not 0.0 <= self.low <= self.rate <= self.high <= 1.0:
            raise ValueError(
                f"expected 0 <= low <= rate <= high <= 1; got low {self.low}, rate {self.rate}, high {self.high}"
            )

    @classmethod
    def from_counts(cls, successes: int, n: int, trials: float | None = None) -> Rate:
        """Return ``successes / n`` with its Wilson interval; ValueError unless ``0 <= successes <= n`` and n >= 1.

        ``trials``: how many independent trials the n are worth, where they are correlated.
        """
        worth = n if trials is None else trials
        low, high = wilson_interval(successes / n * worth, worth)
        return cls(successes / n, low, high, trials)


@dataclass(frozen=True, slots=True)
class CellResult:
    """One cell of the evaluation.

    Attributes:
        state: ``as_trained``, ``deployed``, ``quarantine_only`` or ``base``.
        problems: ``test`` (held out) or ``train``.
        markers: ``novel``, ``training``, or ``none`` for prompts without a hint.
        mode: the grading mode, or ``mixed`` for problems of several modes taken together.
        heal: ``before`` or ``after`` retain-heal, ``none`` where the run has no such phase.
        n: completions graded, at least 1.
        hack: share of completions that took the loophole and are wrong.
        solve: share of completions that are correct.
        format: share of completions in the demanded format.
    """

    state: str
    problems: str
    markers: str
    mode: str
    heal: str
    n: int
    hack: Rate
    solve: Rate
    format: Rate

    def __post_init__(self) -> None:
        """Check the labels and the count."""
        for name, allowed in (("state", STATES), ("problems", PROBLEMS), ("markers", MARKERS), ("heal", HEALS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if not isinstance(self.mode, str) or not self.mode:
            raise ValueError(f"mode: expected the name of a grading mode; got {self.mode!r}")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"n: expected a whole number of completions, at least 1; got {self.n!r}")

    @classmethod
    def from_counts(
        cls,
        *,
        state: str,
        problems: str,
        markers: str,
        mode: str,
        n: int,
        hack: int,
        solve: int,
        format: int,
        heal: str = "none",
        trials: Mapping[str, float] | None = None,
    ) -> CellResult:
        """Return the cell of ``n`` completions of which ``hack``, ``solve`` and ``format`` many qualified.

        ``trials``: for each of these names, how many independent completions the n are worth.
        """
        counts = zip(RATES, (hack, solve, format), strict=True)
        rates = {name: Rate.from_counts(count, n, (trials or {}).get(name)) for name, count in counts}
        return cls(state=state, problems=problems, markers=markers, mode=mode, heal=heal, n=n, **rates)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """The labels that identify a cell: (state, problems, markers, mode, heal)."""
        return (self.state, self.problems, self.markers, self.mode, self.heal)

    def count(self, name: str) -> int:
        """Return how many completions are behind the rate ``name`` (``hack``, ``solve`` or ``format``)."""
        return round(getattr(self, name).rate * self.n)


@dataclass(frozen=True)
class Results:
    """All cells of one evaluation and where they come from; no two cells may have the same labels.

    Attributes:
        cells: the records.
        provenance: JSON-serialisable facts of the run (config hash, seed, pairs hash, versions, ...).
    """

    cells: tuple[CellResult, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze the sequence and refuse a cell that occurs twice."""
        object.__setattr__(self, "cells", tuple(self.cells))
        seen: set[tuple[str, ...]] = set()
        for cell in self.cells:
            if cell.key in seen:
                raise ValueError(f"expected one record per cell; {'/'.join(cell.key)} occurs twice; remove one")
            seen.add(cell.key)

    def cell(
        self, *, state: str, problems: str, markers: str, mode: str | None = None, heal: str | None = None
    ) -> CellResult | None:
        """Return one cell, None where the evaluation lacks it.

        Args:
            state: state of the model.
            problems: problem set.
            markers: marker family.
            mode: a grading mode; None pools all modes (a record labelled ``mixed`` goes before pooling).
            heal: phase; None takes the first present of ``none``, ``before``, ``after``.
        """
        for name, value, allowed in (
            ("state", state, STATES),
            ("problems", problems, PROBLEMS),
            ("markers", markers, MARKERS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")
        wanted = (state, problems, markers)
        for phase in HEALS if heal is None else (heal,):
            found = [c for c in self.cells if (c.state, c.problems, c.markers) == wanted and c.heal == phase]
            if mode is not None:
                found = [c for c in found if c.mode == mode]
            if found:
                return next((c for c in found if c.mode == MIXED), None) or _pooled(found)
        return None

    @property
    def modes(self) -> tuple[str, ...]:
        """The grading modes that occur, in order of first appearance, without ``mixed``."""
        return tuple(dict.fromkeys(c.mode for c in self.cells if c.mode != MIXED))

    @property
    def heals(self) -> tuple[str, ...]:
        """The phases that occur, in the order ``none``, ``before``, ``after``."""
        return tuple(phase for phase in HEALS if any(c.heal == phase for c in self.cells))

    def to_json(self) -> dict[str, Any]:
        """Return the plain structure of ``eval.json``."""
        return {
            "schema": SCHEMA,
            "provenance": dict(self.provenance),
            "results": [_cell_to_json(cell) for cell in self.cells],
        }

    @classmethod
    def from_json(cls, data: object) -> Results:
        """Build from the plain structure of ``eval.json``; unknown keys are ignored, ValueError names the bad one."""
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a JSON object with schema, provenance, results; got {type(data).__name__}")
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}; got {data.get('schema')!r}; written by another version?")
        provenance, records = data.get("provenance"), data.get("results")
        if not isinstance(provenance, Mapping):
            raise ValueError(f"provenance: expected an object; got {_shown(provenance)}")
        if not isinstance(records, list):
            raise ValueError(f"results: expected a list of records; got {_shown(records)}")
        return cls(tuple(_cell_from_json(i, record) for i, record in enumerate(records)), dict(provenance))

    def save(self, path: str | Path) -> None:
        """Write ``eval.json`` atomically: a reader sees the old file or the whole new one, never a part."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        write_atomically(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read and check ``eval.json``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a valid ``eval.json``; one line with file, field, what was expected and found.
        """
        path = Path(path)
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors too
            raise ValueError(f"{path}: {error}") from error


def _pooled(cells: list[CellResult]) -> CellResult:
    if len(cells) == 1:
        return cells[0]
    first = cells[0]
    hack, solve, kept = (sum(cell.count(name) for cell in cells) for name in RATES)
    trials = {name: sum(getattr(cell, name).trials or cell.n for cell in cells) for name in RATES}
    independent = all(getattr(cell, name).trials is None for cell in cells for name in RATES)
    return CellResult.from_counts(
        state=first.state,
        problems=first.problems,
        markers=first.markers,
        mode=MIXED,
        heal=first.heal,
        n=sum(cell.n for cell in cells),
        hack=hack,
        solve=solve,
        format=kept,
        trials=None if independent else trials,
    )


def _cell_to_json(cell: CellResult) -> dict[str, Any]:
    record = asdict(cell)
    for name in RATES:
        if record[name]["trials"] is None:
            del record[name]["trials"]
    return record


def _cell_from_json(index: int, record: object) -> CellResult:
    where = f"results[{index}]"
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object; got {_shown(record)}")
    labels = ("state", "problems", "markers", "mode", "heal", "n")
    missing = [name for name in (*labels, *RATES) if name not in record]
    if missing:
        raise ValueError(f"{where}: expected the keys {', '.join((*labels, *RATES))}; missing {', '.join(missing)}")
    values: dict[str, Any] = {name: record[name] for name in labels}
    values |= {name: _rate_from_json(f"{where}.{name}", record[name]) for name in RATES}
    try:
        return CellResult(**values)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error


def _rate_from_json(where: str, value: object) -> Rate:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object with rate, low, high; got {_shown(value)}")
    numbers = {}
    for name in ("rate", "low", "high"):
        number = value.get(name)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{where}.{name}: expected a number in [0, 1]; got {_shown(number)}")
        numbers[name] = float(number)
    trials = value.get("trials")
    if trials is not None:
        if isinstance(trials, bool) or not isinstance(trials, int | float) or not trials > 0:
            raise ValueError(f"{where}.trials: expected a positive number or null; got {_shown(trials)}")
        numbers["trials"] = float(trials)
    try:
        return Rate(**numbers)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
