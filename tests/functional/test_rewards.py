"""A user's reward functions: called as in TRL, summed by weight, refused by name."""

import math

import pytest
import torch
from jsonargparse import ArgumentParser

from vgrout_pl.functional import group_advantages
from vgrout_pl.rewards import RewardSum, group_filled

ROWS = {"prompts": ["a", "b"], "completions": ["x", "xyz"], "completion_ids": [[1], [1, 2, 3]]}


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def hinted_only(completions, modes, **columns):
    return [None if mode == "gt_only" else 1.0 for mode in modes]


class Constant:
    def __init__(self, value: float = 1.0):
        self.value = value

    def __call__(self, completions, **columns):
        return [self.value] * len(completions)


def rewarded(*functions, environment=(0.5, 3.5), columns=None, **options):
    return RewardSum(list(functions), **options)([*environment], **ROWS, columns=columns)


def test_without_functions_the_environments_reward_is_the_reward():
    rewards = rewarded()
    assert rewards.total.tolist() == [0.5, 3.5]
    assert list(rewards.parts) == ["environment"]


def test_rewards_are_summed_by_weight_and_kept_apart_unweighted():
    rewards = rewarded(length, Constant(4.0), weights=[0.5, -1.0], environment_weight=2.0)
    assert rewards.total.tolist() == [1 + 0.5 - 4, 7 + 1.5 - 4]
    assert {name: part.tolist() for name, part in rewards.parts.items()} == {
        "environment": [0.5, 3.5],
        "length": [1.0, 3.0],
        "Constant": [4.0, 4.0],
    }


def test_functions_get_what_trl_would_give_them():
    seen = {}

    def look(**arguments):
        seen.update(arguments)
        return torch.tensor([1, 2])

    assert rewarded(look, columns={"modes": ("run_tests", "gt_only")}).total.tolist() == [1.5, 5.5]
    assert seen == {**ROWS, "modes": ["run_tests", "gt_only"]}


def test_a_function_that_does_not_apply_leaves_the_others():
    columns = {"modes": ["run_tests", "gt_only"]}
    rewards = rewarded(hinted_only, columns=columns)
    assert rewards.total.tolist() == [1.5, 3.5]
    assert math.isnan(rewards.parts["hinted_only"][1])
    rewards = rewarded(hinted_only, columns=columns, environment_weight=0.0)
    assert rewards.total[0] == 1.0
    assert math.isnan(rewards.total[1])


def test_a_row_without_any_reward_neither_learns_nor_moves_its_group():
    rewards = group_filled(torch.tensor([1.0, math.nan, 3.0, math.nan, math.nan, math.nan]), 3)
    assert rewards.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]
    assert group_advantages(rewards, 3).tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_functions_of_the_same_name_keep_their_parts_apart():
    assert RewardSum([length, length, Constant(), Constant()]).names == ["length", "length_2", "Constant", "Constant_2"]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "reward function planted: expected a list of 2 rewards, one a completion; got 1"),
        (None, "expected a list of 2 rewards, one a completion; got NoneType"),
        ([1.0, math.nan], "expected finite numbers, or None where it does not apply; got nan for row 1"),
        ([math.inf, 1.0], "got inf for row 0"),
        ([1.0, "good"], "got 'good' for row 1"),
    ],
)
def test_what_is_no_reward_is_refused_with_the_functions_name(returned, message):
    def planted(**columns):
        return returned

    with pytest.raises(ValueError, match=message):
        rewarded(planted)


async def later(**columns):
    return [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"functions": [length], "weights": [1.0, 2.0]}, "weights: expected one for each of the 1 functions"),
        ({"functions": [length], "weights": [math.inf]}, "expected finite weights; got inf"),
        ({"functions": [later]}, "expected ordinary functions; later is a coroutine function"),
        ({"functions": ["length"]}, "expected ordinary functions; str is a str"),
    ],
)
def test_sums_that_cannot_work_are_refused_before_anything_is_sampled(options, message):
    with pytest.raises(ValueError, match=message):
        RewardSum(**options)


def test_the_command_line_names_functions_by_import_path_and_classes_with_arguments(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=RewardSum, default=RewardSum())
    constant = {"class_path": "test_rewards.Constant", "init_args": {"value": 4.0}}
    given = {"functions": ["test_rewards.length", constant], "weights": [1.0, 2.0]}
    config = parser.parse_object({"rewards": given})
    again = parser.parse_string(parser.dump(config))
    rewards = parser.instantiate_classes(again).rewards([0.5, 3.5], **ROWS)
    assert rewards.total.tolist() == [0.5 + 1 + 8, 3.5 + 3 + 8]


def test_a_row_without_a_verdict_leaves_the_baseline_of_its_state_alone():
    nan = math.nan
    ablated = torch.tensor([False, False, False, True, True])
    rewards = group_filled(torch.tensor([3.5, nan, 3.5, 0.5, 1.5]), 5, ablated)
    assert rewards.tolist() == [3.5, 3.5, 3.5, 0.5, 1.5]
    assert group_advantages(rewards, 5, states=ablated).tolist() == [0, 0, 0, -0.5, 0.5]
    unjudged = group_filled(torch.tensor([3.5, 2.5, 3.5, nan, nan]), 5, ablated)
    assert group_advantages(unjudged, 5, states=ablated)[3:].tolist() == [0, 0]


def test_equal_rewards_stay_equal_beside_a_row_without_a_verdict():
    rewards = group_filled(torch.tensor([3.3] * 7 + [math.nan]), 8)
    assert len(set(rewards.tolist())) == 1
