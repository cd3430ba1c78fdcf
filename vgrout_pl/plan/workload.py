"""What one window has to do, as far as a configuration decides it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vgrout_pl.adapters import Route
from vgrout_pl.objective import sampled_elsewhere
from vgrout_pl.routers import ActivationGate, FlaggingRouter, Gate, RandomShare, Router

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

FLAGGED = 0.5
"""Share of rows that a flagging router is taken to flag where its settings do not say."""


class Batch(NamedTuple):
    """The shape of one micro-batch: what its cost depends on.

    Attributes:
        rows: state of each row, sorted.
        prompts: state of each pass over a prompt, sorted; rows of one prompt and state share one.
    """

    rows: tuple[int, ...]
    prompts: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """One window on one device; every group has reward differences, no row comes from a teacher or a redraw.

    Attributes:
        prompts: P prompts on this device.
        group: G completions a prompt.
        prompt_tokens: S.
        completion_tokens: T.
        micro_batches: passes that an update is dealt into.
        updates: optimizer steps on the window.
        ablated: bool [N], rows sampled without the quarantine.
        routes: int [N], expected routes.
        keeps_sampled: log-probabilities of the sampling pass are kept.
        kl_share: share of windows in which the divergence is measured.
        shares_prompts: training passes share prompts.
    """

    prompts: int
    group: int
    prompt_tokens: int
    completion_tokens: int
    micro_batches: int
    updates: int
    ablated: Tensor
    routes: Tensor
    keeps_sampled: bool
    kl_share: float
    shares_prompts: bool

    @property
    def rows(self) -> int:
        """N."""
        return self.prompts * self.group

    @property
    def prompt_of(self) -> Tensor:
        """Prompt of each row, int [N]."""
        return torch.arange(self.prompts).repeat_interleave(self.group)

    def dealt(self, states: Tensor, taking_part: Tensor | None = None) -> Counter[Batch]:
        """How often each shape of micro-batch occurs, for rows in the states int [N]; ``taking_part``: bool [N]."""
        found: Counter[Batch] = Counter()
        for index in torch.arange(self.rows).tensor_split(self.micro_batches):
            rows = index if taking_part is None else index[taking_part[index]]
            keys, prompts = states[rows].tolist(), self.prompt_of[rows].tolist()
            if keys:
                passes = {*zip(prompts, keys, strict=True)}
                found[Batch(tuple(sorted(keys)), tuple(sorted(key for _, key in passes)))] += 1
        return found

    def scored_again(self, router: Router) -> Tensor:
        """Rows whose log-probabilities in their sampling state take a pass of their own: bool [N]."""
        elsewhere = torch.ones_like(self.ablated) if by_token(router) else sampled_elsewhere(self.routes, self.ablated)
        if self.keeps_sampled:
            return torch.zeros_like(elsewhere)
        return elsewhere & ~self.ablated if isinstance(router, Gate) else elsewhere


def workload(
    module: GRPOModule,
    router: Router,
    prompts: int,
    micro_batches: int,
    prompt_tokens: int,
    completion_tokens: int,
    rounded: bool,
) -> Workload:
    """The window of a configuration; ``rounded``: an autocast or a bfloat16 base is in force."""
    group, objective = module.group_size, module.objective
    share = 0.0 if router.ships_quarantine else module.deploy_sample_fraction
    first = group - round(group * share)
    ablated = (torch.arange(group) >= first).repeat(prompts)
    weighed = max(objective.beta, objective.beta_end or 0.0) > 0
    return Workload(
        prompts=prompts,
        group=group,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        micro_batches=micro_batches,
        updates=module.updates_per_window,
        ablated=ablated,
        routes=_spread(expected_routes(router), prompts * group),
        keeps_sampled=not rounded,
        kl_share=1.0 if weighed else 1.0 / objective.kl_every if objective.kl_every else 0.0,
        shares_prompts=module.share_prompts,
    )


def expected_routes(router: Router) -> dict[Route, float]:
    """Share of rows that a router is expected to give each route; equal shares where nothing is known of it.

    Where tokens have routes of their own, all rows cost what absorbed ones do: their prompts are in one state.
    """
    if by_token(router):
        return {Route.ABSORB: 1.0}
    if isinstance(router, Gate):
        tail = router.bands.tail
        return {Route.KEEP: tail, Route.ABSORB: 1 - 2 * tail, Route.ROUTE: tail}
    if isinstance(router, FlaggingRouter):
        share = router.share if isinstance(router, RandomShare) else None
        flagged = FLAGGED if share is None else share
        return {router.gives[0]: 1 - flagged, router.gives[1]: flagged}
    return dict.fromkeys(router.gives, 1 / len(router.gives))


def by_token(router: Router) -> bool:
    """Whether tokens have routes of their own: then next to no row trains in the state that sampled it."""
    return isinstance(router, ActivationGate) and router.per_token


def _spread(shares: dict[Route, float], rows: int) -> Tensor:
    """Routes int [rows] in these shares, evenly mixed."""
    edges = torch.tensor(list(shares.values())).cumsum(0) * rows
    names = torch.tensor([int(route) for route in shares])
    dealt = names[torch.searchsorted(edges, torch.arange(rows) + 0.5).clamp_max(len(names) - 1)]
    mixed = (torch.arange(rows, dtype=torch.float64) * 0.6180339887498949 % 1.0).argsort()
    return dealt[mixed.argsort()]
