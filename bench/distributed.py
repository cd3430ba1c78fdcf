"""What a step of the demo costs on one process, and on two processes that share its window.

    python bench/distributed.py [--steps 12] [--strategies ddp fsdp] [--repeats 1] [--KEY=VALUE ...]

Each arrangement is run through the command line, one torch thread a process, once for a few steps and once for
``steps`` more: the difference of the CPU seconds (of all processes, graders included) by ``steps`` is that of a step,
set-up and final evaluation taken out. Wall seconds are the median of ``step_time``, the first step left out; they say
something only where every process has a core of its own (the load average is printed beside them). ``speed-up`` is the
wall time of one process by that of the arrangement, at best 2; ``work`` the ratio of the CPU seconds, at best 1.
Further flags go to every run. Linux alone.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEW = 2
SUBREAPER = 36
EVALUATION = ("data.validation_size", "data.test_size", "data.train_eval_size")


def run(strategy: str, steps: int, flags: list[str]) -> tuple[float, list[float]]:
    """CPU seconds of a whole run, and the wall seconds of its steps."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "cli.py", "fit", "--config", "configs/demo.yaml"]
        command += ["--config", f"configs/strategy/{strategy}.yaml", f"--trainer.max_steps={steps}"]
        command += ["--trainer.val_check_interval=100000", "--ablation.states=[as_trained,deployed]"]
        command += [f"--{name}=1" for name in EVALUATION]
        command += ["--model.grader_workers=1", f"--trainer.default_root_dir={root}", *flags]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (path,) = Path(root).glob("*/*/metrics.csv")
        with path.open(newline="") as file:
            wall = [float(row["step_time"]) for row in csv.DictReader(file) if row["step_time"]]
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--repeats", type=int, default=1)
    options, flags = parser.parse_known_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1)  # a second process that ends after the first is ours to wait for
    arrangements = ["cpu", *options.strategies]
    cpu: dict[str, list[float]] = {name: [] for name in arrangements}
    wall: dict[str, list[float]] = {name: [] for name in arrangements}
    for _ in range(options.repeats):
        for name in arrangements:  # in turns, so that the machine is in about the same state for all
            few, _ = run(name, FEW, flags)
            many, seconds = run(name, FEW + options.steps, flags)
            cpu[name].append((many - few) / options.steps)
            wall[name] += seconds[1:]
    one_cpu, one_wall = statistics.median(cpu["cpu"]), statistics.median(wall["cpu"])
    print("arrangement     wall s/step  speed-up  CPU s/step  work")
    for name in arrangements:
        c, w = statistics.median(cpu[name]), statistics.median(wall[name])
        label = "one process" if name == "cpu" else f"{name}, two"
        print(f"{label:<14}  {w:>11.2f}  {one_wall / w:>8.2f}  {c:>10.2f}  {c / one_cpu:>4.2f}")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
