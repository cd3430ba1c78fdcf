"""Sampling completions: prompts prefilled once, rows in different states together, finished rows dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StopStringCriteria

from vgrout_pl.adapters import ablated, is_packable, merged, packed, routed_layers
from vgrout_pl.adapters.state import DEPLOYED
from vgrout_pl.decoding import Batch, decoding_batch
from vgrout_pl.kv_cache import PromptCache
from vgrout_pl.policy import base_of, head_of, positions, stop_token_ids
from vgrout_pl.sampling import SamplingRequest, draw
from vgrout_pl.seeding import derived_seed

LOOK_EVERY = 8
"""Tokens between two looks at which rows are finished; each look waits for the device (on the CPU: every token)."""
KEEP_SHARE = 0.75
"""Finished rows are dropped once no more than this share of the batch still grows."""

OnFinished = Callable[[Tensor, Tensor, Tensor], None]


class Completions(NamedTuple):
    """N sampled completions.

    Attributes:
        ids: [N, T], padded on the right.
        mask: bool [N, T], the end-of-turn token included.
        stopped: bool [N], rows that ended by themselves; the others were cut off at the longest completion.
        logprobs: float32 [N, T] of the tokens, before filters, in each row's sampling state (nats);
            None where they were not asked for.
    """

    ids: Tensor
    mask: Tensor
    stopped: Tensor
    logprobs: Tensor | None = None


@torch.no_grad()
def generate(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    request: SamplingRequest,
    on_finished: OnFinished | None = None,
    *,
    cuda_graphs: bool = False,
) -> Completions:
    """Sample N completions, each row in its own state; torch's global generators are left as they were.

    Args:
        policy: causal LM with a routed adapter.
        tokenizer: its tokenizer.
        request: which completions.
        on_finished: called with the indices [n], ids [n, t] and mask [n, t] of rows as they finish.
        cuda_graphs: on a GPU, capture the step of a token as a CUDA graph, anew whenever rows are dropped.
    """
    without, first, room = request.without, request.first_row, request.sampling.max_new_tokens
    mixed = bool(without.any()) and not bool(without.all())
    generator = torch.Generator().manual_seed(derived_seed(*request.seed_parts))
    uniforms = torch.rand(first + len(without), room, generator=generator)[first:]
    with ExitStack() as stack:
        stack.enter_context(_evaluating(policy))
        if not mixed and bool(without.all()):
            stack.enter_context(ablated(policy))
        stack.enter_context(_fast_weights(policy, mixed))
        decoding = _Decoding(policy, tokenizer, request, without if mixed else None, on_finished, cuda_graphs)
        return decoding.run(uniforms.to(request.prompt_ids.device))


class _Decoding:
    """One batch on its way from prompts to completions."""

    def __init__(
        self,
        policy: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        request: SamplingRequest,
        without: Tensor | None,
        on_finished: OnFinished | None,
        cuda_graphs: bool,
    ) -> None:
        self.policy, self.request, self.sampling = policy, request, request.sampling
        self.without, self.on_finished, self.cuda_graphs = without, on_finished, cuda_graphs
        self.base = base = base_of(policy)
        self.head = head_of(base, packed=is_packable(policy))
        self.pad = tokenizer.pad_token_id
        self.stops = torch.tensor(stop_token_ids(base, tokenizer), device=base.device)
        strings = list(self.sampling.stop_strings)
        self.stop_strings = StopStringCriteria(tokenizer, strings) if strings else None

    def run(self, uniforms: Tensor) -> Completions:
        """Sample until every row has stopped or is full; uniforms [N, room] are what is drawn with."""
        rows, room = uniforms.shape
        device = uniforms.device
        self.ids = torch.full((rows, room), self.pad, device=device)
        self.logprobs = torch.zeros(rows, room, device=device)
        self.length = torch.full((rows,), room, device=device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        self.reported = torch.zeros(rows, dtype=torch.bool, device=device)
        alive = torch.arange(rows, device=device)
        every = 1 if device.type == "cpu" else LOOK_EVERY
        batch = self._prefilled(room)
        with ExitStack() as state:
            state.enter_context(self._state_of(alive))
            for step in range(room):
                token = self._next(batch.hidden, alive, uniforms[alive, step], step)
                if step + 1 == room:
                    break
                if (step + 1) % every == 0:
                    growing = (self.length[alive] > step + 1).nonzero().flatten()
                    self._report(step + 1)
                    if not len(growing):
                        break
                    if len(growing) <= KEEP_SHARE * len(alive):
                        alive, token = alive[growing], token[growing]
                        batch.keep(growing)
                        state.close()
                        state.enter_context(self._state_of(alive))
                batch.advance(token)
        self._report(step + 1)
        mask = torch.arange(step + 1, device=device) < self.length.unsqueeze(-1)
        logprobs = None if self.request.logprob_temperature is None else self.logprobs[:, : step + 1]
        return Completions(self.ids[:, : step + 1], mask, self.stopped, logprobs)

    def _state_of(self, rows: Tensor) -> AbstractContextManager[None]:
        if self.without is None:
            return nullcontext()
        return ablated(self.policy, rows=self.without[rows.cpu()])

    def _prefilled(self, room: int) -> Batch:
        """One pass over each distinct (prompt, state), spread over the rows."""
        prompt_ids, prompt_mask = self.request.prompt_ids, self.request.prompt_mask
        prompt_of = self.request.prompt_of.to(prompt_ids.device)
        without = torch.zeros_like(prompt_of) if self.without is None else self.without.to(prompt_of)
        pairs, pair_of = torch.stack([prompt_of, without], 1).unique(dim=0, return_inverse=True)
        mask = prompt_mask[pairs[:, 0]].long()
        cache = PromptCache()
        different = nullcontext() if self.without is None else ablated(self.policy, rows=pairs[:, 1].bool())
        with different:
            hidden = self.base.get_decoder()(
                input_ids=prompt_ids[pairs[:, 0]],
                attention_mask=mask,
                position_ids=positions(mask),
                past_key_values=cache,
                use_cache=False,
            ).last_hidden_state[:, -1]
        return decoding_batch(self.base, cache, mask, hidden, pair_of, room, self.cuda_graphs)

    def _next(self, hidden: Tensor, alive: Tensor, uniforms: Tensor, step: int) -> Tensor:
        """Draw the next token of the rows ``alive``, padding where a row has stopped."""
        logits = self.head(hidden).float()
        allowed = logits
        if step < self.sampling.min_new_tokens:
            allowed = logits.index_fill(1, self.stops, -torch.inf)
        length = self.length[alive]
        token = torch.where(length > step, draw(allowed, uniforms, self.sampling), self.pad)
        self.ids[alive, step] = token
        if self.request.logprob_temperature is not None:
            scaled = logits / self.request.logprob_temperature
            self.logprobs[alive, step] = scaled.gather(1, token.unsqueeze(1)).squeeze(1) - scaled.logsumexp(1)
        stopped = torch.isin(token, self.stops)
        if self.stop_strings is not None:
            stopped |= self.stop_strings(self.ids[alive, : step + 1], logits)
        self.length[alive] = torch.where(stopped, length.clamp(max=step + 1), length)
        self.stopped[alive] |= stopped & (length > step)
        return token

    def _report(self, tokens: int) -> None:
        """Tell about the rows that have finished since the last time."""
        if self.on_finished is None:
            return
        room = self.ids.shape[1]
        finished = (self.length <= tokens) if tokens < room else torch.ones_like(self.reported)
        new = (finished & ~self.reported).nonzero().flatten()
        if len(new):
            self.reported[new] = True
            mask = torch.arange(tokens, device=new.device) < self.length[new].unsqueeze(-1)
            self.on_finished(new, self.ids[new, :tokens], mask)


@contextmanager
def _evaluating(policy: PeftModel) -> Iterator[None]:
    """Switch all training flags off for as long as the context lasts."""
    training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _fast_weights(policy: PeftModel, mixed: bool) -> AbstractContextManager[None]:
    """Blocks that all rows see inside the weights, where float32 holds them; weights packed, where that pays."""
    mergeable = is_mergeable(policy)
    if is_packable(policy):
        return packed(policy, merge=() if not mergeable else (DEPLOYED,) if mixed else "all")
    return merged(policy, (DEPLOYED,) if mixed else None) if mergeable else nullcontext()


def is_mergeable(policy: PeftModel) -> bool:
    """Whether the adapter can be added to the base's weights without rounding it away.

    That takes whole float32 weights which no autocast rounds before they are used.
    """
    if torch.is_autocast_enabled(base_of(policy).device.type):
        return False
    return all(
        layer.get_base_layer().weight.dtype == torch.float32
        and not hasattr(layer.get_base_layer().weight, "full_tensor")
        for _, layer in routed_layers(policy)
    )
