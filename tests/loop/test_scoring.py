"""Log-probabilities of rows that share prompts and passes equal those of every row alone."""

from contextlib import contextmanager
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loop.policy_support import CONFIGS, scored, tiny_policy
from vgrout_pl.adapters import Route, routed
from vgrout_pl.adapters.layer import RoutedLayer
from vgrout_pl.kv_cache import can_share_prompts
from vgrout_pl.policy import base_of, checkpoint_activations
from vgrout_pl.scoring import RowStates, length_buckets
from vgrout_pl.window import training_states

ROUTES = torch.tensor([Route.NONE, Route.KEEP, Route.ABSORB, Route.ROUTE, Route.KEEP, Route.ROUTE, Route.KEEP])
PROMPT_OF = torch.tensor([0, 0, 0, 0, 1, 1, 0])
PROMPTS = [3, 9]
LENGTHS = torch.tensor([1, 7, 2, 5, 11, 3, 7])


def batch():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 49, (2, max(PROMPTS)), generator=generator)
    mask = torch.arange(max(PROMPTS)) >= max(PROMPTS) - torch.tensor(PROMPTS).unsqueeze(1)
    ids = torch.where(mask, ids, 0)
    completions = torch.randint(1, 49, (len(LENGTHS), int(LENGTHS.max())), generator=generator)
    kept = torch.arange(int(LENGTHS.max())) < LENGTHS.unsqueeze(1)
    return ids[PROMPT_OF], mask[PROMPT_OF], torch.where(kept, completions, 0), kept


def alone(policy, ids, mask, completions, kept, row):
    prompt, completion = ids[row][mask[row]], completions[row][kept[row]]
    with routed(policy, ROUTES[row : row + 1]):
        logits = policy(input_ids=torch.cat([prompt, completion]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completion.unsqueeze(-1)).squeeze(-1)


def gradients(policy, loss):
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in found.items():
        error = float((gradient - expected[name]).norm())
        assert error <= 1e-4 * float(expected[name].norm()) + 1e-6 * largest, name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "whole rows"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_values_and_gradients_equal_those_of_rows_alone(architecture, share, checkpointing):
    policy = tiny_policy(architecture)
    ids, mask, completions, kept = batch()
    weights = torch.randn(kept.shape, generator=torch.Generator().manual_seed(1)) * kept
    expected = torch.zeros(kept.shape)
    for row in range(len(kept)):
        expected[row, : int(LENGTHS[row])] = alone(policy, ids, mask, completions, kept, row)
    by_row = gradients(policy, (expected * weights).sum())
    if checkpointing:
        checkpoint_activations(policy)
    states = RowStates(ROUTES, lambda index, *_: routed(policy, ROUTES[index]))
    got = scored(policy, ids, mask, PROMPT_OF, completions, kept, states, chunk_tokens=4, share_prompts=share)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    equal_gradients(gradients(policy, (got * weights).sum()), by_row)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "whole rows"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_routes_of_tokens_gate_their_positions_and_prompts_see_both_blocks(architecture, share, checkpointing):
    policy = tiny_policy(architecture)
    ids, mask, completions, kept = batch()
    by_token = torch.randint(1, 4, kept.shape, generator=torch.Generator().manual_seed(3))
    weights = torch.randn(kept.shape, generator=torch.Generator().manual_seed(1)) * kept
    expected = torch.zeros(kept.shape)
    with plain_autograd(policy) as routes:
        for row in range(len(kept)):
            prompt, completion = ids[row][mask[row]], completions[row][kept[row]]
            routes[:] = [Route.ABSORB] * len(prompt) + by_token[row][kept[row]].tolist()
            logits = policy(input_ids=torch.cat([prompt, completion]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
            expected[row, : len(completion)] = logits.log_softmax(-1).gather(-1, completion.unsqueeze(-1)).squeeze(-1)
        by_row = gradients(policy, (expected * weights).sum())
    if checkpointing:
        checkpoint_activations(policy)
    rows = SimpleNamespace(routes=by_token, ablated=torch.zeros(len(kept), dtype=torch.bool))
    states = training_states(SimpleNamespace(policy=policy), rows)
    got = scored(policy, ids, mask, PROMPT_OF, completions, kept, states, chunk_tokens=4, share_prompts=share)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    equal_gradients(gradients(policy, (got * weights).sum()), by_row)


@contextmanager
def plain_autograd(policy):
    """Layers that follow the routes of one row's positions by ``where`` and ``detach``, as the definition says."""
    routes = []

    def forward(layer, x):
        def delta(block):
            a, b, a0, b0 = layer.block(block)
            return x @ a.T @ b.T - x @ a0.T @ b0.T

        route = torch.tensor(routes).view(1, -1, 1)
        deployed, quarantine = delta("deployed"), delta("quarantine")
        deployed = torch.where(route == Route.ROUTE, deployed.detach(), deployed)
        return layer.base_layer(x) + deployed + torch.where(route == Route.KEEP, 0.0, quarantine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoutedLayer, "forward", forward)
        yield routes


def test_a_pass_of_another_length_than_its_routes_is_refused():
    policy = tiny_policy()
    with (
        routed(policy, torch.tensor([[1, 2, 3, 1, 2]] * 2)),
        pytest.raises(ValueError, match="are for 5 positions; got"),
    ):
        policy(input_ids=torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected an int tensor \[rows\] or \[rows, positions\]"):
        routed(policy, torch.ones(1, 2, 3, dtype=torch.long)).__enter__()


def test_a_shared_prompt_is_computed_once_for_each_state():
    policy = tiny_policy()
    ids, mask, completions, kept = batch()
    seen = []
    base_of(policy).get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2]))
    states = RowStates(ROUTES, lambda index, *_: routed(policy, ROUTES[index]))
    scored(policy, ids, mask, PROMPT_OF, completions, kept, states)
    assert seen[0] == (6, 9), "prompt 0 is in four states, prompt 1 in two"
    assert all(shape[1] < int(LENGTHS.max()) for shape in seen[1:])


def test_models_that_carry_more_than_keys_and_values_are_not_shared():
    config = CONFIGS["qwen3"]()
    assert can_share_prompts(config)
    config.layer_types = ["linear_attention", "full_attention"]
    assert not can_share_prompts(config)


def cost(buckets, lengths, pass_tokens):
    return sum(len(b) * int(lengths[b].max()) + pass_tokens for b in buckets)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_buckets_hold_every_row_once_and_no_other_split_costs_less(lengths, pass_tokens):
    lengths = torch.tensor(lengths)
    buckets = length_buckets(lengths, pass_tokens)
    assert sorted(torch.cat(list(buckets)).tolist()) == list(range(len(lengths)))
    order = lengths.argsort()
    inner = range(1, len(lengths))
    splits = [order.tensor_split(list(cut)) for size in range(len(lengths)) for cut in combinations(inner, size)]
    assert cost(buckets, lengths, pass_tokens) == min(cost(split, lengths, pass_tokens) for split in splits)
