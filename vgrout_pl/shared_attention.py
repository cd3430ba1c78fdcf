"""Decoding attention that reads a prompt's keys and values once for all the completions that continue it.

A new token of row n attends to its prompt (keys K_p, shared) and to its own tokens (keys K_n). The two softmaxes are
taken apart and joined by their denominators Z: out = (Z_p out_p + Z_n out_n) / (Z_p + Z_n), the softmax over all keys.
Source: Hydragen, Juravsky et al. 2024, arXiv:2402.05099.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from vgrout_pl.kv_cache import PromptCache

NAME = "vgrout_shared_prompt"
LEAST_SAVED = 2**19
"""Numbers among a layer's keys and values that must be saved for the further calls to pay."""


def saves(base: PreTrainedModel, prompts: int, prompt_tokens: int, rows: int) -> bool:
    """Whether reading so many prompts once, not for each row, saves more than it costs; on the CPU alone.

    Args:
        base: the causal LM.
        prompts: distinct prompts (in their states).
        prompt_tokens: their padded length.
        rows: completions.
    """
    text = base.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return base.device.type == "cpu" and 2 * (rows - prompts) * prompt_tokens * width >= LEAST_SAVED


class SharedPrompts:
    """Which rows continue which of U prompts, and the prompts' keys and values [U, heads, S, head_dim] a layer.

    Half precision is widened to float32, in which the CPU attends faster.

    Args:
        prompts: one pass over the prompts.
        mask: [U, S], their tokens.
        rows: int [N], each row's prompt.
    """

    def __init__(self, prompts: PromptCache, mask: Tensor, rows: Tensor) -> None:
        self.layers = [(keys.float(), values.float()) for keys, values in prompts.recorded()]
        self.mask = (
            None if bool(mask.all()) else torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None]
        )
        self._arrange(rows)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n])."""
        self._arrange(self.prompt_of[rows])

    def _arrange(self, prompt_of: Tensor) -> None:
        """Lay rows out as [U, most rows of a prompt], some rows twice where a prompt has fewer."""
        self.prompt_of = prompt_of
        count = torch.bincount(prompt_of, minlength=len(self.layers[0][0]))
        order = prompt_of.argsort(stable=True)
        slot = torch.empty_like(order)
        slot[order] = torch.arange(len(order)) - (count.cumsum(0) - count)[prompt_of[order]]
        self.rows = torch.zeros(len(count), int(count.max()), dtype=torch.long)
        self.rows[prompt_of, slot] = torch.arange(len(order))
        self.place = prompt_of * self.rows.shape[1] + slot

    def attend(self, layer: int, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of query [N, kv_heads, g, head_dim] to each row's prompt.

        Returns:
            output [N, kv_heads, g, head_dim] and log of the denominator [N, kv_heads, g].
        """
        keys, values = self.layers[layer]
        _, heads, g, width = query.shape
        prompts, most = self.rows.shape
        grouped = query.unsqueeze(0) if prompts == 1 else query[self.rows]
        grouped = grouped.transpose(1, 2).reshape(prompts, heads, most * g, width)
        out, log = softmax_attention(grouped, keys, values, scale, self.mask)
        out = out.view(prompts, heads, most, g, width).transpose(1, 2).reshape(prompts * most, heads, g, width)
        log = log.view(prompts, heads, most, g).transpose(1, 2).reshape(prompts * most, heads, g)
        return (out, log) if prompts == 1 else (out[self.place], log[self.place])


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + mask) v and the log of the softmax's denominator, on the CPU, in float32.

    Args:
        query: [B, heads, T, d].
        key: [B, heads, S, d].
        value: [B, heads, S, d].
        scale: factor of the products.
        mask: [B, 1, 1, S], added; None: nothing.

    Returns:
        [B, heads, T, d] and [B, heads, T].
    """
    mask = None if mask is None else mask.expand(-1, -1, query.shape[2], -1)
    out, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    return out, log


_active: ContextVar[SharedPrompts] = ContextVar("prompts that attention reads once")


@contextmanager
def attending(base: PreTrainedModel, prompts: SharedPrompts) -> Iterator[None]:
    """Have passes over one new token a row attend to ``prompts``; the cache then holds the rows' own tokens alone."""
    config = base.get_decoder().config
    before, config._attn_implementation = config._attn_implementation, NAME
    token = _active.set(prompts)
    try:
        yield
    finally:
        _active.reset(token)
        config._attn_implementation = before


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query [N, heads, 1, d], key and value [N, kv_heads, t, d] of the rows' own tokens."""
    if attention_mask is not None or position_bias is not None:
        raise ValueError(f"{NAME}: expected attention to all tokens; got a mask or a bias of the model's own")
    n, heads, _one, width = query.shape
    kv_heads = key.shape[1]
    folded = query.float().view(n, kv_heads, heads // kv_heads, width)
    own, own_log = softmax_attention(folded, key, value, scaling, None)
    shared, shared_log = _active.get().attend(cast(int, module.layer_idx), folded, scaling)
    weight = torch.sigmoid(shared_log - own_log).unsqueeze(-1)
    return torch.lerp(own, shared, weight).to(query.dtype).view(n, 1, heads, width), None


AttentionInterface.register(NAME, _attention)
