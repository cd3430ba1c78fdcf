"""The grader: hands answers to fork-servers and judges what comes back."""

from __future__ import annotations

import logging
import os
import secrets
import select
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from vgrout_pl.env.asserts import Tests
from vgrout_pl.env.evidence import Evidence, weigh
from vgrout_pl.env.grade import Grade, judge
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.prepare import completed, parse_problem
from vgrout_pl.env.problem import Problem
from vgrout_pl.env.sandbox.isolation import TIERS, Limits
from vgrout_pl.env.worker import Worker, WorkerDiedError

log = logging.getLogger("vgrout_pl.env")
IN_FLIGHT = 2
MAX_PREPARED = 2048
MAX_RESPONSE = 4 << 20
GRACE_SECONDS = 15.0
ATTEMPTS = 2
WALLS = frozenset({"namespaces", "uid", "landlock", "syscall_filter"})
MIN_ERRORS = 5


class GraderError(RuntimeError):
    """The grader fails on too large a share of the answers, or the machine cannot isolate as asked for."""


@dataclass
class _Job:
    """One run to be made."""

    place: int
    tests: Tests
    response: bytes | None
    mode: str
    marker: str | None
    attempts: int = 0
    token: bytes = b""
    deadline: float = 0.0


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
        self._avoid = tuple(avoid)
        self.limits = limits if limits is not None else Limits()
        self.graded = 0
        self.errors = 0
        self._count, self._strict, self._max_error_share = workers, strict, max_error_share
        self._workers: list[Worker] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._prepared: OrderedDict[Tests, Tests | str] = OrderedDict()
        self._working_setups: set[str] = set()
        self._finalizer = weakref.finalize(self, _close_all, self._workers, self._owner)

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; a later grade starts them again."""
        with self._lock:
            _close_all(self._workers, self._owner)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The fork-servers that run now."""
        return tuple(self._workers)

    @property
    def isolation(self) -> dict[str, Any]:
        """Report of the walls around the answers, with their ``tier``; starts a fork-server if none is there."""
        with self._lock:
            self._ensure_workers(1)
            return dict(self._workers[0].isolation)

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
                _close_all(self._workers, self._owner)
                raise
            while len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)
            self._account(grades)
        return grades

    def _graded(self, jobs: list[_Job]) -> list[Grade]:
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
        for job, evidence, observed in self._run(runnable):
            cpu = float(observed.get("cpu_seconds", 0.0))
            grades[job.place] = judge(evidence, job.mode, job.marker, cpu)
        return grades

    def _job(self, place: int, response: str | bytes, problem: Problem) -> _Job:
        text = response.decode("utf-8", "surrogateescape") if isinstance(response, bytes) else response
        if not isinstance(text, str):
            raise ValueError(f"expected a completion as text; got {type(response).__name__}")
        data = text.encode("utf-8", "surrogatepass") if len(text) <= MAX_RESPONSE else None
        return _Job(place, parse_problem(problem), data, problem.mode, problem.lever)

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
        jobs = [_Job(place, program, None, "gt_only", None) for place, program in enumerate(pristine)]
        for job, evidence, _ in self._run(jobs):
            ready = self._prepared[fresh[job.place]] = completed(fresh[job.place], evidence)
            if isinstance(ready, Tests):
                self._working_setups.add(ready.setup)

    def _run(self, jobs: list[_Job]) -> Iterable[tuple[_Job, Evidence, dict[str, Any]]]:
        """Run jobs on all workers; a job whose fork-server dies is tried once more, alone, on a fresh one."""
        waiting = deque(jobs)
        flights: dict[int, deque[_Job]] = {}
        results: list[tuple[_Job, Evidence, dict[str, Any]]] = []
        if jobs:
            self._ensure_workers(min(self._count, len(jobs)))
        while waiting or any(flights.values()):
            for slot, worker in enumerate(self._workers):
                flight = flights.setdefault(slot, deque())
                try:
                    self._launch(worker, flight, waiting)
                except WorkerDiedError as error:
                    results += self._replace(slot, flight, waiting, str(error))
            results += self._collect(flights, waiting)
        return results

    def _launch(self, worker: Worker, flight: deque[_Job], waiting: deque[_Job]) -> None:
        """Keep a few requests in flight, and one alone where it has already seen a server die."""
        while waiting and len(flight) < IN_FLIGHT:
            if flight and (flight[0].attempts > 0 or waiting[0].attempts > 0):
                return
            job = waiting.popleft()
            job.token = secrets.token_bytes(8)
            if not flight:
                job.deadline = time.monotonic() + self.limits.wall_seconds + GRACE_SECONDS
            flight.append(job)
            worker.run(job.tests, job.response, job.mode, job.marker, job.token)

    def _collect(
        self, flights: dict[int, deque[_Job]], waiting: deque[_Job]
    ) -> list[tuple[_Job, Evidence, dict[str, Any]]]:
        """Wait until a worker has something to say or is overdue, and take its replies."""
        results: list[tuple[_Job, Evidence, dict[str, Any]]] = []
        busy = [(slot, self._workers[slot]) for slot, flight in flights.items() if flight]
        if not busy:
            return results
        now = time.monotonic()
        timeout = max(0.0, min(flights[slot][0].deadline for slot, _ in busy) - now)
        writers = [worker.fileno()[1] for _, worker in busy if worker.wants_to_write]
        readable, writable, _ = _wait([worker.fileno()[0] for _, worker in busy], writers, timeout)
        for slot, worker in busy:
            flight = flights[slot]
            try:
                if worker.fileno()[1] in writable:
                    worker.pump_out()
                if worker.fileno()[0] in readable:
                    for observed, records in worker.pump_in():
                        job = flight.popleft()
                        pristine = job.response is None
                        evidence = weigh(observed, records, job.token, job.tests.checks, pristine)
                        results.append((job, evidence, observed))
                        if flight:
                            flight[0].deadline = time.monotonic() + self.limits.wall_seconds + GRACE_SECONDS
                elif time.monotonic() > flight[0].deadline:
                    raise WorkerDiedError("the fork-server did not answer in time")
            except (WorkerDiedError, LookupError, TypeError, ValueError) as error:
                results += self._replace(slot, flight, waiting, str(error))
        return results

    def _replace(
        self, slot: int, flight: deque[_Job], waiting: deque[_Job], reason: str
    ) -> list[tuple[_Job, Evidence, dict[str, Any]]]:
        """Start a fresh fork-server in a slot; jobs in flight go back, the first one unless it has had its chances."""
        self._workers[slot].close(graceful=False)
        self._workers[slot] = self._started()
        results: list[tuple[_Job, Evidence, dict[str, Any]]] = []
        if flight:
            flight[0].attempts += 1
            if flight[0].attempts >= ATTEMPTS:
                guilty = self._workers[slot].isolation["tier"] == "limits"  # there an answer can end its own server
                verdict = Evidence(stopped="server") if guilty else Evidence(error=reason)
                results.append((flight.popleft(), verdict, {}))
        waiting.extendleft(reversed(flight))
        flight.clear()
        return results

    def _ensure_workers(self, count: int) -> None:
        if self._owner != os.getpid():  # a forked copy of this process must leave the original's servers alone
            self._owner = os.getpid()
            self._workers = []
            self._finalizer.detach()
            self._finalizer = weakref.finalize(self, _close_all, self._workers, self._owner)
        while len(self._workers) < count:
            self._workers.append(self._started())

    def _started(self) -> Worker:
        if sys.platform != "linux":
            raise GraderError(f"expected Linux, which the sandbox is made for; got {sys.platform}")
        try:
            worker = Worker(self.limits, self._avoid)
        except (WorkerDiedError, OSError) as error:
            raise GraderError(f"expected a fork-server to start; got: {error}") from error
        tier = worker.isolation["tier"]
        if TIERS.index(tier) < TIERS.index(self._strict):
            worker.close()
            raise GraderError(
                f"expected isolation of tier {self._strict!r}; this machine offers {tier!r}: "
                f"{worker.isolation['refused']}"
            )
        if not self._workers:
            level = logging.INFO if TIERS.index(tier) >= TIERS.index("confined") else logging.WARNING
            log.log(level, "answers are isolated by tier %r: %s", tier, worker.isolation)
        return worker

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


def _wait(readers: list[int], writers: list[int], timeout: float) -> tuple[set[int], set[int], None]:
    poller = select.poll()
    for descriptor in readers:
        poller.register(descriptor, select.POLLIN)
    for descriptor in writers:
        poller.register(descriptor, select.POLLOUT)
    ready = {descriptor for descriptor, _ in poller.poll(timeout * 1000)}
    return ready & set(readers), ready & set(writers), None


def _close_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().close()
