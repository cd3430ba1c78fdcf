"""SIGINT and SIGTERM: at once where nothing would be lost, else after the step that is under way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer

STOPPING = (signal.SIGINT, signal.SIGTERM)
SIGNALLED = 128
"""Exit code of a process that a signal ended, less the signal's number: 130 for SIGINT, 143 for SIGTERM."""


class Stopped(SystemExit):
    """A signal ended the run: exit code 128 + its number."""

    def __init__(self, number: int):
        super().__init__(SIGNALLED + number)
        self.number = number


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Let SIGINT and SIGTERM end what goes on here with :class:`Stopped`; only in a process' main thread."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        os.write(1, f"\n{signal.Signals(number).name}: stopped\n".encode())
        raise Stopped(number)

    before = _install(stop, STOPPING)
    try:
        yield
    finally:
        _restore(before)


class DeferredStop:
    """Note SIGINT and SIGTERM rather than obey; a SIGINT that comes after another signal ends the process at once.

    A job manager's signal that Lightning answers with a checkpoint and a requeued job (SLURM) is deferred in the same
    way: Lightning's answer to it is given when the step is over.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._before: dict[int, Any] = {}

    def install(self, trainer: Trainer) -> None:
        """Begin to defer; Lightning's own handlers are set aside until :meth:`restore`."""
        self._noted = None
        self._before = _install(self._note, (*STOPPING, *_requeue_signals(trainer)))

    def restore(self) -> None:
        """Put back the handlers that were there."""
        _restore(self._before)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted is None:
            self._noted = number
            name = signal.Signals(number).name
            os.write(1, f"\n{name}: stopping after this step, with a checkpoint; SIGINT: stop at once\n".encode())
        elif number == signal.SIGINT:
            os.write(2, b"\nstopped at once\n")
            os._exit(SIGNALLED + number)

    def asked(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop; all processes must ask together."""
        return bool(trainer.strategy.reduce_boolean_decision(self._noted is not None, all=False))

    def obey(self) -> NoReturn:
        """Give a job manager its answer, and stop.

        Raises:
            Stopped: always; of a process that got no signal itself with the number of SIGTERM.
        """
        number = self._noted if self._noted is not None else signal.SIGTERM
        answer = self._before.get(number)
        self.restore()
        if number not in STOPPING and callable(answer):
            answer(number, None)
        raise Stopped(number)


def _requeue_signals(trainer: Trainer) -> tuple[int, ...]:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return ()
    return (environment.requeue_signal or signal.SIGUSR1,)


def _install(handler: Callable[[int, FrameType | None], Any], numbers: tuple[int, ...]) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
