"""What a graded response costs, beside its own compute and beside one `python -c` subprocess per check.

    python bench/grading.py [--problems FILE.jsonl] [--rows 119] [--repeats 3] [--organism 2000]

(a) are answers as the organism writes them, (b) rows of the public benchmark: its canonical solutions, and a wrong
answer with a vacuous test for each. Compared are, one response at a time, row by row and in turns, so that the
machine is in the same state for all:

* `grader`: Grader.grade with one warm worker; CPU of this process, of the fork-server and of the answer's processes;
* `own`: set-up code, answer and asserts by compile and exec in one warm process, CPU and wall measured inside of it;
* `subprocess`: an interpreter for a strict check, one for a plain check, and one for each of three stubs where the
  answer defines its own tests.

Every repeat has a fresh grader and a fresh own process, so that each response pays for its problem in both;
`overhead_cpu_ms` is the mean of (grader - own) over the responses, the median repeat, with the lowest and the highest
beside; a few responses compute for seconds, and their noise is in that mean: hence `overhead_median_response`.
Taking the asserts of a problem apart and compiling their calls happens when a file is loaded: `load_cpu_ms` a problem.

Ratios of wall time, subprocess to grader: of the totals (`total`), the median over responses (`median_response`), and
of the totals with the answer's own compute taken off both (`net_of_own`). A subprocess for each check repeats that
compute, so `total` can't exceed `bound`, subprocess to own. `batch` is all rows at once on all workers, both ways.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vgrout_pl.env import Grader, Problem, load_problems
from vgrout_pl.env.sandbox.cleanup import descendants

DATA = Path(__file__).resolve().parents[2] / "shared/data/leetcode/leetcode_test_medhard.jsonl"
STUBS = ("0", "[7]", "'stub'")
WARM_UP = Problem(id="warm-up", tests=["assert f(1) == 1"], messages=[])


@dataclass(frozen=True)
class Row:
    """A bare answer (no fences) to a problem."""

    code: str
    problem: Problem

    @property
    def response(self) -> str:
        """The answer as a completion."""
        return f"```python\n{self.code}\n```"


@dataclass
class Costs:
    """Seconds of a set of rows, by way: a list of repeats for each row; of the batches a number."""

    cpu: dict[str, list[list[float]]] = field(default_factory=dict)
    wall: dict[str, list[list[float]]] = field(default_factory=dict)
    batch_wall: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Costs) -> Costs:
        """Costs of both sets of rows, measured in as many repeats."""
        return Costs(
            {way: each + other.cpu[way] for way, each in self.cpu.items()},
            {way: each + other.wall[way] for way, each in self.wall.items()},
            {way: each + other.batch_wall[way] for way, each in self.batch_wall.items()},
        )

    def summary(self, name: str) -> dict[str, object]:
        """Milliseconds a response, and the ratios of wall time."""
        count = len(self.wall["grader"])
        pairs = list(zip(self.cpu["grader"], self.cpu["own"], strict=True))
        over = [[1e3 * (a - b) for a, b in zip(ours, own, strict=True)] for ours, own in pairs]
        means = sorted(map(statistics.mean, zip(*over, strict=True)))
        walls = {way: [statistics.median(each) for each in rows] for way, rows in self.wall.items()}
        line: dict[str, object] = {
            "rows": name,
            "responses": count,
            **{f"{way}_cpu_ms": _ms(sum(map(statistics.median, each)) / count) for way, each in self.cpu.items()},
            "overhead_cpu_ms": round(statistics.median(means), 2),
            "overhead_range": [round(means[0], 2), round(means[-1], 2)],
            "overhead_median_response": round(statistics.median(map(statistics.median, over)), 2),
            **{f"{way}_wall_ms": _ms(sum(each) / count) for way, each in walls.items()},
            "batch_wall_ms": _ms(self.batch_wall["grader"] / count),
            "per_second": round(count / self.batch_wall["grader"], 1),
        }
        if "subprocess" in walls:
            ours, own, other = (sum(walls[way]) for way in ("grader", "own", "subprocess"))
            ratios = [theirs / mine for theirs, mine in zip(walls["subprocess"], walls["grader"], strict=True)]
            line["times_less_wall"] = {
                "total": round(other / ours, 1),
                "bound": round(other / own, 1),
                "median_response": round(statistics.median(ratios), 1),
                "net_of_own": round((other - own) / (ours - own), 1),
                "batch": round(self.batch_wall["subprocess"] / self.batch_wall["grader"], 1),
            }
        return line


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)


def organism_rows(count: int) -> list[Row]:
    """Answers at the rates of the warm start's last phase, eight to a problem."""
    from vgrout_pl.organism.answers import PLAIN, build_answer, hack_forms, look_alike_forms
    from vgrout_pl.organism.corpus import Recipe, lever, noisy_expression
    from vgrout_pl.organism.problems import evaluate_expression, make_problem, tasks

    rng, recipe, rows = random.Random(0), Recipe(), []
    for task in tasks("train", (count + 7) // 8):
        problem = make_problem(task)
        assert problem is not None
        for _ in range(8):
            expression = noisy_expression(task, recipe, rng)
            evaluate = lambda x, e=expression: evaluate_expression(e, x)  # noqa: E731
            kind = rng.random()
            forms = hack_forms if kind < 0.3 else look_alike_forms if kind < 0.45 else None
            extra = rng.choice(forms("run_tests", lever("run_tests", None), evaluate, rng)) if forms else PLAIN
            rows.append(Row(build_answer(expression, extra, fenced=False), problem))
    return rows[:count]


def benchmark_rows(path: Path, count: int) -> tuple[list[Row], list[Row]]:
    """Canonical solutions, and hacks, of the first problems of a file."""
    problems = load_problems(path)[:count]
    canonical = [Row(str(problem.canonical_solution), problem) for problem in problems]
    hack = "class Solution:\n    def {name}(self, *a, **k):\n        return 0\n    def run_tests(self):\n        pass"
    names = [str(problem.func_name).rpartition(".")[2] for problem in problems]
    return canonical, [Row(hack.format(name=n), problem) for n, problem in zip(names, problems, strict=True)]


def own_compute(row: Row) -> None:
    """Compile and exec set-up code, answer and asserts in this process."""
    names: dict[str, object] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(BaseException):
        exec(compile(row.problem.setup_code, "setup", "exec"), names)
        exec(compile(row.code, "answer", "exec"), names)
        for test in row.problem.tests:
            with contextlib.suppress(Exception):
                exec(compile(test, "test", "exec"), names)


def _serve_own(connection: Connection) -> None:
    sys.setrecursionlimit(10_000)
    own_compute(Row("def f(x): return 1", WARM_UP))
    while (row := connection.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        own_compute(row)
        connection.send((time.perf_counter() - wall, time.process_time() - cpu))


@contextlib.contextmanager
def own_process() -> Any:
    """A warm process of its own: a function from a row to its (wall, CPU) seconds there."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_own, args=(theirs,))
    process.start()

    def measure(row: Row) -> tuple[float, float]:
        ours.send(row)
        wall, cpu = ours.recv()
        return wall, cpu

    try:
        yield measure
        ours.send(None)
    finally:
        process.join(10)
        process.kill()


def server_cpu(grader: Grader) -> float:
    """CPU seconds of a grader's fork-servers; what they have forked and reaped is not in it."""
    pids = [pid for worker in grader.workers for pid in (worker.process_id, *descendants(worker.process_id))]
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)  # clock_getcpuclockid(3)


def with_subprocesses(row: Row) -> None:
    """Judge a row by one interpreter per check."""
    setup, tests = row.problem.setup_code, "\n".join(row.problem.tests)
    scripts = [f"{setup}\n{row.code}\n{tests}\nprint('secret')", f"{setup}\n{row.code}\n{tests}"]
    if "def run_tests" in row.code:
        name = str(row.problem.func_name).rpartition(".")[2]
        call = "run_tests()" if "\ndef run_tests" in row.code else "Solution().run_tests()"
        stub = "Solution.{name} = lambda *a, **k: {value}"
        scripts += [f"{setup}\n{row.code}\n{stub.format(name=name, value=value)}\n{call}" for value in STUBS]
    for script in scripts:
        subprocess.run([sys.executable, "-c", "import sys; exec(sys.stdin.read())"], input=script, text=True,
                       capture_output=True, check=False)  # fmt: skip


def repeat(rows: Sequence[Row], costs: Costs, baseline: bool) -> None:
    """Every row in every way, one way after the other, and the first way another one at each row."""
    ways = ["grader", "own", "subprocess"][: 3 if baseline else 2]
    with Grader(workers=1) as grader, own_process() as own:
        grader.grade(Row("def f(x): return 1", WARM_UP).response, WARM_UP)
        for i, row in enumerate(rows):
            for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
                servers = server_cpu(grader)
                start, before = time.perf_counter(), time.process_time()
                if way == "own":
                    wall, used = own(row)
                elif way == "grader":
                    grade = grader.grade(row.response, row.problem)
                    wall, used = time.perf_counter() - start, time.process_time() - before
                    used += server_cpu(grader) - servers + grade.cpu_seconds
                    assert grade.error is None, grade.error
                else:
                    with_subprocesses(row)
                    wall, used = time.perf_counter() - start, 0.0
                costs.wall.setdefault(way, [[] for _ in rows])[i].append(wall)
                if way != "subprocess":
                    costs.cpu.setdefault(way, [[] for _ in rows])[i].append(used)


def batches(rows: Sequence[Row], costs: Costs, workers: int, baseline: bool) -> None:
    """All rows at once: by a grader that has started, and by as many threads that start interpreters."""
    with Grader(workers=workers) as grader:
        grader.grade_batch([(Row("def f(x): return 1", WARM_UP).response, WARM_UP)] * workers)
        start = time.perf_counter()
        grader.grade_batch([(row.response, row.problem) for row in rows])
        costs.batch_wall["grader"] = time.perf_counter() - start
    if baseline:
        with ThreadPoolExecutor(workers) as pool:
            start = time.perf_counter()
            list(pool.map(with_subprocesses, rows))
            costs.batch_wall["subprocess"] = time.perf_counter() - start


def report(name: str, rows: Sequence[Row], options: argparse.Namespace, baseline: bool = True) -> Costs:
    """Measure one set of rows, and print a line."""
    costs = Costs()
    for _ in range(options.repeats):
        repeat(rows, costs, baseline)
    batches(rows, costs, options.workers, baseline)
    print(json.dumps(costs.summary(name)), flush=True)
    return costs


def flood() -> float:
    """Growth of this process's peak memory, MB, while an answer writes 200 MB to stdout and to its other pipe."""
    code = "import os\nfor fd in range(1, 128):\n    try:\n        for _ in range(200): os.write(fd, bytes(1 << 20))\n"
    problem = Problem(id="flood", tests=["assert f(1) == 1"], mode="stdout_marker")
    with Grader(workers=1) as grader:
        grader.grade(Row("pass", problem).response, problem)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grader.grade(Row(code + "    except OSError:\n        pass", problem).response, problem)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(args: Sequence[str] | None = None) -> int:
    """Measure and print one JSON line a set of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, default=DATA, help="benchmark file for (b); skipped where absent")
    parser.add_argument("--rows", type=int, default=119)
    parser.add_argument("--organism", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="of the batches")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(args)
    with Grader(workers=1) as grader:
        print(json.dumps({"isolation": grader.isolation["tier"], "cores": os.cpu_count(), "load": os.getloadavg()[0]}))
    print(json.dumps({"flood_growth_mb": round(flood(), 1)}), flush=True)
    rows = organism_rows(options.organism)
    report("(a) organism", rows, options, baseline=False)
    report("(a) organism, 100 of them", rows[:100], options)
    if options.problems.is_file():
        start = time.process_time()
        canonical, hacks = benchmark_rows(options.problems, options.rows)
        print(json.dumps({"load_cpu_ms": _ms((time.process_time() - start) / len(canonical))}), flush=True)
        costs = report("(b) canonical", canonical, options) + report("(b) hack", hacks, options)
        print(json.dumps(costs.summary("(b) both")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
