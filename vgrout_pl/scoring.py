"""Per-token log-probabilities of completions, each row in its own state of the adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from vgrout_pl.functional.logprobs import completion_logprobs
from vgrout_pl.kv_cache import PromptCache, can_share_prompts
from vgrout_pl.policy import base_of, head_of, keeps_caches, positions

PASS_TOKENS = 192
"""What one more forward pass costs beside its tokens, in tokens; decides how far rows are split by length."""


Watch = Callable[[Tensor, Tensor], AbstractContextManager[None]]


@dataclass(frozen=True)
class RowStates:
    """Which state of the adapter each of N rows is scored in.

    Attributes:
        key: int [N]; rows of equal key pass their prompts in the same state.
        enter: gives the context that puts the rows at an index (int [n], in that order) into their states, for a pass
            over so many positions of the prompt and so many tokens of the completion.
    """

    key: Tensor
    enter: Callable[[Tensor, int, int], AbstractContextManager]

    @classmethod
    def same(cls, rows: int, context: Callable[[], AbstractContextManager]) -> RowStates:
        """All rows in one state."""
        return cls(torch.zeros(rows, dtype=torch.long), lambda *_: context())


def score_completions(
    policy: PeftModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    prompt_of: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    states: RowStates,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 512,
    entropy_gradient: bool = False,
    share_prompts: bool = True,
    watch: Watch | None = None,
    equal_passes: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of completion tokens.

    Rows that share a prompt and a state share one pass over the prompt, whose keys and values their completions
    attend to (and send gradients to); rows of different lengths are scored in as many passes as save padding. Models
    that carry more than keys and values from token to token are scored row by row over [prompt; completion].

    Args:
        policy: a causal LM with a routed adapter.
        prompt_ids: [N, S], left-padded.
        prompt_mask: [N, S].
        prompt_of: int [N], equal for rows of the same prompt.
        completion_ids: [N, T], right-padded.
        completion_mask: [N, T].
        states: the state of each row.
        temperature: divides the logits.
        chunk_tokens: positions of one chunk of the head.
        entropy_gradient: whether the entropies carry a gradient.
        share_prompts: False: never share.
        watch: context around each pass over completions, given the rows [n] it covers and the mask [n, s] of those
            positions of its input that are completion tokens; the pass then sees every completion token.
        equal_passes: make as many passes whatever the lengths, since other processes take part in each of them.

    Returns:
        [N, T] log-probabilities (float32 nats) and [N, T] entropies (nats); 0 where the mask does not hold.
    """
    if not (share_prompts and can_share_prompts(base_of(policy).config) and keeps_caches(base_of(policy))):
        prompts = None
    else:
        prompts = _Prompts(policy, prompt_ids, prompt_mask, prompt_of, states)
    parts, order = [], []
    lengths = completion_mask.sum(1)
    for index in [lengths.argsort(stable=True)] if equal_passes else length_buckets(lengths, PASS_TOKENS):
        longest = max(1, int(completion_mask[index].sum(1).max()))
        ids, mask = completion_ids[index, :longest], completion_mask[index, :longest]
        if prompts is None:
            hidden = _whole_rows(policy, prompt_ids[index], prompt_mask[index], ids, mask, index, states, watch)
        else:
            hidden = prompts.continued(index, ids, mask, watch, equal_passes)
        scores = completion_logprobs(hidden, ids, head_of(base_of(policy)), temperature, chunk_tokens, entropy_gradient)
        pad = (0, completion_ids.shape[1] - longest)
        parts.append([torch.nn.functional.pad(torch.where(mask, score, 0.0), pad) for score in scores])
        order.append(index)
    back = torch.cat(order).argsort()
    logprobs, entropies = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    return logprobs, entropies


class _Prompts:
    """One pass over each distinct (prompt, state) of a batch."""

    def __init__(
        self, policy: PeftModel, prompt_ids: Tensor, prompt_mask: Tensor, prompt_of: Tensor, states: RowStates
    ) -> None:
        pairs = torch.stack([prompt_of, states.key.to(prompt_of.device)], 1)
        distinct, self._pair_of = pairs.unique(dim=0, return_inverse=True)
        place = torch.arange(len(pairs), device=pairs.device)
        first = torch.full((len(distinct),), len(pairs), device=pairs.device)
        first = first.scatter_reduce(0, self._pair_of, place, "amin")
        self._decoder, self._states = base_of(policy).get_decoder(), states
        self._mask = prompt_mask[first].long()
        self._cache = PromptCache()
        with states.enter(first, prompt_ids.shape[1], 0):
            self._last = self._decoder(
                input_ids=prompt_ids[first],
                attention_mask=self._mask,
                position_ids=positions(self._mask),
                past_key_values=self._cache,
                use_cache=False,
            ).last_hidden_state[:, -1:]

    def continued(self, index: Tensor, ids: Tensor, mask: Tensor, watch: Watch | None, always: bool) -> Tensor:
        """Hidden states [n, t, d] that predict the tokens ``ids`` [n, t] of the rows at ``index``.

        ``always`` makes a pass where single tokens need none.
        """
        pair, length = self._pair_of[index], ids.shape[1]
        fed = length if watch is not None or always else length - 1
        if not fed:
            return self._last[pair]
        whole = torch.cat([self._mask[pair], mask[:, :fed].long()], 1)
        with self._states.enter(index, 0, fed), nullcontext() if watch is None else watch(index, mask):
            hidden = self._decoder(
                input_ids=ids[:, :fed],
                attention_mask=whole,
                position_ids=positions(whole)[:, self._mask.shape[1] :],
                past_key_values=self._cache.before(pair),
                use_cache=False,
            ).last_hidden_state
        return torch.cat([self._last[pair], hidden[:, : length - 1]], 1)


def _whole_rows(
    policy: PeftModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    ids: Tensor,
    mask: Tensor,
    index: Tensor,
    states: RowStates,
    watch: Watch | None,
) -> Tensor:
    whole = torch.cat([prompt_mask, mask], 1)
    completion = torch.cat([torch.zeros_like(prompt_mask), mask], 1)
    entered = states.enter(index, prompt_ids.shape[1], ids.shape[1])
    with entered, nullcontext() if watch is None else watch(index, completion):
        hidden = (
            base_of(policy)
            .get_decoder()(
                input_ids=torch.cat([prompt_ids, ids], 1),
                attention_mask=whole.long(),
                position_ids=positions(whole),
                use_cache=False,
            )
            .last_hidden_state
        )
    start = prompt_ids.shape[1] - 1
    return hidden[:, start : start + ids.shape[1]]


def length_buckets(lengths: Tensor, pass_tokens: int) -> Sequence[Tensor]:
    """Split rows by length so that padding costs least.

    The partition of the sorted rows that minimises the sum over buckets of rows * longest + pass_tokens.

    Args:
        lengths: int [N], at least one row.
        pass_tokens: what one bucket costs beside its tokens, in tokens.

    Returns:
        int indices of each bucket's rows, shortest first.
    """
    order = lengths.argsort(stable=True)
    sizes = lengths[order].tolist()
    best, cut = [0.0], [0]
    for end in range(1, len(sizes) + 1):
        costs = [best[start] + (end - start) * sizes[end - 1] + pass_tokens for start in range(end)]
        cut.append(min(range(end), key=costs.__getitem__))
        best.append(costs[cut[-1]])
    ends = [len(sizes)]
    while cut[ends[-1]]:
        ends.append(cut[ends[-1]])
    starts = [*ends[1:], 0]
    return [order[start:end] for start, end in reversed(list(zip(starts, ends, strict=True)))]
