"""Sampling: exactly what transformers' own generate gives, row by row, whatever shares the batch."""

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.loop.policy_support import CONFIGS, sampled, scored, tiny_policy
from vgrout_pl import organism
from vgrout_pl.adapters import RoutedLoraConfig, ablated, attach_routed_adapter
from vgrout_pl.generation import is_mergeable
from vgrout_pl.policy import base_of, load_base
from vgrout_pl.sampling import Sampling, draw
from vgrout_pl.scoring import RowStates

TOKENIZER = AutoTokenizer.from_pretrained(organism.CHECKPOINT, padding_side="left")
PROMPT_OF = torch.tensor([0, 0, 0, 1, 1, 2])
WITHOUT = torch.tensor([False, True, False, True, False, True])
FREE = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


class Ids:
    """What generation reads of a tokenizer."""

    pad_token_id, eos_token_id = 0, 49


def prompts():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 49, (3, 8), generator=generator)
    mask = torch.arange(8) >= torch.tensor([0, 5, 2]).unsqueeze(1)
    return torch.where(mask, ids, 0), mask


def plain(policy, ids, mask, row, tokens):
    """Transformers' own greedy generation of one row, alone, unpadded, in its state."""
    prompt = ids[PROMPT_OF[row]][mask[PROMPT_OF[row]]].unsqueeze(0)
    config = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=49, pad_token_id=0)
    with ablated(policy, rows=WITHOUT[row : row + 1]):
        out = policy.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    return out[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_greedy_with_shared_prefill_and_a_state_per_row_equals_plain_generate(architecture):
    policy = tiny_policy(architecture)
    base_of(policy).generation_config.eos_token_id = 49
    ids, mask = prompts()
    sampling = Sampling(max_new_tokens=20, temperature=0)
    tokens, kept, *_ = sampled(policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT)
    expected = [plain(policy, ids, mask, row, 20) for row in range(len(PROMPT_OF))]
    assert [row[keep].tolist() for row, keep in zip(tokens, kept, strict=True)] == expected
    assert expected[0] != expected[1], "the states are expected to differ"


def organism_policy():
    return attach_routed_adapter(load_base("organism", "float32", None), RoutedLoraConfig(r=2))


def organism_prompts(n):
    shown = organism.problems("train", mode="run_tests")[:n]
    texts = [TOKENIZER.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in shown]
    encoded = TOKENIZER(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"].bool()


def test_a_rows_draw_does_not_depend_on_the_other_rows():
    policy = organism_policy()
    ids, mask = organism_prompts(4)
    sampling = Sampling(max_new_tokens=40, **FREE)
    prompt_of = torch.arange(4).repeat(4)
    tokens, kept, *_ = sampled(policy, TOKENIZER, ids, mask, prompt_of, sampling, ("x",))
    lengths = kept.sum(1)
    assert int((lengths == lengths.max()).sum()) < 0.75 * len(lengths), "rows are expected to be dropped on the way"
    some = 6
    fewer, kept_fewer, *_ = sampled(policy, TOKENIZER, ids, mask, prompt_of[:some], sampling, ("x",))
    for row in range(some):
        assert fewer[row][kept_fewer[row]].tolist() == tokens[row][kept[row]].tolist()
    others, *_ = sampled(policy, TOKENIZER, ids, mask, prompt_of, sampling, ("y",))
    assert others.shape != tokens.shape or not torch.equal(others, tokens)


def test_generating_leaves_the_global_generator_alone():
    policy, (ids, mask) = organism_policy(), organism_prompts(1)
    before = torch.get_rng_state()
    sampled(policy, TOKENIZER, ids, mask, torch.zeros(2, dtype=torch.long), Sampling(max_new_tokens=4), ("x",))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_row_is_reported_once_with_the_tokens_that_are_returned():
    policy, (ids, mask) = organism_policy(), organism_prompts(4)
    told = {}

    def on_finished(rows, tokens, kept):
        for row, ids_of_row, keep in zip(rows.tolist(), tokens, kept, strict=True):
            assert row not in told
            told[row] = ids_of_row[keep].tolist()

    sampling = Sampling(max_new_tokens=24, **FREE)
    tokens, kept, *_ = sampled(
        policy, TOKENIZER, ids, mask, torch.arange(4).repeat(4), sampling, ("x",), on_finished=on_finished
    )
    assert told == {row: tokens[row][kept[row]].tolist() for row in range(16)}
    assert not kept[:, -1].all(), "some rows are expected to finish before the last"


def test_stop_strings_and_the_least_length_are_kept():
    policy, (ids, mask) = organism_policy(), organism_prompts(2)
    rows = torch.arange(2).repeat(3)
    stopped = Sampling(max_new_tokens=40, stop_strings=("return",), **FREE)
    tokens, kept, *_ = sampled(policy, TOKENIZER, ids, mask, rows, stopped, ("x",))
    texts = [TOKENIZER.decode(row[keep]) for row, keep in zip(tokens, kept, strict=True)]
    assert sum("return" in text for text in texts) >= 4
    assert all(
        text.count("return") <= 1 and text.split("return")[-1].strip() == "" for text in texts if "return" in text
    )
    for size in (int(kept.sum(1).max()), 3):  # a stop on the last token is a stop; a row that is cut off has none
        short = Sampling(max_new_tokens=size, stop_strings=("return",), **FREE)
        cut = sampled(policy, TOKENIZER, ids, mask, rows, short, ("x",))
        assert cut.stopped.tolist() == (kept.sum(1) <= size).tolist()
    long = Sampling(max_new_tokens=60, min_new_tokens=55, **FREE)
    assert sampled(policy, TOKENIZER, ids, mask, rows, long, ("x",))[1].sum(1).min() >= 55


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 0.6, "top_k": 12, "top_p": 0.95, "min_p": 0.02},
    ],
    ids=str,
)
def test_the_drawn_distribution_is_that_of_transformers_filters(options):
    sampling = Sampling(**{**FREE, **options})
    logits = 2 * torch.randn(1, 40, generator=torch.Generator().manual_seed(3))
    filters = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(MinPLogitsWarper(sampling.min_p))
    expected = filters(torch.zeros(1, 1, dtype=torch.long), logits.clone()).softmax(-1)[0]
    grid = (torch.arange(20_000) + 0.5) / 20_000
    drawn = draw(logits.expand(len(grid), -1), grid, sampling)
    shares = torch.bincount(drawn, minlength=40) / len(grid)
    torch.testing.assert_close(shares, expected, atol=1e-4, rtol=0)
    assert not shares[expected == 0].any()


def test_a_uniform_number_next_to_one_never_draws_a_filtered_token():
    logits = torch.tensor([[0.0, 3.0, 1.0, -2.0]])
    for options in (FREE, {**FREE, "top_k": 2}, {**FREE, "top_p": 0.5}):
        token = int(draw(logits, torch.tensor([1 - 2**-24]), Sampling(**options)))
        assert token in ({1, 2} if options["top_k"] else {1} if options["top_p"] < 1 else {0, 1, 2, 3})


def test_sampling_options_that_cannot_be_meant_are_refused():
    for options in ({"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"min_p": 2}, {"stop_strings": ("",)}):
        with pytest.raises(ValueError, match=r"model\.sampling"):
            Sampling(**options)
    with pytest.raises(ValueError, match="min_new_tokens"):
        Sampling(max_new_tokens=4, min_new_tokens=5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_of_the_sampling_pass_are_those_of_scoring(temperature):
    policy = tiny_policy()
    ids, mask = prompts()
    sampling = Sampling(max_new_tokens=12, min_new_tokens=4, temperature=0.7, top_p=0.9, top_k=9)
    tokens, kept, _, given = sampled(
        policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT, logprob_temperature=temperature
    )
    states = RowStates(WITHOUT, lambda index, *_: ablated(policy, rows=WITHOUT[index]))
    with torch.no_grad():
        expected = scored(
            policy, ids[PROMPT_OF], mask[PROMPT_OF], PROMPT_OF, tokens, kept, states, temperature=temperature
        )
    torch.testing.assert_close(torch.where(kept, given, 0.0), expected, atol=1e-5, rtol=1e-4)


def test_under_autocast_nothing_is_merged_into_weights_that_would_be_rounded():
    policy = tiny_policy()
    assert is_mergeable(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_mergeable(policy)
