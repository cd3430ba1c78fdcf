"""The reward of a completion: the environment's and any number of a user's own functions, weighted and summed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vgrout_pl.functional.advantages import comparison_sets

RewardFunction = Callable[..., Sequence[float | None]]
ENVIRONMENT = "environment"


@dataclass(frozen=True)
class Rewards:
    """Rewards of N completions.

    Attributes:
        total: float32 [N], the weighted sum of what was given; NaN where no function with a weight gave a reward.
        parts: name of each function (``environment`` first) -> float32 [N], unweighted; NaN where it gave none.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class RewardSum:
    """R = environment_weight * R_environment + sum_k weights[k] * f_k.

    A function is called as in TRL, once for the rows of a window, with lists of one entry a row::

        def short(completions: list[str], **columns) -> list[float | None]:
            return [-len(text) / 1000 for text in completions]

    as ``fn(prompts=, completions=, completion_ids=, **columns)``: texts, texts, lists of token ids and the columns of
    the problems. It returns one number a row, or None where it does not apply; such a row's sum is over the others.

    Args:
        functions: import paths of functions, or classes whose instances are called.
        weights: one for each function; empty: 1 for each.
        environment_weight: of the environment's reward.
    """

    functions: list[RewardFunction] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    environment_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse weights that do not fit and functions that cannot be called and waited for."""
        if self.weights and len(self.weights) != len(self.functions):
            raise ValueError(
                f"model.rewards.weights: expected one for each of the {len(self.functions)} functions, or none; got "
                f"{len(self.weights)}"
            )
        for weight in (self.environment_weight, *self.weights):
            if not math.isfinite(weight):
                raise ValueError(f"model.rewards: expected finite weights; got {weight}")
        for function in self.functions:
            called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
            if not callable(function) or inspect.iscoroutinefunction(called):
                raise ValueError(
                    f"model.rewards.functions: expected ordinary functions; {function_name(function)} is a "
                    f"{'coroutine function' if callable(function) else type(function).__name__}"
                )

    @property
    def names(self) -> list[str]:
        """Names of the functions, numbered from the second of the same name on; never the environment's."""
        seen: dict[str, int] = {ENVIRONMENT: 1}
        names = []
        for function in self.functions:
            name = function_name(function)
            seen[name] = seen.get(name, 0) + 1
            names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
        return names

    def __call__(
        self,
        environment: Sequence[float | None],
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        columns: dict[str, Sequence[Any]] | None = None,
    ) -> Rewards:
        """Reward N completions.

        Args:
            environment: N rewards of the environment, None where it could not judge.
            prompts: N texts.
            completions: N texts.
            completion_ids: N lists of token ids.
            columns: name -> N values, handed to every function by name.

        Raises:
            ValueError: a function returned another number of rewards than rows, or something that is not a finite
                number; the line names it.
        """
        parts = {ENVIRONMENT: checked_rewards(ENVIRONMENT, environment, len(completions))}
        for name, function in zip(self.names, self.functions, strict=True):
            given = function(
                prompts=list(prompts),
                completions=list(completions),
                completion_ids=[list(ids) for ids in completion_ids],
                **{key: list(values) for key, values in (columns or {}).items()},
            )
            parts[name] = checked_rewards(name, given, len(completions))
        weights = [self.environment_weight, *(self.weights or [1.0] * len(self.functions))]
        return Rewards(weighted_sum(list(parts.values()), weights), parts)


def function_name(function: object) -> str:
    """Name of a function, or of the class of an instance that is called."""
    return str(getattr(function, "__name__", type(function).__name__))


def checked_rewards(name: str, rewards: object, rows: int) -> Tensor:
    """Turn what a reward function returned into float32 [N], None into NaN.

    Raises:
        ValueError: no sequence of ``rows`` entries, each None or a finite number.
    """
    given = rewards.tolist() if isinstance(rewards, Tensor) or hasattr(rewards, "tolist") else rewards  # type: ignore
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != rows:
        got = f"{len(given)}" if isinstance(given, Sequence) else type(given).__name__
        raise ValueError(f"reward function {name}: expected a list of {rows} rewards, one a completion; got {got}")
    for i, reward in enumerate(given):
        number = isinstance(reward, (int, float)) or hasattr(reward, "__float__")
        if reward is not None and not (number and math.isfinite(float(reward))):
            raise ValueError(
                f"reward function {name}: expected finite numbers, or None where it does not apply; got {reward!r} for "
                f"row {i}"
            )
    return torch.tensor([math.nan if reward is None else float(reward) for reward in given], dtype=torch.float32)


def weighted_sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum over k of weights[k] parts[k] [N], NaN entries left out; NaN where nothing with a weight is left."""
    stacked = torch.stack(list(parts))
    factors = torch.tensor(weights, dtype=stacked.dtype).unsqueeze(1)
    counts = ~stacked.isnan() & (factors != 0)
    total = torch.where(counts, factors * stacked, 0.0).sum(0)
    return torch.where(counts.any(0), total, math.nan)


def group_filled(rewards: Tensor, group_size: int, states: Tensor | None = None) -> Tensor:
    """Replace NaN by the mean of the other rewards that the row is compared with, 0 where there are none: [N] -> [N].

    Such a row's advantage is 0 and its baseline is what the judged rows say. Rows that are compared with no judged row
    are constant among themselves and carry no gradient.

    Args:
        rewards: [N], groups of ``group_size`` consecutive rows.
        group_size: G.
        states: as for :func:`vgrout_pl.functional.group_advantages`.
    """
    values = rewards.view(-1, 1, group_size)
    judged = comparison_sets(len(rewards), group_size, states).to(rewards.device) & ~values.isnan()
    mean = torch.where(judged, values, 0.0).double().sum(2) / judged.sum(2).clamp_min(1)  # exact for equal rewards
    return torch.where(rewards.isnan(), mean.flatten().to(rewards.dtype), rewards)
