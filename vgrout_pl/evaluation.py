"""Grading a batch of problems in several model states, same prompts and sampling seed in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from lightning.pytorch import Trainer
from peft import PeftModel

from vgrout_pl.adapters import ablated, quarantine_only, reference_policy
from vgrout_pl.env import Grade
from vgrout_pl.preflight import callbacks_of, data_of, roles
from vgrout_pl.rollout import Grading, decode, encode_prompts
from vgrout_pl.sampling import SamplingRequest
from vgrout_pl.sharding import unsharded
from vgrout_pl.types import EvalBatch

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

Stage = Literal["validate", "test"]

STATES: dict[str, Callable[[PeftModel], AbstractContextManager]] = {
    "as_trained": lambda policy: nullcontext(),
    "deployed": ablated,
    "quarantine_only": quarantine_only,
    "base": reference_policy,
}


class StateChooser:
    """Mix-in of callbacks that want batches of a stage graded in some model states."""

    stage: ClassVar[Stage]

    def __init__(self, states: Iterable[str]):
        self.states = tuple(states)
        unknown = sorted(set(self.states) - set(STATES))
        if unknown or not self.states:
            raise ValueError(f"states: expected some of {', '.join(STATES)}; got {list(self.states)}")

    def sampled(self, trainer: Trainer) -> tuple[str, ...]:
        """The states to sample in: without "deployed" where that is as trained, nor a quarantine that stays."""
        _, router = roles(trainer)
        absent = {"deployed": router.ships_as_trained, "quarantine_only": router.ships_quarantine}
        return tuple(state for state in self.states if not absent.get(state, False))


def chosen_states(trainer: Trainer, stage: Stage) -> tuple[str, ...]:
    """All states that the callbacks of a trainer want in a stage."""
    choosers = [c for c in callbacks_of(trainer) if isinstance(c, StateChooser) and c.stage == stage]
    return tuple(dict.fromkeys(state for chooser in choosers for state in chooser.sampled(trainer)))


def evaluate(module: GRPOModule, batch: EvalBatch, states: Iterable[str]) -> dict[str, list[Grade]]:
    """Sample the completions of each problem in every state and grade them.

    The sampling seed is a function of (run seed, cell, batch), the same for every state and every step, so that
    states and steps are compared on common random numbers and training's own randomness is left alone. Processes
    that share a batch draw from one stream, as one process would.

    Returns:
        state -> the grades of ``batch.rows``.
    """
    if not batch.problems:
        for state in states:  # the other processes hold the whole policy together with this one
            with module.states[state](module.policy), unsharded(module.policy):
                module.engine.publish(module.policy)
        return {}
    data = data_of(module.trainer)
    _, ids, mask = encode_prompts(module.tokenizer, batch.problems, data.max_prompt_tokens)
    ids, mask = ids.to(module.device), mask.to(module.device)
    seed = ("evaluation", data.seed, batch.problems_from, batch.markers, batch.index)
    prompt_of = torch.arange(len(batch.problems)).repeat_interleave(batch.samples)
    first = batch.first * batch.samples
    request = SamplingRequest(ids, mask, prompt_of, module.sampling, seed, first_row=first)
    with ExitStack() as open_gradings:
        gradings: dict[str, Grading] = {}
        for state in states:
            gradings[state] = grading = open_gradings.enter_context(Grading(module.grader, batch.rows))
            with module.states[state](module.policy), unsharded(module.policy):
                module.engine.publish(module.policy)
                tokens, kept, *_ = module.engine.generate(module.policy, module.tokenizer, request)
            grading.add(range(len(prompt_of)), decode(module.tokenizer, tokens, kept))
        return {state: grading.result() for state, grading in gradings.items()}
