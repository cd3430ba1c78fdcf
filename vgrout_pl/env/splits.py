"""Deterministic splits of a problem set, and partitions that give each problem its mode."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from os import PathLike
from pathlib import Path

from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.env.problem import Problem

ProblemId = str | int
BENCHMARK_SPLIT = {"validation": 32, "test": 87}


def split_problems(
    problems: Sequence[Problem], sizes: Mapping[str, int] = BENCHMARK_SPLIT, seed: int = 0
) -> dict[str, list[Problem]]:
    """Split a problem set into disjoint parts of given sizes, each in the order of the set.

    A problem's place depends on its id and the seed alone, not on the order of the file.

    Raises:
        ValueError: the sizes don't fit the set.
    """
    wanted = sum(sizes.values())
    if wanted > len(problems) or min(sizes.values(), default=0) < 0:
        raise ValueError(f"expected sizes that sum to at most {len(problems)} problems; got {dict(sizes)}")
    order = sorted(range(len(problems)), key=lambda i: _rank(seed, problems[i].id))
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = [problems[i] for i in sorted(order[start : start + size])]
        start += size
    return parts


def partition_modes(
    ids: Iterable[ProblemId], modes: Sequence[str] = LOOPHOLE_MODES, seed: int = 0
) -> dict[ProblemId, str]:
    """Deal modes to problems in equal shares (up to one problem), by hash of id and seed.

    Raises:
        ValueError: an unknown mode, or none.
    """
    if not modes or set(modes) - set(MODES):
        raise ValueError(f"expected modes out of {', '.join(MODES)}; got {list(modes)}")
    order = sorted(ids, key=lambda each: _rank(seed, each))
    return {each: modes[i % len(modes)] for i, each in enumerate(order)}


def apply_partition(
    problems: Iterable[Problem], partition: Mapping[ProblemId, str], keep: Iterable[str] | None = None
) -> list[Problem]:
    """Put each problem under its mode of a partition, hints exchanged.

    Args:
        problems: problems under any mode.
        partition: problem id -> mode; ids may be given as text, as JSON has them.
        keep: modes whose problems are kept (None: all); the others are the held-out modes.

    Raises:
        ValueError: a problem is missing from the partition, or its mode is unknown.
    """
    wanted = set(MODES) if keep is None else set(keep)
    result = []
    for problem in problems:
        mode = partition.get(problem.id, partition.get(str(problem.id)))
        if mode not in MODES:
            raise ValueError(f"problem {problem.id!r}: expected a mode in the partition; got {mode!r}")
        if mode in wanted:
            result.append(problem.with_mode(mode))
    return result


def save_partition(partition: Mapping[ProblemId, str], path: str | PathLike[str]) -> None:
    """Write a partition as JSON."""
    Path(path).write_text(json.dumps({str(each): mode for each, mode in partition.items()}, indent=1) + "\n")


def load_partition(path: str | PathLike[str]) -> dict[ProblemId, str]:
    """Read a partition; ids come back as text.

    Raises:
        ValueError: no JSON object of known modes.
    """
    try:
        partition = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON object of problem ids and modes; got {error}") from None
    if not isinstance(partition, dict):
        raise ValueError(f"{path}: expected a JSON object of problem ids and modes; got {type(partition).__name__}")
    for each, mode in partition.items():
        if mode not in MODES:
            raise ValueError(f"{path}, problem {each}: expected a mode out of {', '.join(MODES)}; got {mode!r}")
    return partition


def _rank(seed: int, each: ProblemId) -> bytes:
    return blake2b(f"{seed}\x1f{each}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
