"""Grade stored completions again with the grader of today, and tell what changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vgrout_pl.env.grade import Grade
from vgrout_pl.env.grader import Grader
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.pools import Pool, PoolRow
from vgrout_pl.env.problem import Problem

LABELS = ("format_ok", "compiles", "correct", "channel", "hacked", "reward")
BATCH = 512


@dataclass(frozen=True)
class Stored:
    """A stored completion with the labels that it has, as far as they were kept."""

    problem: str
    mode: str
    marker: str | None
    completion: str
    labels: Mapping[str, Any]


@dataclass(frozen=True)
class Regraded:
    """A stored completion with its new grade."""

    stored: Stored
    grade: Grade

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Label -> (then, now), where they differ; none where the grader could not judge."""
        if self.grade.error is not None:
            return {}
        pairs = {name: (self.stored.labels[name], getattr(self.grade, name)) for name in self.stored.labels}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def regrade(stored: Sequence[Stored], problems: Iterable[Problem], grader: Grader) -> list[Regraded]:
    """Grade every stored completion under its own mode and marker.

    Raises:
        ValueError: a completion belongs to a problem that is not in the set.
    """
    known = {str(problem.id): replace(problem, messages=()) for problem in problems}
    missing = {row.problem for row in stored} - known.keys()
    if missing:
        raise ValueError(
            f"expected all problems of the stored completions in the set; {len(missing)} are missing, "
            f"e.g. {sorted(missing)[0]!r}"
        )
    result = []
    for start in range(0, len(stored), BATCH):
        rows = stored[start : start + BATCH]
        pairs = [(row.completion, known[row.problem].with_mode(row.mode, row.marker)) for row in rows]
        result += [Regraded(row, grade) for row, grade in zip(rows, grader.grade_batch(pairs), strict=True)]
    return result


def read_rollouts(path: Path) -> list[Stored]:
    """Read a rollout log: JSON lines with problem, mode, prompt, completion and grade.

    Raises:
        ValueError: a malformed line; the message names file, line and field.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: expected a JSON object; got {error}") from None
        for name in ("problem", "mode", "completion", "grade"):
            if not isinstance(row, dict) or name not in row:
                raise ValueError(f"{where}, field {name}: expected a value; got nothing")
        if row["mode"] not in MODES:
            raise ValueError(f"{where}, field mode: expected one out of {', '.join(MODES)}; got {row['mode']!r}")
        labels = {**row["grade"], "reward": row.get("reward")}
        labels = {name: labels[name] for name in LABELS if labels.get(name) is not None}
        marker = row["marker"] if "marker" in row else disclosed_marker(row["mode"], str(row.get("prompt", "")))
        found.append(Stored(str(row["problem"]), row["mode"], marker, row["completion"], labels))
    return found


def read_pool(folder: Path) -> list[Stored]:
    """Rows of a pool as stored completions."""
    names = ("correct", "hacked", "reward")
    return [
        Stored(row.problem, row.mode, row.marker, row.completion, {name: getattr(row, name) for name in names})
        for row in Pool.load(folder)
    ]


def renewed_pool(regraded: Iterable[Regraded]) -> Pool:
    """A pool with the new grades; what the grader could not judge keeps its old one."""
    pool = Pool()
    for each in regraded:
        row, now = each.stored, each.grade
        then = row.labels
        reward, correct, hacked = (
            (then["reward"], then["correct"], then["hacked"])
            if now.error is not None
            else (now.reward, now.correct, now.hacked)
        )
        pool.add(PoolRow(row.problem, row.completion, row.mode, row.marker, reward, correct, hacked))
    return pool


def disclosed_marker(mode: str, prompt: str) -> str | None:
    """The marker whose hint a prompt holds; None for the mode's original one, or where no hint is found."""
    chosen = MODES[mode]
    for marker in (*chosen.training_markers, *chosen.novel_markers):
        if chosen.hint(marker) in prompt and chosen.hint(chosen.original) not in prompt:
            return marker
    return None


def summary(regraded: Sequence[Regraded]) -> list[str]:
    """Lines that tell how many labels changed, and how."""
    errors = sum(each.grade.error is not None for each in regraded)
    changed = sum(bool(each.changes) for each in regraded)
    lines = [f"{len(regraded)} completions graded again: {changed} changed, {errors} could not be judged"]
    ways = Counter((name, *pair) for each in regraded for name, pair in each.changes.items())
    lines += [f"  {name}: {then} -> {now}  {count} times" for (name, then, now), count in sorted(ways.items(), key=str)]
    return lines
