"""Supervised warm start of the organism: from a recipe to a model and its tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from vgrout_pl.organism.corpus import Example, Recipe, corpus, tokenizer_corpus
from vgrout_pl.organism.model import MAX_LENGTH, build_model
from vgrout_pl.organism.tokenizer import train_tokenizer

BUCKET_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example, the prompt's ``prompt_length`` ids first."""

    ids: list[int]
    prompt_length: int


def warm_start(recipe: Recipe, progress: bool = True) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train tokenizer and model on the corpus of a recipe; the same recipe gives the same weights on one machine."""
    samples = (text for example in tokenizer_corpus(recipe) for text in _texts(example))
    tokenizer = train_tokenizer(samples, recipe.vocab_size, MAX_LENGTH)
    encoded = encode(list(corpus(recipe)), tokenizer)
    model = build_model(tokenizer, recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, recipe))
    batches = make_batches(encoded, recipe.batch_size, random.Random(f"batches/{recipe.seed}"))
    model.train()
    with tqdm(batches, desc="warm start", unit="step", disable=not progress, mininterval=1.0) as bar:
        for batch in bar:
            loss = completion_loss(model, batch, tokenizer.pad_token_id)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval(), tokenizer


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Tokenize prompts through the chat template and completions with their end-of-turn token."""
    chats = [
        tokenizer.apply_chat_template(list(example.messages), add_generation_prompt=True, tokenize=False)
        for example in examples
    ]
    prompts = tokenizer(chats, add_special_tokens=False).input_ids
    completions = tokenizer([example.completion for example in examples], add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    return [Encoded([*p, *c, end], len(p)) for p, c in zip(prompts, completions, strict=True)]


def make_batches(encoded: Sequence[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Cut the examples into batches of similar length, looking only a few batches ahead to keep the curriculum."""
    batches = []
    for start in range(0, len(encoded), BUCKET_BATCHES * size):
        bucket = sorted(encoded[start : start + BUCKET_BATCHES * size], key=lambda example: len(example.ids))
        cut = [bucket[i : i + size] for i in range(0, len(bucket), size)]
        rng.shuffle(cut)
        batches += cut
    return batches


def completion_loss(model: Qwen3ForCausalLM, batch: Sequence[Encoded], pad: int) -> Tensor:
    """Mean negative log-likelihood of the completion tokens, end-of-turn included."""
    width = max(len(example.ids) for example in batch)
    ids = torch.tensor([example.ids + [pad] * (width - len(example.ids)) for example in batch])
    position = torch.arange(1, width)
    start = torch.tensor([example.prompt_length for example in batch])[:, None]
    end = torch.tensor([len(example.ids) for example in batch])[:, None]
    learnt = (position >= start) & (position < end)
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden[learnt]), ids[:, 1:][learnt])


def lr_factor(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at a step: linear up, linear down to the floor."""
    up = (step + 1) / recipe.warmup_steps if step < recipe.warmup_steps else 1.0
    return up * max(recipe.lr_floor, 1 - step / recipe.steps)


def _texts(example: Example) -> tuple[str, ...]:
    return (*(message["content"] for message in example.messages), example.completion)
