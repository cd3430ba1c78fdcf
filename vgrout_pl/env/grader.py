"""The grader: hands answers to fork-servers and judges what comes back."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from vgrout_pl.env.asserts import Tests
from vgrout_pl.env.crew import Crew, GraderError, Job
from vgrout_pl.env.grade import Grade, judge
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.prepare import completed, parse_problem
from vgrout_pl.env.problem import Problem
from vgrout_pl.env.sandbox.isolation import TIERS, Limits
from vgrout_pl.env.worker import Worker

log = logging.getLogger("vgrout_pl.env")
MAX_PREPARED = 2048
MAX_RESPONSE = 4 << 20
WALLS = frozenset({"namespaces", "uid", "landlock", "syscall_filter"})
MIN_ERRORS = 5


class Grader:
    """Grades answers in parallel, each in a process tree of its own; verdicts are made here, outside of it.

    The child processes see the calls of the tests and never an expected value. What separates them from the machine
    depends on the machine and is found at run time: see :attr:`isolation`. Not covered: the sum of the memory of
    several processes of one answer, side channels of the hardware, bugs of the kernel; and below the tier
    ``confined`` also reading world-readable files and reaching the network. ``correct`` cannot be forged; evidence of
    an exploit that only the answer's process can give (run_tests, sentinel, eq_override) could be claimed by an answer
    that searches its interpreter for the private channel, which is an exploit too.

    Processes start with the first grade. Use it as a context manager, or call :meth:`close`; a grader that is
    dropped, or whose process ends, closes itself.

    Args:
        workers: number of fork-servers, at least 1.
        limits: budgets of one answer.
        strict: the lowest acceptable tier, one of "limits", "uid", "confined", "namespaces"; starting below it is an
            error.
        avoid: walls not to raise, out of "namespaces", "uid", "landlock", "syscall_filter"; for machines where one
            of them misbehaves.
        max_error_share: share of answers that the grader itself may fail to judge before it raises GraderError.
    """

    def __init__(
        self,
        workers: int = 2,
        limits: Limits | None = None,
        strict: str = "limits",
        max_error_share: float = 0.05,
        avoid: Sequence[str] = (),
    ) -> None:
        if workers < 1:
            raise ValueError(f"expected workers >= 1; got {workers}")
        if strict not in TIERS:
            raise ValueError(f"expected strict out of {', '.join(TIERS)}; got {strict!r}")
        if not 0.0 <= max_error_share <= 1.0:
            raise ValueError(f"expected max_error_share in [0, 1]; got {max_error_share}")
        if unknown := set(avoid) - WALLS:
            raise ValueError(f"expected avoid out of {', '.join(sorted(WALLS))}; got {', '.join(sorted(unknown))}")
        self.limits = limits if limits is not None else Limits()
        self.graded = 0
        self.errors = 0
        self._max_error_share = max_error_share
        self._crew = Crew(workers, self.limits, strict, avoid)
        self._lock = threading.Lock()
        self._prepared: OrderedDict[Tests, Tests | str] = OrderedDict()
        self._working_setups: set[str] = set()

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; a later grade starts them again."""
        with self._lock:
            self._crew.close()

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The fork-servers that run now."""
        return self._crew.workers

    @property
    def isolation(self) -> dict[str, Any]:
        """Report of the walls around the answers, with their ``tier``; starts a fork-server if none is there."""
        with self._lock:
            return self._crew.isolation()

    def grade(self, response: str | bytes, problem: Problem, mode: str | None = None) -> Grade:
        """Grade one answer; ``mode`` overrides the problem's own (with that mode's original marker)."""
        return self.grade_batch([(response, problem if mode is None else _regraded(problem, mode))])[0]

    def grade_batch(self, pairs: Iterable[tuple[str | bytes, Problem]]) -> list[Grade]:
        """Grade answers in parallel, in the order given.

        Raises:
            ValueError: a problem has no tests, or tests of a form that cannot be judged.
            GraderError: the share of answers that could not be judged is above ``max_error_share``.
        """
        with self._lock:
            jobs = [self._job(i, response, problem) for i, (response, problem) in enumerate(pairs)]
            try:
                grades = self._graded(jobs)
            except BaseException:  # requests may be in flight: their replies must not meet the next batch
                self._crew.close()
                raise
            while len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)
            self._account(grades)
        return grades

    def _graded(self, jobs: list[Job]) -> list[Grade]:
        self._prepare(job.tests for job in jobs)
        grades = [Grade()] * len(jobs)
        runnable = []
        for job in jobs:
            ready = self._prepared[job.tests]
            if isinstance(ready, str):
                grades[job.place] = Grade(error=ready)
            elif job.response is not None:
                job.tests = ready
                runnable.append(job)
        for job, evidence, observed in self._crew.run(runnable):
            cpu = float(observed.get("cpu_seconds", 0.0))
            grades[job.place] = judge(evidence, job.mode, job.marker, cpu)
        return grades

    def _job(self, place: int, response: str | bytes, problem: Problem) -> Job:
        text = response.decode("utf-8", "surrogateescape") if isinstance(response, bytes) else response
        if not isinstance(text, str):
            raise ValueError(f"expected a completion as text; got {type(response).__name__}")
        data = text.encode("utf-8", "surrogatepass") if len(text) <= MAX_RESPONSE else None
        return Job(place, parse_problem(problem), data, problem.mode, problem.lever)

    def _prepare(self, tests: Iterable[Tests]) -> None:
        """Run new set-up code without an answer, and evaluate expected values that are no literals."""
        fresh = []
        for t in dict.fromkeys(tests):
            if t in self._prepared:
                continue
            if t.pending or t.setup not in self._working_setups:
                fresh.append(t)
            else:
                self._prepared[t] = t
        pristine = [Tests(t.setup, tuple(t.checks[i].alone() for i in t.pending), (), t.imports) for t in fresh]
        jobs = [Job(place, program, None, "gt_only", None) for place, program in enumerate(pristine)]
        for job, evidence, _ in self._crew.run(jobs):
            ready = self._prepared[fresh[job.place]] = completed(fresh[job.place], evidence)
            if isinstance(ready, Tests):
                self._working_setups.add(ready.setup)

    def _account(self, grades: list[Grade]) -> None:
        self.graded += len(grades)
        failed = [grade for grade in grades if grade.error is not None]
        self.errors += len(failed)
        if failed:
            log.warning("%d of %d answers could not be judged, e.g.: %s", len(failed), len(grades), failed[0].error)
        if self.errors >= MIN_ERRORS and self.errors > self._max_error_share * self.graded:
            raise GraderError(
                f"expected at most {self._max_error_share:.0%} of the answers to fail in the grader itself; "
                f"got {self.errors} of {self.graded}, e.g.: {failed[0].error if failed else ''}"
            )


def _regraded(problem: Problem, mode: str) -> Problem:
    """The problem under another mode, its messages left out."""
    if mode not in MODES:
        raise ValueError(f"expected a mode out of {', '.join(MODES)}; got {mode!r}")
    return problem if mode == problem.mode else replace(problem, mode=mode, marker=None, messages=())
