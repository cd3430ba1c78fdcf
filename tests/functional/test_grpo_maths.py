"""Advantages, losses and log-probabilities against numbers worked out by hand."""

import math

import pytest
import torch

from vgrout_pl.functional import (
    cispo_loss,
    clip_counts,
    clipped_policy_loss,
    completion_logprobs,
    constant_groups,
    group_advantages,
    importance_weights,
    k3_divergence,
    masked_sum,
    sequence_log_ratio,
)


def test_advantages_are_rewards_minus_the_groups_mean():
    rewards = torch.tensor([3.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0])
    assert group_advantages(rewards, 4).tolist() == [2.25, -0.75, -0.75, -0.75, 0, 0, 0, 0]


def test_group_scale_divides_by_the_unbiased_deviation_of_the_group():
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0])
    expected = [-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4), 0, 0]
    assert group_advantages(rewards, 2, scale="group").tolist() == pytest.approx(expected, rel=1e-6)


def test_batch_scale_divides_by_the_deviation_over_all_rows():
    rewards = torch.tensor([1.0, 3.0, 5.0, 7.0])
    deviation = math.sqrt((9 + 1 + 1 + 9) / 3) + 1e-4
    expected = [-1 / deviation, 1 / deviation, -1 / deviation, 1 / deviation]
    assert group_advantages(rewards, 2, scale="batch").tolist() == pytest.approx(expected, rel=1e-6)


def test_equal_rewards_that_are_not_exact_in_binary_leave_no_advantage():
    rewards = torch.full((6,), 0.1)
    assert constant_groups(rewards, 3).all()
    for scale in ("none", "group", "batch"):
        assert group_advantages(rewards, 3, scale=scale).tolist() == [0.0] * 6


def test_the_steps_deviation_can_include_other_processes_rewards():
    own, everyone = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0, 5.0, 7.0])
    deviation = math.sqrt((9 + 1 + 1 + 9) / 3) + 1e-4
    values = group_advantages(own, 2, scale="batch", batch_rewards=everyone)
    assert values.tolist() == pytest.approx([-1 / deviation, 1 / deviation], rel=1e-6)


def test_a_state_baseline_compares_rows_with_those_sampled_alike():
    rewards = torch.tensor([3.0, 1.0, 5.0, 3.0, 9.0, 1.0])
    states = torch.tensor([False, False, False, False, True, True])
    assert group_advantages(rewards, 6, states=states).tolist() == [0.0, -2.0, 2.0, 0.0, 4.0, -4.0]
    trained, ablated = math.sqrt(8 / 3) + 1e-4, math.sqrt(32) + 1e-4
    expected = [0, -2 / trained, 2 / trained, 0, 4 / ablated, -4 / ablated]
    assert group_advantages(rewards, 6, scale="group", states=states).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_row_alone_in_its_state_is_compared_with_the_whole_group():
    rewards = torch.tensor([3.0, 1.0, 2.0, 6.0])
    states = torch.tensor([False, False, False, True])
    assert group_advantages(rewards, 4, states=states).tolist() == [1.0, -1.0, 0.0, 3.0]


def test_groups_that_differ_only_between_states_are_constant_within_them():
    rewards = torch.tensor([3.5, 3.5, 0.5, 0.5])
    states = torch.tensor([False, False, True, True])
    assert constant_groups(rewards, 4).tolist() == [False] * 4
    assert constant_groups(rewards, 4, states=states).tolist() == [True] * 4
    assert group_advantages(rewards, 4, scale="group", states=states).tolist() == [0.0] * 4


@pytest.mark.parametrize("size", [1, 3])
def test_group_size_must_compare_and_divide(size):
    with pytest.raises(ValueError, match="group_size: expected"):
        group_advantages(torch.zeros(4), size)


def test_clipped_loss_by_hand():
    ratio = torch.tensor([[1.0, 1.5, 0.5]])
    loss = clipped_policy_loss(ratio.log(), torch.tensor([2.0]), 0.2, 0.3)
    assert loss[0].tolist() == pytest.approx([-2.0, -2.6, -1.0])
    loss = clipped_policy_loss(ratio.log(), torch.tensor([-2.0]), 0.2, 0.3)
    assert loss[0].tolist() == pytest.approx([2.0, 3.0, 1.6])


def test_delta_bounds_what_a_negative_advantage_can_cost_and_changes_nothing_else():
    ratio = torch.tensor([[1.0, 1.4, 9.0, 0.5]])
    for advantage, expected in ((-2.0, [2.0, 2.8, 3.0, 1.6]), (2.0, [-2.0, -2.4, -2.4, -1.0])):
        loss = clipped_policy_loss(ratio.log(), torch.tensor([advantage]), 0.2, 0.2, delta=1.5)
        assert loss[0].tolist() == pytest.approx(expected)


def test_on_policy_loss_has_a_gradient_though_its_sum_is_zero():
    logprobs = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    loss = clipped_policy_loss(logprobs - logprobs.detach(), torch.tensor([1.0, -1.0]), 0.2, 0.2).sum()
    loss.backward()
    assert loss.item() == 0
    assert logprobs.grad.flatten().tolist() == [-1.0, 1.0]


def test_k3_is_zero_at_equality_and_known_elsewhere():
    value = k3_divergence(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -1.0 + math.log(2)]))
    assert value.tolist() == pytest.approx([0.0, 2 - math.log(2) - 1])


def test_masked_sum_ignores_what_is_not_finite_outside_the_mask_also_in_the_gradient():
    values = torch.tensor([1.0, float("nan"), 2.0], requires_grad=True)
    total = masked_sum(values, torch.tensor([1, 0, 1]))
    total.backward()
    assert total.item() == 3
    assert values.grad.tolist() == [1, 0, 1]


def test_clip_counts_count_only_active_bounds_within_the_mask():
    ratio = torch.tensor([[0.5, 1.5, 1.0, 9.0], [0.5, 1.5, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    counts = clip_counts(ratio.log(), torch.tensor([1.0, -1.0]), mask, 0.2, 0.2, delta=1.6)
    assert {k: int(v) for k, v in counts.items()} == {"low": 1, "high": 2, "delta": 1, "tokens": 7}
    counts = clip_counts(ratio.log(), torch.tensor([1.0, -1.0]), mask, 0.2, 0.2)
    assert int(counts["delta"]) == 0


def test_counted_tokens_are_those_without_a_gradient():
    torch.manual_seed(1)
    log_ratio, advantages = torch.randn(6, 9, requires_grad=True), torch.tensor([2.0, -2.0, 1.0, -1.0, 0.5, -0.5])
    clipped_policy_loss(log_ratio, advantages, 0.2, 0.3, delta=1.7).sum().backward()
    counts = clip_counts(log_ratio, advantages, torch.ones(6, 9), 0.2, 0.3, delta=1.7)
    dead = int((log_ratio.grad == 0).sum())
    assert 0 < dead < 54
    assert dead == int(counts["low"] + counts["high"] + counts["delta"])


def test_sequence_ratio_is_the_geometric_mean_over_a_rows_own_tokens():
    ratio = torch.tensor([[2.0, 8.0, 100.0], [3.0, float("nan"), 5.0], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert sequence_log_ratio(ratio.log(), mask).exp().flatten().tolist() == pytest.approx([4.0, 3.0, 1.0])


def test_cispo_caps_the_weight_and_leaves_every_token_its_gradient():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    ratio = torch.tensor([[0.1, 1.5, 9.0]])
    loss = cispo_loss(logprobs, ratio.log(), torch.tensor([2.0]), 4.0)
    assert loss[0].tolist() == pytest.approx([0.2, 6.0, 30.0])
    loss.sum().backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-0.2, -3.0, -10.0])


@pytest.mark.parametrize(
    ("mode", "level", "expected"),
    [
        ("none", "token", [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
        ("truncate", "token", [[0.5, 2.5, 2.5], [1.0, 2.0, 1.0]]),
        ("mask", "token", [[0.5, 2.5, 0.0], [1.0, 2.0, 1.0]]),
        ("truncate", "sequence", [[2.5], [2.0]]),
        ("mask", "sequence", [[0.0], [2.0]]),
    ],
)
def test_importance_weights_by_hand(mode, level, expected):
    ratio = torch.tensor([[0.5, 2.5, 4.0], [1.0, 2.0, 100.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    weights = importance_weights(ratio.log(), mask, mode, 2.5, level)
    torch.testing.assert_close(weights.expand(2, 3), torch.tensor(expected).expand(2, 3))
    assert not weights.requires_grad


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunked_logprobs_and_their_gradient_equal_the_full_softmax(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 7, dtype=torch.float64).float().requires_grad_()
    head = torch.nn.Linear(7, 11)
    targets = torch.randint(0, 11, (3, 5))
    full = torch.log_softmax(head(hidden) / 0.7, -1)
    expected = full.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    weight = torch.randn(3, 5)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), hidden)
    logprobs, entropies = completion_logprobs(hidden, targets, head, temperature=0.7, chunk_tokens=chunk)
    (grad,) = torch.autograd.grad((logprobs * weight).sum(), hidden)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, -(full.exp() * full).sum(-1).detach(), atol=1e-5, rtol=1e-5)
    assert not entropies.requires_grad
