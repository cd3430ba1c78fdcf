"""Cost of the routed adapter against the bare model and PEFT's own LoRA, as ratios within one run.

    python bench/adapter.py [--repeats 5] [--part all|train|generate|layer|calibrate]

Training: a 29M Qwen3 (hidden 512, 8 layers, ffn 1536), 8 x 428 tokens, all seven projections, blocks of rank 32 + 32.
Generation: the same model, 8 rows, 300 prompt tokens, 128 new ones, the prompt and the new tokens apart too; the
embedded organism's shape; and one decoding step of a layer of a 4B model in bfloat16. Calibration: the basis of
modules of a 4B model, extrapolated.
CPU seconds, the least of interleaved repeats; peak memory from fresh processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from vgrout_pl.adapters import (
    INITS,
    RoutedLoraConfig,
    ablated,
    attach_routed_adapter,
    blocks,
    is_packable,
    merged,
    packed,
    routed,
)
from vgrout_pl.adapters.inits import InitRequest, module_generator

RANK, ROWS, LENGTH = 32, 8, 428
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def bench_model(dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).to(dtype)


def organism_model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=448,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def stock_lora(rank: int) -> torch.nn.Module:
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights="gaussian")
    return get_peft_model(bench_model(), config)


def routed_model(model: torch.nn.Module, rank: int = RANK) -> torch.nn.Module:
    model = attach_routed_adapter(model, RoutedLoraConfig(r=rank))
    with torch.no_grad():
        for block in blocks(model):
            block.A.add_(0.01 * torch.randn_like(block.A))
            block.B.add_(0.01 * torch.randn_like(block.B))
    return model


def bare() -> torch.nn.Module:
    model = bench_model()
    model.requires_grad_(False)
    model.enable_input_require_grads()
    return model


SUBJECTS: dict[str, Callable[[], torch.nn.Module]] = {
    "bare model": bare,
    "PEFT LoRA rank 64": lambda: stock_lora(64),
    "PEFT LoRA rank 128": lambda: stock_lora(128),
    "routed 32 + 32, no mask": lambda: routed_model(bench_model()),
    "routed 32 + 32, mixed routes": lambda: routed_model(bench_model()),
}


def training_passes(name: str, model: torch.nn.Module) -> tuple[Callable[[], None], Callable[[], None]]:
    """(forward without a graph, forward and backward) of one batch."""
    ids = torch.randint(0, 8192, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    routes = torch.arange(ROWS) % 4 if "mixed" in name else torch.zeros(ROWS, dtype=torch.long)

    def hidden() -> torch.Tensor:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        return inner.model(input_ids=ids, use_cache=False).last_hidden_state

    def forward() -> None:
        with torch.no_grad():
            if "routed" in name:
                with routed(model, routes):
                    hidden()
            else:
                hidden()

    def both() -> None:
        model.zero_grad(set_to_none=True)
        if "routed" in name:
            with routed(model, routes):
                hidden().square().mean().backward()
        else:
            hidden().square().mean().backward()

    return forward, both


def least_seconds(jobs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(jobs, float("inf"))
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if repeat:
                best[name] = min(best[name], time.process_time() - start)
    return best


def peak_memory(name: str) -> float:
    """Peak resident MiB above the state before the passes, of one forward and backward in a fresh process."""
    out = subprocess.run([sys.executable, __file__, "--memory-of", name], capture_output=True, text=True, check=True)
    return float(json.loads(out.stdout.splitlines()[-1]))


def high_water() -> float:
    """Peak resident MiB of this process (of its own image, unlike ru_maxrss, which a child inherits)."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def report_memory(name: str) -> None:
    model = SUBJECTS[name]()
    _, both = training_passes(name, model)
    before = high_water()
    both()
    print(json.dumps(high_water() - before))


def train_table(repeats: int) -> None:
    passes = {name: training_passes(name, build()) for name, build in SUBJECTS.items()}
    forward = least_seconds({name: p[0] for name, p in passes.items()}, repeats)
    both = least_seconds({name: p[1] for name, p in passes.items()}, repeats)
    memory = {name: peak_memory(name) for name in SUBJECTS}
    base, reference = "bare model", "PEFT LoRA rank 128"
    print(f"{'training, 8 x 428 tokens':32s} forward  ratio | fwd+bwd  ratio  /r128 | peak MiB  /r128")
    for name in SUBJECTS:
        print(
            f"{name:32s} {forward[name]:6.2f}s {forward[name] / forward[base]:5.2f}x | "
            f"{both[name]:6.2f}s {both[name] / both[base]:5.2f}x {both[name] / both[reference]:5.2f}x | "
            f"{memory[name]:8.0f} {memory[name] / memory[reference]:5.2f}x"
        )


class Decoder:
    """Greedy decoding of ``steps`` tokens from a prompt inside some contexts; counts the prompt's seconds apart."""

    def __init__(self, model: torch.nn.Module, prompt: torch.Tensor, steps: int, *contexts: Callable) -> None:
        self.model, self.prompt, self.steps, self.contexts = model, prompt, steps, contexts
        self.inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.prompt_seconds = float("inf")

    def __call__(self) -> None:
        """Decode once."""
        with ExitStack() as stack, torch.no_grad():
            for context in self.contexts:
                stack.enter_context(context(self.model))
            cache = DynamicCache(config=self.inner.config)
            start = time.process_time()
            out = self.inner(self.prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.prompt_seconds = min(self.prompt_seconds, time.process_time() - start)
            for _ in range(self.steps):
                out = self.inner(out.logits[:, -1:].argmax(-1), past_key_values=cache, use_cache=True)


def generate_table(repeats: int) -> None:
    draw = torch.Generator().manual_seed(2)
    settings = {
        "29M, fp32, 8 rows": (bench_model, 8192, 8, 300, 128, RANK),
        "29M, bf16, 8 rows": (lambda: bench_model(torch.bfloat16), 8192, 8, 300, 128, RANK),
        "organism, fp32, 64 rows": (organism_model, 448, 64, 38, 60, 8),
        "organism, fp32, 8 rows": (organism_model, 448, 8, 38, 60, 8),
    }
    for title, (build, vocabulary, rows, prompt_length, steps, rank) in settings.items():
        prompt = torch.randint(0, vocabulary, (rows, prompt_length), generator=draw)
        # frozen as the base of a policy is: torch multiplies by a trainable head in another, faster way
        plain, model = build().eval().requires_grad_(False), routed_model(build(), rank).eval()
        some = torch.arange(rows) % 4 == 0
        jobs = {
            "bare": Decoder(plain, prompt, steps),
            "unmerged": Decoder(model, prompt, steps),
            "ablated": Decoder(model, prompt, steps, ablated),
            "mixed rows": Decoder(model, prompt, steps, lambda m, some=some: ablated(m, some)),
        }
        if "fp32" in title:
            jobs["merged"] = Decoder(model, prompt, steps, merged)
        if is_packable(model):  # what sampling does; bare weights could be packed too, but nobody's generate does that
            jobs["packed"] = Decoder(model, prompt, steps, packed)
            jobs["packed, ablated"] = Decoder(model, prompt, steps, packed, ablated)
            jobs["packed, mixed"] = Decoder(model, prompt, steps, packed, lambda m, some=some: ablated(m, some))
            if "fp32" in title:
                jobs["packed, merged"] = Decoder(model, prompt, steps, lambda m: packed(m, "all"))
        seconds = least_seconds(jobs, repeats)
        first = {name: job.prompt_seconds for name, job in jobs.items()}
        later = {name: seconds[name] - first[name] for name in jobs}
        print(f"generation, {title}: {prompt_length} prompt tokens, {steps} new ones", flush=True)
        for name in jobs:
            parts = " | ".join(
                f"{part} {of[name]:6.3f}s {of[name] / of['bare']:.2f}x"
                for part, of in (("all", seconds), ("prompt", first), ("new tokens", later))
            )
            print(f"  {name:16s} {parts}", flush=True)


class Wrapped(torch.nn.Sequential):
    """A single projection of a 4B model (hidden 2560, ffn 9728), with a name to target."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(OrderedDict(up_proj=torch.nn.Linear(2560, 9728, bias=False, dtype=dtype)))


def layer_steps(module: torch.nn.Module, x: torch.Tensor, *contexts: Callable) -> Callable[[], None]:
    """A two-position prefill, then 20 decoding steps."""

    def run() -> None:
        with ExitStack() as stack, torch.no_grad():
            for context in contexts:
                stack.enter_context(context(module))
            module(x.repeat(1, 2, 1))
            for _ in range(20):
                module(x)

    return run


def layer_table(repeats: int) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        model = attach_routed_adapter(Wrapped(dtype), RoutedLoraConfig(r=RANK, task_type=None))
        x = torch.randn(8, 1, 2560, dtype=dtype)
        jobs = {
            "bare": layer_steps(Wrapped(dtype), x),
            "unmerged": layer_steps(model, x),
            "ablated": layer_steps(model, x, ablated),
        }
        seconds = least_seconds(jobs, repeats)
        figures = " · ".join(f"{n} {v:.3f}s {v / seconds['bare']:.2f}x" for n, v in seconds.items())
        print(f"20 decoding steps of a 4B layer, {dtype}, 8 rows: {figures}", flush=True)


SHAPES_4B = {(4096, 2560): 1, (1024, 2560): 2, (2560, 4096): 1, (9728, 2560): 2, (2560, 9728): 1}


def calibrate_table() -> None:
    """CPU seconds of each init on the seven module shapes of one 4B layer, and of all 36 layers by extrapolation."""
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for d_out, d_in in SHAPES_4B:
        size = min(d_out, d_in) // 4
        u, v = (torch.linalg.qr(torch.randn(d, size, generator=draw))[0] for d in (d_out, d_in))
        tail = (u * (6 * torch.arange(1, size + 1) ** -0.4)) @ v.T
        weights[d_out, d_in] = torch.randn(d_out, d_in, generator=draw) / d_in**0.5 + tail
    for name, strategy in INITS.items():
        total = 0.0
        for (d_out, d_in), count in SHAPES_4B.items():
            deltas = torch.randn(16, d_in, generator=draw)
            request = InitRequest("m", weights[d_out, d_in], RANK, module_generator(0, "m"), deltas)
            start = time.process_time()
            strategy.build(request)
            total += count * (time.process_time() - start)
        print(f"init {name:14s} {total:6.1f}s a 4B layer, {36 * total / 60:6.1f} min for 36", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=("all", "train", "generate", "layer", "calibrate"), default="all")
    parser.add_argument("--memory-of", choices=list(SUBJECTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        report_memory(arguments.memory_of)
        return
    if arguments.part in ("all", "train"):
        train_table(arguments.repeats)
    if arguments.part in ("all", "generate"):
        generate_table(arguments.repeats)
    if arguments.part in ("all", "layer"):
        layer_table(arguments.repeats)
    if arguments.part in ("all", "calibrate"):
        calibrate_table()


if __name__ == "__main__":
    main()
