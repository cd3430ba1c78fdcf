"""What a problem goes through before its answers are graded."""

from __future__ import annotations

from dataclasses import replace

from vgrout_pl.env.asserts import Tests, parse_tests
from vgrout_pl.env.evidence import Evidence
from vgrout_pl.env.problem import Problem
from vgrout_pl.env.sandbox.canonical import DIGEST_SIZE
from vgrout_pl.env.sandbox.runner import FINISHED


def completed(tests: Tests, pristine: Evidence) -> Tests | str:
    """The tests with all expected values in place, or why they cannot be had."""
    if pristine.error is not None or pristine.status != FINISHED:
        return f"the problem's set-up code failed: {pristine.error or pristine.stopped or pristine.status}"
    checks = list(tests.checks)
    for call, i in enumerate(tests.pending):
        value = pristine.returned.get(call)
        if not value:
            return f"the expected value of test {i + 1} is no plain value: {checks[i].source[:80]}"
        checks[i] = replace(checks[i], digests=frozenset({value[:DIGEST_SIZE]}))
    return replace(tests, checks=tuple(checks)) if tests.pending else tests


def parse_problem(problem: Problem) -> Tests:
    """Tests of a problem, taken apart; errors name the problem."""
    try:
        return parse_tests(tuple(problem.tests), problem.setup_code)
    except ValueError as error:
        raise ValueError(f"problem {problem.id!r}: {error}") from None
