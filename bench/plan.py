"""The plan against what it plans: FLOPs, memory and CPU seconds of the standard step (see ``bench/step.py``), by phase.

    python bench/plan.py [--arms absorb route_a] [--prompts 1] [--no-time]

FLOPs are counted by ``torch.utils.flop_counter`` in the second of two real steps; CPU seconds are those of another
process' second step, against what the plan makes of this machine's rates, measured in a few seconds just before; peak
memory is how far the resident set grew over that before the first step, against what the plan says moves, with
gradients and moments: the C library keeps freed pages, and weights are read from the file as they are first used, so
that more is seen than lives. The last line is a JSON object. One torch thread; seconds want a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import step
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vgrout_pl.adapters import RoutedLoraConfig
from vgrout_pl.directions.pair_sources import AuthoredPairs
from vgrout_pl.module import GRPOModule
from vgrout_pl.objective import Objective
from vgrout_pl.plan import PHASES, Machine, Window, measured, window_cost, workload
from vgrout_pl.routers import Gate
from vgrout_pl.sampling import Sampling
from vgrout_pl.timing import PhaseTimer

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _packed(x: Any, second: Any, third: Any = None, *_: Any, **__: Any) -> int:
    """(x, weight, bias, ..) or (x, what is added, weight, ..), as shapes."""
    weight = third if third is not None and len(third) == 2 else second
    return 2 * x[0] * x[1] * weight[0]


ON_CPU = {
    torch.ops.mkldnn._linear_pointwise: _packed,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""What torch's counter knows of CUDA's kernels alone."""


class _NoModules(nullcontext[None]):
    """In place of the counter's tracker of modules, which cannot follow a gradient taken inside a forward pass."""

    parents = frozenset({"Global"})


@contextmanager
def counted_by_phase() -> Iterator[dict[str, int]]:
    """FLOPs of each phase of the last step that begins inside."""
    flops: dict[str, int] = {}
    enter, clear = PhaseTimer.enter, PhaseTimer.clear
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    counter.mod_tracker = _NoModules()
    with counter:
        since = [0]

        def entered(timer: PhaseTimer, phase: str | None) -> str | None:
            ended, now = enter(timer, phase), counter.get_total_flops()
            if ended is not None:
                flops[ended] = flops.get(ended, 0) + now - since[0]
            since[0] = now
            return ended

        def cleared(timer: PhaseTimer) -> None:
            clear(timer)
            flops.clear()

        PhaseTimer.enter, PhaseTimer.clear = entered, cleared  # type: ignore[method-assign]
        try:
            yield flops
        finally:
            PhaseTimer.enter, PhaseTimer.clear = enter, clear  # type: ignore[method-assign]


def planned(arm: str, prompts: int) -> Window:
    """The plan of the standard step."""
    router = step.ARMS[arm]()
    with tempfile.TemporaryDirectory() as folder:
        step.make_model(Path(folder))
        module = GRPOModule(
            path=folder,
            group_size=step.GROUP,
            sampling=Sampling(max_new_tokens=step.COMPLETION, min_new_tokens=step.COMPLETION),
            objective=Objective(beta=1e-3),
        )
        if isinstance(router, Gate) and isinstance(router.source, AuthoredPairs):
            router.refresh_every = 0  # the second step extracts nothing
        work = workload(module, router, prompts, prompts, step.PROMPT, step.COMPLETION, rounded=False)
        return window_cost(module, router, RoutedLoraConfig(r=step.RANK), work)


def resident(which: str) -> float:
    """Resident bytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    return 1024 * float(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0])


def report_step(arm: str, prompts: int, flops: bool) -> None:
    """Run two steps in this process and print what was seen as JSON."""
    if flops:
        with counted_by_phase() as counted:
            step.measure(arm, prompts, 2)
        print(json.dumps({"flops": counted}))
        return
    before: list[float] = []
    step.GRPOModule.on_train_start = lambda module: before.append(resident("VmRSS"))
    result = step.measure(arm, prompts, 2)
    print(json.dumps({"cpu_s": result["cpu_s"], "grown": resident("VmHWM") - before[0]}))


def seen(arm: str, prompts: int, what: str) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--step-of", arm, "--prompts", str(prompts), "--what", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def compare(arm: str, prompts: int, machine: Machine | None) -> dict[str, Any]:
    """Print the table of one arm and return its figures."""
    plan = planned(arm, prompts)
    flops = seen(arm, prompts, "flops")["flops"]
    real = seen(arm, prompts, "time") if machine is not None else None
    print(
        f"\n{arm:12}{'GFLOP counted':>15}{'planned':>10}{'ratio':>8}"
        + (f"{'CPU s':>9}{'planned':>9}{'ratio':>8}" if real else "")
    )
    rows, totals = {}, [0.0] * 4
    for phase, parts in PHASES.items():
        costs = [plan.phases[part] for part in parts]
        figures = [flops.get(phase, 0), sum(cost.flops for cost in costs), 0.0, 0.0]
        if machine is not None and real is not None:
            figures[2:] = [real["cpu_s"].get(phase, 0.0), sum(machine.estimate(cost) for cost in costs)]
        rows[phase] = figures
        totals = [a + b for a, b in zip(totals, figures, strict=True)]
    for name, figures in {**rows, "total": totals}.items():
        line = f"{name:12}{figures[0] / 1e9:15.2f}{figures[1] / 1e9:10.2f}{_ratio(figures[1], figures[0])}"
        print(line + (f"{figures[2]:9.2f}{figures[3]:9.2f}{_ratio(figures[3], figures[2])}" if real else ""))
    found = {"arm": arm, "phases": rows, "flops": _over(totals[1], totals[0])}
    if real is not None:
        memory = plan.memory
        own = max(memory.generate, memory.score, memory.route, memory.train) + 12 * plan.parameters.trained
        print(
            f"peak memory: grew by {real['grown'] / 1e9:.2f} GB, planned {own / 1e9:.2f} GB{_ratio(own, real['grown'])}"
        )
        found |= {"seconds": _over(totals[3], totals[2]), "memory": _over(own, real["grown"])}
    return found


def _over(planned_value: float, real: float) -> float:
    return round(planned_value / real, 4) if real else float("nan")


def _ratio(planned_value: float, real: float) -> str:
    return f"{_over(planned_value, real):8.3f}" if real else f"{'-':>8}"


def main() -> None:
    """Compare some arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(step.ARMS), default=["none", "absorb", "route_a", "route_v"])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--no-time", action="store_true", help="FLOPs alone")
    parser.add_argument("--step-of", choices=list(step.ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("flops", "time"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step_of:
        report_step(options.step_of, options.prompts, options.what == "flops")
        return
    machine = None if options.no_time else measured(step.GROUP * options.prompts)
    if machine is not None:
        print(machine.assumptions())
    print(json.dumps([compare(arm, options.prompts, machine) for arm in options.arms]))


if __name__ == "__main__":
    main()
