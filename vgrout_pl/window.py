"""One window of training: sample, grade, route, and score what the training passes do not give."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vgrout_pl.adapters import Route, ablated, reference_policy, routed
from vgrout_pl.functional import constant_groups
from vgrout_pl.groups import sample_window
from vgrout_pl.objective import (
    Normalizer,
    compared_states,
    loss_mask,
    sampled_elsewhere,
    trained_rows,
    window_normalizer,
)
from vgrout_pl.preflight import roles
from vgrout_pl.routers.diagnostics import routing_statistics
from vgrout_pl.scoring import RowStates, Watch, score_completions
from vgrout_pl.sharding import is_sharded
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
        states = compared_states(objective, rollouts)
        varied = ~constant_groups(rollouts.rewards, rollouts.group_size, states=states)
        _add_known(rollouts, router.read(module, router.visible(rollouts), varied))
        rollouts.routes = router.assign(rollouts, labels)
    module.metrics.update_all(routing_statistics(module, router, rollouts, labels))
    rows = trained_rows(objective, rollouts, window.updates).nonzero().flatten()
    batches = micro_batches(rollouts, rows, window.micro_batches)
    with timer.phase("score"):
        score_other_states(module, rollouts, batches, window.updates)
    world = module.trainer.world_size
    mask = loss_mask(objective, rollouts)
    tokens = module.trainer.strategy.reduce(mask.sum().float(), reduce_op="sum") if world > 1 else None
    normalizer = window_normalizer(objective, mask, module.sampling.max_new_tokens, tokens, world)
    return TrainingWindow(rollouts, labels, batches, normalizer)


def _add_known(rollouts: Rollouts, logprobs: Tensor | None) -> None:
    """Keep log-probabilities [N, T] that a router has read in the sampling state, where there are none yet."""
    if logprobs is not None:
        old = rollouts.old_logprobs
        rollouts.old_logprobs = logprobs if old is None else torch.where(old.isnan(), logprobs, old)


def micro_batches(rollouts: Rollouts, rows: Tensor, count: int) -> Sequence[Tensor]:
    """Deal rows (int [n]) into ``count`` micro-batches, whole prompts together, short ones first."""
    lengths = rollouts.completion_mask.sum(1)
    longest = lengths.view(-1, rollouts.group_size).amax(1).repeat_interleave(rollouts.group_size)
    order = sorted(rows.tolist(), key=lambda row: (int(longest[row]), int(rollouts.prompt_of[row]), int(lengths[row])))
    return torch.tensor(order, dtype=torch.long, device=rows.device).tensor_split(count)


@torch.no_grad()
def score_other_states(module: GRPOModule, rollouts: Rollouts, batches: Sequence[Tensor], updates: int = 1) -> None:
    """Fill in what the training passes do not give, for the rows of ``batches``; NaN elsewhere.

    ``old_logprobs`` of rows whose route trains in another state than they were sampled in, unless the sampling pass or
    a router's has given them, and, where one of the window's ``updates`` steps measures the divergence,
    ``reference_logprobs``.
    """
    policy = module.policy
    unknown = torch.full_like(rollouts.completion_ids, float("nan"), dtype=torch.float32)
    old = unknown.clone() if rollouts.old_logprobs is None else rollouts.old_logprobs
    reference = unknown if module.objective.measures_kl(rollouts.step, updates) else None
    elsewhere = sampled_elsewhere(rollouts.routes, rollouts.ablated) & old[:, 0].isnan()
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

    def enter(index: Tensor, prompt: int, tokens: int) -> AbstractContextManager[None]:
        return ablated(module.policy, rows=rows.ablated[index])

    return RowStates(rows.ablated, enter)


def training_states(module: GRPOModule, rows: Rollouts) -> RowStates:
    """Each row in the state of its route; where tokens have routes of their own, prompts see and train both blocks."""
    by_token = rows.routes.dim() == 2

    def enter(index: Tensor, prompt: int, tokens: int) -> AbstractContextManager[None]:
        routes = rows.routes[index]
        if by_token:
            routes = torch.nn.functional.pad(routes[:, :tokens], (prompt, 0), value=int(Route.ABSORB))
        return routed(module.policy, routes)

    return RowStates(torch.zeros_like(rows.ablated, dtype=torch.long) if by_token else rows.routes, enter)


def score_rows(
    module: GRPOModule, rows: Rollouts, states: RowStates, watch: Watch | None = None, share_prompts: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [n, T] of some rows, each in its state; see ``score_completions``."""
    return score_completions(
        module.policy,
        rows.prompt_ids,
        rows.prompt_mask,
        rows.prompt_of,
        rows.completion_ids,
        rows.completion_mask,
        states,
        chunk_tokens=module.score_chunk_tokens,
        temperature=module.logprob_temperature,
        entropy_gradient=torch.is_grad_enabled() and module.objective.entropy_bonus > 0,
        share_prompts=module.share_prompts and share_prompts,
        watch=watch,
        equal_passes=torch.is_grad_enabled() and is_sharded(module.policy),
    )


def trimmed(rows: Rollouts) -> Rollouts:
    """Cut the padding that no row needs: prompts on the left, completions on the right."""
    longest = int(rows.completion_mask.sum(1).max())
    first = rows.prompt_mask.shape[1] - int(rows.prompt_mask.sum(1).max())
    for name in ("completion_ids", "completion_mask", "old_logprobs", "start_logprobs", "reference_logprobs"):
        value = getattr(rows, name)
        if value is not None:
            setattr(rows, name, value[:, :longest])
    if rows.routes.dim() == 2:
        rows.routes = rows.routes[:, :longest]
    rows.prompt_ids, rows.prompt_mask = rows.prompt_ids[:, first:], rows.prompt_mask[:, first:]
    return rows
