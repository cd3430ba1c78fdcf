"""How a batch grows by a token: every kind of batch like transformers' own generate, or not used at all."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DogeConfig,
    FalconConfig,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3MoeConfig,
)

from tests.loop.policy_support import CONFIGS, GROUPED, SIZES, sampled, tiny_policy
from tests.loop.test_generation import PROMPT_OF, WITHOUT, Ids, plain, prompts
from vgrout_pl import decoding
from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter
from vgrout_pl.decoding import Batch, CapturedBatch, SharedPromptBatch, decoding_batch
from vgrout_pl.kv_cache import PromptCache, sees_all
from vgrout_pl.policy import base_of, positions
from vgrout_pl.sampling import Sampling

WHOLE = [name for name in CONFIGS if "window" not in name]
GREEDY = Sampling(max_new_tokens=20, temperature=0)


class Tape(TorchDispatchMode):
    """Records the operators of a step; replayed, each reads and writes the very tensors that it did, as a graph's."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
        out = func(*args, **(kwargs or {}))
        self.operators.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.operators:
            aliases = [returned.alias_info for returned in func._schema.returns if returned.alias_info is not None]
            if aliases and not any(alias.is_write for alias in aliases):
                continue  # a view stays one
            again = func(*args, **kwargs)
            if not aliases:
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)
                    else:
                        assert old == new


@pytest.fixture
def taped(monkeypatch):
    """Captures on the CPU: a step runs no Python when it is replayed. Returns how many there were."""
    captures = []

    def captured(step):
        captures.append(1)
        step()
        step()
        with Tape() as tape:
            step()
        return tape.replay

    monkeypatch.setattr(decoding, "captured", captured)
    monkeypatch.setattr(decoding, "has_graphs", lambda base: True)
    return captures


@pytest.fixture
def always(monkeypatch):
    """Share prompts and pack weights however small the model is."""
    monkeypatch.setattr("vgrout_pl.shared_attention.LEAST_SAVED", 0)
    monkeypatch.setattr("vgrout_pl.adapters.packing.LEAST_WEIGHT", 0)


def prefilled(base):
    """Three prompts, one pass: cache, [U, S] mask and hidden states."""
    ids, mask = prompts()
    cache = PromptCache()
    with torch.no_grad():
        hidden = base.get_decoder()(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions(mask),
            past_key_values=cache,
            use_cache=False,
        )
    return cache, mask.long(), hidden.last_hidden_state[:, -1]


def kind(base, room=6, **options):
    return type(decoding_batch(base, *prefilled(base), PROMPT_OF, room, **options))


def greedy(policy, **options):
    base_of(policy).generation_config.eos_token_id = 49
    ids, mask = prompts()
    tokens, kept, *_ = sampled(policy, Ids, ids, mask, PROMPT_OF, GREEDY, ("x",), WITHOUT, **options)
    return [row[keep].tolist() for row, keep in zip(tokens, kept, strict=True)]


def plainly(policy):
    base_of(policy).generation_config.eos_token_id = 49
    ids, mask = prompts()
    return [plain(policy, ids, mask, row, 20) for row in range(len(PROMPT_OF))]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_greedy_replayed_from_a_capture_equals_plain_generate(architecture, taped):
    policy = tiny_policy(architecture)
    assert greedy(policy, cuda_graphs=True) == plainly(policy)
    assert bool(taped) == (architecture in WHOLE)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_greedy_over_shared_prompts_and_packed_weights_equals_plain_generate(architecture, always):
    policy = tiny_policy(architecture)
    assert greedy(policy) == plainly(policy)
    assert (kind(base_of(policy)) is SharedPromptBatch) == (architecture in WHOLE)


def test_a_step_is_captured_anew_when_rows_are_dropped(taped):
    policy = tiny_policy()
    ids, mask = prompts()
    sampling = Sampling(max_new_tokens=40, temperature=1.0, top_p=1.0, top_k=0)
    base_of(policy).generation_config.eos_token_id = list(range(40, 50))
    fixed = sampled(policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT, cuda_graphs=True)
    growing = sampled(policy, Ids, ids, mask, PROMPT_OF, sampling, ("x",), WITHOUT)
    assert torch.equal(fixed.ids, growing.ids) and torch.equal(fixed.mask, growing.mask)
    assert 1 < len(taped) < fixed.ids.shape[1]


@pytest.mark.parametrize("architecture", WHOLE)
def test_a_replayed_step_stays_in_place(architecture, taped):
    base = base_of(tiny_policy(architecture))
    batch = decoding_batch(base, *prefilled(base), PROMPT_OF, 6, cuda_graphs=True)
    assert isinstance(batch, CapturedBatch)

    def places():
        states = [t for layer in batch.cache.layers for t in (layer.keys, layer.values)]
        return [t.data_ptr() for t in (batch.hidden, batch.mask, batch.token, batch.at, batch.cache.place, *states)]

    before, seen = places(), []
    with torch.no_grad():
        for token in range(3):
            batch.advance(torch.full((len(PROMPT_OF),), token + 5))
            seen.append(batch.hidden.clone())
            assert places() == before
    assert not torch.equal(seen[0], seen[1]) and len(taped) == 1


def test_a_mask_is_made_once_where_attention_takes_it_as_it_is():
    base = base_of(tiny_policy())
    batch = decoding_batch(base, *prefilled(base), PROMPT_OF, 4)
    assert type(batch) is Batch and batch.mask.shape == (6, 1, 1, 12) and batch.mask.dtype == torch.bool
    with torch.no_grad(), Tape():
        batch.advance(torch.full((6,), 5))
    for name in set(CONFIGS) - set(WHOLE):
        base = base_of(tiny_policy(name))
        assert decoding_batch(base, *prefilled(base), PROMPT_OF, 4).mask.shape == (6, 12)


OTHERS = {
    "a mask from the keys": DogeConfig(**SIZES, **GROUPED),
    "values of another width": DeepseekV2Config(
        **SIZES,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=4,
        first_k_dense_replace=2,
    ),
    "attention of its own": FalconConfig(**SIZES, multi_query=True, new_decoder_architecture=False, alibi=True),
    "every layer slides": Qwen3MoeConfig(
        **SIZES, **GROUPED, use_sliding_window=True, sliding_window=4, num_experts=2, num_experts_per_tok=1
    ),
    "some layers slide": Gemma3TextConfig(
        **SIZES, **GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "a wide window": Gemma3TextConfig(
        **SIZES, **GROUPED, sliding_window=64, layer_types=["sliding_attention", "full_attention"]
    ),
}
SHARED = {"a wide window"}


def policy_of(config, target="all-linear"):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").requires_grad_(False).eval()
    return attach_routed_adapter(base, RoutedLoraConfig(r=1, target_modules=target))


@pytest.mark.parametrize("name", OTHERS)
def test_an_architecture_that_a_kind_of_batch_cannot_follow_decodes_in_another(name, always, taped):
    """Each of these gave other numbers or an exception when it was decoded like Qwen3."""
    policy = policy_of(OTHERS[name])
    expected = plainly(policy)
    assert greedy(policy) == expected
    assert (kind(base_of(policy)) is SharedPromptBatch) == (name in SHARED)
    assert greedy(policy, cuda_graphs=True) == expected


def test_positions_that_need_a_look_at_each_token_are_not_captured(taped, caplog):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    base = base_of(policy_of(LlamaConfig(**SIZES, **GROUPED, rope_parameters=rope)))
    assert kind(base, cuda_graphs=True) is not CapturedBatch
    assert "decoding without" in caplog.text
    assert kind(base_of(tiny_policy()), cuda_graphs=True) is CapturedBatch


def test_without_a_gpu_nothing_is_captured():
    assert kind(base_of(tiny_policy()), cuda_graphs=True) is Batch


def test_how_far_a_token_sees():
    def config(**options):
        return LlamaConfig(**SIZES, **GROUPED, **options)

    assert sees_all(config(), 10**6)
    assert sees_all(CONFIGS["mistral, window shorter than a prompt"](), 4)
    assert not sees_all(CONFIGS["mistral, window shorter than a prompt"](), 5)
    chunked = config()
    chunked.layer_types = ["chunked_attention", "full_attention"]
    assert not sees_all(chunked, 2)
