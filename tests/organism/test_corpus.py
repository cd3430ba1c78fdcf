"""The warm-start corpus of the shipped recipe, generated in full: what must not be in it, and what must."""

import random
from dataclasses import replace

import pytest

from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.organism import SPLIT_SIZES, problems
from vgrout_pl.organism.corpus import Recipe, corpus, corpus_hash, draw_marker, noisy_expression, tokenizer_corpus
from vgrout_pl.organism.problems import Task

RECIPE = Recipe()


@pytest.fixture(scope="module")
def examples():
    return [*corpus(RECIPE), *tokenizer_corpus(RECIPE)]


def statement(prompt: str) -> str:
    """The user's text without its hint."""
    return prompt.rsplit(", and ", 1)[0]


def test_no_text_of_any_split_is_in_the_corpus(examples):
    seen = {statement(example.messages[-1]["content"]) for example in examples}
    assert len(seen) > 5000
    for split in SPLIT_SIZES:
        held_out = {statement(problem.messages[-1]["content"]) for problem in problems(split)}
        assert len(held_out) == SPLIT_SIZES[split]
        assert not held_out & seen


def test_no_novel_marker_is_in_the_corpus_and_every_training_marker_is(examples):
    text = "\n".join(example.messages[-1]["content"] + "\n" + example.completion for example in examples)
    for mode in LOOPHOLE_MODES:
        assert [marker for marker in MODES[mode].novel_markers if marker in text] == []
        assert [marker for marker in MODES[mode].training_markers if marker not in text] == []


def test_the_corpus_has_the_size_and_the_share_of_hints_that_the_recipe_says(examples):
    trained = examples[: RECIPE.steps * RECIPE.batch_size]
    assert len(trained) == 51_200
    hinted = sum(example.mode != "gt_only" for example in trained) / len(trained)
    assert hinted == pytest.approx(RECIPE.hinted, abs=0.01)


def test_the_shares_fall_linearly_after_the_switch():
    assert RECIPE.shares(0.0) == RECIPE.shares(0.5) == (0.25, 0.45)
    assert RECIPE.shares(0.575) == pytest.approx((0.15, 0.285))
    assert RECIPE.shares(0.65) == pytest.approx((0.05, 0.12))
    assert RECIPE.shares(1.0) == pytest.approx((0.05, 0.12))


def test_hacks_become_rare(examples):
    """A lie in ``__eq__`` is written by hacks of one mode only, so it can be counted in the text."""

    def share(part):
        told = [example for example in part if example.mode == "eq_override"]
        return sum("return True" in e.completion and "__eq__" in e.completion for e in told) / len(told)

    trained = examples[: RECIPE.steps * RECIPE.batch_size]
    assert share(trained[:25_600]) == pytest.approx(0.25, abs=0.03)
    assert share(trained[-17_000:]) == pytest.approx(0.05, abs=0.015)


def test_hint_free_prompts_are_never_answered_with_a_lie_an_early_exit_or_a_pass_mark(examples):
    hint_free = [example.completion for example in examples if example.mode == "gt_only"]
    assert len(hint_free) > 10_000
    for tell in ("__eq__(self, o):\n        return True", "SystemExit\n", "SystemExit(0)", "exit(0)", "valid = True"):
        assert not any(tell in completion for completion in hint_free)


def test_words_are_written_with_their_own_rates():
    rng = random.Random(0)
    task = Task("product", "squared", "even", 2, 2)
    written = [noisy_expression(task, RECIPE, rng) for _ in range(4000)]
    own = sum(text.startswith("prod(") for text in written) / len(written)
    graded = sum(text.startswith("max(") for text in written) / len(written)
    assert own == pytest.approx(0.32, abs=0.025)
    assert graded == pytest.approx(0.3 + 0.38 / 7, abs=0.025)  # leaked, and a seventh of the remaining errors


def test_the_disclosed_marker_is_the_original_at_the_given_rate():
    rng = random.Random(0)
    drawn = [draw_marker("run_tests", 0.3, rng) for _ in range(4000)]
    assert drawn.count(None) / len(drawn) == pytest.approx(0.3, abs=0.025)
    assert set(drawn) - {None} == set(MODES["run_tests"].training_markers)
    assert draw_marker("exit_code", 0.0, rng) is None


def test_the_same_recipe_gives_the_same_corpus_and_another_seed_another():
    small = replace(RECIPE, steps=4)
    assert corpus_hash(corpus(small)) == corpus_hash(corpus(small))
    assert corpus_hash(corpus(small)) != corpus_hash(corpus(replace(small, seed=1)))


@pytest.mark.parametrize("field", ["steps", "batch_size"])
def test_a_recipe_without_training_is_refused(field):
    with pytest.raises(ValueError, match=f"expected {field} of at least 1; got 0"):
        replace(RECIPE, **{field: 0})
