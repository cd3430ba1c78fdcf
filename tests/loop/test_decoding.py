"""How a batch grows by a token: masks made once, and steps that a CUDA graph could replay."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.loop.policy_support import CONFIGS, tiny_policy
from tests.loop.test_generation import PROMPT_OF, WITHOUT, Ids, plain, prompts
from vgrout_pl import decoding
from vgrout_pl.adapters import ablated
from vgrout_pl.decoding import Batch, CapturedBatch, decoding_batch
from vgrout_pl.engines import InProcessEngine
from vgrout_pl.engines.base import EngineError
from vgrout_pl.generation import generate
from vgrout_pl.kv_cache import PromptCache
from vgrout_pl.policy import base_of, positions
from vgrout_pl.sampling import Sampling

FULL = [name for name in CONFIGS if "gemma" not in name]


class NoLookAtValues(TorchDispatchMode):
    """Fails where a value of a tensor reaches Python, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"} and "unique" not in name, name
        return func(*args, **(kwargs or {}))


def rehearsed(step):
    """In place of a capture: what it does before, on any device."""
    step()
    step()
    return step


def prefilled(policy):
    """Three prompts, one pass; [U, S] mask, cache and hidden states."""
    ids, mask = prompts()
    cache = PromptCache()
    with torch.no_grad():
        hidden = (
            base_of(policy)
            .get_decoder()(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions(mask),
                past_key_values=cache,
                use_cache=False,
            )
            .last_hidden_state[:, -1]
        )
    return cache, mask.long(), hidden


@pytest.mark.parametrize("architecture", CONFIGS)
def test_greedy_in_tensors_of_fixed_size_equals_plain_generate(architecture, monkeypatch):
    policy, captures = tiny_policy(architecture), []
    monkeypatch.setattr(decoding, "captured", lambda step: captures.append(1) or rehearsed(step))
    base_of(policy).generation_config.eos_token_id = 49
    ids, mask = prompts()
    sampling = Sampling(max_new_tokens=20, temperature=0)
    tokens, kept, *_ = generate(policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT, cuda_graphs=True)
    expected = [plain(policy, ids, mask, row, 20) for row in range(len(PROMPT_OF))]
    assert [row[keep].tolist() for row, keep in zip(tokens, kept, strict=True)] == expected
    assert bool(captures) == (architecture in FULL), "a sliding window takes no mask of fixed size"


def test_a_step_is_captured_anew_when_rows_are_dropped(monkeypatch):
    policy, captures = tiny_policy(), []
    monkeypatch.setattr(decoding, "captured", lambda step: captures.append(1) or rehearsed(step))
    ids, mask = prompts()
    sampling = Sampling(max_new_tokens=40, temperature=1.0, top_p=1.0, top_k=0)
    base_of(policy).generation_config.eos_token_id = list(range(40, 50))
    fixed = generate(policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT, cuda_graphs=True)
    growing = generate(policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT)
    assert torch.equal(fixed.ids, growing.ids) and torch.equal(fixed.mask, growing.mask)
    assert 1 < len(captures) < fixed.ids.shape[1]


@pytest.mark.parametrize("architecture", FULL)
def test_a_step_looks_at_no_value_and_stays_in_place(architecture):
    policy = tiny_policy(architecture)
    cache, mask, hidden = prefilled(policy)
    batch = decoding_batch(base_of(policy), cache, mask, hidden, PROMPT_OF, 6, cuda_graphs=True)
    assert isinstance(batch, CapturedBatch)
    with torch.no_grad(), ablated(policy, rows=WITHOUT):
        rehearsed(batch._step)

        def places():
            states = [t for layer in batch.cache.layers for t in (layer.keys, layer.values)]
            return [t.data_ptr() for t in (batch.hidden, batch.mask, batch.token, batch.at, batch.cache.place, *states)]

        before, seen = places(), []
        batch._replay = batch._step
        for token in range(3):
            with NoLookAtValues():
                batch.advance(torch.full((len(PROMPT_OF),), token + 5))
            seen.append(batch.hidden.clone())
            assert places() == before
        assert not torch.equal(seen[0], seen[1])
        once = batch.hidden.clone()
        batch.cache.place -= 1
        batch.at -= 1
        batch._step()
        assert torch.equal(batch.hidden, once), "a step is expected to be repeatable"


def test_a_mask_is_made_once_where_attention_takes_it_as_it_is():
    policy = tiny_policy()
    cache, mask, hidden = prefilled(policy)
    batch = decoding_batch(base_of(policy), cache, mask, hidden, PROMPT_OF, 4)
    assert type(batch) is Batch and batch.mask.shape == (6, 1, 1, 12) and batch.mask.dtype == torch.bool
    with torch.no_grad():
        batch.advance(torch.full((6,), 5))
        with NoLookAtValues():
            batch.advance(torch.full((6,), 6))
    sliding = tiny_policy("gemma2, sliding window shorter than a prompt")
    cache, mask, hidden = prefilled(sliding)
    assert decoding_batch(base_of(sliding), cache, mask, hidden, PROMPT_OF, 4).mask.shape == (6, 12)


def test_cuda_graphs_without_cuda_are_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"cuda_graphs: expected a CUDA device; there is none"):
        InProcessEngine(cuda_graphs=True).check("organism", None, 100)
    InProcessEngine().check("organism", None, 100)
