"""Runs of a sweep as processes of their own, several at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

from vgrout_pl.run_directory import REPORT_FILE
from vgrout_pl.sweep.specification import Specification


class Runner:
    """Runs what is not finished, ``jobs`` at a time.

    Args:
        spec: the sweep.
        root: folder of its run directories.
        jobs: runs at a time.
        gpus: names of devices, dealt out one a run; empty: leave the choice to the runs.
    """

    def __init__(self, spec: Specification, root: Path, jobs: int, gpus: Sequence[str] = ()):
        self.spec, self.root, self.jobs = spec, root, jobs
        self.devices: SimpleQueue[str] = SimpleQueue()
        for gpu in gpus:
            self.devices.put(gpu)
        self.pinned = bool(gpus)
        self.stop = threading.Event()

    def run(self, chosen: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Run ``chosen`` (arm, seed) in this order; return those that failed. Ctrl-C ends the runs with checkpoints."""
        futures: dict[tuple[str, int], Future[bool]] = {}
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(chosen), unit="run", dynamic_ncols=True) as bar:
            try:
                for arm, seed in chosen:
                    first = [futures[(other, seed)] for other in self.spec.arms[arm].after if (other, seed) in futures]
                    futures[(arm, seed)] = pool.submit(self._one, arm, seed, first)
                    futures[(arm, seed)].add_done_callback(lambda _: bar.update())
                return [run for run, future in futures.items() if not future.result()]
            except KeyboardInterrupt:
                self.stop.set()
                raise

    def _one(self, arm: str, seed: int, first: Sequence[Future[bool]]) -> bool:
        """One run, once those before it are finished, be it by an earlier call; True where it ended well."""
        if not all(future.result() for future in first) or self.stop.is_set():
            return False
        if not all(is_finished(self.root, other, seed) for other in self.spec.arms[arm].after):
            return False
        directory = self.root / arm / f"seed{seed}"
        directory.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        device = self.devices.get() if self.pinned else None
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        try:
            with (directory.parent / f"seed{seed}.log").open("a", encoding="utf-8") as log:
                command = [sys.executable, *self.spec.command(arm, seed, self.root)]
                done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
        finally:
            if device is not None:
                self.devices.put(device)
        return done.returncode == 0


def is_finished(root: Path, arm: str, seed: int) -> bool:
    """Whether a run has written its report, which it does last."""
    return (root / arm / f"seed{seed}" / REPORT_FILE).exists()


def last_line(log: Path) -> str:
    """The last line of a run's log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next(
        (line for line in reversed(lines) if line.strip()), "nothing was logged; an arm before it is not finished"
    )
