"""Tiny models and planted adapters for the adapter tests."""

import torch
from transformers import GemmaConfig, GPTNeoXConfig, LlamaConfig, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter, collect_calibration, trained_tensors

torch.set_num_threads(1)
VOCABULARY, ROWS, LENGTH = 61, 4, 7
_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
ARCHITECTURES = {
    "qwen3": lambda: Qwen3Config(**_SHAPE, **_ATTENTION),
    "llama": lambda: LlamaConfig(**_SHAPE, **{**_ATTENTION, "tie_word_embeddings": False}),
    "gemma": lambda: GemmaConfig(**_SHAPE, **_ATTENTION, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "gpt_neox": lambda: GPTNeoXConfig(**_SHAPE, num_attention_heads=4, tie_word_embeddings=False),
}


def tiny_model(architecture="qwen3", dtype=torch.float32):
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture]()
    for token in ("eos_token_id", "bos_token_id"):
        setattr(config, token, None)
    config.pad_token_id = 0
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def token_ids(rows=ROWS, length=LENGTH, seed=0):
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def pair_batch(seed, rows=6, length=LENGTH):
    ids = token_ids(rows, length, seed)
    completion = (torch.arange(length) >= 3).long().expand_as(ids)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion}


def attach(init="gaussian", architecture="qwen3", dtype=torch.float32, perturb=0.0, **options):
    model = tiny_model(architecture, dtype)
    config = RoutedLoraConfig(**{"r": 3, "init": init, **options})
    calibration = collect_calibration(model, [pair_batch(1)], [pair_batch(2)], config)
    model = attach_routed_adapter(model, config, calibration).eval()
    perturb_blocks(model, perturb)
    return model


@torch.no_grad()
def perturb_blocks(model, size, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for tensor in trained_tensors(model):
        step = torch.randn(tensor.parameter.shape, generator=generator)
        tensor.parameter.add_(step * size * (1.0 if tensor.label in "AB" else 4.0))
