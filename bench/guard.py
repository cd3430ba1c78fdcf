"""When the guard speaks on the embedded organism: at learning rates that are too high, and at the demo's own.

    python bench/guard.py [--arms default ramp] [--seeds 5] [--steps 500] [--root runs/guard] [--table]

Runs ``configs/demo.yaml`` once an arm and seed, one process after another; about a CPU second a step. The rules of the
runaway and the surge only warn here, so that what would have come is seen. Run again, it goes on where it was stopped;
``--table`` prints what is there. Columns: the step at which the guard speaks; the format rate of that window; the step
at which the format has collapsed (first mean over 5 windows below half of that of the run's first 5); the lowest such
mean.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

from vgrout_pl.report.guard import load_guard
from vgrout_pl.report.metrics import Metrics

ARMS = {
    "default": (),
    "high": ("--model.optimization.lr=0.006",),
    "too_high": ("--model.optimization.lr=0.01",),
    "ramp": ("--model.optimization.lr=0.02", "--model.optimization.warmup_steps=40"),
    "at_once": ("--model.optimization.lr=0.02",),
}
"""The demo's 2e-3 with 5 steps of warm-up; 6e-3; 1e-2; 2e-2 reached over 40 steps; 2e-2 reached within 5."""
RULES = ("runaway", "surge")
SPAN = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["ramp", "default"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--root", type=Path, default=Path("runs/guard"))
    parser.add_argument("--table", action="store_true", help="print what is there; run nothing")
    given = parser.parse_args()
    print(f"{'arm':9} {'seed':>4} {'steps':>5} {'guard':>5} {'format':>6} {'collapse':>8} {'lowest':>6}", flush=True)
    for arm in given.arms:
        for seed in range(given.seeds):
            directory = given.root / arm / f"seed{seed}"
            if not given.table and not (directory / "report.md").exists():
                train(arm, seed, given.steps, given.root)
            if (directory / "metrics.csv").exists():
                print(row(arm, seed, directory), flush=True)


def train(arm: str, seed: int, steps: int, root: Path) -> None:
    """One run, or the rest of it."""
    command = [sys.executable, "cli.py", "fit", "--config", "configs/demo.yaml", *ARMS[arm], f"--name={arm}"]
    command += [f"--seed_everything={seed}", f"--trainer.default_root_dir={root}", "--ckpt_path=last"]
    command += [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", "--guard.runaway.action=warn"]
    command += ["--guard.surge.action=warn"]
    command += ["--data.test_size=8", "--data.train_eval_size=8", "--step_log.every_n_steps=0"]
    log = root / arm / f"seed{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        subprocess.run(command, check=True, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})


def row(arm: str, seed: int, directory: Path) -> str:
    """One line of the table, from what the run has written so far."""
    steps, formats = Metrics.load(directory / "metrics.csv").series("format/rate")
    record = load_guard(directory)
    spoken = [finding["step"] for finding in record["findings"] if finding["rule"] in RULES] if record else []
    means = [mean(formats[end - SPAN : end]) for end in range(SPAN, len(formats) + 1)]
    collapsed = [steps[i + SPAN - 1] for i, value in enumerate(means) if value < means[0] / 2]
    guard = f"{spoken[0]:5d} {formats[steps.index(spoken[0])]:6.2f}" if spoken else f"{'never':>5} {'':6}"
    collapse = str(collapsed[0]) if collapsed else "never"
    return f"{arm:9} {seed:4d} {len(steps):5d} {guard} {collapse:>8} {min(means, default=float('nan')):6.2f}"


if __name__ == "__main__":
    main()
