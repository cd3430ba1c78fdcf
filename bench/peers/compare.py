"""The standard step here, in TRL and in the reference implementation: one after the other, and the ratios.

    python bench/peers/compare.py [--trl-python PATH] [--reference DIR] [--arms absorb route_a] [--repeats 3]

Each figure is of a process of its own with one thread, CPU seconds of its second step; of ``--repeats`` rounds, which
alternate between the peers, the median counts. A ratio says how many times more the peer needs than this package's arm.
The last line is a JSON object. Interpreters of peers may be other than this one (``--trl-python``, which defaults to
this one, and ``--reference-python``, which defaults to that).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REFERENCE_ARMS = {"none": "none", "absorb": "absorb", "route_a": "routeA", "route_v": "routeV"}


def measured(python: str, script: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark in its own process and read its last line."""
    command = [python, str(script), *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    print(f"running {' '.join(command[1:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        raise SystemExit(f"{script.name} failed with {done.returncode}:\n{(done.stderr or done.stdout)[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def contestants(options: argparse.Namespace) -> dict[str, tuple[str, Path, list[str]]]:
    """Name of each benchmark -> interpreter, script and arguments."""
    prompts = ["--prompts", str(options.prompts)]
    found: dict[str, tuple[str, Path, list[str]]] = {}
    for arm in options.arms:
        found[arm] = (sys.executable, HERE.parent / "step.py", ["--arm", arm, *prompts])
    if not options.no_trl:
        found["TRL"] = (options.trl_python, HERE / "trl_step.py", prompts)
    if options.reference:
        python = options.reference_python or options.trl_python
        for arm in options.arms:
            extra = ["--arm", REFERENCE_ARMS[arm], "--checkout", str(options.reference.resolve())]
            found[f"reference {arm}"] = (python, HERE / "reference_step.py", [*extra, *prompts])
    return found


def table(results: dict[str, dict[str, Any]], arms: list[str]) -> str:
    """Figures of each benchmark, and how many times more each peer needs than each arm."""
    lines = [f"{'':20}{'CPU s':>8}{'peak MB':>9}  phases"]
    for name, result in results.items():
        phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result["cpu_s"].items())
        lines.append(f"{name:20}{result['cpu_s_total']:8.2f}{result['peak_rss_mb']:9}  {phases}")
    lines += ["", f"{'ratio':32}{'CPU':>8}{'memory':>9}"]
    for arm in arms:
        for peer in (name for name in results if name == "TRL" or name == f"reference {arm}"):
            cpu, memory = (results[peer][key] / results[arm][key] for key in ("cpu_s_total", "peak_rss_mb"))
            lines.append(f"{peer + ' / ' + arm:32}{cpu:8.2f}{memory:9.2f}")
    return "\n".join(lines)


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round whose total is the median (the lower of two)."""
    middle = statistics.median_low([result["cpu_s_total"] for result in rounds])
    return next(result for result in rounds if result["cpu_s_total"] == middle)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(REFERENCE_ARMS), default=["absorb", "route_a"])
    parser.add_argument("--prompts", type=int, default=1, help="prompts of the step")
    parser.add_argument("--repeats", type=int, default=1, help="rounds, of which the median counts")
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter that can import trl")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    parser.add_argument("--reference", type=Path, help="checkout of the reference implementation")
    parser.add_argument("--reference-python", help="interpreter that can import what it needs")
    options = parser.parse_args()
    entries = contestants(options)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in entries}
    for _ in range(options.repeats):
        for name, (python, script, arguments) in entries.items():
            rounds[name].append(measured(python, script, *arguments))
    results = {name: median(found) for name, found in rounds.items()}
    print(table(results, options.arms))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
