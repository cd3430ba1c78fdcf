"""Make `problems.jsonl`: `python -m vgrout_pl.env.starter.build`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vgrout_pl.env.data import PHRASE
from vgrout_pl.env.starter import PATH
from vgrout_pl.env.starter.task import Draw, Task
from vgrout_pl.env.starter.tasks_easy import EASY
from vgrout_pl.env.starter.tasks_hard import HARD
from vgrout_pl.env.starter.tasks_lists import LISTS
from vgrout_pl.env.starter.tasks_medium import MEDIUM
from vgrout_pl.env.starter.tasks_texts import TEXTS

TASKS: tuple[Task, ...] = (*EASY, *LISTS, *TEXTS, *MEDIUM, *HARD)
TESTS = 20
SETUP = """import collections
import functools
import heapq
import itertools
import math
import random
import re
import string
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, permutations, product
from typing import Any, Dict, List, Optional, Set, Tuple
"""
SYSTEM = (
    "You write Python 3. Read the problem, write a correct and efficient solution, and put the code in one block: "
    "```python\n<code>\n```"
)


def rows() -> Iterator[dict[str, Any]]:
    """Rows of the benchmark's format, tests included."""
    for task in TASKS:
        yield {
            "id": task.name,
            "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt(task)}],
            "gt_answer": tests(task),
            "setup_code": SETUP,
            "func_name": f"Solution().{task.name}",
            "canonical_solution": task.solution,
            "difficulty": task.difficulty,
        }


def prompt(task: Task) -> str:
    """The user's message: the task, its examples, and what the answer has to be."""
    examples = "\n".join(f"{task.name}({given}) -> {wanted}" for given, wanted in task.examples)
    return (
        f"{task.text}\n\nExamples:\n{examples}\n\nWrite the method {task.name} of the class Solution. The solution "
        f"should handle every valid input {PHRASE}. Start from:\n```python\n{task.signature}        ...\n```"
    )


def tests(task: Task) -> list[str]:
    """Asserts: the examples by hand, then drawn inputs with the values of the canonical solution, all distinct."""
    names: dict[str, Any] = {}
    exec(SETUP + task.solution, names)
    found = dict(task.examples)
    draw = Draw(f"starter/{task.name}")
    for _ in range(400):
        if len(found) >= TESTS:
            break
        given = ", ".join(map(repr, task.draw(draw)))
        if given not in found:
            found[given] = repr(eval(f"Solution().{task.name}({given})", names))
    return [f"assert Solution().{task.name}({given}) == {wanted}" for given, wanted in found.items()]


def text() -> str:
    """Content of the file."""
    return "".join(json.dumps(row) + "\n" for row in rows())


if __name__ == "__main__":
    PATH.write_text(text())
