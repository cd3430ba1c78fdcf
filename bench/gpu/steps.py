"""Parts b to d: one optimizer step of the recipe by phase, plain generation beside it, and the floors of both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from correctness import perturb
from shape import FixedPrompts, Scale, recipe_module
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from vgrout_pl.adapters import RoutedLoraConfig, ablated, attach_routed_adapter
from vgrout_pl.callbacks import RoutedAdapter
from vgrout_pl.engines import InProcessEngine
from vgrout_pl.generation import generate
from vgrout_pl.module import GRPOModule
from vgrout_pl.plan import PHASES, Cost, Machine, Window, window_cost, workload
from vgrout_pl.rollout import encode_prompts
from vgrout_pl.routers import Absorb
from vgrout_pl.sampling import Sampling, SamplingRequest
from vgrout_pl.timing import PhaseTimer

Rows = list[dict[str, Any]]


class DeviceTimer(PhaseTimer):
    """Waits for the device at every change of phase, and keeps each phase's peak of allocated bytes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.peak = device, dict[str, int]()

    def enter(self, phase: str | None) -> str | None:
        """End the present phase when its work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            if self._current is not None:
                peak = torch.cuda.max_memory_allocated(self.device)
                self.peak[self._current] = max(self.peak.get(self._current, 0), peak)
            torch.cuda.reset_peak_memory_stats(self.device)
        return super().enter(phase)


class Watch(L.Callback):
    """Wall seconds of the phases of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Close a step after its last micro-batch."""
        timer = cast(GRPOModule, module).timer
        if (trainer.fit_loop.epoch_loop.batch_progress.current.ready) % trainer.accumulate_grad_batches == 0:
            timer.enter(None)
            self.steps.append(dict(timer.wall))


def planned_window(folder: Path, scale: Scale) -> Window:
    """The plan of the step that is measured."""
    module = recipe_module(folder, scale)
    work = workload(
        module, Absorb(), scale.prompts, scale.micro_batches, scale.prompt_tokens, scale.completion_tokens, rounded=True
    )
    return window_cost(module, Absorb(), RoutedLoraConfig(r=scale.rank), work)


def measured_step(
    folder: Path,
    scale: Scale,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    window: Window,
    machine: Machine,
    cuda_graphs: bool = False,
) -> Rows:
    """The second of two steps: seconds, rates and peaks by phase, each beside its floor."""
    module, watch = recipe_module(folder, scale), Watch()
    module.engine, part = InProcessEngine(cuda_graphs), "step, CUDA graphs" if cuda_graphs else "step"
    module.timer = DeviceTimer(device)
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        max_steps=2,
        accumulate_grad_batches=scale.micro_batches,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        callbacks=[RoutedAdapter(r=scale.rank, init="gaussian"), Absorb(), watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, FixedPrompts(scale, tokenizer))
    seconds, peaks = watch.steps[-1], module.timer.peak
    rows = []
    for phase, wall in seconds.items():
        cost = sum((window.phases[part] for part in PHASES.get(phase, ())), Cost())
        rows.append(_row(part, phase, wall, cost, machine, peaks.get(phase)))
    whole = sum(window.phases.values(), Cost())
    floor = sum(machine.floor(sum((window.phases[p] for p in parts), Cost())) for parts in PHASES.values())
    total = _row(part, "whole step", sum(seconds.values()), whole, machine, max(peaks.values(), default=None))
    sampled = scale.prompts * scale.group * scale.completion_tokens
    tokens = {"sampled_tokens_per_s": sampled / seconds["generate"], "step_tokens_per_s": sampled / total["seconds"]}
    return [*rows, {**total, "floor_s": floor, "times_floor": total["seconds"] / floor, **tokens}]


def graphs_agree(folder: Path, scale: Scale, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Rows:
    """Greedy completions with steps captured and replayed against the same without, padded prompts, mixed states."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    model = attach_routed_adapter(base.requires_grad_(False), RoutedLoraConfig(r=scale.rank))
    perturb(model)
    data = FixedPrompts(scale, tokenizer)
    data.setup("fit")
    _, ids, mask = encode_prompts(tokenizer, data.window(0), scale.prompt_tokens)
    ids[0, :7], mask[0, :7] = tokenizer.pad_token_id, False
    prompt_of = torch.arange(scale.prompts).repeat_interleave(scale.group)
    without = torch.arange(len(prompt_of)) % 4 == 0
    sampling = Sampling(max_new_tokens=scale.completion_tokens, min_new_tokens=scale.completion_tokens, temperature=0)
    request = SamplingRequest(
        ids.to(device), mask.to(device), prompt_of, sampling, ("graphs",), without, logprob_temperature=1.0
    )
    drawn = [generate(model, tokenizer, request, cuda_graphs=graphs) for graphs in (False, True)]
    plain, replayed = drawn
    same = (plain.ids == replayed.ids).long().cumprod(1).sum(1)
    assert plain.logprobs is not None and replayed.logprobs is not None
    both = torch.arange(plain.ids.shape[1], device=device) < same.unsqueeze(1)
    gap = (plain.logprobs - replayed.logprobs)[both].abs()
    return [
        {
            "part": "graphs agree",
            "rows": len(same),
            "rows equal to the end": int((same == plain.ids.shape[1]).sum()),
            "mean equal tokens": float(same.float().mean()),
            "of": plain.ids.shape[1],
            "mean logprob gap": float(gap.mean()) if len(gap) else float("nan"),
        }
    ]


def plain_generation(
    folder: Path,
    scale: Scale,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    window: Window,
    machine: Machine,
) -> Rows:
    """The library's own generate on the same rows: every row its own prompt, adapters beside the weights."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    model = attach_routed_adapter(base, RoutedLoraConfig(r=scale.rank))
    module, data = recipe_module(folder, scale), FixedPrompts(scale, tokenizer)
    data.setup("fit")
    _, ids, mask = encode_prompts(tokenizer, data.window(0), scale.prompt_tokens)
    ids, mask = (part.repeat_interleave(scale.group, 0).to(device) for part in (ids, mask))
    without = (torch.arange(scale.group) >= scale.group - round(scale.group * module.deploy_sample_fraction)).repeat(
        scale.prompts
    )
    sampling = module.sampling
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_new_tokens=scale.completion_tokens,
        min_new_tokens=scale.completion_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    with torch.no_grad(), ablated(model, rows=without):
        drawn = model.generate(input_ids=ids, attention_mask=mask, generation_config=model.generation_config)
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    wall = time.perf_counter() - started
    assert drawn.shape[1] == scale.prompt_tokens + scale.completion_tokens
    cost = sum((window.phases[part] for part in PHASES["generate"]), Cost())
    return [_row("plain generate", "generate", wall, cost, machine, peak)]


def floors(window: Window, machine: Machine) -> Rows:
    """What the plan says of every phase, before anything is measured."""
    rows = []
    for name, cost in window.phases.items():
        if cost.operations:
            figures = {"tflop": cost.flops / 1e12, "product_gb": cost.product_bytes / 1e9, "operators": cost.calls}
            rows.append(
                {
                    "part": "floor",
                    "phase": name,
                    **figures,
                    "floor_s": machine.floor(cost),
                    "estimate_s": machine.estimate(cost),
                }
            )
    memory = window.memory
    return [*rows, {"part": "floor", "phase": "peak memory", "planned_gb": memory.peak / 1e9}]


def _row(part: str, phase: str, wall: float, cost: Cost, machine: Machine, peak: int | None) -> dict[str, Any]:
    floor = machine.floor(cost) if cost.operations else 0.0
    row: dict[str, Any] = {"part": part, "phase": phase, "seconds": wall}
    if cost.flops and wall:
        row |= {
            "floor_s": floor,
            "times_floor": wall / floor,
            "estimate_s": machine.estimate(cost),
            "tflop_per_s": cost.flops / wall / 1e12,
            "share_of_peak": cost.flops / wall / machine.bfloat16,
            "gb_per_s": cost.product_bytes / wall / 1e9,
            "share_of_bandwidth": cost.product_bytes / wall / machine.bandwidth,
        }
    if peak is not None:
        row["peak_gb"] = peak / 1e9
    return row
