"""What the standard step costs in TRL's GRPOTrainer: a plain LoRA of rank 64 on all seven linears.

    python bench/peers/trl_step.py [--prompts 8] [--json]

Needs ``pip install 'vgrout_pl[peers]'``. The trainer as it comes, with the sampling, divergence and loss of the
standard step, without gradient checkpointing (which saves memory for time) and in float32. CPU seconds of the second of
two steps: ``generate``, ``score`` (reference and advantages), ``train`` (forward and backward), the optimiser in
``other``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import standard
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Meter(TrainerCallback):
    """CPU seconds of each step, and within it of the methods that it wraps."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._started = 0.0

    def wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Let ``method`` add its time to the present step's ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.steps[-1][name] = self.steps[-1].get(name, 0.0) + time.process_time() - started

        return timed

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Open a step."""
        self.steps.append({})
        self._started = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Close it."""
        self.steps[-1]["total"] = time.process_time() - self._started


def rewards(completions: list[Any], **_: Any) -> list[float]:
    """Rewards by position."""
    return [standard.planted_reward(row) for row in range(len(completions))]


def main() -> None:
    """Measure the step."""
    options = standard.arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = standard.write_model(Path(folder) / "model")
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
            max_steps=options.steps,
            per_device_train_batch_size=standard.GROUP,
            gradient_accumulation_steps=options.prompts,
            num_generations=standard.GROUP,
            max_completion_length=standard.COMPLETION,
            temperature=0.6,
            top_p=0.95,
            top_k=20,
            generation_kwargs={"min_new_tokens": standard.COMPLETION},
            beta=standard.BETA,
            loss_type="dr_grpo",
            scale_rewards="none",
            use_bias_correction_kl=False,
            learning_rate=1e-4,
        )
        meter = Meter()
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32),
            reward_funcs=rewards,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [standard.prompt_text(i) for i in range(options.prompts)]}),
            processing_class=tokenizer,
            callbacks=[meter],
            peft_config=LoraConfig(r=2 * standard.RANK, lora_alpha=2 * standard.RANK, target_modules=standard.LINEARS),
        )
        for name in ("_generate", "_generate_and_score_completions", "training_step"):
            setattr(trainer, name, meter.wrap(name, getattr(trainer, name)))
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    last = meter.steps[-1]
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "loss" in entry]
    if lengths != [standard.COMPLETION] * options.steps:
        raise SystemExit(f"expected completions of {standard.COMPLETION} tokens; got mean lengths {lengths}")
    phases = {
        "generate": last["_generate"],
        "score": last["_generate_and_score_completions"] - last["_generate"],
        "train": last["training_step"] - last["_generate_and_score_completions"],
    }
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    standard.report("trl", options.prompts, last["total"], phases, losses[-1], options.json)


if __name__ == "__main__":
    main()
