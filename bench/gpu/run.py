"""Qwen3-4B's shape on one GPU, without a network: correctness in bfloat16, a step of the recipe, and its floors.

    python bench/gpu/run.py [--part correctness step generate floor] [--gpu h200] [--small] [--folder DIR]

Writes random weights of the model's shape (8 GB) to ``--folder`` (default: a temporary one), then runs the parts:

- correctness: routed gradients against rows one by one, ablation, export, in bfloat16;
- step: one optimizer step of ``configs/qwen3_4b.yaml`` (64 completions of 512 tokens, prompts of 700, absorb), the
  second of two, by phase, with FLOP/s, bytes/s and peak memory, each beside its floor;
- graphs: the same step with every token's step captured as a CUDA graph and replayed, and whether greedy completions
  agree with those without; on a GPU alone;
- generate: the same rows through transformers' own ``generate``, adapters beside the weights;
- floor: what ``cli.py plan`` counts for that step.

One JSON line a row, then tables in Markdown. ``--small`` runs everything at a tiny scale on the CPU, to prove that it
runs: its figures say nothing. ``--only-shape DIR`` writes configuration and tokenizer alone, for ``cli.py plan
--model.path DIR``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from correctness import correctness
from shape import full_scale, small_scale, write_model
from steps import Rows, floors, graphs_agree, measured_step, plain_generation, planned_window

from vgrout_pl.plan import GPUS, Machine, measured

PARTS = ("correctness", "step", "graphs", "generate", "floor")


def machine_of(gpu: str | None, small: bool) -> Machine:
    """The named GPU, or the one that is there; the CPU, measured, for ``--small``."""
    if small:
        return measured()
    name = gpu or next(
        (key for key in GPUS if key.split("_")[0] in torch.cuda.get_device_name().lower().replace(" ", "")), None
    )
    if name is None:
        raise SystemExit(f"--gpu: expected one of {', '.join(GPUS)}; {torch.cuda.get_device_name()} is none of them")
    return GPUS[name]


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--gpu", choices=list(GPUS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only-shape", type=Path)
    options = parser.parse_args()
    scale = small_scale() if options.small else full_scale()
    if options.only_shape:
        write_model(options.only_shape, scale, torch.device("cpu"), weights=False)
        return
    needs_gpu = not options.small and set(options.part) != {"floor"}
    if needs_gpu and not torch.cuda.is_available():
        raise SystemExit(
            "expected a CUDA device; there is none; --small runs on the CPU, --part floor --gpu h200 anywhere"
        )
    device = torch.device("cuda", 0) if needs_gpu else torch.device("cpu")
    if options.small:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        tokenizer = write_model(folder, scale, device, weights=needs_gpu or options.small)
        machine, window = machine_of(options.gpu, options.small), planned_window(folder, scale)
        jobs: dict[str, Callable[[], Rows]] = {
            "correctness": lambda: correctness(folder, scale, device),
            "step": lambda: measured_step(folder, scale, tokenizer, device, window, machine),
            "graphs": lambda: [
                *graphs_agree(folder, scale, tokenizer, device),
                *measured_step(folder, scale, tokenizer, device, window, machine, cuda_graphs=True),
            ],
            "generate": lambda: plain_generation(folder, scale, tokenizer, device, window, machine),
            "floor": lambda: floors(window, machine),
        }
        found: dict[str, Rows] = {}
        for part in options.part:
            if part == "graphs" and device.type != "cuda":
                print(json.dumps({"part": part, "skipped": "needs a CUDA device"}), flush=True)
                continue
            found[part] = jobs[part]()
            for row in found[part]:
                print(json.dumps({**row, "machine": machine.name, "torch": torch.__version__}), flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    for part, rows in found.items():
        print(f"\n{part}, {machine.name}\n\n{table(rows)}")
    failed = [row["check"] for row in found.get("correctness", []) if not row["holds"]]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


def table(rows: Rows) -> str:
    """Rows as Markdown."""
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "part"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
