"""Contrastive pairs as token batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.directions.pairs import ContrastivePair


def pair_batches(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[ContrastivePair],
    side: Literal["hack", "clean"],
    batch_size: int,
) -> Iterator[dict[str, Tensor]]:
    """Yield one side of the pairs in order: prompt through the chat template, then the completion and end of turn.

    Yields:
        dicts of ``input_ids``, ``attention_mask``, ``completion_mask``, each [rows, T], padded on the right.
    """
    for start in range(0, len(pairs), batch_size):
        rows = [_encode(tokenizer, pair, getattr(pair, side)) for pair in pairs[start : start + batch_size]]
        width = max(len(prompt) + len(completion) for prompt, completion in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
        attention, completion_mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, (prompt, completion) in enumerate(rows):
            end = len(prompt) + len(completion)
            ids[i, :end] = torch.tensor(prompt + completion)
            attention[i, :end] = 1
            completion_mask[i, len(prompt) : end] = 1
        yield {"input_ids": ids, "attention_mask": attention, "completion_mask": completion_mask}


def _encode(tokenizer: PreTrainedTokenizerBase, pair: ContrastivePair, completion: str) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(
        [dict(m) for m in pair.messages], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    return encode(prompt), [*encode(completion), tokenizer.eos_token_id]
