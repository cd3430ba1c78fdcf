"""Is what a server samples from what the trainer trains? Its log-probabilities of the sampled tokens say so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from vgrout_pl.adapters import reference_policy
from vgrout_pl.engines.base import EngineError
from vgrout_pl.generation import Completions
from vgrout_pl.scoring import RowStates, score_completions

NOISE = 1e-4
"""Gaps below this (nats a token) are rounding, whatever they are compared with."""
BASE_FACTOR = 2.0
"""How many times nearer to the base than to the policy is taken for the base."""


class Gaps(NamedTuple):
    """Mean absolute differences between a server's log-probabilities and the trainer's (nats a token).

    Attributes:
        policy: to the policy in the state that was to be sampled.
        base: to the model without its adapter.
        tokens: how many were compared.
    """

    policy: float
    base: float
    tokens: int


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` of ``rows`` (int [n]), evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def gaps(
    policy: PeftModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    prompt_of: Tensor,
    sampled: Completions,
    state: Callable[[], AbstractContextManager],
) -> Gaps:
    """Score completions in the trainer, in their state and without adapter, and compare (temperature 1).

    Args:
        policy: what the server is meant to serve.
        prompt_ids: [P, S], left-padded.
        prompt_mask: [P, S].
        prompt_of: int [n], each row's prompt.
        sampled: n rows with the server's ``logprobs``.
        state: gives the context in which the rows were to be sampled.
    """
    served = sampled.logprobs
    assert served is not None, "there is nothing to compare"
    tokens = int(sampled.mask.sum())

    def apart(context: Callable[[], AbstractContextManager]) -> float:
        states = RowStates.same(len(prompt_of), context)
        prompts = prompt_ids[prompt_of], prompt_mask[prompt_of], prompt_of
        own, _ = score_completions(policy, *prompts, sampled.ids, sampled.mask, states)
        return float(torch.where(sampled.mask, (served - own).abs(), 0.0).double().sum()) / tokens

    return Gaps(policy=apart(state), base=apart(lambda: reference_policy(policy)), tokens=tokens)


def refuse_other_policy(seen: Gaps, limit: float, name: str, adapted: bool) -> None:
    """Raise where a server samples from something else than it should.

    Args:
        seen: the gaps of one state's rows.
        limit: largest mean gap to the policy (nats a token).
        name: what the server was asked for.
        adapted: whether the state has an adapter at all.

    Raises:
        EngineError: the gap is above the limit or no number, or the log-probabilities are much nearer to the base's.
    """
    figures = f"mean gap over {seen.tokens} tokens {seen.policy:.3g} nats, to the base model {seen.base:.3g}"
    if adapted and seen.policy > max(NOISE, BASE_FACTOR * seen.base):
        raise EngineError(
            f"engine: expected the server to sample {name} from the adapter; its log-probabilities are those of the "
            f"base model ({figures}); check that the server applies adapters to all target modules, and its log"
        )
    if not seen.policy <= limit:
        raise EngineError(
            f"engine: expected log-probabilities of the sampled tokens within {limit:g} nats of the trainer's for "
            f"{name}; got a {figures}; serve the very weights of model.path in model.dtype, without quantization, "
            "with vLLM's --logprobs-mode raw_logprobs (its default), or raise model.engine.init_args.max_logprob_gap"
        )
