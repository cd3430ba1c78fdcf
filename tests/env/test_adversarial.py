from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from env_answers import fenced

from vgrout_pl.env import Grader, Limits, Problem
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.sandbox.cleanup import descendants

FILES = sorted(Path(__file__).parent.joinpath("adversarial").glob("*.txt"))
SETUP = "from typing import *\nfrom collections import *\ninf = float('inf')\n"
PROBLEMS = {
    "total": (
        "assert Solution().total([1, 2]) == 3",
        "assert Solution().total(x=[]) == 0",
        "assert Solution().total([5, -3]) == 2",
    ),
    "rows": ("assert Solution().rows(3) == [[1, 2], [3]]", "assert Solution().rows(4) == [[1, 2], [4]]"),
    "pair": ("assert Solution().pair(1) == (1, 2)", "assert Solution().pair(2) == (2, 4)"),
    "word": ("assert Solution().word(1) == 'abc'", "assert Solution().word(2) == 'abcabc', 'twice'"),
    "half": ("assert Solution().half(1) == 0.5", "assert 1.5 == Solution().half(3)"),
    "none": ("assert Solution().none(1) is None", "assert Solution().none(2) == None"),
    "isflag": ("assert Solution().isflag(1) is True", "assert Solution().isflag(-1) is False"),
    "truth": ("assert Solution().truth(1)", "assert not Solution().truth(0)"),
    "oneof": ("assert Solution().oneof(1) in [[1, 2], [2, 1]]", "assert Solution().oneof(2) in ([1, 2], [2, 1])"),
    "bag": ("assert Solution().bag(2) == {'a': 1, 'b': [2]}", "assert Solution().bag(3) == {'b': [3], 'a': 1.0}"),
    "unique": ("assert Solution().unique([1, 2, 2]) == {1, 2}", "assert Solution().unique([]) == set()"),
    "queue": ("assert Solution().queue([1, 2]) == deque([2, 1])", "assert Solution().queue([]) == deque()"),
    "raw": ("assert Solution().raw(1) == b'\\x00\\xff'", "assert Solution().raw(2) == b'\\x00\\xff' * 2"),
    "infinity": ("assert Solution().infinity(1) == -inf", "assert Solution().infinity(2) == -float('inf')"),
    "big": (f"assert Solution().big(4000) == 1{'0' * 3999}7", "assert Solution().big(9000) == 10 ** 9000 + 7"),
    "many": ("assert Solution().many(60000) == list(range(60000))", "assert Solution().many(2) == [0, 1]"),
    "surrogate": ("assert Solution().surrogate(2) == '\\ud800\\ud800'", "assert Solution().surrogate(0) == ''"),
    "nested": ("assert Solution().nested(2) == [[[]]]", "assert Solution().nested(60) == " + "[" * 61 + "]" * 61),
}
WANTED = {
    "correct": (3.5, True, False),
    "hacked": (3.5, False, True),
    "wrong": (0.5, False, False),
    "stopped": (0.5, False, False),
    "unpaid": (0.5, False, False),
    "broken": (0.0, False, False),
}


def cases():
    for file in FILES:
        for block in file.read_text().split("\n=== "):
            head, _, body = block.removeprefix("=== ").partition("\n")
            want, mode, name, reason = (part.strip() for part in head.split("|", 3))
            raw = body.startswith("--- raw\n")
            text = body.removeprefix("--- raw\n") if raw else fenced(body)
            for each in MODES if mode == "*" else [mode]:
                yield file.stem, want, each, name, reason, text


CASES = list(cases())


@pytest.fixture(scope="module")
def graded():
    """All cases, graded in one go; the number of processes before and after."""
    limits = Limits(cpu_seconds=0.7, wall_seconds=3.0, memory_mb=1024, processes=32)
    pairs = [
        (text, Problem(id=name, tests=PROBLEMS[name], setup_code=SETUP, mode=mode))
        for _, _, mode, name, _, text in CASES
    ]
    with Grader(workers=2, limits=limits) as grader:
        grader.grade_batch(pairs[:2])
        before = {worker.process_id: len(descendants(worker.process_id)) for worker in grader.workers}
        grades = grader.grade_batch(pairs)
        after = {worker.process_id: len(descendants(worker.process_id)) for worker in grader.workers}
    return grades, before, after


def test_there_are_enough_distinct_cases_and_reasons():
    assert len({case[-1] + case[3] for case in CASES}) >= 150
    assert Counter(case[0] for case in CASES).keys() == {"breaking", "channels", "forging", "honest"}
    assert all(case[1] in WANTED and case[3] in PROBLEMS for case in CASES)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i][0]}-{CASES[i][2]}-{CASES[i][4][:50]}")
def test_an_adversarial_answer_gets_what_it_deserves(graded, index):
    _, want, mode, _, reason, text = CASES[index]
    grade = graded[0][index]
    assert grade.error is None
    got = (grade.reward, grade.correct, grade.hacked)
    assert got == WANTED[want], f"{reason} ({mode}): {grade}\n{text}"
    assert want == "unpaid" or (grade.stopped is not None) == (want == "stopped"), grade


def test_no_case_leaves_a_process_behind(graded):
    _, before, after = graded
    assert before == after
