"""What several processes of one run tell each other, and what happens to the others when one of them dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from subprocess import Popen
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from vgrout_pl.adapters import adapter_state

T = TypeVar("T")
LOOK_EVERY = 0.2
"""Seconds between two looks at the other processes."""
STARTED_BY = os.getppid()
"""The process that started this one; asked for at once, since who has lost its parent is told of another."""
SAFE = "finished steps up to the last checkpoint are safe: resume with --ckpt_path last"


def gathered(value: T) -> list[T]:
    """One value a process, in the order of their ranks; a collective operation."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    parts: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts  # type: ignore[return-value]  # filled now


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place; a collective operation."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


@torch.no_grad()
def agree(policy: nn.Module, device: torch.device) -> None:
    """Give every process the first one's adapter: inits computed apart may differ in their last bits.

    Collective; tensors travel by way of ``device``, the one that the processes' group works on.
    """
    for tensor in adapter_state(policy).values():
        there = tensor.to(device)
        dist.broadcast(there, src=0)
        tensor.copy_(there)


class WatchOthers(Callback):
    """End this process with one line on stderr, and exit code 1, when another process of the run has been killed.

    A killed process says nothing, and those that wait for it may wait until a time limit of the network. One that ends
    by itself has said why. Only where Lightning started the processes: other launchers do this themselves.
    """

    def __init__(self) -> None:
        self._over = threading.Event()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to look; nothing where there is one process."""
        strategy, self._over = trainer.strategy, threading.Event()
        if not isinstance(getattr(strategy, "cluster_environment", None), LightningEnvironment):
            return
        children = list(getattr(strategy.launcher, "procs", []))
        look = _child_lost(children) if trainer.local_rank == 0 else _parent_lost
        if children or trainer.local_rank > 0:
            threading.Thread(target=self._look, args=(look, children, self._over), daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look no more: from here on processes may end."""
        self._over.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look no more where this process ends by itself; go on where it has lost another and does not know why."""
        if not is_lost_connection(exception):
            self._over.set()

    @staticmethod
    def _look(look: Callable[[], str | None], children: Sequence[Popen], over: threading.Event) -> None:
        while (lost := look()) is None:
            if over.wait(LOOK_EVERY):
                return
        sys.stderr.write(f"error: {lost}; the other processes are stopped; {SAFE}\n")
        sys.stderr.flush()
        for child in children:
            child.kill()
        os._exit(1)


def _child_lost(children: Sequence[Popen]) -> Callable[[], str | None]:
    def look() -> str | None:
        lost = [(rank, -code) for rank, child in enumerate(children, start=1) if (code := child.poll() or 0) < 0]
        return f"process {lost[0][0]} of this run was killed by {signal.Signals(lost[0][1]).name}" if lost else None

    return look


def _parent_lost() -> str | None:
    return None if os.getppid() == STARTED_BY else "process 0 of this run has ended"


def first_process_fails_too(seconds: float = 3.0) -> bool:
    """Whether the process that started this one ends within a time, or has: a mistake of the user's is told once."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and os.getppid() == STARTED_BY:
        time.sleep(LOOK_EVERY)
    return os.getppid() != STARTED_BY


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached any more."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))
