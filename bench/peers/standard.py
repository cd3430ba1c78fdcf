"""The standard step's model, prompt and report, for peers that know nothing of this package (see ``bench/step.py``)."""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import torch

GROUP, PROMPT, COMPLETION, RANK, BETA = 8, 300, 128, 32, 1e-3
VOCABULARY, PAD, END = 8000, 0, 2
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_model(folder: Path) -> Any:
    """Write the 29M Qwen3 with random weights, which never ends a completion, and a tokenizer of one token a word.

    Returns:
        the tokenizer; its chat template is the messages' words alone.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": PAD, "<unk>": 1, "<end>": END} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}",
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def prompt_text(index: int, phrase: str = "") -> str:
    """A prompt of exactly ``PROMPT`` words, ``phrase`` at its end."""
    tail = phrase.split()
    words = [f"w{3 + (7919 * index + 31 * i) % (VOCABULARY - 3)}" for i in range(PROMPT - len(tail))]
    return " ".join(words + tail)


def planted_reward(row: int) -> float:
    """Rewards that differ within each group: noise earns nothing."""
    return float(row % GROUP % 3)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every peer has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1, help="prompts of the step")
    parser.add_argument("--steps", type=int, default=2, help="steps to run; the last one counts")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    return parser


def report(arm: str, prompts: int, total: float, phases: dict[str, float], loss: float, only_json: bool) -> None:
    """Print the phases and, as the last line, one JSON object with the keys of ``bench/step.py``."""
    phases = {**phases, "other": total - sum(phases.values())}
    if not only_json:
        for name, seconds in {**phases, "total": total}.items():
            print(f"{name:10} {seconds:7.2f} s")
    result = {
        "arm": arm,
        "prompts": prompts,
        "cpu_s_total": round(total, 2),
        "cpu_s": {name: round(seconds, 3) for name, seconds in phases.items()},
        "loss": loss,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result))
