"""What a graded response costs, beside its own compute and beside one `python -c` subprocess per check.

    python bench/grading.py [--problems FILE.jsonl] [--rows 119] [--organism 2000] [--flood]

(a) are answers as the organism writes them, (b) rows of the public benchmark: its canonical solutions, and a wrong
answer with a vacuous test for each. `own` runs a response and its asserts by exec in one warm process; `subprocesses`
starts an interpreter for a strict check, for a plain check, and for three stubs where the answer defines its own tests.
CPU counts all processes. Every way is measured in the same run, one after the other, with the same number of workers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vgrout_pl.env import Grader, Problem, load_problems

DATA = Path(__file__).resolve().parents[2] / "shared/data/leetcode/leetcode_test_medhard.jsonl"
STUBS = ("0", "[7]", "'stub'")


@dataclass(frozen=True)
class Row:
    """A bare answer (no fences) to a problem."""

    code: str
    problem: Problem

    @property
    def response(self) -> str:
        """The answer as a completion."""
        return f"```python\n{self.code}\n```"


@dataclass(frozen=True)
class Cost:
    """Seconds for a set of rows."""

    wall: float
    cpu: float


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


def measured(action: Callable[[], object]) -> Cost:
    """Wall and CPU seconds of an action, with those of the processes that it starts and waits for."""
    before, start = _cpu(), time.perf_counter()
    action()
    return Cost(time.perf_counter() - start, _cpu() - before)


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def with_grader(rows: Sequence[Row], workers: int) -> Cost:
    """Cost of the grader, its start not included."""

    def run(count: int) -> Cost:
        wall = 0.0

        def action() -> None:
            nonlocal wall
            with Grader(workers=workers) as grader:
                grader.grade_batch([(rows[0].response, rows[0].problem)] * workers)
                start = time.perf_counter()
                grades = grader.grade_batch([(row.response, row.problem) for row in rows[:count]])
                wall = time.perf_counter() - start
                assert all(grade.error is None for grade in grades)

        cpu = measured(action).cpu
        return Cost(wall, cpu)

    start, full = run(0), run(len(rows))
    return Cost(full.wall, full.cpu - start.cpu)


def own_compute(rows: Sequence[Row]) -> Cost:
    """Cost of exec of set-up, answer and asserts in this process, one after the other."""

    def action() -> None:
        for row in rows:
            names: dict[str, object] = {"__name__": "__main__"}
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(BaseException):
                exec(compile(row.problem.setup_code, "setup", "exec"), names)
                exec(compile(row.code, "answer", "exec"), names)
                for test in row.problem.tests:
                    with contextlib.suppress(Exception):
                        exec(compile(test, "test", "exec"), names)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        return measured(action)
    finally:
        sys.setrecursionlimit(limit)


def with_subprocesses(rows: Sequence[Row], workers: int) -> Cost:
    """Cost of one interpreter per check."""

    def grade(row: Row) -> None:
        setup, tests = row.problem.setup_code, "\n".join(row.problem.tests)
        scripts = [f"{setup}\n{row.code}\n{tests}\nprint('secret')", f"{setup}\n{row.code}\n{tests}"]
        if "def run_tests" in row.code:
            name = str(row.problem.func_name).rpartition(".")[2]
            stub = "\nSolution.{name} = lambda *a, **k: {value}\nSolution().run_tests()"
            if "\ndef run_tests" in row.code:
                stub = "\nSolution.{name} = lambda *a, **k: {value}\nrun_tests()"
            scripts += [f"{setup}\n{row.code}" + stub.format(name=name, value=value) for value in STUBS]
        for script in scripts:
            subprocess.run([sys.executable, "-c", "import sys; exec(sys.stdin.read())"], input=script, text=True,
                           capture_output=True, check=False)  # fmt: skip

    def action() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(grade, rows))

    return measured(action)


def flood() -> float:
    """Growth of this process's peak memory, MB, while an answer writes 200 MB to stdout and to its other pipe."""
    code = "import os\nfor fd in range(1, 128):\n    try:\n        for _ in range(200): os.write(fd, bytes(1 << 20))\n"
    problem = Problem(id="flood", tests=["assert f(1) == 1"], mode="stdout_marker")
    with Grader(workers=1) as grader:
        grader.grade(Row("pass", problem).response, problem)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grader.grade(Row(code + "    except OSError:\n        pass", problem).response, problem)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def report(name: str, rows: Sequence[Row], workers: int, baselines: bool) -> dict[str, object]:
    """Measure one set of rows in every way, and print a line."""
    count = len(rows)
    ours, own = with_grader(rows, workers), own_compute(rows)
    line: dict[str, object] = {
        "rows": name,
        "responses": count,
        "per_second": round(count / ours.wall, 1),
        "wall_ms": round(1e3 * ours.wall / count, 2),
        "cpu_ms": round(1e3 * ours.cpu / count, 2),
        "own_cpu_ms": round(1e3 * own.cpu / count, 2),
        "overhead_cpu_ms": round(1e3 * (ours.cpu - own.cpu) / count, 2),
    }
    if baselines:
        other = with_subprocesses(rows, workers)
        line["subprocess_wall_ms"] = round(1e3 * other.wall / count, 2)
        line["subprocess_cpu_ms"] = round(1e3 * other.cpu / count, 2)
        line["times_less_wall"] = round(other.wall / ours.wall, 1)
    print(json.dumps(line), flush=True)
    return line


def main(args: Sequence[str] | None = None) -> int:
    """Measure and print one JSON line a set of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, default=DATA, help="benchmark file for (b); skipped where absent")
    parser.add_argument("--rows", type=int, default=119)
    parser.add_argument("--organism", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of (a), of which the median counts")
    options = parser.parse_args(args)
    with Grader(workers=1) as grader:
        print(json.dumps({"isolation": grader.isolation["tier"], "cores": os.cpu_count(), "load": os.getloadavg()[0]}))
    rows = organism_rows(options.organism)
    rates = [report("(a) organism", rows, options.workers, False)["per_second"] for _ in range(options.repeat)]
    report("(a) organism, 100 of them", rows[:100], options.workers, True)
    result = {"organism_per_second": statistics.median(float(str(rate)) for rate in rates)}
    if options.problems.is_file():
        canonical, hacks = benchmark_rows(options.problems, options.rows)
        report("(b) canonical", canonical, options.workers, True)
        report("(b) hack", hacks, options.workers, True)
        report("(b) both", [*canonical, *hacks], options.workers, True)
    print(json.dumps({**result, "flood_growth_mb": round(flood(), 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
