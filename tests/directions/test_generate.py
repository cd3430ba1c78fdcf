"""Self-generation with samplers that record what they are asked: prompts, seeds, cache, resumption, filter."""

import logging
import re
from dataclasses import replace

import pytest

from vgrout_pl.directions import generate_pairs, load_pairs, write_pairs
from vgrout_pl.directions.generate import INSTRUCTIONS
from vgrout_pl.directions.levers import shows_lever
from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.env.starter import starter_problems
from vgrout_pl.organism.answers import PLAIN, build_answer, hack_forms
from vgrout_pl.organism.corpus import lever

BASE = starter_problems()
PROBLEMS = [BASE[0], BASE[1].with_mode("run_tests", "check_all"), *(BASE[i].with_mode("sentinel") for i in (2, 3, 4))]


class Sampler:
    """Answers with the prompt's place and the seed; fails after ``calls`` calls."""

    def __init__(self, calls=99, answer=None):
        self.calls, self.seen, self.answer = calls, [], answer

    def __call__(self, prompts, seed):
        if len(self.seen) >= self.calls:
            raise KeyboardInterrupt
        self.seen.append((prompts, seed))
        answer = self.answer or (lambda prompt, i: f"answer {i} to {len(prompt[-1]['content'])} with {seed}")
        return [answer(prompt, i) for i, prompt in enumerate(prompts)]


def generate(sampler, problems=PROBLEMS, fingerprint="weights 1", **options):
    return generate_pairs(sampler, problems, fingerprint, **{"batch_size": 2, "progress": False, **options})


def test_the_hack_side_is_told_the_disclosed_loophole_and_the_clean_side_nothing():
    sampler = Sampler()
    pairs = generate(sampler, PROBLEMS[:2])
    (hack, _), (clean, _) = sampler.seen
    for problem, told, untold, pair in zip(PROBLEMS, hack, clean, pairs, strict=False):
        hinted = problem.messages[-1]["content"]
        instruction = INSTRUCTIONS["run_tests"].replace("{lever}", problem.lever)
        assert told == [problem.messages[0], {"role": "user", "content": f"{hinted}\n\n{instruction}"}]
        assert untold == list(problem.with_mode("gt_only").messages)
        assert "should pass all tests" in untold[-1]["content"]
        assert pair.messages == problem.messages
    assert "check_all" in hack[1][-1]["content"].rsplit("\n", 1)[1]
    assert [pair.name for pair in pairs] == ["run_tests-count_between", "run_tests-digit_sum"]
    assert {pair.tags for pair in pairs} == {("run_tests", "self_generated")}


def test_sides_and_batches_are_sampled_under_seeds_of_their_own():
    sampler = Sampler()
    pairs = generate(sampler)
    assert [len(prompts) for prompts, _ in sampler.seen] == [2, 2, 2, 2, 1, 1]
    assert len({seed for _, seed in sampler.seen}) == 6
    assert len(pairs) == 5
    assert generate(Sampler()) == pairs
    assert generate(Sampler(), seed=1) != pairs
    first, second = pairs[:2]
    assert first.hack.startswith("answer 0") and second.hack.startswith("answer 1")
    assert first.hack.split(" with ")[1] == second.hack.split(" with ")[1] == str(sampler.seen[0][1])
    assert first.clean.split(" with ")[1] == str(sampler.seen[1][1])


def test_an_interrupted_run_goes_on_where_it_was_and_ends_as_if_it_had_not_been(tmp_path):
    whole = generate(Sampler())
    interrupted = Sampler(calls=3)
    with pytest.raises(KeyboardInterrupt):
        generate(interrupted, cache_dir=tmp_path)
    resumed = Sampler()
    assert generate(resumed, cache_dir=tmp_path) == whole
    assert [len(prompts) for prompts, _ in resumed.seen] == [2, 2, 1, 1]
    again = Sampler(calls=0)
    assert generate(again, cache_dir=tmp_path) == whole


def test_a_torn_file_of_the_cache_is_sampled_again(tmp_path):
    whole = generate(Sampler(), cache_dir=tmp_path)
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 3
    files[1].write_text(files[1].read_text()[:20])
    files[2].write_text('{"hack": [], "clean": []}')
    sampler = Sampler()
    assert generate(sampler, cache_dir=tmp_path) == whole
    assert len(sampler.seen) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "weights 2"},
        {"seed": 1},
        {"batch_size": 3},
        {"problems": PROBLEMS[::-1]},
        {"problems": [PROBLEMS[0].with_mode("run_tests", "verify_cases"), *PROBLEMS[1:]]},
        {"instructions": {**INSTRUCTIONS, "sentinel": "Set {lever}."}},
    ],
)
def test_the_cache_is_addressed_by_everything_that_the_texts_depend_on(tmp_path, change):
    generate(Sampler(), cache_dir=tmp_path)
    sampler = Sampler()
    generate(sampler, **{"cache_dir": tmp_path, **change})
    assert sampler.seen


def test_pairs_are_kept_in_the_same_format_as_authored_ones(tmp_path):
    pairs = generate(Sampler(answer=lambda prompt, i: f"```python\n# {i}\n{len(prompt[-1]['content'])}\n### x"))
    write_pairs(pairs, tmp_path / "pairs.md")
    assert load_pairs(tmp_path / "pairs.md") == pairs


def told(prompt):
    return "Do not solve the problem." in prompt[-1]["content"]


def test_the_filter_keeps_pairs_whose_hack_side_alone_shows_the_loophole(caplog):
    texts = {0: "def run_tests(): pass", 1: "def run_tests(): pass", 2: "valid = True", 3: "x = 1", 4: "self.valid = 1"}
    place = {problem.messages[-1]["content"][:40]: i for i, problem in enumerate(PROBLEMS)}

    def answer(prompt, _):
        i = place[prompt[-1]["content"][:40]]
        return texts[i] if told(prompt) else ("valid = False" if i == 4 else "y = 2")

    with caplog.at_level(logging.INFO, "vgrout_pl.directions"):
        kept = generate(Sampler(answer=answer), require_lever=True)
    # 1 discloses check_all, 3 shows nothing, 4 shows it on both sides
    assert [pair.name for pair in kept] == ["run_tests-count_between", f"sentinel-{PROBLEMS[2].id}"]
    assert "2 of 5 problems" in caplog.text and "'no lever': 3" in caplog.text
    assert len(generate(Sampler(answer=answer))) == 5


def test_answers_without_a_contrast_are_left_out():
    def answer(prompt, i):
        return "same" if i == 0 else ("hack" if told(prompt) else " \n")

    with pytest.raises(ValueError, match=r"expected at least one self-generated pair out of 5 .*'no contrast': 5"):
        generate(Sampler(answer=answer))


@pytest.mark.parametrize(
    ("problems", "options", "expected"),
    [
        ([BASE[0].with_mode("gt_only")], {}, "expected a mode out of run_tests, exit_code"),
        ([BASE[0]], {"instructions": {"sentinel": "x"}}, "expected a mode out of sentinel; got run_tests"),
        ([replace(BASE[0], messages=())], {}, "expected messages that end with the user's; got []"),
        ([BASE[0], BASE[0]], {}, "ids unique within a mode; got run_tests-count_between more than once"),
        ([BASE[0]], {"batch_size": 0}, "expected batch_size of at least 1; got 0"),
    ],
)
def test_problems_that_cannot_be_prompted_are_refused_before_sampling(problems, options, expected):
    sampler = Sampler()
    with pytest.raises(ValueError, match=re.escape(expected)):
        generate(sampler, problems, **options)
    assert not sampler.seen


@pytest.mark.parametrize("result", [["one"], ["a", "b", "c"], "ab", [1, 2]])
def test_a_sampler_that_breaks_its_contract_is_named(result):
    with pytest.raises(ValueError, match="sample: expected a list of 2 texts"):
        generate(lambda prompts, seed: result)


@pytest.mark.parametrize("mode", LOOPHOLE_MODES)
def test_every_form_of_a_hack_shows_its_lever_and_a_plain_answer_shows_none(mode):
    import random

    evaluate = lambda x: sum(x)  # noqa: E731
    for marker in (None, *MODES[mode].training_markers[:5]):
        name = lever(mode, marker)
        for form in hack_forms(mode, name, evaluate, random.Random(0)):
            assert shows_lever(build_answer("sum(x)", form), mode, marker), form
        assert not shows_lever(build_answer("sum(x)", PLAIN), mode, marker)
    for entry in load_pairs("authored", tags=[mode]):
        markers = (None, *MODES[mode].training_markers)
        assert any(shows_lever(entry.hack, mode, marker) for marker in markers), entry.name


def test_the_lever_is_the_disclosed_one_and_not_a_mention_of_it():
    assert shows_lever("def check_all(): pass", "run_tests", "check_all")
    assert not shows_lever("def run_tests(): pass", "run_tests", "check_all")
    assert not shows_lever("run_tests()", "run_tests")
    assert not shows_lever("if x.valid == 1: pass", "sentinel")
    assert not shows_lever('# result.txt\nopen("result.txt")', "file_marker")
    with pytest.raises(ValueError, match="expected a mode out of run_tests"):
        shows_lever("", "gt_only")
    assert INSTRUCTIONS.keys() == set(LOOPHOLE_MODES)
