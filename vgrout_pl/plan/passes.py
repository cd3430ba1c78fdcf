"""The passes of a step on fake tensors, as ``generation``, ``scoring``, ``module`` and the gates make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vgrout_pl.adapters import ablated, attach_routed_adapter, merged, reference_policy, routed, routed_layers
from vgrout_pl.adapters.state import DEPLOYED
from vgrout_pl.directions.gradients import _as_leaf, _tapping
from vgrout_pl.functional.logprobs import completion_logprobs
from vgrout_pl.generation import is_mergeable
from vgrout_pl.kv_cache import DecodingCache, DecodingLayer, PromptCache, can_share_prompts
from vgrout_pl.plan.trace import Cost, Tally
from vgrout_pl.plan.workload import Batch, Workload
from vgrout_pl.policy import base_of, checkpoint_activations, head_of, shape_of_base
from vgrout_pl.sampling import draw

if TYPE_CHECKING:
    from vgrout_pl.adapters import RoutedLoraConfig
    from vgrout_pl.module import GRPOModule


def shape_of_policy(module: GRPOModule, adapter: RoutedLoraConfig) -> PeftModel:
    """A configuration's model with its adapter on the meta device."""
    base = shape_of_base(module.path).to(getattr(torch, module.dtype_name))
    if module.attn_implementation is not None:
        base.set_attn_implementation(module.attn_implementation)
    with torch.device("meta"):
        policy = attach_routed_adapter(base.requires_grad_(False), adapter, initialise=False)
    return cast(PeftModel, policy.eval())


def _make_fake(model: torch.nn.Module) -> None:
    """Put fake CPU tensors in the place of all parameters and buffers, shared ones once."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    value = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(value, tensor.requires_grad) if is_parameter else value
                held[name] = made[id(tensor)]


States = Callable[[Sequence[int]], AbstractContextManager[None]]


class Passes:
    """A configuration's model on fake tensors, and what its passes cost.

    Gradients are there from the start, so that they count as no activation.

    Attributes:
        policy: base and adapter.
        peak: label -> most bytes beside model, gradients and optimizer that live at a time.
    """

    def __init__(self, module: GRPOModule, adapter: RoutedLoraConfig, work: Workload, checkpointing: bool) -> None:
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.policy = shape_of_policy(module, adapter)
        with self.fake:
            _make_fake(self.policy)
            for parameter in self.policy.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
        if checkpointing:
            checkpoint_activations(self.policy)
        self.module, self.adapter, self.work = module, adapter, work
        self.decoder, self.head = base_of(self.policy).get_decoder(), head_of(base_of(self.policy))
        self.layers = [layer for _, layer in routed_layers(self.policy)]
        self.shares = work.shares_prompts and can_share_prompts(base_of(self.policy).config)
        self.peak: dict[str, int] = {}

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def generated(self, rows: int, prompts: int, without: Tensor | None = None) -> dict[str, Cost]:
        """Merging, prefill and decoding of some rows; ``without``: bool [rows], those sampled ablated."""
        work, room, tally = self.work, self.work.completion_tokens, Tally(self.fake)
        without = torch.zeros(rows, dtype=torch.bool) if without is None else without
        mixed = bool(without.any()) and not bool(without.all())
        pairs = prompts * (2 if mixed else 1)
        with ExitStack() as stack:
            if bool(without.all()):
                stack.enter_context(ablated(self.policy))
            if is_mergeable(self.policy):
                with tally.under("merge"):
                    stack.enter_context(merged(self.policy, (DEPLOYED,) if mixed else None))
            halves = torch.arange(pairs) % 2 == 1
            with self._ablated(halves if mixed else None), tally.under("prefill"):
                hidden, decoding = self._prefilled(pairs, rows, room)
            with self._ablated(without if mixed else None):
                for label, at in (("first step", 0), ("decode", 0), ("decode", max(room - 2, 0))):
                    self._rewind(decoding, work.prompt_tokens + at)
                    with tally.under("draw" if label == "decode" else label):
                        draw(self.head(hidden).float(), torch.empty(rows), self.module.sampling)
                    with tally.under(label):
                        hidden = self._decoded(rows, 1, work.prompt_tokens + at, decoding)[:, -1]
        self._note(tally, "generate")
        decode = tally.cost("decode") * ((room - 1) / 2) + tally.cost("draw") * (room / 2)
        return {"merge": tally.cost("merge"), "prefill": tally.cost("prefill"), "decode": decode}

    def _prefilled(self, pairs: int, rows: int, room: int) -> tuple[Tensor, DecodingCache]:
        cache, pair_of = PromptCache(), torch.zeros(rows, dtype=torch.long)
        hidden = self._decoded(pairs, self.work.prompt_tokens, 0, cache)[:, -1]
        return hidden[pair_of], cache.decoding(pair_of, room)

    def _ablated(self, rows: Tensor | None) -> AbstractContextManager[None]:
        return nullcontext() if rows is None else ablated(self.policy, rows=rows)

    @staticmethod
    def _rewind(cache: DecodingCache, length: int) -> None:
        for layer in cache.layers:
            assert isinstance(layer, DecodingLayer)
            layer.length = length

    def _decoded(self, rows: int, tokens: int, before: int, cache: object) -> Tensor:
        """Final hidden states [rows, tokens, d] behind ``before`` cached tokens, under a mask as padding makes it."""
        hidden: Tensor = self.decoder(
            input_ids=torch.empty(rows, tokens, dtype=torch.long),
            attention_mask=torch.empty(rows, 1, tokens, before + tokens, dtype=torch.bool),
            position_ids=torch.empty(rows, tokens, dtype=torch.long),
            past_key_values=cache,
            use_cache=False,
        ).last_hidden_state
        return hidden

    # ---------------------------------------------------------------- scoring and training

    def scored(self, batch: Batch, states: States, label: str, watched: bool = False) -> Cost:
        """One pass without gradient over a micro-batch."""
        tally = Tally(self.fake)
        with torch.no_grad():
            self._logprobs(tally, label, batch, states, watched)
        self._note(tally, label)
        return tally.cost(label)

    def trained(self, batch: Batch, states: States, label: str = "train") -> tuple[Cost, Cost]:
        """Forward and backward pass of a micro-batch."""
        tally = Tally(self.fake)
        loss = self._logprobs(tally, "forward", batch, states)
        with tally.under("backward"):
            loss.sum().backward()
        self._note(tally, label)
        return tally.cost("forward"), tally.cost("backward")

    def gradients_read(self, batch: Batch) -> Cost:
        """The gradient gate's forward and backward pass over a micro-batch, prompts not shared."""
        rows, tokens, tally = len(batch.rows), self.work.completion_tokens, Tally(self.fake)
        leaves: list[Tensor] = []
        with ExitStack() as hooks, ablated(self.policy), tally.under("route"):
            embeddings = base_of(self.policy).get_input_embeddings()
            hooks.callback(embeddings.register_forward_hook(_as_leaf(leaves)).remove)
            for layer in self.layers:
                features = torch.empty(rows, layer.r[DEPLOYED])
                hooks.callback(layer.register_forward_hook(_tapping(torch.arange(rows), features)).remove)
            hidden = self._decoded(rows, self.work.prompt_tokens + tokens, 0, None)[:, -tokens - 1 : -1]
            torch.autograd.grad(self._statistics(hidden).sum(), leaves)
        self._note(tally, "route")
        return tally.cost("route")

    def _logprobs(self, tally: Tally, label: str, batch: Batch, states: States, watched: bool = False) -> Tensor:
        """Log-probabilities [rows, T] of a micro-batch; ``watched`` passes see the last token too."""
        rows, tokens, ahead = len(batch.rows), self.work.completion_tokens, self.work.prompt_tokens
        if not self.shares:
            with states(batch.rows), tally.under(label):
                return self._statistics(self._decoded(rows, ahead + tokens, 0, None)[:, ahead - 1 : -1])
        cache, pair_of = PromptCache(), torch.arange(rows) % len(batch.prompts)
        with states(batch.prompts), tally.under(label):
            last = self._decoded(len(batch.prompts), ahead, 0, cache)[:, -1:][pair_of]
        fed = tokens if watched else tokens - 1
        with states(batch.rows), tally.under(label):
            hidden = self._decoded(rows, fed, ahead, cache.before(pair_of)) if fed else last[:, :0]
            return self._statistics(torch.cat([last, hidden[:, : tokens - 1]], 1))

    def _statistics(self, hidden: Tensor) -> Tensor:
        module = self.module
        entropy_gradient = torch.is_grad_enabled() and module.objective.entropy_bonus > 0
        targets = torch.empty(hidden.shape[:2], dtype=torch.long)
        temperature, chunk = module.logprob_temperature, module.score_chunk_tokens
        return completion_logprobs(hidden, targets, self.head, temperature, chunk, entropy_gradient)[0]

    def _note(self, tally: Tally, label: str) -> None:
        self.peak[label] = max(self.peak.get(label, 0), tally.peak)

    # ---------------------------------------------------------------- states of the adapter

    def sampling_states(self, keys: Sequence[int]) -> AbstractContextManager[None]:
        """Keys are 1 for rows sampled ablated."""
        return ablated(self.policy, rows=torch.tensor(keys) == 1)

    def training_states(self, keys: Sequence[int]) -> AbstractContextManager[None]:
        """Keys are routes."""
        return routed(self.policy, torch.tensor(keys))

    def all_ablated(self, keys: Sequence[int]) -> AbstractContextManager[None]:
        """The state gates read in."""
        return ablated(self.policy)

    def reference(self, keys: Sequence[int]) -> AbstractContextManager[None]:
        """The bare base."""
        return reference_policy(self.policy)
