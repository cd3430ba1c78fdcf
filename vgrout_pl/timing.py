"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Adds up wall and CPU seconds of named phases; a phase inside another is taken out of the outer one.

    CPU seconds are this process's own. On an accelerator a phase ends when its work is queued, not when it is done.

    Attributes:
        wall: phase -> seconds.
        cpu: phase -> CPU seconds.
    """

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._current: str | None = None
        self._since = (0.0, 0.0)

    def enter(self, phase: str | None) -> str | None:
        """End the present phase, begin another (None: none), and return the one that ended."""
        now = (time.perf_counter(), time.process_time())
        if self._current is not None:
            for totals, end, start in zip((self.wall, self.cpu), now, self._since, strict=True):
                totals[self._current] = totals.get(self._current, 0.0) + end - start
        ended, self._current, self._since = self._current, phase, now
        return ended

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block as phase ``name``, then go on with the phase around it."""
        outer = self.enter(name)
        try:
            yield
        finally:
            self.enter(outer)

    def clear(self) -> None:
        """Forget all phases."""
        self.wall, self.cpu, self._current = {}, {}, None
