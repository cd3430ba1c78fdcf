"""Decoding attention over a shared prompt: the softmax over all keys, whatever the groups are."""

import math

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.loop.policy_support import sampled, scored, tiny_policy
from tests.loop.test_generation import PROMPT_OF, WITHOUT, Ids, prompts
from vgrout_pl import shared_attention
from vgrout_pl.adapters import ablated
from vgrout_pl.kv_cache import PromptCache
from vgrout_pl.policy import base_of
from vgrout_pl.sampling import Sampling
from vgrout_pl.scoring import RowStates
from vgrout_pl.shared_attention import NAME, SharedPrompts, attending, saves, softmax_attention

HEADS, GROUP, WIDTH, LENGTH = 2, 3, 8, 5


@pytest.fixture
def always(monkeypatch):
    """Share prompts and pack weights however small the model is."""
    monkeypatch.setattr("vgrout_pl.shared_attention.LEAST_SAVED", 0)
    monkeypatch.setattr("vgrout_pl.adapters.packing.LEAST_WEIGHT", 0)


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def recorded(prompts, layers=1):
    """A cache with made-up keys and values of so many prompts."""
    cache = PromptCache()
    for layer in range(layers):
        shape = (prompts, HEADS, LENGTH, WIDTH)
        cache.update(draw(*shape, seed=10 + layer), draw(*shape, seed=20 + layer), layer)
    return cache


@pytest.mark.parametrize("prompt_of", [[0, 0, 0, 0], [0, 1, 0, 0, 1, 0], [2, 0, 2, 2, 1]], ids=str)
def test_each_row_attends_to_its_own_prompt_as_the_formula_says(prompt_of):
    rows, many = torch.tensor(prompt_of), max(prompt_of) + 1
    cache, mask = recorded(many), torch.ones(many, LENGTH)
    mask[-1, :2] = 0
    query = draw(len(rows), HEADS, GROUP, WIDTH, seed=1)
    shared = SharedPrompts(cache, mask, rows)
    kept = torch.tensor([1, 3])
    for chosen in (torch.arange(len(rows)), kept):
        if chosen is kept:
            shared.keep(kept)
        out, log = shared.attend(0, query[chosen], 0.3)
        [(keys, values)] = cache.recorded()
        for place, row in enumerate(chosen.tolist()):
            seen = mask[rows[row]].bool()
            key, value = keys[rows[row]][:, seen].double(), values[rows[row]][:, seen].double()
            scores = 0.3 * query[row].double() @ key.transpose(1, 2)
            torch.testing.assert_close(out[place].double(), scores.softmax(-1) @ value, atol=1e-5, rtol=0)
            torch.testing.assert_close(log[place].double(), scores.logsumexp(-1), atol=1e-5, rtol=0)


def test_two_softmaxes_joined_are_the_softmax_over_all_keys():
    query, keys, values = draw(1, 1, 2, WIDTH, seed=1), draw(1, 1, 9, WIDTH, seed=2), draw(1, 1, 9, WIDTH, seed=3)
    whole, log = softmax_attention(query, keys, values, 0.5, None)
    parts = [
        softmax_attention(query, keys[:, :, part], values[:, :, part], 0.5, None) for part in (slice(4), slice(4, 9))
    ]
    (a, log_a), (b, log_b) = parts
    joined = torch.lerp(b, a, torch.sigmoid(log_a - log_b).unsqueeze(-1))
    torch.testing.assert_close(joined, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.logaddexp(log_a, log_b), log, atol=1e-6, rtol=1e-5)
    assert math.isclose(float(log[0, 0, 0]), float((0.5 * query[0, 0, 0] @ keys[0, 0].t()).logsumexp(0)), rel_tol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_scoring(dtype, always):
    policy = tiny_policy()
    base_of(policy).to(dtype)
    for name, parameter in policy.named_parameters():
        parameter.data = parameter.data.float() if "lora" in name else parameter.data
    ids, mask = prompts()
    sampling = Sampling(max_new_tokens=12, min_new_tokens=4, temperature=0.7, top_k=9)
    tokens, kept, _, given = sampled(
        policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT, logprob_temperature=1.0
    )
    states = RowStates(WITHOUT, lambda index, *_: ablated(policy, rows=WITHOUT[index]))
    with torch.no_grad():
        expected = scored(policy, ids[PROMPT_OF], mask[PROMPT_OF], PROMPT_OF, tokens, kept, states)
    gap = (torch.where(kept, given, 0.0) - expected).abs()
    assert float(gap.max()) < (1e-4 if dtype == torch.float32 else 0.15)
    assert float(expected.abs().max()) > 1


def test_only_large_prompts_on_the_cpu_are_worth_it():
    base = base_of(tiny_policy())
    assert not saves(base, 2, 8, 6)
    assert saves(base, 2, 2**15, 6) and not saves(base, 6, 2**15, 6), "every row has a prompt of its own"
    assert not saves(base.to("meta"), 2, 2**15, 6)


def test_a_mask_of_the_models_own_is_refused():
    with pytest.raises(ValueError, match="got a mask or a bias"):
        ALL_ATTENTION_FUNCTIONS[NAME](None, None, None, None, torch.ones(1), 1.0)


def test_the_models_own_attention_is_back_after_an_exception():
    policy = tiny_policy()
    base = base_of(policy)
    shared = SharedPrompts(recorded(1), torch.ones(1, LENGTH), torch.zeros(2, dtype=torch.long))
    with pytest.raises(RuntimeError, match="inside"), attending(base, shared):
        assert base.config._attn_implementation == NAME
        raise RuntimeError("inside")
    assert base.config._attn_implementation == "sdpa" and shared_attention._active.get(None) is None
