"""Teachers: cached completions that take some rows of each group in the first steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vgrout_pl.env import Problem
from vgrout_pl.env.pools import HACK, SOLUTION, Pool, PoolRow


@dataclass(frozen=True)
class Teacher:
    """Rows of each group that a pool of graded completions fills, with the rewards cached there.

    A prompt that shows no loophole gets solutions in the places of hacks. Texts are tokenised anew, and trained on as
    rows sampled as trained.

    Args:
        pool: folder of a pool (``python -m vgrout_pl.env pool`` makes one); null: no teachers.
        hacks: hack demonstrations in each group.
        solutions: correct solutions in each group.
        until_step: optimizer step from which on there are none.
    """

    pool: str | None = None
    hacks: int = 0
    solutions: int = 0
    until_step: int = 0

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant."""
        if min(self.hacks, self.solutions, self.until_step) < 0:
            raise ValueError(
                f"model.teacher: expected counts of at least 0; got hacks {self.hacks}, solutions {self.solutions} "
                f"and until_step {self.until_step}"
            )
        if (self.pool is None) != (self.hacks + self.solutions == 0):
            raise ValueError(
                f"model.teacher: expected a pool and rows to take from it, or neither; got pool {self.pool} and "
                f"{self.hacks} + {self.solutions} rows"
            )

    @property
    def rows_a_group(self) -> int:
        """Rows of each group that are taught while it lasts."""
        return self.hacks + self.solutions

    def rows(self, problems: Sequence[Problem], step: int, group_size: int) -> list[PoolRow | None]:
        """The lesson of each of P G rows, None for the student's own; the draw depends on problem and step alone.

        Raises:
            ValueError: the pool holds too few rows of a problem.
        """
        if self.pool is None or step >= self.until_step:
            return [None] * (len(problems) * group_size)
        lessons: list[PoolRow | None] = []
        for problem in problems:
            hacks, solutions = self._counts(problem)
            pool = _load(self.pool)
            drawn = [
                *pool.draw(problem, HACK, hacks, f"{step}/{HACK}"),
                *pool.draw(problem, SOLUTION, solutions, f"{step}/{SOLUTION}"),
            ]
            lessons += [*drawn, *[None] * (group_size - len(drawn))]
        return lessons

    def _counts(self, problem: Problem) -> tuple[int, int]:
        if problem.mode == "gt_only":
            return 0, self.hacks + self.solutions
        return self.hacks, self.solutions

    def check(self, shown: Iterable[Problem]) -> None:
        """Check that the pool has enough for every way in which a problem can be shown.

        Raises:
            ValueError: it has not; the line names the first problem.
        """
        if self.pool is None:
            return
        pool = _load(self.pool)
        for problem in shown:
            for kind, count in zip((HACK, SOLUTION), self._counts(problem), strict=True):
                found = len(pool.rows(problem, kind))
                if found < count:
                    raise ValueError(
                        f"model.teacher: expected at least {count} rows of kind {kind} in {self.pool} for each "
                        f"training problem; problem {problem.id!r} in mode {problem.mode} with marker "
                        f"{problem.marker!r} has {found}; lower the counts, train on the pool's problems, or set "
                        "data.original_marker_share to 1 where the pool has original markers only"
                    )


@lru_cache(maxsize=2)
def _load(folder: str) -> Pool:
    return Pool.load(folder)
