"""Grading a batch of problems in several model states, same prompts and sampling seed in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

import torch

from vgrout_pl.adapters import ablated, quarantine_only, reference_policy
from vgrout_pl.env import Grade
from vgrout_pl.rollout import decode, encode_prompts, generate, grade
from vgrout_pl.types import EvalBatch

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

State = Literal["as_trained", "deployed", "quarantine_only", "base"]

STATES: dict[str, Callable[[torch.nn.Module], AbstractContextManager]] = {
    "as_trained": lambda policy: nullcontext(),
    "deployed": ablated,
    "quarantine_only": quarantine_only,
    "base": reference_policy,
}


def evaluate(module: GRPOModule, batch: EvalBatch, states: Iterable[str]) -> dict[str, list[Grade]]:
    """Sample one completion a problem in every state and grade it.

    The sampling seed is a function of (run seed, cell, batch), the same for every state and every step, so that
    states and steps are compared on common random numbers and training's own randomness is left alone.

    Returns:
        state -> one grade a problem.
    """
    data = module.trainer.datamodule
    _, ids, mask = encode_prompts(module.tokenizer, batch.problems, data.max_prompt_tokens)
    ids, mask = ids.to(module.device), mask.to(module.device)
    seed = ("evaluation", data.seed, batch.problems_from, batch.markers, batch.index)
    grades = {}
    for state in states:
        with STATES[state](module.policy):
            tokens, kept = generate(module.policy, module.tokenizer, ids, mask, module.sampling, seed)
        grades[state] = grade(module.grader, decode(module.tokenizer, tokens, kept), batch.problems)
    return grades
