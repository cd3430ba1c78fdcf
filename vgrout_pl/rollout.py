"""Sampling completions and grading them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from vgrout_pl.adapters import ablated, merged, routed_layers
from vgrout_pl.env import Grade, Grader, Problem
from vgrout_pl.policy import base_of, stop_token_ids
from vgrout_pl.seeding import seeded


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        max_new_tokens: longest completion (tokens).
        temperature: divides the logits.
        top_p: nucleus mass, 1 = off.
        top_k: most likely tokens kept, 0 = off.
        min_p: least share of the top probability kept, 0 = off.
    """

    max_new_tokens: int = 512
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no sampler can follow."""
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature > 0, "above 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"model.sampling.{name}: expected {expected}; got {getattr(self, name)}")


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], max_prompt_tokens: int
) -> tuple[list[str], Tensor, Tensor]:
    """Render prompts through the chat template (generation prompt added, thinking off) and tokenise them.

    Returns:
        texts [P]; ids int [P, S] and mask bool [P, S], left-padded.

    Raises:
        ValueError: a prompt has more than ``max_prompt_tokens`` tokens.
    """
    texts = [render_prompt(tokenizer, problem) for problem in problems]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    mask = encoded["attention_mask"].bool()
    lengths = mask.sum(1)
    if int(lengths.max()) > max_prompt_tokens:
        worst = int(lengths.argmax())
        raise ValueError(
            f"data.max_prompt_tokens: expected prompts of at most {max_prompt_tokens} tokens; problem "
            f"{problems[worst].id!r} has {int(lengths[worst])}; raise the limit or drop the problem"
        )
    return texts, encoded["input_ids"], mask


def render_prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """Text of one prompt, the beginning of the assistant's turn included."""
    return str(
        tokenizer.apply_chat_template(
            [dict(m) for m in problem.messages], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


@torch.no_grad()
def generate(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    sampling: Sampling,
    seed_parts: tuple[object, ...],
    ablated_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample one completion a row, each row in its own state.

    The draw depends on ``seed_parts`` and the weights alone; torch's global generators are left as they were.

    Args:
        policy: causal LM with a routed adapter.
        tokenizer: its tokenizer.
        prompt_ids: [N, S], left-padded.
        prompt_mask: [N, S].
        sampling: how to draw.
        seed_parts: hashed to the seed.
        ablated_rows: bool [N], rows that are sampled without the quarantine (None: none).

    Returns:
        completion ids [N, T] padded on the right and mask bool [N, T] (end-of-turn token included).
    """
    stops = stop_token_ids(base_of(policy), tokenizer)
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or None,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    training = [module for module in policy.modules() if module.training]
    policy.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(seeded(*seed_parts, device=prompt_ids.device))
            mixed = ablated_rows is not None and bool(ablated_rows.any()) and not bool(ablated_rows.all())
            if ablated_rows is not None and bool(ablated_rows.any()):
                stack.enter_context(ablated(policy, rows=ablated_rows if mixed else None))
            if not mixed and is_mergeable(policy):
                stack.enter_context(merged(policy))
            sequences = policy.generate(
                input_ids=prompt_ids, attention_mask=prompt_mask.long(), generation_config=config
            )
    finally:
        for module in training:
            module.training = True
    completion_ids = sequences[:, prompt_ids.shape[1] :]
    return completion_ids, completion_mask(completion_ids, stops)


def is_mergeable(policy: PeftModel) -> bool:
    """Whether the adapter can be added to the base's weights without rounding it away: whole float32 weights."""
    return all(
        layer.get_base_layer().weight.dtype == torch.float32
        and not hasattr(layer.get_base_layer().weight, "full_tensor")
        for _, layer in routed_layers(policy)
    )


def completion_mask(completion_ids: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """Mark the tokens of each completion up to and with its first stop token: [N, T] -> bool [N, T]."""
    stop = torch.isin(completion_ids, torch.tensor(list(stop_ids), device=completion_ids.device))
    return (stop.long().cumsum(1) - stop.long()) == 0


def decode(tokenizer: PreTrainedTokenizerBase, completion_ids: Tensor, mask: Tensor) -> list[str]:
    """Texts of the masked tokens, special tokens left out."""
    rows = [ids[keep].tolist() for ids, keep in zip(completion_ids, mask, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def grade(grader: Grader, completions: Sequence[str], problems: Sequence[Problem]) -> list[Grade]:
    """Grade each completion against its problem; a grade with ``error`` says nothing about its answer."""
    return grader.grade_batch(list(zip(completions, problems, strict=True)))


def rewards_of(grades: Sequence[Grade], group_size: int) -> Tensor:
    """Rewards [N]; a row that the grader could not judge gets the mean of its group's judged rows.

    That row's advantage is then 0 and its group's mean is what the judged rows say: a broken grader is never a
    reward of 0. A group without any judged row is constant and carries no gradient.
    """
    rewards = torch.tensor([grade.reward for grade in grades]).view(-1, group_size)
    judged = torch.tensor([grade.error is None for grade in grades]).view(-1, group_size)
    mean = (rewards * judged).sum(1, keepdim=True) / judged.sum(1, keepdim=True).clamp_min(1)
    return torch.where(judged, rewards, mean).flatten()
