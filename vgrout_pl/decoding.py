"""One more token for every row of a batch: what the rows have behind them, and how the model sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from vgrout_pl.kv_cache import DecodingCache, PromptCache, sees_all
from vgrout_pl.policy import positions
from vgrout_pl.shared_attention import SharedPrompts, attending, saves

logger = logging.getLogger(__name__)


class Batch:
    """Rows that grow.

    Attributes:
        hidden: [N, d], the last layer's output that predicts each row's next token.

    Args:
        base: the causal LM.
        cache: what the rows have behind them.
        hidden: [N, d].
        at: [N, 1], position of the token that comes next.
        mask: [N, ..., S + room], which tokens of prompt and completion there are; None: all.
    """

    def __init__(
        self, base: PreTrainedModel, cache: DecodingCache, hidden: Tensor, at: Tensor, mask: Tensor | None = None
    ) -> None:
        self.base, self.cache, self.hidden, self.at, self.mask = base, cache, hidden, at, mask

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n])."""
        self.cache.keep(rows)
        self.at = self.at[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def advance(self, token: Tensor) -> None:
        """Take in one more token a row, int [N]."""
        seen = self.cache.get_seq_length() + 1
        with self._attending():
            self.hidden = self._decoded(token.unsqueeze(-1), None if self.mask is None else self.mask[..., :seen])
        self.at = self.at + 1

    def _attending(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _decoded(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The last layer's output [N, d] for one more token a row, ids [N, 1]."""
        out = self.base.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=self.at, past_key_values=self.cache, use_cache=False
        )
        hidden: Tensor = out.last_hidden_state[:, -1]
        return hidden


class SharedPromptBatch(Batch):
    """Rows that grow from prompts which attention reads once; the cache holds their own tokens."""

    def __init__(
        self, base: PreTrainedModel, cache: DecodingCache, hidden: Tensor, at: Tensor, prompts: SharedPrompts
    ) -> None:
        super().__init__(base, cache, hidden, at)
        self.prompts = prompts

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n])."""
        super().keep(rows)
        self.prompts.keep(rows)

    def _attending(self) -> AbstractContextManager[None]:
        return attending(self.base, self.prompts)


class CapturedBatch(Batch):
    """Rows that grow in tensors of fixed size and place, so that a step can be captured once and replayed.

    Every key is in view at every step; the mask, bool [N, 1, 1, S + room], hides those that are not written yet.
    """

    def __init__(self, base: PreTrainedModel, cache: DecodingCache, hidden: Tensor, at: Tensor, mask: Tensor) -> None:
        super().__init__(base, cache, hidden, at, mask)
        self.token = torch.zeros_like(at)
        self._replay: Callable[[], None] | None = None

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n]); the next step is captured anew."""
        self._replay = None
        super().keep(rows)
        self.hidden, self.token = self.hidden[rows], self.token[rows]

    def advance(self, token: Tensor) -> None:
        """Take in one more token a row, int [N]."""
        self.token.copy_(token.unsqueeze(-1))
        if self._replay is None:
            self._replay = captured(self.step)
        self._replay()
        self.at += 1
        self.cache.move_on()

    def step(self) -> None:
        """Everything that a token needs, without a look at any value; a second time it does the same again."""
        assert self.mask is not None and self.cache.place is not None
        self.mask.index_fill_(3, self.cache.place, True)
        self.hidden.copy_(self._decoded(self.token, self.mask))


def decoding_batch(
    base: PreTrainedModel,
    prompts: PromptCache,
    mask: Tensor,
    hidden: Tensor,
    prompt_of: Tensor,
    room: int,
    cuda_graphs: bool = False,
) -> Batch:
    """Spread one pass over U prompts over N rows that continue them, in the fastest way that the model can follow.

    Args:
        base: the causal LM.
        prompts: their keys and values.
        mask: [U, S], their tokens.
        hidden: [U, d], the last layer's output at their last token.
        prompt_of: int [N].
        room: most tokens a row may grow.
        cuda_graphs: capture a step and replay it, on a GPU.
    """
    spread = (base, prompts, mask, hidden, prompt_of, room)
    whole = sees_all(base.config, mask.shape[1] + room)
    if cuda_graphs and has_graphs(base):
        if whole and _follows(base, _captured_batch):
            return _captured_batch(*spread)
        logger.warning("cuda_graphs: this model's attention or positions need a look at each token; decoding without")
    if whole and saves(base, mask.shape[0], mask.shape[1], len(prompt_of)) and _follows(base, _shared_prompt_batch):
        return _shared_prompt_batch(*spread)
    if whole and not bool(mask.all()) and _follows(base, _batch):
        return _batch(*spread)
    return _plain_batch(*spread)


Spread = Callable[[PreTrainedModel, PromptCache, Tensor, Tensor, Tensor, int], Batch]


def _plain_batch(
    base: PreTrainedModel, prompts: PromptCache, mask: Tensor, hidden: Tensor, prompt_of: Tensor, room: int
) -> Batch:
    """Any model: where prompts are padded, transformers makes a mask of attention for each token."""
    whole = None
    if not bool(mask.all()):
        whole = torch.cat([mask[prompt_of], mask.new_ones(len(prompt_of), room)], 1)
    return Batch(base, prompts.decoding(prompt_of, room), hidden[prompt_of], _next(mask, prompt_of), whole)


def _batch(
    base: PreTrainedModel, prompts: PromptCache, mask: Tensor, hidden: Tensor, prompt_of: Tensor, room: int
) -> Batch:
    """Models whose attention takes a mask [N, 1, 1, tokens] as it is: it is made once."""
    whole = torch.cat([mask[prompt_of].bool(), mask.new_ones(len(prompt_of), room, dtype=torch.bool)], 1)
    cache = prompts.decoding(prompt_of, room)
    return Batch(base, cache, hidden[prompt_of], _next(mask, prompt_of), whole[:, None, None])


def _shared_prompt_batch(
    base: PreTrainedModel, prompts: PromptCache, mask: Tensor, hidden: Tensor, prompt_of: Tensor, room: int
) -> Batch:
    shared, own = SharedPrompts(prompts, mask, prompt_of), prompts.own(len(prompt_of), room)
    return SharedPromptBatch(base, own, hidden[prompt_of], _next(mask, prompt_of), shared)


def _captured_batch(
    base: PreTrainedModel, prompts: PromptCache, mask: Tensor, hidden: Tensor, prompt_of: Tensor, room: int
) -> Batch:
    written = torch.cat([mask[prompt_of].bool(), mask.new_zeros(len(prompt_of), room, dtype=torch.bool)], 1)
    cache = prompts.decoding(prompt_of, room, fixed=True)
    return CapturedBatch(base, cache, hidden[prompt_of], _next(mask, prompt_of), written[:, None, None])


def _next(mask: Tensor, prompt_of: Tensor) -> Tensor:
    return mask.sum(1, keepdim=True)[prompt_of]


def has_graphs(base: PreTrainedModel) -> bool:
    """Whether the model is where CUDA graphs are."""
    return base.device.type == "cuda"


_stream: dict[torch.device, torch.cuda.Stream] = {}


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Capture ``step`` as a CUDA graph; returns its replay.

    ``step`` is run twice before, as a capture asks for, so it must be repeatable. All captures of a device use one
    stream, whose workspaces are then made once; other threads may use the device meanwhile.
    """
    present = torch.cuda.current_stream()
    stream = _stream.setdefault(present.device, torch.cuda.Stream(present.device))
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        step()
        step()
    present.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


class _NoLook(TorchDispatchMode):
    """Fails where a value of a tensor reaches Python: a capture cannot follow it, a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"):
            raise RuntimeError(f"a step looks at a value ({func})")
        return func(*args, **(kwargs or {}))


_known: WeakKeyDictionary[PreTrainedModel, dict[Spread, bool]] = WeakKeyDictionary()


def _follows(base: PreTrainedModel, spread: Spread) -> bool:
    """Whether a model computes the same in a batch of this kind as in a plain one; tried once, on two short prompts.

    Architectures differ in what they do with masks and caches, and a kind of batch that one cannot follow either
    raises or gives other numbers. How far a token sees is not tried: ask :func:`~vgrout_pl.kv_cache.sees_all`.
    """
    kinds = _known.setdefault(base, {})
    if spread not in kinds:
        try:
            kinds[spread] = _agrees(base, spread)
        except Exception as error:  # whatever the architecture raises: it is not to be used, which is no error
            logger.info("%s does not decode in %s: %s", type(base).__name__, spread.__name__, error)
            kinds[spread] = False
    return kinds[spread]


@torch.no_grad()
def _agrees(base: PreTrainedModel, spread: Spread) -> bool:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]], device=base.device)
    ids, prompt_of = torch.arange(6, device=base.device).view(2, 3), torch.tensor([0, 1, 1], device=base.device)
    cache = PromptCache()
    hidden = (
        base.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache, use_cache=False
        )
        .last_hidden_state[:, -1]
        .clone()
    )
    plain, other = (make(base, cache, mask, hidden, prompt_of, 3) for make in (_plain_batch, spread))
    if isinstance(other, CapturedBatch):
        other._replay = partial(_rehearsed, other.step)
    exact = base.dtype == torch.float32 and not torch.is_autocast_enabled(base.device.type)
    for token in (3, 4):
        plain.advance(prompt_of + token)
        other.advance(prompt_of + token)
        bound = (1e-3 if exact else 5e-2) * float(plain.hidden.abs().max())
        if not torch.allclose(plain.hidden, other.hidden, rtol=0, atol=bound):
            return False
    return True


def _rehearsed(step: Callable[[], None]) -> None:
    step()
    with _NoLook():
        step()
