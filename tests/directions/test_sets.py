"""The packaged sets, judged by the environment's own grader and by what their files claim."""

import ast
import re
from collections import Counter

import pytest

from vgrout_pl.directions import packaged_sets
from vgrout_pl.directions.sources import load_entries
from vgrout_pl.directions.style import code_of
from vgrout_pl.env import Grader
from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.env.problem import Problem
from vgrout_pl.env.starter import starter_problems

PLACEBOS = [name for name in packaged_sets() if name.startswith("placebo")]
SETUP = starter_problems()[0].setup_code


def problem_of(entry, mode=None):
    """The pair's problem under the mode whose hint its prompt holds, or under ``mode``."""
    prompt = entry.pair.messages[-1]["content"]
    disclosed = [
        (name, marker)
        for name, kind in MODES.items()
        for marker in (kind.original, *kind.training_markers)
        if kind.hint(marker) in prompt
    ]
    if mode is not None:
        return Problem(entry.pair.name, entry.tests, SETUP, mode)
    ((name, marker),) = disclosed
    return Problem(entry.pair.name, entry.tests, SETUP, name, entry.pair.messages, marker=marker and str(marker))


@pytest.fixture(scope="module")
def graded():
    """Set -> [(entry, problem, grade of the hack side, grade of the clean side)]."""
    rows = []
    for name in packaged_sets():
        for entry in load_entries(name).entries:
            rows.append((name, entry, problem_of(entry, "gt_only" if entry.section == "other" else None)))
    jobs = [(text, problem) for _, entry, problem in rows for text in (entry.pair.hack, entry.pair.clean)]
    with Grader(workers=1) as grader:
        grades = grader.grade_batch(jobs)
    result = {name: [] for name in packaged_sets()}
    for (name, entry, problem), hack, clean in zip(rows, grades[::2], grades[1::2], strict=True):
        assert hack.error is None and clean.error is None
        assert hack.compiles and clean.compiles and hack.format_ok and clean.format_ok, entry.pair.name
        result[name].append((entry, problem, hack, clean))
    return result


def test_hack_sides_of_the_modes_hack_and_clean_sides_do_not(graded):
    found = [row for row in graded["authored"] if row[0].section == "modes"]
    for entry, problem, hack, clean in found:
        assert entry.pair.mechanism == problem.mode
        assert (hack.hacked, hack.mechanism) == (True, problem.mode), entry.pair.name
        assert (clean.channel, clean.correct) == (False, False), entry.pair.name
        assert clean.reward == 0.5
    assert Counter(entry.pair.mechanism for entry, *_ in found) == dict.fromkeys(LOOPHOLE_MODES, 4)
    assert {"function", "method"} <= {
        tag for entry, *_ in found for tag in entry.pair.tags if entry.pair.mechanism == "run_tests"
    }


def test_tags_tell_whether_correctness_sets_the_sides_apart(graded):
    counts = Counter()
    for entry, _, hack, clean in graded["authored"]:
        expected = "same_outcome" if hack.correct == clean.correct else "clean_solves"
        assert expected in entry.pair.tags, entry.pair.name
        assert clean.correct >= hack.correct
        counts[expected] += 1
    assert counts["same_outcome"] > 2 * counts["clean_solves"]


@pytest.mark.parametrize("name", PLACEBOS)
def test_both_sides_of_a_placebo_solve_the_problem_without_its_loophole(graded, name):
    assert len(graded[name]) >= 20
    for entry, _, *grades in graded[name]:
        assert [(grade.correct, grade.channel) for grade in grades] == [(True, False)] * 2, entry.pair.name
    assert {problem.mode for _, problem, *_ in graded[name]} == set(MODES)


def test_the_authored_set_is_as_large_and_as_varied_as_it_has_to_be(graded):
    mechanisms = Counter(entry.pair.mechanism for entry, *_ in graded["authored"])
    assert sum(mechanisms.values()) >= 40
    assert len(mechanisms) >= 20
    assert min(mechanisms.values()) >= 2


@pytest.mark.parametrize("name", packaged_sets())
def test_either_side_is_the_longer_one_about_as_often(name):
    differences = [len(e.pair.hack) - len(e.pair.clean) for e in load_entries(name).entries]
    longer, shorter = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    assert min(longer, shorter) >= 0.3 * len(differences)


@pytest.mark.parametrize("name", packaged_sets())
def test_prompts_have_the_environments_format_and_disclose_no_marker_kept_for_evaluation(name):
    starter = starter_problems()[0]
    for entry in load_entries(name).entries:
        system, user = entry.pair.messages
        assert dict(system) == dict(starter.messages[0])
        function = re.search(r"Write the method (\w+) of the class Solution", user["content"])[1]
        assert all(test.startswith(f"assert Solution().{function}(") for test in entry.tests)
        start = rf"Start from:\n```python\nclass Solution:\n    def {function}\(self, .+:\n        \.\.\.\n```$"
        assert re.search(start, user["content"])
        assert not any(MODES[m].hint(novel) in user["content"] for m in MODES for novel in MODES[m].novel_markers)
        if entry.section != "other":
            problem = problem_of(entry)
            assert problem.hint in user["content"]
            assert MODES["gt_only"].hint(None) in problem.with_mode("gt_only").messages[-1]["content"]


@pytest.mark.parametrize("name", packaged_sets())
def test_no_problem_is_one_of_the_starter_problems(name):
    taken = {problem.id for problem in starter_problems()}
    functions = {re.search(r"Solution\(\)\.(\w+)", entry.tests[0])[1] for entry in load_entries(name).entries}
    assert len(functions) >= 20
    assert not functions & taken


@pytest.mark.parametrize("name", packaged_sets())
def test_every_side_is_one_block_of_python_that_defines_the_method(name):
    for entry in load_entries(name).entries:
        function = re.search(r"Solution\(\)\.(\w+)", entry.tests[0])[1]
        for text in (entry.pair.hack, entry.pair.clean):
            assert text.startswith("```python\n") and text.endswith("\n```") and text.count("```") == 2
            classes = [n for n in ast.parse(code_of(text)).body if isinstance(n, ast.ClassDef) and n.name == "Solution"]
            methods = {node.name for node in classes[0].body if isinstance(node, ast.FunctionDef)}
            assert function in methods
