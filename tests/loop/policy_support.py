"""Tiny policies of several architectures, and short names for scoring them."""

from contextlib import nullcontext

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter
from vgrout_pl.generation import generate
from vgrout_pl.sampling import SamplingRequest
from vgrout_pl.scoring import RowStates, score_completions

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 49,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**SIZES, **GROUPED, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**SIZES, **GROUPED),
    "gemma2, sliding window shorter than a prompt": lambda: Gemma2Config(
        **SIZES, **GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral, window shorter than a prompt": lambda: MistralConfig(**SIZES, **GROUPED, sliding_window=4),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}


def tiny_policy(name="qwen3", seed=0):
    """A random model with a routed adapter that has moved away from its init."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager" if "gemma" in name else "sdpa")
    policy = attach_routed_adapter(
        base.requires_grad_(False).eval(), RoutedLoraConfig(r=3, target_modules="all-linear")
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return policy.eval()


def state_of_all(rows):
    return RowStates.same(rows, nullcontext)


def scored(policy, ids, mask, prompt_of, completions, kept, states, **options):
    return score_completions(policy, ids, mask, prompt_of, completions, kept, states, **options)[0]


def sampled(policy, tokenizer, *request, on_finished=None, cuda_graphs=False, **options):
    """Completions of a request given by its fields."""
    return generate(policy, tokenizer, SamplingRequest(*request, **options), on_finished, cuda_graphs=cuda_graphs)
