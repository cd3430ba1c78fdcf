"""The objective's options against losses and gradients worked out by hand."""

import math

import pytest
import torch
from objective_support import window

from vgrout_pl.adapters import Route
from vgrout_pl.objective import (
    Objective,
    grpo_loss,
    loss_mask,
    loss_statistics,
    trained_rows,
    window_advantages,
    window_normalizer,
)

RATIOS = [[1.0, 1.5, 0.5], [1.1, 7.0, 7.0]]
MASK = [[1, 1, 1], [1, 0, 0]]
ADVANTAGES = [2.0, -2.0]
GEOMETRIC = 0.75 ** (1 / 3)
LN2 = math.log(2)


def loss_of(objective, rows, logprobs, max_new_tokens=5, world=(None, 1), entropy=None):
    normalizer = window_normalizer(objective, loss_mask(objective, rows), max_new_tokens, *world)
    return grpo_loss(objective, rows, logprobs, normalizer, entropy)


@pytest.mark.parametrize(
    ("loss_type", "loss", "gradient"),
    [
        ("dr_grpo", (-2 - 2.4 - 1 + 2.2) / 10, [[-0.2, 0, -0.1], [0.22, 0, 0]]),
        ("grpo", ((-2 - 2.4 - 1) / 3 + 2.2) / 2, [[-2 / 6, 0, -1 / 6], [1.1, 0, 0]]),
        ("dapo", (-2 - 2.4 - 1 + 2.2) / 4, [[-0.5, 0, -0.25], [0.55, 0, 0]]),
        ("bnpo", (-2 - 2.4 - 1 + 2.2) / 4, [[-0.5, 0, -0.25], [0.55, 0, 0]]),
        ("gspo", (-2 * GEOMETRIC + 2.2) / 2, [[-GEOMETRIC / 3] * 3, [1.1, 0, 0]]),
        ("cispo", (2 + 2.4 + 1 - 2.2) / 4, [[-0.5, -0.6, -0.25], [0.55, 0, 0]]),
    ],
)
def test_loss_types_by_hand(loss_type, loss, gradient):
    rows, logprobs = window(RATIOS, advantages=ADVANTAGES, mask=MASK)
    result = loss_of(Objective(loss_type=loss_type, beta=0), rows, logprobs)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.policy.item() == result.loss.item()
    torch.testing.assert_close(logprobs.grad, torch.tensor(gradient))


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [("dr_grpo", -0.32), ("grpo", 0.2), ("dapo", -3.2 / 5), ("bnpo", -0.8)],
)
def test_only_token_means_over_the_step_look_at_other_processes(loss_type, expected):
    rows, logprobs = window(RATIOS, advantages=ADVANTAGES, mask=MASK)
    result = loss_of(Objective(loss_type=loss_type, beta=0), rows, logprobs, world=(10, 2))
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)


def test_several_processes_need_the_tokens_of_all():
    with pytest.raises(ValueError, match="world_tokens: expected the sum over all 2 processes"):
        window_normalizer(Objective(loss_type="dapo"), torch.ones(2, 3), 5, None, 2)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [("dr_grpo", 2.2 / 10), ("grpo", 2.2 / 2), ("dapo", 2.2), ("gspo", 2.2 / 2)],
)
def test_truncated_rows_leave_the_sums_and_the_token_counts_but_stay_rows(loss_type, expected):
    rows, logprobs = window(RATIOS, advantages=ADVANTAGES, mask=MASK, truncated=torch.tensor([True, False]))
    objective = Objective(loss_type=loss_type, beta=0, mask_truncated=True)
    result = loss_of(objective, rows, logprobs)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(expected)
    assert logprobs.grad[0].tolist() == [0, 0, 0]
    rows.rewards = torch.tensor([0.0, 1.0])
    assert trained_rows(objective, rows).tolist() == [False, True]


def test_masking_truncated_rows_needs_to_know_them():
    rows, logprobs = window(RATIOS, advantages=ADVANTAGES)
    with pytest.raises(ValueError, match=r"rows\.truncated: expected one value for each of the 2 rows"):
        loss_of(Objective(mask_truncated=True), rows, logprobs)


def test_the_first_update_of_a_window_takes_its_own_start():
    rows, logprobs = window([[1.0, 1.0]], advantages=[3.0], start=None, group_size=1)
    rows.start_logprobs = None
    result = loss_of(Objective(beta=0), rows, logprobs)
    result.loss.backward()
    assert result.start_logprobs.tolist() == [[-1.0, -1.0]]
    assert logprobs.grad[0].tolist() == pytest.approx([-0.6, -0.6])


# one row, kept though it was sampled as trained: p_sampled / p is 1/4, 1/2, 2 now; p_start = p / 1.1
SAMPLED = [[-1 - math.log(4), -1 - LN2, -1 + LN2]]


@pytest.mark.parametrize(
    ("options", "tokens", "gradients"),
    [
        # ratio to the sampling state: 4, 2, 0.5, clipped at 1.2
        ({}, [-1.2, -1.2, -0.5], [0, 0, -0.5]),
        # ratio to the start, 1.1, weighted by p_start / p_sampled = 4/1.1, 2/1.1, 0.5/1.1, at most 2
        ({"importance": "truncate"}, [-2.2, -2, -0.5], [-2.2, -2, -0.5]),
        ({"importance": "mask"}, [0, -2, -0.5], [0, -2, -0.5]),
        # of the whole row: 4 * 2 * 0.5 / 1.1^3 = 3.005
        ({"importance": "truncate", "importance_level": "sequence"}, [-2.2] * 3, [-2.2] * 3),
        ({"importance": "mask", "importance_level": "sequence"}, [0] * 3, [0] * 3),
        (
            {"importance": "mask", "importance_level": "sequence", "importance_cap": 3.1},
            [-4 / 1.21] * 3,
            [-4 / 1.21] * 3,
        ),
    ],
)
def test_importance_of_rows_that_train_in_another_state_by_hand(options, tokens, gradients):
    rows, logprobs = window([[1.1] * 3], advantages=[1.0], sampled=SAMPLED)
    result = loss_of(Objective(beta=0, **options), rows, logprobs, max_new_tokens=1)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(sum(tokens), rel=1e-5)
    assert logprobs.grad[0].tolist() == pytest.approx(gradients, rel=1e-5)


@pytest.mark.parametrize("importance", ["none", "truncate", "mask"])
def test_rows_that_train_where_they_were_sampled_never_read_old_logprobs(importance):
    rows, logprobs = window([[1.1] * 3], advantages=[1.0], sampled=[[math.nan] * 3], routes=torch.tensor([Route.KEEP]))
    result = loss_of(Objective(beta=0, importance=importance), rows, logprobs, max_new_tokens=1)
    assert result.loss.item() == pytest.approx(-3.3)
    assert result.off_policy[0].tolist() == pytest.approx([math.log(1.1)] * 3)


def test_the_divergence_has_its_own_weight_and_the_same_normalisation():
    rows, logprobs = window(RATIOS, advantages=ADVANTAGES, mask=MASK, reference=torch.full((2, 3), -1 + LN2))
    k3 = 2 - LN2 - 1
    for loss_type, share in (("dr_grpo", 4 / 10), ("grpo", 1.0), ("dapo", 1.0)):
        result = loss_of(Objective(loss_type=loss_type, beta=0.5), rows, logprobs)
        assert (result.loss - result.policy).item() == pytest.approx(0.5 * k3 * share, rel=1e-5)
        assert result.kl.item() == pytest.approx(4 * k3, rel=1e-5)


def test_an_unbiased_divergence_has_the_gradient_of_the_divergence_over_the_whole_vocabulary():
    logits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([0.5, 0.2, -0.4], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((policy.exp() * (policy - other)).sum(), logits, retain_graph=True)
    for unbiased in (True, False):
        total = torch.zeros_like(expected)
        for word, probability in enumerate(policy.exp().tolist()):
            rows, _ = window([[1.0]], advantages=[0.0], reference=other[word].view(1, 1))
            rows.start_logprobs = None
            objective = Objective(beta=1.0, unbiased_kl=unbiased)
            loss = loss_of(objective, rows, policy[word].view(1, 1), 1).loss
            total += probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
        assert torch.allclose(total, expected, atol=1e-6) == unbiased


def test_a_measured_divergence_of_weight_zero_leaves_loss_and_gradient_alone():
    rows, logprobs = window(RATIOS, advantages=[0.0, 0.0], mask=MASK, reference=torch.full((2, 3), -3.0))
    result = loss_of(Objective(beta=0.0), rows, logprobs)
    result.loss.backward()
    assert result.loss.item() == 0
    assert logprobs.grad.abs().sum() == 0
    assert result.kl.item() == pytest.approx(4 * (math.exp(-2) + 2 - 1))


def test_beta_moves_linearly_between_its_ends_and_then_stays():
    down = Objective(beta=0.1, beta_end=0.0, beta_steps=4, kl_every=3)
    assert [down.beta_at(i) for i in range(6)] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0, 0.0])
    assert [down.measures_kl(i) for i in range(8)] == [True] * 4 + [False, False, True, False]
    warm = Objective(beta=0.0, beta_end=0.01, beta_steps=2)
    assert [warm.beta_at(i) for i in range(4)] == pytest.approx([0.0, 0.005, 0.01, 0.01])
    assert [warm.measures_kl(i) for i in range(3)] == [False, True, True]
    assert warm.measures_kl(0, updates=2), "the second update has a divergence in its loss"
    every = Objective(beta=0.0, kl_every=3)
    assert [every.measures_kl(i, updates=2) for i in range(0, 8, 2)] == [True, True, False, True]
    assert Objective(beta=0.3).beta_at(10**6) == 0.3
    rows, logprobs = window([[1.0]], advantages=[0.0], reference=[[-1 + LN2]], step=2)
    assert loss_of(down, rows, logprobs, 1).loss.item() == pytest.approx(0.05 * (1 - LN2))


def test_the_entropy_bonus_is_a_mean_over_the_steps_tokens_for_every_loss_type():
    for loss_type in ("dr_grpo", "grpo", "dapo", "cispo"):
        rows, logprobs = window(RATIOS, advantages=[0.0, 0.0], mask=MASK)
        entropy = torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, math.nan]], requires_grad=True)
        result = loss_of(Objective(loss_type=loss_type, beta=0, entropy_bonus=0.2), rows, logprobs, entropy=entropy)
        result.loss.backward()
        assert result.loss.item() == pytest.approx(-0.2 * 10 / 4)
        torch.testing.assert_close(entropy.grad, torch.tensor([[-0.05] * 3, [-0.05, 0, 0]]))


def test_groups_without_variance_count_in_the_denominator_and_are_not_trained():
    rewards = torch.tensor([1.0, 0.0, 2.0, 2.0])
    rows, logprobs = window([[1.0]] * 4, advantages=[0.0] * 4, group_size=2, rewards=rewards)
    objective = Objective(beta=0.0)
    rows.advantages = window_advantages(objective, rows)
    assert rows.advantages.tolist() == [0.5, -0.5, 0.0, 0.0]
    live = trained_rows(objective, rows).nonzero().flatten()
    assert live.tolist() == [0, 1]
    normalizer = window_normalizer(objective, rows.completion_mask, max_new_tokens=1)
    grpo_loss(objective, rows.rows(live), logprobs[live], normalizer).loss.backward()
    assert logprobs.grad.flatten().tolist() == [-0.125, 0.125, 0, 0]


def test_constant_groups_train_only_for_a_term_that_they_have():
    rows, _ = window([[1.0]] * 2, advantages=[0.0] * 2, rewards=torch.ones(2), reference=[[-1.0]] * 2)
    for options, trained in (
        ({"beta": 0.1}, False),
        ({"beta": 0.1, "kl_constant_groups": True}, True),
        ({"beta": 0.0, "kl_constant_groups": True}, False),
        ({"beta": 0.0, "kl_constant_groups": True, "entropy_bonus": 0.1}, True),
        ({"beta": 0.1, "beta_end": 0.0, "beta_steps": 3, "kl_constant_groups": True, "step": 3}, False),
    ):
        rows.step = options.pop("step", 0)
        assert trained_rows(Objective(**options), rows).tolist() == [trained] * 2


def test_a_state_baseline_decides_who_trains():
    states = torch.tensor([False, False, True, True])
    rewards = torch.tensor([3.0, 3.0, 0.0, 1.0])
    rows, _ = window([[1.0]] * 4, advantages=[0.0] * 4, rewards=rewards, ablated=states)
    assert trained_rows(Objective(), rows).tolist() == [True] * 4
    assert trained_rows(Objective(baseline="state"), rows).tolist() == [False, False, True, True]
    assert window_advantages(Objective(baseline="state"), rows).tolist() == [0, 0, -0.5, 0.5]


def test_statistics_name_what_each_bound_did():
    rows, logprobs = window([[1.0, 1.5, 9.0], [0.1, 1.5, 9.0]], advantages=[1.0, -1.0], mask=[[1, 1, 0], [1, 1, 1]])
    for options, expected in (
        ({}, {"low": 0.2, "high": 0.2, "region": 0.4}),
        ({"delta": 2.0}, {"low": 0.2, "high": 0.2, "region": 0.4, "delta": 0.2}),
        ({"loss_type": "cispo"}, {"low": 0.0, "high": 0.6, "region": 0.6}),
        # geometric means: 1.5^(1/2) and (0.1 * 1.5 * 9)^(1/3) = 1.105
        ({"loss_type": "gspo"}, {"low": 0.0, "high": 0.4, "region": 0.4}),
    ):
        objective = Objective(beta=0, **options)
        result = loss_of(objective, rows, logprobs)
        entropy = torch.full_like(logprobs, 0.5)
        values = loss_statistics(objective, rows, logprobs.detach(), entropy, result)
        found = {k.split("/")[1]: v for k, (v, n) in values.items() if k.startswith("clip") and int(n) == 5}
        assert {k: float(v) for k, v in found.items()} == pytest.approx({f"{k}_mean": v for k, v in expected.items()})
        assert float(values["entropy"][0]) == 0.5
        assert float(values["sampling/logprob"][0]) == -1
        assert "kl" not in values


@pytest.mark.parametrize(
    ("importance", "mean", "cut"),
    [("truncate", (2 + 2 / 1.1 + 0.5 / 1.1) / 3, 1 / 3), ("mask", (2 + 0.5) / 1.1 / 3, 1 / 3)],
)
def test_statistics_of_importance_cover_the_rows_sampled_elsewhere(importance, mean, cut):
    sampled = [*SAMPLED, [math.nan] * 3]
    routes = torch.tensor([Route.ABSORB, Route.KEEP])
    rows, logprobs = window([[1.1] * 3] * 2, advantages=[1.0, -1.0], sampled=sampled, routes=routes)
    objective = Objective(beta=0, importance=importance)
    result = loss_of(objective, rows, logprobs)
    values = loss_statistics(objective, rows, logprobs.detach(), torch.zeros(2, 3), result)
    assert [int(values[f"importance/{k}_mean"][1]) for k in ("weight", "cut")] == [3, 3]
    assert float(values["importance/weight_mean"][0]) == pytest.approx(mean)
    assert float(values["importance/cut_mean"][0]) == pytest.approx(cut)
    assert float(values["route/ratio_absorb"][0]) == pytest.approx(6.5 / 3)
    assert float(values["route/ratio_keep"][0]) == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type: expected grpo | dr_grpo"),
        ({"clip_low": 1.5}, "clip_low: expected a distance in"),
        ({"delta": 1.2}, "delta: expected a bound above 1 [+] clip_high = 1.2"),
        ({"importance_cap": 0}, "importance_cap: expected a weight above 0; got 0"),
        ({"beta": -1.0}, "beta: expected a weight of at least 0"),
        ({"beta": math.nan}, "beta: expected a weight of at least 0"),
        ({"beta_end": 0.0}, "beta_steps: expected at least 1 step with beta_end"),
        ({"beta_steps": 3}, "beta_steps: expected at least 1 step with beta_end, else 0; got 3"),
        ({"kl_every": -1}, "kl_every: expected a number of steps"),
        ({"entropy_bonus": math.inf}, "entropy_bonus: expected a weight"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=rf"model\.objective\.{message}".replace("|", r"\|")):
        Objective(**options)
