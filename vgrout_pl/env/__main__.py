"""`python -m vgrout_pl.env`: grade files of answers, audit the sandbox, grade again, fetch the public benchmark."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vgrout_pl.env.audit import LIMITS, audit
from vgrout_pl.env.data import load_problems
from vgrout_pl.env.fetch import fetch
from vgrout_pl.env.grade import Grade
from vgrout_pl.env.grader import Grader, GraderError
from vgrout_pl.env.hub import load_problem_dataset
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.problem import Problem
from vgrout_pl.env.regrade import read_pool, read_rollouts, regrade, renewed_pool, summary
from vgrout_pl.env.sandbox.isolation import TIERS, Limits
from vgrout_pl.env.starter import starter_problems

RESPONSE_FIELDS = ("response", "completion")


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake gives one line on stderr and status 2."""
    options = build_parser().parse_args(args)
    try:
        return int(options.run(options))
    except (ValueError, GraderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vgrout_pl.env", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    problems = "JSONL or Parquet file, `starter`, `organism:SPLIT`, or `hub:OWNER/NAME`"

    one = commands.add_parser("grade", help="grade a file of answers: a table, and one JSON line an answer")
    one.add_argument("--problems", required=True, help=problems)
    one.add_argument("--responses", required=True, type=Path, help="JSON lines with `id` and `response`, or `-`")
    one.add_argument("--mode", default="run_tests", choices=list(MODES))
    one.add_argument("--out", type=Path, help="where to write the grades, JSON lines in the order of the answers")
    _grader_options(one)
    one.set_defaults(run=run_grade)

    two = commands.add_parser("audit", help="report the walls around answers, and try to break out of them")
    two.add_argument("--strict", default="limits", choices=TIERS, help="fail below this tier")
    two.set_defaults(run=run_audit)

    three = commands.add_parser("regrade", help="grade a pool or a rollout log again and print what changed")
    three.add_argument("source", type=Path, help="folder of a pool, or a rollouts.jsonl")
    three.add_argument("--problems", required=True, help=problems)
    three.add_argument("--out", type=Path, help="where to write the pool with its new grades")
    _grader_options(three)
    three.set_defaults(run=run_regrade)

    four = commands.add_parser("fetch-leetcode", help="download the public benchmark's files and verify them")
    four.add_argument("--out", type=Path, default=Path("data/leetcode"))
    four.set_defaults(run=run_fetch)
    return parser


def _grader_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=max(1, min(8, os.cpu_count() or 1)))
    parser.add_argument("--strict", default="limits", choices=TIERS, help="refuse to run below this isolation tier")
    parser.add_argument("--cpu-seconds", type=float, default=Limits().cpu_seconds, help="budget of one answer")


def _grader(options: argparse.Namespace) -> Grader:
    return Grader(workers=options.workers, limits=Limits(cpu_seconds=options.cpu_seconds), strict=options.strict)


def problems_from(source: str, mode: str) -> list[Problem]:
    """Problems by the name that the command line takes.

    Raises:
        ValueError: nothing can be loaded there.
    """
    if source == "starter":
        return starter_problems(mode)
    kind, _, name = source.partition(":")
    if kind == "organism" and name:
        from vgrout_pl.organism import problems

        return problems(name, mode)
    if kind == "hub" and name:
        return load_problem_dataset(name, mode)
    if source.endswith(".parquet"):
        return load_problem_dataset(source, mode)
    return load_problems(source, mode)


def run_grade(options: argparse.Namespace) -> int:
    """Grade answers; the exit status is 1 where the grader itself failed on some."""
    problems = {str(problem.id): problem for problem in problems_from(options.problems, options.mode)}
    rows = list(_responses(options.responses, problems))
    with _grader(options) as grader:
        print(f"isolation: {grader.isolation['tier']}")
        grades = grader.grade_batch([(text, problem) for problem, text in rows])
    for line in _table([problem for problem, _ in rows], grades):
        print(line)
    if options.out is not None:
        records = (
            {"id": p.id, "mode": p.mode, **dataclasses.asdict(g)} for (p, _), g in zip(rows, grades, strict=True)
        )
        options.out.write_text("".join(json.dumps(record) + "\n" for record in records))
        print(f"wrote {options.out}")
    return int(any(grade.error is not None for grade in grades))


def _responses(path: Path, problems: dict[str, Problem]) -> Iterator[tuple[Problem, str]]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{path}: expected a readable JSONL file of answers; got {error.strerror}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: expected a JSON object; got {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object; got {type(row).__name__}")
        problem = problems.get(str(row.get("id")))
        if problem is None:
            raise ValueError(f"{where}, field id: expected the id of a problem; got {row.get('id')!r}")
        answer = next((row[name] for name in RESPONSE_FIELDS if isinstance(row.get(name), str)), None)
        if answer is None:
            raise ValueError(f"{where}, field response: expected a text; got {row.get('response')!r}")
        yield problem, answer


def _table(problems: Sequence[Problem], grades: Sequence[Grade]) -> Iterator[str]:
    yield f"{'id':24} {'tests':>9} {'reward':>6}  verdict"
    for problem, grade in zip(problems, grades, strict=True):
        tests = f"{grade.tests_passed}/{len(problem.tests)}"
        yield f"{str(problem.id)[:24]:24} {tests:>9} {grade.reward:6.1f}  {_verdict(grade)}"
    counts = Counter(_verdict(grade).split(" ")[0] for grade in grades)
    yield ", ".join(f"{count} {name}" for name, count in counts.most_common()) + f" of {len(grades)}"


def _verdict(grade: Grade) -> str:
    if grade.error is not None:
        return f"error ({grade.error})"
    if grade.hacked:
        return f"hacked ({grade.mechanism})"
    if grade.correct:
        return "solved"
    if not grade.compiles:
        return "unreadable" if not grade.format_ok else "broken"
    return f"wrong (stopped: {grade.stopped})" if grade.stopped else "wrong"


def run_audit(options: argparse.Namespace) -> int:
    """Print the walls and what came of each attempt; status 1 where a promised wall did not hold."""
    with Grader(workers=1, limits=LIMITS, strict=options.strict) as grader:
        walls = grader.isolation
        print(f"tier: {walls['tier']}")
        for name, value in walls.items():
            if name not in ("tier", "refused"):
                print(f"  {name}: {value}")
        for name, reason in walls["refused"].items():
            print(f"  not available, {name}: {reason}")
        broken = 0
        for finding in audit(grader, os.getpid()):
            verdict = "held" if finding.held else "BROKEN" if finding.promised else "open at this tier"
            broken += finding.promised and not finding.held
            print(f"  {finding.attempt:34} {verdict}{'  (' + finding.detail + ')' if finding.detail else ''}")
    print("every promised wall held" if not broken else f"{broken} promised walls did not hold")
    return int(bool(broken))


def run_regrade(options: argparse.Namespace) -> int:
    """Grade again and print the changes; nothing is overwritten unless ``--out`` says where to write."""
    is_pool = options.source.is_dir()
    if not is_pool and not options.source.is_file():
        raise ValueError(f"{options.source}: expected the folder of a pool or a rollouts.jsonl; got nothing")
    if options.out is not None and not is_pool:
        raise ValueError("expected --out for a pool only; a rollout log is a record of its run and stays as it is")
    stored = read_pool(options.source) if is_pool else read_rollouts(options.source)
    with _grader(options) as grader:
        regraded = regrade(stored, problems_from(options.problems, "gt_only"), grader)
    for line in summary(regraded):
        print(line)
    if options.out is not None:
        renewed_pool(regraded).save(options.out)
        print(f"wrote {options.out}")
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    """Download and verify."""
    for path in fetch(options.out):
        print(f"{path}: verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
