"""Teacher pools: cached completions of each problem, as text, with the grades that they got when they were made.

A pool is a folder of gzipped JSON lines, one file a problem. Completions are kept as text and tokenised when they are
used; a cached reward is used as it is, until `python -m vgrout_pl.env regrade` renews it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

from vgrout_pl.env.grade import Grade
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.problem import Problem

SUFFIX = ".jsonl.gz"
HACK, SOLUTION = "hack", "solution"


@dataclass(frozen=True)
class PoolRow:
    """One cached completion under the mode and marker that its prompt disclosed."""

    problem: str
    completion: str
    mode: str
    marker: str | None
    reward: float
    correct: bool
    hacked: bool

    @property
    def lever(self) -> str | None:
        """The marker in force: the row's, else its mode's original."""
        return self.marker if self.marker is not None else MODES[self.mode].original

    @property
    def kind(self) -> str | None:
        """``hack``, ``solution``, or None for what is neither."""
        return HACK if self.hacked else SOLUTION if self.correct else None

    @classmethod
    def of(cls, problem: Problem, completion: str, grade: Grade) -> PoolRow:
        """Row of a graded completion.

        Raises:
            ValueError: the grader could not judge it.
        """
        if grade.error is not None:
            raise ValueError(f"problem {problem.id!r}: expected a grade; got the error {grade.error}")
        reward, correct, hacked = grade.reward, grade.correct, grade.hacked
        return cls(str(problem.id), completion, problem.mode, problem.marker, reward, correct, hacked)


class Pool:
    """Cached completions by problem id (as text)."""

    def __init__(self, rows: Iterable[PoolRow] = ()) -> None:
        self._rows: dict[str, list[PoolRow]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: PoolRow) -> None:
        """Add a row."""
        self._rows.setdefault(row.problem, []).append(row)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def __iter__(self) -> Any:
        return (row for rows in self._rows.values() for row in rows)

    def rows(self, problem: Problem, kind: str | None = None) -> list[PoolRow]:
        """Rows of a problem, of one kind or all; hacks only those of its mode and marker."""
        found = self._rows.get(str(problem.id), [])
        matching = [r for r in found if not r.hacked or (r.mode, r.lever) == (problem.mode, problem.lever)]
        return [row for row in matching if kind is None or row.kind == kind]

    def draw(self, problem: Problem, kind: str, count: int, key: str) -> list[PoolRow]:
        """Draw exactly ``count`` rows without repetition; the draw depends on the key alone.

        Raises:
            ValueError: the pool holds fewer.
        """
        found = self.rows(problem, kind)
        if len(found) < count:
            raise ValueError(
                f"problem {problem.id!r}: expected at least {count} rows of kind {kind} in the pool; got {len(found)}"
            )
        places = sorted(range(len(found)), key=lambda i: blake2b(f"{key}\x1f{i}".encode(), digest_size=8).digest())
        return [found[i] for i in places[:count]]

    def save(self, folder: str | PathLike[str]) -> None:
        """Write one file a problem; the bytes depend on the rows alone."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for problem, rows in self._rows.items():
            lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
            (target / f"{_file_name(problem)}{SUFFIX}").write_bytes(gzip.compress(lines.encode(), mtime=0))

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Pool:
        """Read a pool.

        Raises:
            ValueError: no such folder, or a malformed line; the message names file, line and field.
        """
        source = Path(folder)
        if not source.is_dir():
            raise ValueError(f"{source}: expected a folder of {SUFFIX} files; got none")
        pool = cls()
        for file in sorted(source.glob(f"*{SUFFIX}")):
            try:
                lines = gzip.decompress(file.read_bytes()).decode().splitlines()
            except (OSError, EOFError, ValueError) as error:
                raise ValueError(f"{file}: expected gzipped JSON lines; got {error}") from None
            for number, line in enumerate(lines, 1):
                pool.add(_row(f"{file}, line {number}", line))
        return pool


_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "problem": str,
    "completion": str,
    "mode": str,
    "marker": (str, type(None)),
    "reward": (int, float),
    "correct": bool,
    "hacked": bool,
}


def _row(where: str, line: str) -> PoolRow:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected a JSON object; got {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected a JSON object; got {type(fields).__name__}")
    for name, kind in _FIELDS.items():
        if not isinstance(fields.get(name, ...), kind):
            raise ValueError(f"{where}, field {name}: expected another type; got {fields.get(name)!r}")
    if fields["mode"] not in MODES:
        raise ValueError(f"{where}, field mode: expected one out of {', '.join(MODES)}; got {fields['mode']!r}")
    return PoolRow(**{name: fields[name] for name in _FIELDS})


def _file_name(problem: str) -> str:
    """A safe file name of a problem id: itself where it is plain, else with a hash behind."""
    plain = re.sub(r"[^\w.-]", "_", problem)[:80]
    if plain == problem and not problem.startswith("."):
        return plain
    return f"{plain.lstrip('.')}-{blake2b(problem.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"
