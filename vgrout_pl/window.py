"""One window of training: sample, grade, route, and score what the training passes do not give."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vgrout_pl.adapters import ablated, reference_policy, routed
from vgrout_pl.generation import generate
from vgrout_pl.objective import (
    Normalizer,
    loss_mask,
    sampled_elsewhere,
    trained_rows,
    window_advantages,
    window_normalizer,
)
from vgrout_pl.policy import base_of, stop_token_ids
from vgrout_pl.preflight import data_of, roles
from vgrout_pl.rollout import Grading, decode, encode_prompts, rewards_of
from vgrout_pl.scoring import RowStates, score_completions
from vgrout_pl.types import Labels, Rollouts, Window

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule


@dataclass
class TrainingWindow:
    """A window that is ready to be trained on.

    Attributes:
        rollouts: N = P G rows.
        labels: what the grader knows about them.
        micro_batches: int [n] rows of each micro-batch.
        normalizer: of the window's loss.
    """

    rollouts: Rollouts
    labels: Labels
    micro_batches: Sequence[Tensor]
    normalizer: Normalizer
    _start: Tensor | None = None

    def keep_start(self, rows: Tensor, logprobs: Tensor) -> None:
        """Keep the log-probabilities [n, t] with which the rows ``rows`` (int [n]) begin the window's first update.

        They enter :attr:`rollouts` after the update's last micro-batch, for the updates that follow.
        """
        if self._start is None:
            self._start = torch.full_like(self.rollouts.completion_ids, float("nan"), dtype=torch.float32)
        _store(self._start, rows, logprobs)

    def begin_update(self, update: int) -> None:
        """Hand the log-probabilities of the window's start to the second update and those after it."""
        if update:
            self.rollouts.start_logprobs = self._start


@torch.no_grad()
def collect(module: GRPOModule, window: Window) -> TrainingWindow:
    """Sample, grade and route one window, and fill in the log-probabilities that its training passes do not give."""
    objective, timer = module.objective, module.timer
    rollouts, labels = sample_window(module, window)
    _, router = roles(module.trainer)
    with timer.phase("route"):
        rollouts.routes = router.assign(rollouts, labels)
    rows = trained_rows(objective, rollouts).nonzero().flatten()
    batches = micro_batches(rollouts, rows, window.micro_batches)
    with timer.phase("score"):
        score_other_states(module, rollouts, batches)
    world = module.trainer.world_size
    mask = loss_mask(objective, rollouts)
    tokens = module.trainer.strategy.reduce(mask.sum().float(), reduce_op="sum") if world > 1 else None
    normalizer = window_normalizer(objective, mask, module.sampling.max_new_tokens, tokens, world)
    return TrainingWindow(rollouts, labels, batches, normalizer)


def sample_window(module: GRPOModule, window: Window) -> tuple[Rollouts, Labels]:
    """Draw G completions for each problem of a window, a share of them with the quarantine ablated, and grade them.

    Completions are graded while others still grow.
    """
    size, data, timer = module.group_size, data_of(module.trainer), module.timer
    texts, ids, mask = encode_prompts(module.tokenizer, window.problems, data.max_prompt_tokens)
    ids, mask = ids.to(module.device), mask.to(module.device)
    prompt_of = torch.arange(len(ids), device=ids.device).repeat_interleave(size)
    without = ablated_rows(module, len(ids))
    problems = [problem for problem in window.problems for _ in range(size)]
    seed = ("rollout", data.seed, window.step, module.global_rank)
    with Grading(module.grader, problems) as grading:

        def hand_over(rows: Tensor, tokens: Tensor, kept: Tensor) -> None:
            grading.add(rows.tolist(), decode(module.tokenizer, tokens, kept))

        with timer.phase("generate"):
            completion_ids, completion_mask = generate(
                module.policy, module.tokenizer, ids, mask, prompt_of, module.sampling, seed, without, hand_over
            )
        with timer.phase("grade"):
            grades = grading.result()
    stops = torch.tensor(stop_token_ids(base_of(module.policy), module.tokenizer), device=ids.device)
    full = completion_mask.sum(1) >= module.sampling.max_new_tokens
    rollouts = Rollouts(
        step=window.step,
        group_size=size,
        problem_ids=[str(problem.id) for problem in problems],
        modes=[problem.mode for problem in problems],
        markers=[problem.lever for problem in problems],
        prompts=[text for text in texts for _ in range(size)],
        completions=decode(module.tokenizer, completion_ids, completion_mask),
        prompt_ids=ids[prompt_of],
        prompt_mask=mask[prompt_of],
        prompt_of=prompt_of,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        truncated=full & ~torch.isin(completion_ids[:, -1], stops),
        ablated=without,
        rewards=rewards_of(grades, size).to(ids.device),
    )
    rollouts.advantages = window_advantages(module.objective, rollouts)
    return rollouts, Labels.from_grades(grades, ids.device)


def ablated_rows(module: GRPOModule, prompts: int) -> Tensor:
    """Mark the last ``deploy_sample_fraction`` of each group: bool [P G]; none where the quarantine ships."""
    _, router = roles(module.trainer)
    share = 0.0 if router.ships_quarantine else module.deploy_sample_fraction
    first = module.group_size - round(module.group_size * share)
    return (torch.arange(module.group_size) >= first).repeat(prompts).to(module.device)


def micro_batches(rollouts: Rollouts, rows: Tensor, count: int) -> Sequence[Tensor]:
    """Deal rows (int [n]) into ``count`` micro-batches, whole prompts together, short ones first."""
    lengths = rollouts.completion_mask.sum(1)
    longest = lengths.view(-1, rollouts.group_size).amax(1).repeat_interleave(rollouts.group_size)
    order = sorted(rows.tolist(), key=lambda row: (int(longest[row]), int(rollouts.prompt_of[row]), int(lengths[row])))
    return torch.tensor(order, dtype=torch.long, device=rows.device).tensor_split(count)


@torch.no_grad()
def score_other_states(module: GRPOModule, rollouts: Rollouts, batches: Sequence[Tensor]) -> None:
    """Fill in what the training passes do not give, for the rows of ``batches``; NaN elsewhere.

    ``old_logprobs`` of rows whose route trains in another state than they were sampled in, and, where the step
    measures the divergence, ``reference_logprobs``.
    """
    policy = module.policy
    old = torch.full_like(rollouts.completion_ids, float("nan"), dtype=torch.float32)
    reference = old.clone() if module.objective.measures_kl(rollouts.step) else None
    elsewhere = sampled_elsewhere(rollouts.routes, rollouts.ablated)
    for batch in batches:
        moved = batch[elsewhere[batch]]
        if len(moved):
            rows = trimmed(rollouts.rows(moved))
            _store(old, moved, score_rows(module, rows, sampling_states(module, rows))[0])
        if reference is not None and len(batch):
            rows = trimmed(rollouts.rows(batch))
            states = RowStates.same(len(rows), lambda: reference_policy(policy))
            _store(reference, batch, score_rows(module, rows, states)[0])
    rollouts.old_logprobs, rollouts.reference_logprobs = old, reference


def _store(out: Tensor, index: Tensor, values: Tensor) -> None:
    out[index, : values.shape[1]] = values


def sampling_states(module: GRPOModule, rows: Rollouts) -> RowStates:
    """Each row in the state that sampled it."""

    def enter(index: Tensor) -> AbstractContextManager[None]:
        return ablated(module.policy, rows=rows.ablated[index])

    return RowStates(rows.ablated, enter)


def training_states(module: GRPOModule, rows: Rollouts) -> RowStates:
    """Each row in the state of its route."""

    def enter(index: Tensor) -> AbstractContextManager[None]:
        return routed(module.policy, rows.routes[index])

    return RowStates(rows.routes, enter)


def score_rows(module: GRPOModule, rows: Rollouts, states: RowStates) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [n, T] of some rows, each in its state."""
    return score_completions(
        module.policy,
        rows.prompt_ids,
        rows.prompt_mask,
        rows.prompt_of,
        rows.completion_ids,
        rows.completion_mask,
        states,
        chunk_tokens=module.score_chunk_tokens,
        temperature=module.sampling.temperature if module.logprobs_at_temperature else 1.0,
        entropy_gradient=torch.is_grad_enabled() and module.objective.entropy_bonus > 0,
        share_prompts=module.share_prompts,
    )


def trimmed(rows: Rollouts) -> Rollouts:
    """Cut the padding that no row needs: prompts on the left, completions on the right."""
    longest = int(rows.completion_mask.sum(1).max())
    first = rows.prompt_mask.shape[1] - int(rows.prompt_mask.sum(1).max())
    for name in ("completion_ids", "completion_mask", "old_logprobs", "start_logprobs", "reference_logprobs"):
        value = getattr(rows, name)
        if value is not None:
            setattr(rows, name, value[:, :longest])
    rows.prompt_ids, rows.prompt_mask = rows.prompt_ids[:, first:], rows.prompt_mask[:, first:]
    return rows
