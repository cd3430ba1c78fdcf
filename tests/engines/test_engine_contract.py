"""What every rollout engine does: one suite, run against each."""

import pytest
import torch
from transformers import GenerationConfig

from vgrout_pl.adapters import ablated, quarantine_only, reference_policy
from vgrout_pl.engines import ServerEngine
from vgrout_pl.policy import base_of, stop_token_ids
from vgrout_pl.sampling import Sampling, SamplingRequest
from vgrout_pl.scoring import RowStates, score_completions

FREE = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
PROMPT_OF = torch.tensor([0, 0, 0, 1, 2, 2])
WITHOUT = torch.tensor([False, False, True, False, False, True])


@pytest.fixture
def sample(engine, policy, tokenizer, prompts):
    """Publish and sample the rows of ``PROMPT_OF``, a part of them ablated."""

    def run(sampling, seed=("x",), prompt_of=PROMPT_OF, without=WITHOUT, on_finished=None, **options):
        engine.publish(policy, also_ablated=without is not None)
        request = SamplingRequest(*prompts, prompt_of, sampling, seed, without, **options)
        return engine.generate(policy, tokenizer, request, on_finished)

    return run


def texts(sampled):
    return [ids[kept].tolist() for ids, kept in zip(sampled.ids, sampled.mask, strict=True)]


def test_completions_are_padded_on_the_right_and_end_where_they_stop(sample, policy, tokenizer):
    sampled = sample(Sampling(max_new_tokens=40, **FREE))
    lengths = sampled.mask.sum(1)
    assert sampled.ids.shape == sampled.mask.shape == (6, int(lengths.max()))
    assert sampled.mask.dtype == sampled.stopped.dtype == torch.bool
    assert torch.equal(sampled.mask, torch.arange(sampled.ids.shape[1]) < lengths.unsqueeze(1))
    assert (sampled.ids[~sampled.mask] == tokenizer.pad_token_id).all()
    stops = set(stop_token_ids(base_of(policy), tokenizer))
    for row, stopped in zip(texts(sampled), sampled.stopped.tolist(), strict=True):
        assert stopped == (row[-1] in stops)
        assert stopped or len(row) == 40
        assert not stops & set(row[:-1])
    assert sampled.stopped.any() and len(set(lengths.tolist())) > 1


def test_each_row_is_sampled_in_its_state(sample, policy, prompts, tokenizer):
    ids, mask = prompts
    got = texts(sample(Sampling(max_new_tokens=16, temperature=0)))
    stops = stop_token_ids(base_of(policy), tokenizer)
    config = GenerationConfig(do_sample=False, max_new_tokens=16, eos_token_id=stops, pad_token_id=stops[0])
    expected = []
    for prompt, without in zip(PROMPT_OF.tolist(), WITHOUT.tolist(), strict=True):
        alone = ids[prompt][mask[prompt]].unsqueeze(0)
        with ablated(policy, rows=torch.tensor([without])):
            out = policy.generate(input_ids=alone, attention_mask=torch.ones_like(alone), generation_config=config)
        expected.append(out[0, alone.shape[1] :].tolist())
    assert got == expected
    assert got[0] == got[1] != got[2], "the two states are expected to differ on this prompt"


@pytest.mark.parametrize("state", [ablated, quarantine_only, reference_policy])
def test_the_state_in_force_is_the_one_sampled(sample, policy, state):
    def greedy():
        rows = {"prompt_of": torch.arange(2), "without": None}
        return texts(sample(Sampling(max_new_tokens=16, temperature=0), **rows))

    as_trained = greedy()
    with state(policy):
        assert greedy() != as_trained
    assert greedy() == as_trained


def test_what_is_sampled_follows_the_weights(sample, policy):
    greedy = Sampling(max_new_tokens=16, temperature=0)
    before = texts(sample(greedy))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    assert texts(sample(greedy)) != before


def test_the_seed_decides(sample):
    sampling = Sampling(max_new_tokens=16, **FREE)
    first, again, other = (texts(sample(sampling, seed=seed)) for seed in (("a", 1), ("a", 1), ("a", 2)))
    assert first == again != other
    assert first[0] != first[1], "rows of one prompt and state are expected to differ"


def test_a_share_of_the_rows_draws_what_it_draws_among_all(sample):
    """Several processes share a window by whole groups."""
    sampling = Sampling(max_new_tokens=16, **FREE)
    whole = texts(sample(sampling))
    assert texts(sample(sampling, prompt_of=PROMPT_OF[4:], without=WITHOUT[4:], first_row=4)) == whole[4:]


def test_global_generators_are_left_alone(sample):
    before = torch.random.get_rng_state()
    sample(Sampling(max_new_tokens=4, **FREE))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_row_is_handed_over_once_and_whole(sample):
    seen = {}

    def hand_over(rows, ids, mask):
        for row, tokens, kept in zip(rows.tolist(), ids, mask, strict=True):
            assert row not in seen
            seen[row] = tokens[kept].tolist()

    sampled = sample(Sampling(max_new_tokens=40, **FREE), on_finished=hand_over)
    assert [seen[row] for row in range(6)] == texts(sampled)


def test_a_single_token(sample):
    sampled = sample(Sampling(max_new_tokens=1, **FREE))
    assert sampled.ids.shape == (6, 1) and sampled.mask.all()


def test_no_stop_token_before_the_least_length(sample, policy, tokenizer):
    short = sample(Sampling(max_new_tokens=48, **FREE))
    least = int(short.mask.sum(1).min()) + 6
    sampled = sample(Sampling(max_new_tokens=48, min_new_tokens=least, **FREE))
    stops = stop_token_ids(base_of(policy), tokenizer)
    assert (sampled.mask.sum(1) > least - 1).all()
    assert not torch.isin(sampled.ids[:, :least], torch.tensor(stops)).any()


@pytest.mark.parametrize("least", [0, 8])
def test_a_stop_string_ends_a_row_with_the_token_that_completes_it(sample, tokenizer, least):
    free = texts(sample(Sampling(max_new_tokens=16, temperature=0)))
    stop = tokenizer.decode(free[0][3:5])
    sampled = sample(Sampling(max_new_tokens=16, min_new_tokens=least, temperature=0, stop_strings=(stop,)))
    for row, whole, stopped in zip(texts(sampled), free, sampled.stopped.tolist(), strict=True):
        if stop in tokenizer.decode(whole):
            assert stopped and row == whole[: len(row)]
            assert stop in tokenizer.decode(row) and stop not in tokenizer.decode(row[:-1])
    assert len(texts(sampled)[0]) <= 5


def test_filters_hold(sample, policy, prompts):
    """Every sampled token is among the likeliest at its place."""
    sampled = sample(Sampling(max_new_tokens=16, temperature=1.0, top_p=1.0, top_k=3))
    ids, mask = prompts
    for row, tokens in enumerate(texts(sampled)):
        prompt = ids[PROMPT_OF[row]][mask[PROMPT_OF[row]]].tolist()
        with torch.no_grad(), ablated(policy, rows=WITHOUT[row : row + 1]):
            logits = policy(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        places = (logits > logits.gather(1, torch.tensor(tokens).unsqueeze(1))).sum(1)
        assert int(places.max()) < 3
    assert len({tuple(tokens) for tokens in texts(sampled)}) > 1


def test_log_probabilities_are_the_trainers_or_left_to_it(sample, engine, policy, prompts):
    sampled = sample(Sampling(max_new_tokens=16, **FREE), logprob_temperature=1.0)
    if isinstance(engine, ServerEngine):
        assert sampled.logprobs is None
        return
    ids, mask = prompts
    states = RowStates(WITHOUT, lambda index, *_: ablated(policy, rows=WITHOUT[index]))
    with torch.no_grad():
        own, _ = score_completions(
            policy, ids[PROMPT_OF], mask[PROMPT_OF], PROMPT_OF, sampled.ids, sampled.mask, states
        )
    assert torch.allclose(torch.where(sampled.mask, sampled.logprobs, 0.0), own, atol=1e-4)
