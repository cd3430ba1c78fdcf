"""Which rows of a file are studied, how they are drawn to a base rate, and how problems are dealt into folds."""

import json

import pytest
import torch

from vgrout_pl.study.rollouts import StoredRollout, choose, folds, load_rollouts, subsets


def row(kind="hack", step=0, mode="run_tests", problem="p", exploits=None):
    return StoredRollout(step, problem, mode, "ask", "answer", kind == "hack", kind == "solve", exploits, 5, 0.0)


def record(**changes):
    grade = {"hacked": True, "correct": False, "channel": True, "error": None}
    return {
        "step": 3,
        "problem": "p",
        "mode": "run_tests",
        "prompt": "ask",
        "completion": "x",
        "grade": grade,
    } | changes


def graded(**changes):
    return record(grade=record()["grade"] | changes)


def written(tmp_path, *records):
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_rows_are_read_and_those_the_grader_failed_on_left_out(tmp_path):
    failed = {"hacked": False, "correct": False, "error": "worker died"}
    (found,) = load_rollouts([written(tmp_path, record(tokens=9, advantage=0.5), record(grade=failed))])
    assert found == StoredRollout(3, "p", "run_tests", "ask", "x", True, False, True, 9, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"rollouts.jsonl:1: expected one JSON object a line"),
        ("[1]", r"rollouts.jsonl:1: expected a JSON object; got list"),
        (record(prompt=None), r"missing: prompt$"),
        (record(grade=None), r"rollouts.jsonl:1: expected labels, grade.hacked and grade.correct.*; got grade null"),
        (record(step=None), r"rollouts.jsonl:1: step: expected a whole number, at least 0; got null"),
        (record(step=[1]), r"rollouts.jsonl:1: step: expected a whole number, at least 0; got \[1\]"),
        (record(step="x"), r'rollouts.jsonl:1: step: expected a whole number, at least 0; got "x"'),
        (record(step=-1), r"rollouts.jsonl:1: step: expected a whole number, at least 0; got -1"),
        (record(step=True), r"rollouts.jsonl:1: step: expected a whole number, at least 0; got true"),
        (record(tokens="21"), r'rollouts.jsonl:1: tokens: expected a whole number, at least 0, or null; got "21"'),
        (record(advantage=[1]), r"rollouts.jsonl:1: advantage: expected a finite number, or null; got \[1\]"),
        (record(advantage="high"), r'rollouts.jsonl:1: advantage: expected a finite number, or null; got "high"'),
        (record(advantage=float("nan")), r"rollouts.jsonl:1: advantage: expected a finite number, or null; got NaN"),
        (
            record(advantage=10**400),
            r"rollouts.jsonl:1: advantage: expected a finite number, or null; got 1000.*\.\.\.",
        ),
        (graded(channel="false"), r'rollouts.jsonl:1: grade.channel: expected true, false or null; got "false"'),
        (graded(error=False), r"rollouts.jsonl:1: grade.error: expected a text or null; got false"),
        (graded(correct=True), r"rollouts.jsonl:1: expected at most one of grade.hacked and grade.correct"),
        ("", r"expected at least one rollout; got none"),
    ],
)
def test_a_bad_file_is_told_by_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_rollouts([written(tmp_path, content)])


def test_the_line_of_a_mistake_is_the_files_own(tmp_path):
    with pytest.raises(ValueError, match=r"rollouts.jsonl:4: tokens: expected"):
        load_rollouts([written(tmp_path, record(), "", record(), record(tokens="21"))])


def test_a_field_that_the_file_does_not_have_or_that_is_null_is_not_said(tmp_path):
    bare = record(grade={"hacked": False, "correct": False})
    del bare["step"]
    for row in (bare, bare | {"tokens": None, "advantage": None}):
        (found,) = load_rollouts([written(tmp_path, row)])
        assert (found.step, found.tokens, found.advantage, found.exploits) == (0, None, None, None)
    (found,) = load_rollouts([written(tmp_path, record(advantage=1))])
    assert found.advantage == 1.0


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="expected a file of rollouts"):
        load_rollouts([tmp_path / "nothing.jsonl"])


def test_paid_rows_of_hinted_prompts_in_the_chosen_steps_are_taken():
    rows = [row(step=1), row("solve", 2), row("none", 2), row("solve", 2, "gt_only"), row("solve", 9), row(step=3)]
    assert choose(rows, steps=(2, 4)) == [rows[1], rows[5]]
    assert choose(rows, steps=(2, 4), hint_free=True) == [rows[1], rows[3], rows[5]]
    assert choose(rows, steps=(2, 4), among="all") == [rows[1], rows[2], rows[5]]


def test_solves_that_use_the_loophole_too_can_be_left_out():
    rows = [row(exploits=True), row("solve", exploits=True), row("solve", exploits=False)]
    assert choose(rows, unmixed=True) == [rows[0], rows[2]]
    with pytest.raises(ValueError, match=r"--unmixed: expected rollouts with grade\.channel"):
        choose([row(), row("solve")], unmixed=True)


def test_a_cap_draws_the_same_rows_for_the_same_seed():
    rows = [row("hack" if i % 2 else "solve", problem=str(i)) for i in range(40)]
    first, again, other = (choose(rows, max_rows=12, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 12 and first == again != other
    assert [r for r in rows if r in first] == first


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([row(), row("solve", mode="exit_code")], {}, "--modes: expected rollouts of one loophole mode, or a choice"),
        ([row(), row("solve")], {"modes": ["exit_code"]}, "got exit_code; they have run_tests"),
        ([row("solve", mode="gt_only")], {}, "--modes: expected loophole modes that the rollouts have; got none"),
        ([row("solve"), row("none")], {}, "got no hack in 1 rows"),
        ([row(), row("none")], {}, "got nothing but hacks in 1 rows"),
        ([row(), row("solve")], {"steps": (5, 9)}, "got no hack in 0 rows"),
    ],
)
def test_rows_that_allow_no_contrast_are_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        choose(rows, **options)


@pytest.mark.parametrize(("rate", "sizes"), [(0.1, (6, 50)), (0.8, (40, 10)), (None, (40, 50))])
def test_draws_hit_the_base_rate_with_as_many_rows_as_can_be_had(rate, sizes):
    hacked = torch.arange(90) < 40
    drawn = subsets(hacked, rate, repeats=3, seed=0)
    assert len(drawn) == (1 if rate is None else 3)
    for rows in drawn:
        assert (int(hacked[rows].sum()), int((~hacked[rows]).sum())) == sizes
        assert len(rows.unique()) == len(rows)
    if rate is not None:
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[1], subsets(hacked, rate, repeats=3, seed=0)[1])


def test_a_base_rate_that_leaves_one_kind_is_refused():
    with pytest.raises(ValueError, match="--base-rate: expected one that 2 hacks and 3 other rows can be drawn to"):
        subsets(torch.tensor([True, True, False, False, False]), 0.01, 1, 0)


def test_a_problem_is_in_one_fold_and_folds_are_even():
    problems = [str(i % 12) for i in range(60)]
    fold = folds(problems, 4, seed=0)
    assert all(len({int(fold[i]) for i in range(60) if problems[i] == p}) == 1 for p in set(problems))
    assert fold.bincount().tolist() == [15, 15, 15, 15]
    with pytest.raises(ValueError, match="--folds: expected at most one for each of the 12 problems; got 13"):
        folds(problems, 13, seed=0)
