"""One more token for every row of a batch: what the rows have behind them, and how the model sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vgrout_pl.kv_cache import DecodingCache, PromptCache, sees_all
from vgrout_pl.shared_attention import SharedPrompts, attending, can_attend


class Batch:
    """Rows that grow, their keys in view as far as they are written.

    Attributes:
        hidden: [N, d], the last layer's output that predicts each row's next token.

    Args:
        base: the causal LM.
        cache: what the rows have behind them.
        mask: [N, S], the tokens of their prompts; all of S + ``room`` in the end.
        hidden: [N, d].
        room: most tokens that are still to come.
    """

    def __init__(self, base: PreTrainedModel, cache: DecodingCache, mask: Tensor, hidden: Tensor, room: int) -> None:
        self.base, self.cache, self.hidden = base, cache, hidden
        self.at = mask.sum(1)
        self.mask: Tensor | None = None
        if not bool(mask.all()):
            grown = torch.ones(len(mask), room, dtype=mask.dtype, device=mask.device)
            self.mask = torch.cat([mask, grown], 1)
            if _takes_masks_of_attention(base, self.mask.shape[1]):  # else transformers makes one for each token
                self.mask = self.mask.bool()[:, None, None]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n])."""
        self.cache.keep(rows)
        self.at = self.at[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def advance(self, token: Tensor) -> None:
        """Take in one more token a row, int [N]."""
        seen = self.cache.get_seq_length() + 1
        mask = None if self.mask is None else self.mask[..., :seen]
        with self._attending():
            self.hidden = _decode(self.base, token.unsqueeze(-1), mask, self.at.unsqueeze(-1), self.cache)
        self.at = self.at + 1

    def _attending(self) -> AbstractContextManager[None]:
        return nullcontext()


class SharedPromptBatch(Batch):
    """Rows that grow from prompts which attention reads once; the cache holds their own tokens."""

    def __init__(self, base: PreTrainedModel, prompts: SharedPrompts, cache: DecodingCache, hidden: Tensor) -> None:
        self.base, self.cache, self.hidden = base, cache, hidden
        self.at, self.mask, self.prompts = prompts.lengths[prompts.prompt_of], None, prompts

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n])."""
        super().keep(rows)
        self.prompts.keep(rows)

    def _attending(self) -> AbstractContextManager[None]:
        return attending(self.base, self.prompts)


class CapturedBatch(Batch):
    """Rows that grow in tensors of fixed size and place, so that a step can be captured once and replayed.

    Every key is in view at every step; a mask hides those that are not written yet.
    """

    def __init__(self, base: PreTrainedModel, cache: DecodingCache, mask: Tensor, hidden: Tensor, room: int) -> None:
        self.base, self.cache, self.hidden = base, cache, hidden.clone()
        self.at = mask.sum(1, keepdim=True)
        written = torch.zeros(len(mask), room, dtype=torch.bool, device=mask.device)
        self.mask = torch.cat([mask.bool(), written], 1)[:, None, None]
        self.token = torch.zeros_like(self.at)
        self._replay: Callable[[], None] | None = None

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n]); the next step is captured anew."""
        super().keep(rows)
        self.hidden, self.token, self._replay = self.hidden[rows], self.token[rows], None

    def advance(self, token: Tensor) -> None:
        """Take in one more token a row, int [N]."""
        self.token.copy_(token.unsqueeze(-1))
        if self._replay is None:
            self._replay = captured(self._step)
        self._replay()
        self.at += 1
        self.cache.move_on()

    def _step(self) -> None:
        """Everything that a token needs, without a look at any value; a second time it does the same again."""
        assert self.mask is not None and self.cache.place is not None
        self.mask.index_fill_(3, self.cache.place, True)
        self.hidden.copy_(_decode(self.base, self.token, self.mask, self.at, self.cache))


def decoding_batch(
    base: PreTrainedModel,
    prompts: PromptCache,
    mask: Tensor,
    hidden: Tensor,
    prompt_of: Tensor,
    room: int,
    cuda_graphs: bool = False,
) -> Batch:
    """Spread one pass over U prompts over N rows that continue them.

    Args:
        base: the causal LM.
        prompts: their keys and values.
        mask: [U, S], their tokens.
        hidden: [U, d], the last layer's output at their last token.
        prompt_of: int [N].
        room: most tokens a row may grow.
        cuda_graphs: capture a step and replay it, where the model's attention takes a mask of fixed size.
    """
    if cuda_graphs and _takes_masks_of_attention(base, mask.shape[1] + room):
        return CapturedBatch(
            base, prompts.decoding(prompt_of, room, fixed=True), mask[prompt_of], hidden[prompt_of], room
        )
    if can_attend(base, mask.shape[0], mask.shape[1], len(prompt_of), room):
        shared = SharedPrompts(prompts, mask, prompt_of)
        return SharedPromptBatch(base, shared, prompts.own(len(prompt_of), room), hidden[prompt_of])
    return Batch(base, prompts.decoding(prompt_of, room), mask[prompt_of], hidden[prompt_of], room)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Capture ``step`` as a CUDA graph; returns its replay.

    ``step`` is run twice before, on a stream of its own, as the capture asks for, so it must be repeatable.
    """
    stream, present = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        step()
        step()
    present.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


def _decode(base: PreTrainedModel, ids: Tensor, mask: Tensor | None, at: Tensor, cache: DecodingCache) -> Tensor:
    """The last layer's output [N, d] for one more token a row: ids and positions [N, 1]."""
    out = base.get_decoder()(
        input_ids=ids, attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=False
    )
    hidden: Tensor = out.last_hidden_state[:, -1]
    return hidden


def _takes_masks_of_attention(base: PreTrainedModel, tokens: int) -> bool:
    """Whether every layer takes one bool mask [N, 1, 1, tokens] as it is."""
    config = base.get_decoder().config
    return config._attn_implementation == "sdpa" and sees_all(config, tokens)
