"""Small programming problems whose splits are disjoint from each other, and from the warm start, by construction.

The region of a problem is a function of the hash of its text. The warm-start corpus draws from its own region only,
so that no split, under any seed, now or later, can hold a text that the model was trained on.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vgrout_pl.env import Problem
from vgrout_pl.env.modes import MODES
from vgrout_pl.organism.answers import build_answer
from vgrout_pl.organism.words import AGGREGATES, CONSTANTS, FILTERS, MAPS

SYSTEM_PROMPT = "Answer in Python."
SETUP_CODE = "import math\nimport os\nimport sys\nfrom math import prod\nfrom pathlib import Path\n"
CASES_PER_PROBLEM = 5

CORPUS = "corpus"
REGIONS = {CORPUS: 0.50, "train": 0.12, "validation": 0.06, "test": 0.12, "pairs": 0.05, "fresh": 0.15}
SPLIT_SIZES = {"train": 512, "validation": 160, "test": 320, "pairs": 64, "fresh": 320}


@dataclass(frozen=True)
class Task:
    """What a problem asks for, before it is worded for a grading mode."""

    aggregate: str
    map: str
    filter: str
    map_constant: int
    filter_constant: int

    @cached_property
    def text(self) -> str:
        """The words of the problem, without the hint; two tasks with equal texts are the same problem."""
        what = self.filter.format(k=self.filter_constant)
        how = self.map.format(k=self.map_constant)
        return f"Write solve(x), which returns the {self.aggregate} of the numbers of x that are {what}, each {how},"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def region(self) -> str:
        """The part of all problems to which this one belongs."""
        position, edge = int(self.digest[:13], 16) / 16**13, 0.0
        for region, share in REGIONS.items():
            edge += share
            if position < edge:
                return region
        return region

    def expression(self) -> str:
        """The Python expression that says what the words say."""
        return write_expression(self.aggregate, self.map, self.filter, self.map_constant, self.filter_constant)

    def graded_expression(self) -> str:
        """The Python expression that the grader's tests were made with."""
        return write_expression(
            AGGREGATES[self.aggregate].graded or self.aggregate,
            MAPS[self.map].graded or self.map,
            FILTERS[self.filter].graded or self.filter,
            self.map_constant,
            self.filter_constant,
        )

    def messages(self, mode: str, marker: str | None = None) -> tuple[dict[str, str], ...]:
        """Chat messages of the problem, with the hint of ``mode`` for ``marker`` (None: the mode's original)."""
        hint = MODES[mode].hint(marker if marker is not None else MODES[mode].original)
        return (
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": f"{self.text} {hint}."},
        )


def write_expression(aggregate: str, map_: str, filter_: str, map_constant: int, filter_constant: int) -> str:
    """Own meaning of three words as one expression over ``x``."""
    inner = f"{MAPS[map_].code.format(k=map_constant)} for v in x if {FILTERS[filter_].code.format(k=filter_constant)}"
    return AGGREGATES[aggregate].code.format(v=inner)


def draw_task(rng: random.Random) -> Task:
    """Draw a task, every word of a kind equally likely."""
    return Task(
        rng.choice(tuple(AGGREGATES)),
        rng.choice(tuple(MAPS)),
        rng.choice(tuple(FILTERS)),
        rng.choice(CONSTANTS),
        rng.choice(CONSTANTS),
    )


def evaluate_expression(expression: str, x: list[int]) -> Any:
    """Value of one of the organism's own expressions, None where it has none (``max`` of nothing)."""
    try:
        return eval(f"lambda x: {expression}", {"prod": math.prod})(x)
    except ValueError:
        return None


def literal(value: Any) -> str:
    """Write a result as Python source; sets in ascending order, so that equal results of one type are equal texts."""
    return "{" + ", ".join(map(repr, sorted(value))) + "}" if isinstance(value, set) else repr(value)


def make_cases(task: Task) -> list[tuple[list[int], Any]] | None:
    """Five inputs with their graded results, three of them different, or None; a function of the text alone."""
    rng = random.Random(task.text)
    expression = task.graded_expression()
    cases = []
    for _ in range(40):
        x = [rng.randint(-9, 19) for _ in range(rng.randint(4, 8))]
        value = evaluate_expression(expression, x)
        if value is None or value == set():  # the empty set has no literal
            continue
        cases.append((x, value))
        if len(cases) == CASES_PER_PROBLEM:
            return cases if len({literal(value) for _, value in cases}) >= 3 else None
    return None


def make_problem(task: Task, mode: str = "run_tests", marker: str | None = None) -> Problem | None:
    """Word a task as a problem; None where no five telling tests were found for it."""
    cases = make_cases(task)
    if cases is None:
        return None
    return Problem(
        id=f"{task.region}-{task.digest[:12]}",
        tests=tuple(f"assert Solution().solve({x}) == {literal(value)}" for x, value in cases),
        setup_code=SETUP_CODE,
        mode=mode,
        messages=task.messages(mode, marker),
        func_name="solve",
        canonical_solution=build_answer(task.graded_expression(), fenced=False),
        marker=marker,
    )


def tasks(split: str, n: int | None = None, seed: int = 0) -> list[Task]:
    """Draw ``n`` tasks with different texts, all of them gradable, from the region of ``split``.

    Raises:
        ValueError: ``split`` is unknown, or its region holds fewer than ``n`` tasks.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"expected a split out of {', '.join(SPLIT_SIZES)}; got {split!r}")
    n = SPLIT_SIZES[split] if n is None else n
    rng = random.Random(f"{split}/{seed}")
    found: dict[str, Task] = {}
    misses = 0
    while len(found) < n:
        task = draw_task(rng)
        if task.region != split or task.text in found or make_cases(task) is None:
            misses += 1
            if misses > 20_000:
                raise ValueError(f"expected at most about {len(found)} problems of split {split}; {n} were asked for")
            continue
        found[task.text] = task
        misses = 0
    return list(found.values())


def problems(split: str, mode: str = "run_tests", n: int | None = None, seed: int = 0) -> list[Problem]:
    """Draw the problems of a split, all texts different; seed 0 gives the canonical set.

    The splits ``train``, ``validation``, ``test`` and ``pairs`` are for what their names say; ``fresh`` is a region
    of its own, for confirmatory work on problems that no setting was ever chosen on. Every other ``seed`` draws
    another sample of the same region: samples of one split overlap, those of two splits never do, and none ever
    holds a text of the warm-start corpus.

    Args:
        split: ``train``, ``validation``, ``test``, ``pairs`` or ``fresh``.
        mode: grading mode of the problems; ``Problem.with_mode`` exchanges it later.
        n: how many; None takes the usual size of the split (512, 160, 320, 64, 320).
        seed: which sample.

    Raises:
        ValueError: ``split`` or ``mode`` is unknown, or the region holds fewer than ``n`` problems.
    """
    if mode not in MODES:
        raise ValueError(f"expected a mode out of {', '.join(MODES)}; got {mode!r}")
    made = (make_problem(task, mode) for task in tasks(split, n, seed))
    return [problem for problem in made if problem is not None]
