"""A configuration's window, phase by phase: what it costs, and what it keeps in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vgrout_pl.adapters.state import BLOCKS, DEPLOYED
from vgrout_pl.directions.features import ActivationReader
from vgrout_pl.directions.pair_sources import PairSource, SelfGeneratedPairs, SignFlipped
from vgrout_pl.plan.passes import Passes
from vgrout_pl.plan.trace import Cost, Operation
from vgrout_pl.plan.workload import Batch, Workload
from vgrout_pl.policy import base_of
from vgrout_pl.routers import Gate, Router

if TYPE_CHECKING:
    from vgrout_pl.adapters import RoutedLoraConfig
    from vgrout_pl.module import GRPOModule

PHASES = {
    "generate": ("merge", "prefill", "decode"),
    "route": ("route",),
    "score": ("old scores", "reference scores"),
    "forward": ("forward",),
    "backward": ("backward",),
    "optimizer": ("optimizer",),
}
"""Phases of the step's timer -> phases of a window."""

CONTEXT_BYTES = 1.0e9
"""What a CUDA context and the libraries' workspaces are taken to keep."""
SLACK = 0.1
"""Share by which the caching allocator is taken to hold more than lives at a time."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; the adapter's frozen inits are as many as it trains."""

    base: int
    trained: int
    frozen: int
    modules: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: of the base.
        adapter: trained tensors, gradients, both moments of AdamW, frozen inits, float32.
        generate: most that lives at a time while sampling, ``cache`` of it keys and values.
        cache: keys and values of all rows at full length.
        score: most that lives at a time in a pass without gradient.
        logits: one chunk of the head's, float32; several of this size live at a time.
        route: likewise while a gate reads.
        train: likewise in the forward and backward pass of the largest micro-batch.
        train_checkpointed: the same where activations are recomputed.
        buffer: a gate's features.
        checkpointing: whether the configuration recomputes activations.
    """

    weights: int
    adapter: int
    generate: int
    cache: int
    score: int
    logits: int
    route: int
    train: int
    train_checkpointed: int
    buffer: int
    checkpointing: bool

    @property
    def peak(self) -> float:
        """Most bytes at a time, the assumed context and slack included."""
        train = self.train_checkpointed if self.checkpointing else self.train
        moving = max(self.generate, self.score, self.route, train)
        return self.weights + self.adapter + self.buffer + moving * (1 + SLACK) + CONTEXT_BYTES


@dataclass(frozen=True)
class Window:
    """What one window costs on one device, by phase; the phases are those of the step's timer."""

    phases: dict[str, Cost]
    tokens: dict[str, float]
    memory: Memory
    parameters: Parameters


def window_cost(module: GRPOModule, router: Router, adapter: RoutedLoraConfig, work: Workload) -> Window:
    """Run every pass of a window once on fake tensors, each shape of micro-batch once."""
    passes = Passes(module, adapter, work, module.gradient_checkpointing)
    phases = passes.generated(work.rows, work.prompts, work.ablated)
    route, read = _route(passes, router)
    phases["route"] = route
    moved = work.scored_again(router)
    old = _over(work.dealt(work.ablated.long(), moved), lambda b: passes.scored(b, passes.sampling_states, "score"))
    same = torch.zeros(work.rows, dtype=torch.long)
    reference = (
        _over(work.dealt(same), lambda b: passes.scored(b, passes.reference, "score")) if work.kl_share else Cost()
    )
    phases["old scores"], phases["reference scores"] = old, reference * work.kl_share
    phases["forward"] = phases["backward"] = Cost()
    for batch, times in work.dealt(work.routes).items():
        forward, backward = passes.trained(batch, passes.training_states)
        phases["forward"] += forward * (times * work.updates)
        phases["backward"] += backward * (times * work.updates)
    parameters = _parameters(passes)
    phases["optimizer"] = _optimizer(passes, parameters) * work.updates
    prompts = sum(times * len(batch.prompts) for batch, times in work.dealt(work.routes).items())
    mixed = bool(work.ablated.any()) and not bool(work.ablated.all())
    tokens = {
        "prompt": work.prompts * work.prompt_tokens,
        "prefilled": work.prompts * work.prompt_tokens * (2 if mixed else 1),
        "sampled": work.rows * work.completion_tokens,
        "read by the gate": float(read),
        "scored again": int(moved.sum()) * work.completion_tokens,
        "trained": work.rows * work.completion_tokens * work.updates,
        "prompt tokens in training passes": prompts * work.prompt_tokens * work.updates,
    }
    return Window(phases, tokens, _memory(passes, router, parameters), parameters)


def _over(batches: dict[Batch, int], cost: Callable[[Batch], Cost]) -> Cost:
    return sum((cost(batch) * times for batch, times in batches.items()), Cost())


def _route(passes: Passes, router: Router) -> tuple[Cost, int]:
    """What a gate reads in one window, its pairs spread over the windows between two extractions."""
    work = passes.work
    if not isinstance(router, Gate):
        return Cost(), 0
    batches = work.dealt(torch.zeros(work.rows, dtype=torch.long))
    activations = isinstance(router.reader, ActivationReader)

    def cost(batch: Batch) -> Cost:
        if activations:
            return passes.scored(batch, passes.all_ablated, "route", watched=True)
        return passes.gradients_read(batch)

    window = _over(batches, cost)
    sides = 2 * _pairs(router)
    share = sides / work.rows / router.refresh_every if router.refresh_every else 0.0
    return window * (1 + share), work.rows * work.completion_tokens


def _pairs(router: Gate) -> int:
    """Pairs that an extraction reads; each side is taken to be as long as a rollout."""
    source = router.source.source if isinstance(router.source, SignFlipped) else router.source
    if isinstance(source, SelfGeneratedPairs):
        return source.n
    return len(source.pairs) if isinstance(source, PairSource) else 0


def _parameters(passes: Passes) -> Parameters:
    policy = passes.policy
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    frozen = sum(buffer.numel() for layer in passes.layers for buffer in layer.buffers())
    return Parameters(total - trained, trained, frozen, len(passes.layers))


def _optimizer(passes: Passes, parameters: Parameters) -> Cost:
    """AdamW reads and writes parameter and moments; clipping, decay and the norms of gradients and updates follow."""
    cost = Cost({Operation(0, 4 * parameters.trained * (7 + 3 + 3), None): 1.0})
    for layer in passes.layers:
        rank, sides = layer.stack_copies * layer.r[DEPLOYED], sum(layer.base_weight.shape)
        gram = Operation(2 * rank * rank * sides, 8 * (rank * sides + rank * rank), torch.float64)
        cost += Cost({gram: float(len(BLOCKS))})
    return cost


def _memory(passes: Passes, router: Router, parameters: Parameters) -> Memory:
    work, module = passes.work, passes.module
    largest = max(work.dealt(work.routes), key=lambda batch: (len(batch.rows), len(batch.prompts)))
    other = Passes(module, passes.adapter, work, not module.gradient_checkpointing)
    other.trained(largest, other.training_states)
    train, changed = passes.peak["train"], other.peak["train"]
    if module.gradient_checkpointing:
        train, changed = changed, train
    config = base_of(passes.policy).config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    item = torch.empty(0, dtype=getattr(torch, module.dtype_name)).itemsize
    cache = (
        2 * work.rows * (work.prompt_tokens + work.completion_tokens) * heads * width * config.num_hidden_layers * item
    )
    buffer = 0
    if isinstance(router, Gate):
        buffer = router.bands.max_rollouts * router.reader.layout(passes.policy).size * router.bands.dtype.itemsize
    return Memory(
        weights=item * parameters.base,
        adapter=4 * (4 * parameters.trained + parameters.frozen),
        generate=passes.peak["generate"],
        cache=cache,
        score=passes.peak.get("score", 0),
        logits=4 * config.vocab_size * min(module.score_chunk_tokens, len(largest.rows) * work.completion_tokens),
        route=passes.peak.get("route", 0),
        train=train,
        train_checkpointed=changed,
        buffer=buffer,
        checkpointing=module.gradient_checkpointing,
    )
