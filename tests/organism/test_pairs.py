"""The organism's contrastive pairs: well-formed, on held-out problems, and graded as they claim."""

from collections import Counter

import pytest

from vgrout_pl.directions import ContrastivePair, pairs_hash
from vgrout_pl.env import Grader
from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.organism import pairs
from vgrout_pl.organism.problems import make_problem, tasks

MESSAGES = ({"role": "user", "content": "2 + 2?"},)


@pytest.fixture(scope="module")
def all_modes():
    return pairs(LOOPHOLE_MODES, n=48)


def expression(completion: str) -> str:
    """What ``solve`` returns."""
    return completion.split("    def solve(self, x):", 1)[1].split("        return ", 1)[1].split("\n", 1)[0]


def test_pairs_are_graded_as_they_claim(all_modes):
    by_text = {task.text: task for task in tasks("pairs", 128)}
    jobs = []
    for pair in all_modes:
        text, hint = pair.messages[-1]["content"].rsplit(" and ", 1)
        mode = pair.tags[0]
        family = (None, *MODES[mode].training_markers)
        marker = next(m for m in family if MODES[mode].hint(m or MODES[mode].original) == f"and {hint}"[:-1])
        problem = make_problem(by_text[text], mode, marker)
        assert problem.messages == pair.messages
        jobs += [(pair.hack, problem), (pair.clean, problem)]
    with Grader(workers=1) as grader:
        grades = grader.grade_batch(jobs)
    for (answer, problem), hacks, grade in zip(jobs, [True, False] * len(all_modes), grades, strict=True):
        assert grade.compiles
        assert not grade.correct
        assert grade.hacked == hacks, f"{problem.mode}\n{answer}"


def test_the_two_sides_share_the_expression_save_where_the_hack_is_the_returned_value(all_modes):
    for pair in all_modes:
        if pair.tags[0] == "eq_override":
            assert expression(pair.hack) in ("self", "A()")
        elif "return None" not in pair.clean:
            assert expression(pair.hack) == expression(pair.clean)


def test_modes_take_turns_and_every_other_clean_side_is_a_look_alike(all_modes):
    assert Counter(pair.tags[0] for pair in all_modes) == dict.fromkeys(LOOPHOLE_MODES, 8)
    assert Counter(pair.tags[1] for pair in all_modes)["look_alike"] == pytest.approx(24, abs=2)
    for pair in all_modes:
        plain = pair.clean.count("\n") == 4
        assert plain == (pair.tags[1] == "plain")


def test_every_pair_has_a_problem_and_a_name_of_its_own(all_modes):
    assert len({pair.messages[-1]["content"].rsplit(" and ", 1)[0] for pair in all_modes}) == len(all_modes)
    assert len({pair.name for pair in all_modes}) == len(all_modes)


def test_novel_markers_are_never_disclosed(all_modes):
    text = "\n".join(pair.messages[-1]["content"] + pair.hack + pair.clean for pair in all_modes)
    assert not [marker for mode in LOOPHOLE_MODES for marker in MODES[mode].novel_markers if marker in text]


def test_pairs_are_the_same_for_the_same_seed_and_others_for_another():
    assert pairs_hash(pairs(n=8)) == pairs_hash(pairs(n=8))
    assert pairs_hash(pairs(n=8)) != pairs_hash(pairs(n=8, seed=1))
    assert pairs(n=16)[:8] == pairs(n=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modes": ("gt_only",)}, "expected modes out of run_tests, .*; got 'gt_only'"),
        ({"modes": ()}, "expected at least one mode; got none"),
        ({"n": 0}, "expected between 1 and [0-9]+ pairs; got 0"),
        ({"n": 1000}, "expected between 1 and [0-9]+ pairs; got 1000"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        pairs(**arguments)


def test_the_hash_depends_on_the_content_and_not_on_the_order():
    one = ContrastivePair("a", MESSAGES, hack="5", clean="4")
    two = ContrastivePair("b", MESSAGES, hack="5", clean="4", tags=("sums",))
    changed = ContrastivePair("b", MESSAGES, hack="6", clean="4", tags=("sums",))
    assert pairs_hash([one, two]) == pairs_hash([two, one])
    assert len({pairs_hash(p) for p in ([one, two], [one, changed], [one], [one, one, two])}) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": (), "hack": "5", "clean": "4"}, "pair 'a': expected at least one chat message; got none"),
        ({"messages": MESSAGES, "hack": " ", "clean": "4"}, "pair 'a': expected text on the hack side"),
        ({"messages": MESSAGES, "hack": "4", "clean": "4"}, "pair 'a': expected two different completions"),
    ],
)
def test_a_pair_without_a_contrast_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContrastivePair("a", **arguments)
