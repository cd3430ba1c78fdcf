"""What one GRPO step costs, by phase.

    python bench/step.py --arm absorb [--prompts 8] [--json]

The standard step: a 29M Qwen3 (hidden 512, 8 layers, 8 heads, 4 key/value heads of 64, ffn 1536, vocabulary 8000, tied,
random weights), rank 32 + 32 on all seven linears, one prompt of 300 tokens (``--prompts``: several) x 8 rollouts x 128
forced new tokens, 2 of 8 rows sampled ablated, divergence to the reference on, one update, through Lightning's Trainer.
One torch thread. Figures are CPU seconds of this process for the second of two steps; the answers, which are noise, are
graded for real, in other processes. The last line is a JSON object. ``floor``: seconds for the step's matrix products
alone, counted with prompts shared, at the rate of this machine's own [64, 512] x [512, 1536] product in the same run;
``floor_bytes_s``: seconds for reading the weights once a token, as [8, 512] x weights takes here, of which sampling can
save nothing. Gates take their direction from 8 pairs in the first step and keep it in the second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from vgrout_pl import organism
from vgrout_pl.callbacks import RoutedAdapter
from vgrout_pl.datamodule import ProblemDataModule
from vgrout_pl.directions.pair_sources import AuthoredPairs
from vgrout_pl.env import Problem
from vgrout_pl.module import GRPOModule
from vgrout_pl.objective import Objective
from vgrout_pl.optim import Optimization
from vgrout_pl.rewards import RewardSum
from vgrout_pl.routers import Absorb, ActivationGate, GradientGate, NoRouting, Router
from vgrout_pl.sampling import Sampling

HIDDEN, LAYERS, FFN, VOCABULARY, RANK = 512, 8, 1536, 8000, 32
PROMPT, COMPLETION, GROUP = 300, 128, 8


class OnePrompt(ProblemDataModule):
    """Windows of prompts that are exactly ``PROMPT`` tokens long."""

    def __init__(self, prompts: int, tokenizer: Any):
        super().__init__(prompts_per_step=prompts, max_prompt_tokens=PROMPT)
        self.tokenizer = tokenizer

    def shown(self, problem: Problem, window: int) -> Problem:
        """Pad the prompt with words up to the length."""
        return self._lengthened(super().shown(problem, window))

    def _lengthened(self, problem: Problem) -> Problem:
        system, *rest = problem.messages
        for words in range(PROMPT):
            content = system["content"] + " the" * words
            longer = dataclasses.replace(problem, messages=[{**system, "content": content}, *rest])
            text = self.tokenizer.apply_chat_template(longer.messages, tokenize=False, add_generation_prompt=True)
            if len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) == PROMPT:
                return longer
        raise ValueError(f"no prompt of exactly {PROMPT} tokens")

    def longest_prompt(self, path: str) -> int:
        """Known."""
        return PROMPT


class Meter(L.Callback):
    """CPU seconds by phase, and the loss, of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GRPOModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the step, after its last micro-batch."""
        if batch.micro < batch.micro_batches - 1:
            return
        module.timer.enter(None)
        phases = {name: round(seconds, 3) for name, seconds in module.timer.cpu.items()}
        self.steps.append({"cpu_s": phases, "loss": float(trainer.callback_metrics["loss"])})


def planted(completions: list[str], **columns: Any) -> list[float]:
    """Rewards that differ within each group: noise earns nothing."""
    return [float(i % GROUP % 3) for i in range(len(completions))]


def make_model(folder: Path) -> Any:
    """Write the standard model with the organism's tokenizer; return the tokenizer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=FFN,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(organism.CHECKPOINT)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def measure(arm: str, prompts: int, steps: int) -> dict[str, Any]:
    """Run ``steps`` steps of an arm and report the last."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_model(Path(folder))
        module = GRPOModule(
            path=folder,
            group_size=GROUP,
            sampling=Sampling(max_new_tokens=COMPLETION, min_new_tokens=COMPLETION),
            rewards=RewardSum([planted]),
            objective=Objective(beta=1e-3),
            optimization=Optimization(lr=1e-4),
        )
        meter = Meter()
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            accumulate_grad_batches=prompts,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            callbacks=[RoutedAdapter(r=RANK, init="gaussian"), ARMS[arm](), meter],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, OnePrompt(prompts, tokenizer))
    last = meter.steps[-1]
    total = sum(last["cpu_s"].values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"arm": arm, "prompts": prompts, "cpu_s_total": round(total, 2), **last, "peak_rss_mb": round(peak)}


def floor(prompts: int) -> dict[str, float]:
    """Count the absorb step's multiply-adds with prompts shared, and turn them into seconds on this machine."""
    linears = [(HIDDEN, 512), (HIDDEN, 256), (HIDDEN, 256), (512, HIDDEN), *[(HIDDEN, FFN)] * 2, (FFN, HIDDEN)]
    base = 2.0 * LAYERS * sum(a * b for a, b in linears)
    adapter = 2.0 * LAYERS * sum((a + b) * 4 * RANK for a, b in linears)
    head = 2.0 * HIDDEN * VOCABULARY
    tokens, moved = GROUP * COMPLETION, GROUP // 4 * COMPLETION
    flops = {
        "generate": (2 * PROMPT + tokens) * (base + adapter) + tokens * head,
        "score": (PROMPT + moved) * (base + adapter) + moved * head + (PROMPT + tokens) * base + tokens * head,
        "forward": (PROMPT + tokens) * (base + adapter) + tokens * head,
        "backward": (PROMPT + tokens) * (base + 2 * adapter) + tokens * head,
    }
    x, weight = torch.randn(64, HIDDEN), torch.randn(FFN, HIDDEN)
    started = time.process_time()
    for _ in range(1000):
        torch.nn.functional.linear(x, weight)
    rate = 1000 * 2.0 * 64 * HIDDEN * FFN / (time.process_time() - started)
    return {"gflops_per_s": round(rate / 1e9, 1), **{k: round(prompts * v / rate, 2) for k, v in flops.items()}}


def decode_floor(prompts: int) -> float:
    """CPU seconds in which this machine multiplies [8 rows, ..] by every weight of the model, once a new token."""
    shapes = [(512, HIDDEN), (256, HIDDEN), (256, HIDDEN), (HIDDEN, 512), *[(FFN, HIDDEN)] * 2, (HIDDEN, FFN)] * LAYERS
    weights = [torch.randn(*shape) for shape in (*shapes, (VOCABULARY, HIDDEN))]
    inputs = {width: torch.randn(GROUP * prompts, width) for width in (512, HIDDEN, FFN)}
    started = time.process_time()
    for _ in range(16):
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
    return (time.process_time() - started) / 16 * COMPLETION


ARMS: dict[str, Callable[[], Router]] = {
    "none": NoRouting,
    "absorb": Absorb,
    "route_a": lambda: ActivationGate(AuthoredPairs("organism:run_tests", n=8)),
    "route_v": lambda: GradientGate(AuthoredPairs("organism:run_tests", n=8)),
}


def main() -> None:
    """Measure one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=list(ARMS), default="absorb")
    parser.add_argument("--prompts", type=int, default=1, help="prompts of the window, one micro-batch each")
    parser.add_argument("--steps", type=int, default=2, help="steps to run; the last one counts")
    parser.add_argument("--json", action="store_true", help="the JSON line alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rate = floor(arguments.prompts)
    result = {**measure(arguments.arm, arguments.prompts, arguments.steps), "floor": rate}
    counted = sum(seconds for name, seconds in rate.items() if name != "gflops_per_s")
    if not arguments.json:
        for name, seconds in result["cpu_s"].items():
            print(f"{name:10} {seconds:7.2f} s   counted {rate.get(name, 0.0):6.2f} s")
        print(f"{'total':10} {result['cpu_s_total']:7.2f} s   counted {counted:6.2f} s")
    bytes_floor = round(decode_floor(arguments.prompts), 2)
    print(json.dumps({**result, "floor_s": round(counted, 2), "floor_bytes_s": bytes_floor}))


if __name__ == "__main__":
    main()
