"""One window of training: sample, and score what the training pass itself does not give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vgrout_pl.adapters import ablated, reference_policy
from vgrout_pl.env import Problem
from vgrout_pl.objective import sampled_elsewhere
from vgrout_pl.policy import score_completions
from vgrout_pl.preflight import data_of, roles
from vgrout_pl.rollout import decode, encode_prompts, generate
from vgrout_pl.types import Rollouts, Window

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule


def sample_window(module: GRPOModule, window: Window) -> tuple[Rollouts, list[Problem]]:
    """Draw G completions for each problem of a window, a share of them with the quarantine ablated.

    Returns:
        the rollouts, not yet graded, and the problem of each of their N rows.
    """
    size, data = module.group_size, data_of(module.trainer)
    texts, ids, mask = encode_prompts(module.tokenizer, window.problems, data.max_prompt_tokens)
    prompt_ids = ids.repeat_interleave(size, 0).to(module.device)
    prompt_mask = mask.repeat_interleave(size, 0).to(module.device)
    ablated = ablated_rows(module, len(window.problems))
    seed = ("rollout", data.seed, window.step, module.global_rank)
    completion_ids, completion_mask = generate(
        module.policy, module.tokenizer, prompt_ids, prompt_mask, module.sampling, seed, ablated
    )
    problems = [problem for problem in window.problems for _ in range(size)]
    rollouts = Rollouts(
        step=window.step,
        group_size=size,
        problem_ids=[str(problem.id) for problem in problems],
        modes=[problem.mode for problem in problems],
        markers=[problem.lever for problem in problems],
        prompts=[text for text in texts for _ in range(size)],
        completions=decode(module.tokenizer, completion_ids, completion_mask),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        ablated=ablated,
    )
    return rollouts, problems


def ablated_rows(module: GRPOModule, prompts: int) -> Tensor:
    """Mark the last ``deploy_sample_fraction`` of each group: bool [P G]; none where the quarantine ships."""
    _, router = roles(module.trainer)
    share = 0.0 if router.ships_quarantine else module.deploy_sample_fraction
    first = module.group_size - round(module.group_size * share)
    return (torch.arange(module.group_size) >= first).repeat(prompts).to(module.device)


@torch.no_grad()
def score_other_states(module: GRPOModule, rollouts: Rollouts, live: Tensor) -> None:
    """Fill in what the training pass does not give, for the rows ``live`` [n]; NaN elsewhere.

    ``old_logprobs`` of rows whose route trains in another state than they were sampled in, and, where the objective
    asks for it, ``reference_logprobs``.
    """
    old = torch.full_like(rollouts.completion_ids, float("nan"), dtype=torch.float32)
    elsewhere = live[sampled_elsewhere(rollouts.routes, rollouts.ablated)[live]]
    _score_into(module, rollouts, elsewhere, old, lambda rows: ablated(module.policy, rows=rows.ablated))
    rollouts.old_logprobs = old
    if module.objective.beta:
        reference = torch.full_like(old, float("nan"))
        _score_into(module, rollouts, live, reference, lambda _: reference_policy(module.policy))
        rollouts.reference_logprobs = reference


def score_rows(module: GRPOModule, rows: Rollouts) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [n, T] of some rows in the policy's present state."""
    return score_completions(
        module.policy,
        rows.prompt_ids,
        rows.prompt_mask,
        rows.completion_ids,
        rows.completion_mask,
        chunk_tokens=module.score_chunk_tokens,
    )


def _score_into(
    module: GRPOModule,
    rollouts: Rollouts,
    index: Tensor,
    out: Tensor,
    state: Callable[[Rollouts], AbstractContextManager],
) -> None:
    size = -(-len(rollouts) // module.trainer.accumulate_grad_batches)
    for chunk in index.split(size):
        if len(chunk):
            rows = trimmed(rollouts.rows(chunk))
            with state(rows):
                logprobs, _ = score_rows(module, rows)
            out[chunk, : logprobs.shape[1]] = logprobs


def trimmed(rows: Rollouts) -> Rollouts:
    """Cut the padding that no row needs: prompts on the left, completions on the right."""
    longest = int(rows.completion_mask.sum(1).max())
    first = rows.prompt_mask.shape[1] - int(rows.prompt_mask.sum(1).max())
    for name in ("completion_ids", "completion_mask", "old_logprobs", "reference_logprobs"):
        value = getattr(rows, name)
        if value is not None:
            setattr(rows, name, value[:, :longest])
    rows.prompt_ids, rows.prompt_mask = rows.prompt_ids[:, first:], rows.prompt_mask[:, first:]
    return rows
