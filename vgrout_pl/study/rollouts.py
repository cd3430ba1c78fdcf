"""Stored, labelled rollouts: reading ``rollouts.jsonl``, choosing rows of it, and drawing them to a base rate."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vgrout_pl.env.modes import LOOPHOLE_MODES
from vgrout_pl.seeding import derived_seed

COLUMNS = ("problem", "mode", "prompt", "completion")
LABELS = ("hacked", "correct")
OPTIONAL = ("tokens", "advantage")
Among = Literal["rewarded", "all"]


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """One line of ``rollouts.jsonl``.

    Attributes:
        step: optimizer step; 0 where the file does not say.
        problem: id of the problem; cross-validation keeps its rows together.
        mode: grading mode as shown.
        prompt: text after the chat template.
        completion: text.
        hacked: paid for the loophole without being correct.
        correct: passes the strict oracle.
        exploits: used the loophole, whether or not it is correct as well; None where the file does not say.
        tokens: of the completion, end of turn included; None where the file does not say.
        advantage: of the row in its group; None where the file does not say.
    """

    step: int
    problem: str
    mode: str
    prompt: str
    completion: str
    hacked: bool
    correct: bool
    exploits: bool | None
    tokens: int | None
    advantage: float | None

    @property
    def rewarded(self) -> bool:
        """Whether it was paid: it hacks or solves."""
        return self.hacked or self.correct


def load_rollouts(paths: Sequence[Path]) -> list[StoredRollout]:
    """Read files as :class:`~vgrout_pl.callbacks.rollout_log.RolloutLog` writes them.

    Rows whose ``grade.error`` says that the grader could not judge are left out.

    Raises:
        ValueError: a file cannot be read or is empty, or a line is no rollout, has no labels, both of them, or a field
            of another type; the message begins with file and line.
    """
    found = []
    for path in paths:
        try:
            with path.open(encoding="utf-8") as file:
                lines = [_rollout(line, f"{path}:{i}") for i, line in enumerate(file, 1) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ValueError(
                f"--rollouts: expected a file of rollouts, one JSON object a line; {path}: {reason}"
            ) from None
        found += [row for row in lines if row is not None]
    if not found:
        raise ValueError(f"--rollouts: expected at least one rollout; got none in {', '.join(map(str, paths))}")
    return found


def _rollout(line: str, where: str) -> StoredRollout | None:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: expected one JSON object a line; got {getattr(error, 'msg', error)}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object; got {type(record).__name__}")
    missing = [name for name in COLUMNS if not isinstance(record.get(name), str)]
    if missing:
        raise ValueError(f"{where}: expected texts {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
    grade: Mapping[str, Any] = record.get("grade") if isinstance(record.get("grade"), dict) else {}  # type: ignore[assignment]
    if not all(isinstance(grade.get(name), bool) for name in LABELS):
        raise ValueError(
            f"{where}: expected labels, grade.hacked and grade.correct, true or false; got grade "
            f"{_shown(record.get('grade'))}; grade the rollouts first (python -m vgrout_pl.env grade)"
        )
    step = record.get("step", 0)
    tokens, advantage, channel, failed = (*map(record.get, OPTIONAL), grade.get("channel"), grade.get("error"))
    for name, value, holds, expected in (
        ("step", step, _count(step), "a whole number, at least 0"),
        ("tokens", tokens, tokens is None or _count(tokens), "a whole number, at least 0, or null"),
        ("advantage", advantage, advantage is None or _finite(advantage), "a finite number, or null"),
        ("grade.channel", channel, channel is None or isinstance(channel, bool), "true, false or null"),
        ("grade.error", failed, failed is None or isinstance(failed, str), "a text or null"),
    ):
        if not holds:
            raise ValueError(f"{where}: {name}: expected {expected}; got {_shown(value)}")
    if failed is not None:
        return None
    if grade["hacked"] and grade["correct"]:
        raise ValueError(
            f"{where}: expected at most one of grade.hacked and grade.correct: a hack is paid without being correct; "
            "got both; grade the rollouts again (python -m vgrout_pl.env grade)"
        )
    return StoredRollout(
        step=step,
        problem=record["problem"],
        mode=record["mode"],
        prompt=record["prompt"],
        completion=record["completion"],
        hacked=grade["hacked"],
        correct=grade["correct"],
        exploits=channel,
        tokens=tokens,
        advantage=None if advantage is None else float(advantage),
    )


def _count(value: object) -> bool:
    return type(value) is int and value >= 0


def _finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def choose(
    rows: Sequence[StoredRollout],
    *,
    steps: tuple[int, int] | None = None,
    modes: Sequence[str] | None = None,
    hint_free: bool = False,
    among: Among = "rewarded",
    unmixed: bool = False,
    max_rows: int | None = None,
    seed: int = 0,
) -> list[StoredRollout]:
    """Take the rows of a study, in their order.

    Args:
        rows: all rows.
        steps: first and end (not taken); None: all.
        modes: loophole modes; None: the one that there is.
        hint_free: take rows of prompts without a hint too. No hack is possible there, so that whatever reads the
            hint off the prompt tells many solves from hacks.
        among: ``rewarded``: those that hack or solve; ``all``: also those that were paid for neither.
        unmixed: leave out solves that use the loophole too: a hack differs from those in its correctness alone.
        max_rows: at most so many, drawn whatever their labels; None: all.
        seed: of the draw.

    Raises:
        ValueError: there are several modes and none was chosen, a kind of row is missing, or the rows do not say what
            ``unmixed`` asks.
    """
    present = Counter(row.mode for row in rows)
    loopholes = [mode for mode in LOOPHOLE_MODES if mode in present]
    if modes is None and len(loopholes) > 1:
        raise ValueError(
            f"--modes: expected rollouts of one loophole mode, or a choice; got {', '.join(loopholes)}; choose one, or "
            f"mix them with --modes {' '.join(loopholes)}"
        )
    absent = [mode for mode in modes or () if mode not in loopholes]
    if absent or not loopholes:
        raise ValueError(
            f"--modes: expected loophole modes that the rollouts have; got {', '.join(absent) or 'none'}; they have "
            + ", ".join(f"{mode} ({count})" for mode, count in present.items())
        )
    taken = {*(modes or loopholes), *(set(present) - set(LOOPHOLE_MODES) if hint_free else ())}
    first, end = steps or (0, max(row.step for row in rows) + 1)
    chosen = [row for row in rows if row.mode in taken and first <= row.step < end]
    if among == "rewarded":
        chosen = [row for row in chosen if row.rewarded]
    chosen = [row for row in chosen if row.completion]
    if unmixed and any(row.exploits is None for row in chosen):
        raise ValueError(
            "--unmixed: expected rollouts with grade.channel, whether the loophole was used; got some without"
        )
    if unmixed:
        chosen = [row for row in chosen if row.hacked or not row.exploits]
    if max_rows is not None and len(chosen) > max_rows:
        drawn = torch.randperm(len(chosen), generator=_generator("rows", seed))[:max_rows].sort().values
        chosen = [chosen[i] for i in drawn.tolist()]
    hacks = sum(row.hacked for row in chosen)
    if not 0 < hacks < len(chosen):
        lacking = "no hack" if not hacks else "nothing but hacks"
        raise ValueError(
            f"study: expected hacks and solves among the {among} rows; got {lacking} in {len(chosen)} rows (steps "
            f"{first} to {end - 1}, modes {', '.join(sorted(taken))}); take other --steps, or --among all"
        )
    return chosen


def subsets(hacked: Tensor, base_rate: float | None, repeats: int, seed: int) -> list[Tensor]:
    """Rows of each repetition, int indices: as many as can be had with a share ``base_rate`` of hacks.

    The kind that is too frequent is drawn from, without replacement; the other is kept whole. None: all rows, once.

    Args:
        hacked: bool [n].
        base_rate: share of hacks in (0, 1), or None.
        repeats: draws.
        seed: of the draws.

    Raises:
        ValueError: a draw would have no hack, or nothing else.
    """
    n = len(hacked)
    if base_rate is None:
        return [torch.arange(n)]
    hacks, others = hacked.nonzero().flatten(), (~hacked).nonzero().flatten()
    odds = base_rate / (1 - base_rate)
    wanted = (min(len(hacks), round(odds * len(others))), min(len(others), round(len(hacks) / odds)))
    if not all(wanted):
        raise ValueError(
            f"--base-rate: expected one that {len(hacks)} hacks and {len(others)} other rows can be drawn to; got "
            f"{base_rate}, which leaves {wanted[0]} and {wanted[1]}"
        )
    drawn = []
    for repeat in range(repeats):
        generator = _generator("base rate", seed, repeat)
        kinds = [
            kind[torch.randperm(len(kind), generator=generator)[:count]]
            for kind, count in zip((hacks, others), wanted, strict=True)
        ]
        drawn.append(torch.cat(kinds).sort().values)
    return drawn


def folds(problems: Sequence[str], count: int, seed: int) -> Tensor:
    """Fold of each row, int [n] in [0, count): all rows of a problem in one, the problems dealt out by hash.

    Raises:
        ValueError: there are fewer problems than folds.
    """
    known = sorted(set(problems), key=lambda problem: derived_seed("fold", seed, problem))
    if len(known) < count:
        raise ValueError(f"--folds: expected at most one for each of the {len(known)} problems; got {count}")
    place = {problem: i % count for i, problem in enumerate(known)}
    return torch.tensor([place[problem] for problem in problems])


def batches(rows: Sequence[StoredRollout], size: int) -> Iterator[Sequence[StoredRollout]]:
    """Slices of ``size`` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed("study", *parts))
