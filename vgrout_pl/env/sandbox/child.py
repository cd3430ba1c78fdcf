"""One running answer, as the fork-server sees it: from the fork to the end of its last descendant."""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass

from .cleanup import end_tree
from .isolation import Limits

CHUNK = 1 << 18
FIRST_TICK, TICK = 0.005, 0.05


@dataclass
class Observed:
    """What the server saw of one child."""

    status: int = -1
    stopped: str | None = None
    phrase: bool = False
    file: str | None = None
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    leftovers: bool = False


class Child:
    """One running answer: its two pipes are drained, its clocks watched, its whole tree ended."""

    first_of_pids = False

    def __init__(
        self, pid: int, out: int, text: int, records: memoryview, phrase: bytes | None, limits: Limits, request: int
    ) -> None:
        self._pid, self._out, self._text = pid, out, text
        self._phrase, self._limits, self._request = phrase, limits, request
        self._records, self._used = records, 0
        self._tail = b""
        self._observed = Observed()
        self._progress = 0.0, time.monotonic()

    def see_to_the_end(self, started: float) -> tuple[Observed, memoryview]:
        """Wait for the main process or for a limit, end the tree, and return what was seen and what was sent."""
        observed = self._observed
        descriptor = _process_descriptor(self._pid)
        poller = select.poll()
        if descriptor is not None:
            poller.register(descriptor, select.POLLIN)
        poller.register(self._request, 0)
        poller.poll(FIRST_TICK * 1000)  # most answers end so soon that their pipes need no draining
        running = not self._ended()
        poller.register(self._out, select.POLLIN)
        poller.register(self._text, select.POLLIN)
        while running:
            events = dict(poller.poll(1000 * (TICK if descriptor is not None else FIRST_TICK)))
            for pipe in (self._out, self._text):
                if pipe in events and not self._drain(pipe):
                    poller.unregister(pipe)
            running = not self._ended()
            observed.stopped = self._exceeded(started) if running else None
            if self._request in events or observed.stopped:
                break
        if descriptor is not None:
            os.close(descriptor)
        observed.status, observed.cpu_seconds = end_tree(self._pid, self.first_of_pids)
        for pipe in (self._out, self._text):
            os.set_blocking(pipe, False)
            while self._drain(pipe):
                pass
            os.close(pipe)
        observed.wall_seconds = time.monotonic() - started
        return observed, self._records[: self._used]

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _exceeded(self, started: float) -> str | None:
        if self._used == len(self._records):
            return "records"
        now = time.monotonic()
        if now - started > self._limits.wall_seconds:
            return "wall"
        try:
            cpu = time.clock_gettime((~self._pid << 3) | 2)  # the CPU clock of another process, clock_getcpuclockid(3)
        except OSError:
            return None
        if cpu > self._progress[0]:
            self._progress = cpu, now
        elif now - self._progress[1] > self._limits.idle_seconds:
            return "idle"
        return "cpu" if cpu > self._limits.cpu_seconds else None

    def _drain(self, pipe: int) -> bool:
        """Read one chunk; False at the end of the pipe, or when it has nothing more for now."""
        try:
            if pipe == self._out and self._used < len(self._records):
                count = os.readv(pipe, [self._records[self._used :]])
                self._used += count
                return count > 0
            data = os.read(pipe, CHUNK)
        except BlockingIOError:
            return False
        if pipe == self._text and self._phrase is not None and not self._observed.phrase:
            window = self._tail + data
            self._observed.phrase = self._phrase in window
            self._tail = window[-len(self._phrase) :]
        return bool(data)


def _process_descriptor(pid: int) -> int | None:
    """A descriptor that becomes readable when a process ends; None where the kernel has none."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
