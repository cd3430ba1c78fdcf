"""How one token is drawn from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        max_new_tokens: longest completion (tokens).
        min_new_tokens: no stop token before this many tokens; stop strings are not held back.
        temperature: divides the logits; 0 takes the likeliest token (validate and test alone).
        top_p: nucleus mass, 1 = off.
        top_k: most likely tokens kept, 0 = off.
        min_p: least share of the top probability kept, 0 = off.
        stop_strings: texts that end a completion when they appear in it.
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 0
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    min_p: float = 0.0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that no sampler can follow."""
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "from 0 to max_new_tokens"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "stop_strings": (all(self.stop_strings), "texts that are not empty"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"model.sampling.{name}: expected {expected}; got {getattr(self, name)}")


@dataclass(frozen=True)
class SamplingRequest:
    """Which N completions are wanted.

    Row i's draw depends on its logits, ``seed_parts`` and ``first_row + i`` alone.

    Attributes:
        prompt_ids: [P, S], left-padded.
        prompt_mask: [P, S].
        prompt_of: int [N], each row's prompt.
        sampling: how to draw.
        seed_parts: hashed to the seed.
        ablated_rows: bool [N], rows that are sampled without the quarantine; None: none.
        logprob_temperature: divides the logits of the log-probabilities that are wanted; None: none are.
        first_row: place of the first row among the rows of all processes, which share one stream of draws.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    prompt_of: Tensor
    sampling: Sampling
    seed_parts: tuple[object, ...]
    ablated_rows: Tensor | None = None
    logprob_temperature: float | None = None
    first_row: int = 0

    @property
    def without(self) -> Tensor:
        """``ablated_rows`` as bool [N] on the CPU."""
        none = torch.zeros(len(self.prompt_of), dtype=torch.bool)
        return none if self.ablated_rows is None else self.ablated_rows.cpu()


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Draw a token a row by inverting the cumulative distribution at a given uniform number.

    Temperature, then top-k, then top-p (the least set of the likeliest tokens with mass >= top_p), then min-p, each
    on what the one before left, renormalised. A row's token depends on its own logits and uniform number alone.

    Args:
        logits: float32 [n, V].
        uniforms: float32 [n] in [0, 1).
        sampling: the filters.

    Returns:
        int [n].
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    tokens = None
    if 0 < sampling.top_k < logits.shape[-1]:
        logits, tokens = logits.topk(sampling.top_k)
    elif sampling.top_p < 1 or sampling.min_p > 0:
        logits, tokens = logits.sort(dim=-1, descending=True)
    mass = logits.softmax(-1)
    if sampling.top_p < 1:
        mass = mass.masked_fill(mass.cumsum(-1) - mass >= sampling.top_p, 0.0)
    if sampling.min_p > 0:
        mass = mass.masked_fill(mass < sampling.min_p * mass[:, :1], 0.0)
    cumulative = mass.cumsum(-1)
    target = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)
    likely = mass.argmax(-1, keepdim=True)  # where rounding leaves no mass above the target
    place = torch.where(target < cumulative[:, -1:], place, likely)
    return place.squeeze(-1) if tokens is None else tokens.gather(-1, place).squeeze(-1)
