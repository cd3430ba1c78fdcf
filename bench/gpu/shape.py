"""What is measured: the recipe ``configs/qwen3_4b.yaml`` on random weights of Qwen3-4B's shape, or a small likeness."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from vgrout_pl import organism
from vgrout_pl.datamodule import ProblemDataModule
from vgrout_pl.env import Problem
from vgrout_pl.module import GRPOModule
from vgrout_pl.objective import Objective
from vgrout_pl.optim import Optimization
from vgrout_pl.rewards import RewardSum
from vgrout_pl.sampling import Sampling

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "qwen3_4b.yaml"

QWEN3_4B = {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Scale:
    """Sizes of the model and of one step.

    Attributes:
        model: the configuration's numbers.
        prompts: of a step.
        group: completions a prompt.
        prompt_tokens: of every prompt.
        completion_tokens: of every completion, forced.
        micro_batches: of a step.
        rank: of one block.
    """

    model: dict[str, Any]
    prompts: int
    group: int
    prompt_tokens: int
    completion_tokens: int
    micro_batches: int
    rank: int


def full_scale() -> Scale:
    """The recipe's own sizes, prompts of 700 tokens."""
    recipe = yaml.safe_load(RECIPE.read_text())
    return Scale(
        QWEN3_4B,
        recipe["data"]["prompts_per_step"],
        recipe["model"]["group_size"],
        700,
        recipe["model"]["sampling"]["max_new_tokens"],
        recipe["trainer"]["accumulate_grad_batches"],
        recipe["adapter"]["r"],
    )


def small_scale() -> Scale:
    """Everything small enough for a CPU."""
    return Scale(TINY, prompts=2, group=4, prompt_tokens=80, completion_tokens=12, micro_batches=4, rank=4)


def write_model(folder: Path, scale: Scale, device: torch.device, weights: bool = True) -> PreTrainedTokenizerBase:
    """Write configuration, tokenizer (the organism's) and random bfloat16 weights, made on ``device``."""
    tokenizer = AutoTokenizer.from_pretrained(organism.CHECKPOINT)
    tokenizer.model_max_length = 10**6
    config = Qwen3Config(**scale.model)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.dtype, config.architectures = torch.bfloat16, ["Qwen3ForCausalLM"]
    tokenizer.save_pretrained(folder)
    if weights:
        torch.manual_seed(0)
        with device:
            Qwen3ForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return tokenizer


def recipe_module(folder: Path, scale: Scale) -> GRPOModule:
    """The recipe's module, every completion as long as it may be, rewards that differ within each group."""
    settings = yaml.safe_load(RECIPE.read_text())["model"]
    sampling = {**settings["sampling"], "max_new_tokens": scale.completion_tokens}

    def planted(completions: list[str], **columns: Any) -> list[float]:
        return [float(i % scale.group % 3) for i in range(len(completions))]

    return GRPOModule(
        path=str(folder),
        dtype=settings["dtype"],
        gradient_checkpointing=settings["gradient_checkpointing"],
        group_size=scale.group,
        deploy_sample_fraction=settings["deploy_sample_fraction"],
        sampling=Sampling(**sampling, min_new_tokens=scale.completion_tokens),
        rewards=RewardSum([planted]),
        objective=Objective(**settings["objective"]),
        optimization=Optimization(**settings["optimization"]),
    )


class FixedPrompts(ProblemDataModule):
    """The organism's problems, each prompt filled up with words to one length."""

    def __init__(self, scale: Scale, tokenizer: PreTrainedTokenizerBase):
        super().__init__(prompts_per_step=scale.prompts, max_prompt_tokens=scale.prompt_tokens)
        self.length, self.tokenizer = scale.prompt_tokens, tokenizer

    def shown(self, problem: Problem, window: int) -> Problem:
        """Fill the prompt up."""
        problem = super().shown(problem, window)
        system, *rest = problem.messages
        for words in range(self.length):
            messages = [{**system, "content": system["content"] + " the" * words}, *rest]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) == self.length:
                return dataclasses.replace(problem, messages=messages)
        raise ValueError(f"no prompt of exactly {self.length} tokens")

    def longest_prompt(self, path: str) -> int:
        """Known."""
        return self.length
