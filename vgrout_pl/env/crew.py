"""The fork-servers of a grader: started where they are missing, kept busy, replaced where they die."""

from __future__ import annotations

import logging
import os
import secrets
import select
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vgrout_pl.env.asserts import Tests
from vgrout_pl.env.evidence import Evidence, weigh
from vgrout_pl.env.sandbox.isolation import TIERS, Limits
from vgrout_pl.env.worker import Worker, WorkerDiedError

log = logging.getLogger("vgrout_pl.env")
IN_FLIGHT = 2
GRACE_SECONDS = 15.0
ATTEMPTS = 2


class GraderError(RuntimeError):
    """The grader fails on too large a share of the answers, or the machine cannot isolate as asked for."""


@dataclass
class Job:
    """One run to be made."""

    place: int
    tests: Tests
    response: bytes | None
    mode: str
    marker: str | None
    attempts: int = 0
    token: bytes = b""
    deadline: float = 0.0


class Crew:
    """Up to ``count`` fork-servers that run jobs; it ends them when it is dropped, or when its process ends."""

    def __init__(self, count: int, limits: Limits, strict: str, avoid: Sequence[str]) -> None:
        self._count, self._limits, self._strict, self._avoid = count, limits, strict, tuple(avoid)
        self._owner = os.getpid()
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _close_all, self._workers, self._owner)

    def close(self) -> None:
        """End all processes; a later run starts them again."""
        _close_all(self._workers, self._owner)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The fork-servers that run now."""
        return tuple(self._workers)

    def isolation(self) -> dict[str, Any]:
        """Report of the walls around the answers; starts a fork-server if none is there."""
        self._ensure_workers(1)
        return dict(self._workers[0].isolation)

    def run(self, jobs: list[Job]) -> Iterable[tuple[Job, Evidence, dict[str, Any]]]:
        """Run jobs on all workers; a job whose fork-server dies is tried once more, alone, on a fresh one."""
        waiting = deque(jobs)
        flights: dict[int, deque[Job]] = {}
        results: list[tuple[Job, Evidence, dict[str, Any]]] = []
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

    def _launch(self, worker: Worker, flight: deque[Job], waiting: deque[Job]) -> None:
        """Keep a few requests in flight, and one alone where it has already seen a server die."""
        while waiting and len(flight) < IN_FLIGHT:
            if flight and (flight[0].attempts > 0 or waiting[0].attempts > 0):
                return
            job = waiting.popleft()
            job.token = secrets.token_bytes(8)
            if not flight:
                job.deadline = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
            flight.append(job)
            worker.run(job.tests, job.response, job.mode, job.marker, job.token)

    def _collect(
        self, flights: dict[int, deque[Job]], waiting: deque[Job]
    ) -> list[tuple[Job, Evidence, dict[str, Any]]]:
        """Wait until a worker has something to say or is overdue, and take its replies."""
        results: list[tuple[Job, Evidence, dict[str, Any]]] = []
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
                            flight[0].deadline = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
                elif time.monotonic() > flight[0].deadline:
                    raise WorkerDiedError("the fork-server did not answer in time")
            except (WorkerDiedError, LookupError, TypeError, ValueError) as error:
                results += self._replace(slot, flight, waiting, str(error))
        return results

    def _replace(
        self, slot: int, flight: deque[Job], waiting: deque[Job], reason: str
    ) -> list[tuple[Job, Evidence, dict[str, Any]]]:
        """Start a fresh fork-server in a slot; jobs in flight go back, the first one unless it has had its chances."""
        self._workers[slot].close(graceful=False)
        self._workers[slot] = self._started()
        results: list[tuple[Job, Evidence, dict[str, Any]]] = []
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
            worker = Worker(self._limits, self._avoid)
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
