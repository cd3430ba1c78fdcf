"""``python -m vgrout_pl.sweep SPEC``: many arms x seeds, each a run of its own, resumable, and the table over them.

A specification is YAML::

    configs: [configs/demo.yaml]                  # of every run, in this order
    set: {data.test_seed: 1}                      # keys of every run
    seeds: [0, 1, 2, 3, 4]
    arms:                                         # name -> what this arm adds
      none: {configs: [configs/router/none.yaml]}
      shrinkage:
        configs: [configs/router/shrinkage.yaml]
        set: {router.init_args.share: null, router.init_args.matched: "{root}/none/seed{seed}"}
        after: [none]                             # arms whose run of the same seed has to be finished first

``{root}`` and ``{seed}`` in values are filled in. Paths are relative to the folder the command is run in.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml
from tqdm import tqdm

from vgrout_pl.report.files import write_atomically
from vgrout_pl.report.sweep import Sweep
from vgrout_pl.run_directory import REPORT_FILE


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        configs: files that go after those of the sweep.
        keys: settings that go after those of the sweep.
        after: arms whose run of the same seed comes first.
    """

    configs: tuple[str, ...] = ()
    keys: Mapping[str, Any] | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Specification:
    """What a sweep runs: ``arms`` x ``seeds``, each with ``configs`` and ``keys``."""

    configs: tuple[str, ...]
    keys: Mapping[str, Any]
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]

    @classmethod
    def load(cls, path: Path) -> Specification:
        """Read and check a specification.

        Raises:
            ValueError: not such a file; one line with the key, what was expected and what came.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: expected the YAML file of a sweep; {' '.join(str(error).split())}") from error
        try:
            return cls._checked(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _checked(cls, data: object) -> Specification:
        top = _mapping("the file", data, {"configs", "set", "seeds", "arms"})
        seeds = top.get("seeds", [0])
        if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
            raise ValueError(f"seeds: expected a list of whole numbers; got {seeds!r}")
        arms = {}
        for name, given in _mapping("arms", top.get("arms"), None).items():
            arm = _mapping(f"arms.{name}", given or {}, {"configs", "set", "after"})
            after = _names(f"arms.{name}.after", arm.get("after", []))
            late = [other for other in after if other not in arms]
            if late:
                raise ValueError(f"arms.{name}.after: expected arms that stand above it; got {', '.join(late)}")
            keys = _mapping(f"arms.{name}.set", arm.get("set") or {}, None)
            arms[str(name)] = Arm(_files(f"arms.{name}.configs", arm.get("configs", [])), keys, after)
        if not arms:
            raise ValueError("arms: expected at least one; got none")
        return cls(
            _files("configs", top.get("configs", [])), _mapping("set", top.get("set") or {}, None), tuple(seeds), arms
        )

    def command(self, arm: str, seed: int, root: Path) -> list[str]:
        """Return the command line of one run, after ``python``; a finished part of it is not run again."""
        chosen = self.arms[arm]
        command = ["-m", "vgrout_pl", "fit"]
        for config in (*self.configs, *chosen.configs):
            command += ["--config", config]
        for key, value in {**self.keys, **(chosen.keys or {})}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command.append(f"--{key}={text.replace('{root}', str(root)).replace('{seed}', str(seed))}")
        command += [f"--name={arm}", f"--seed_everything={seed}", f"--trainer.default_root_dir={root}"]
        return [*command, "--ckpt_path=last"]


def _mapping(name: str, value: object, allowed: set[str] | None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping; got {value!r}")
    unknown = set() if allowed is None else set(value) - allowed
    if unknown:
        raise ValueError(f"{name}: expected the keys {', '.join(sorted(allowed or ()))}; got {sorted(unknown)[0]!r}")
    return value


def _names(name: str, value: object) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError(f"{name}: expected a list of names; got {value!r}")
    return tuple(value)


def _files(name: str, value: object) -> tuple[str, ...]:
    files = _names(name, value)
    absent = [file for file in files if not Path(file).is_file()]
    if absent:
        raise ValueError(f"{name}: expected files; there is no {absent[0]} below {Path.cwd()}")
    return files


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
        """One run, once those before it are there; True where it ended well."""
        if not all(future.result() for future in first) or self.stop.is_set():
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


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 if every run of the sweep is finished."""
    parser = argparse.ArgumentParser(
        prog="python -m vgrout_pl.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="YAML file of the sweep")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a file that every run takes after those of the sweep and before its arm's; may be given several times",
    )
    parser.add_argument("--root", type=Path, help="folder of the run directories; default: runs/<name of the file>")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="these instead of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--gpus", help="devices to deal out, one a run, for example 0,1,2,3; sets --jobs")
    parser.add_argument("--known", type=Path, metavar="CSV", help="table whose runs are finished elsewhere: left out")
    parser.add_argument("--csv", type=Path, metavar="CSV", help="write every cell of every run there, --known included")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; run nothing")
    options = parser.parse_args(args)
    try:
        return sweep(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def sweep(options: argparse.Namespace) -> int:
    """Run what is missing, then print the table over everything that is there."""
    spec = Specification.load(options.spec)
    spec = replace(spec, configs=(*spec.configs, *_files("--config", options.config)))
    root = options.root or Path("runs") / options.spec.stem
    gpus = options.gpus.split(",") if options.gpus else []
    unknown = [arm for arm in options.arms or () if arm not in spec.arms]
    if unknown:
        raise ValueError(f"--arms: expected some of {', '.join(spec.arms)}; got {unknown[0]}")
    if options.jobs < 1:
        raise ValueError(f"--jobs: expected at least 1; got {options.jobs}")
    known = Sweep.load(options.known) if options.known else None
    elsewhere = {(arm, seed) for arm, seed, _ in known.finished} if known else set()
    seeds = options.seeds or spec.seeds
    wanted = [(arm, seed) for seed in seeds for arm in options.arms or spec.arms]
    missing = [run for run in wanted if run not in elsewhere and not is_finished(root, *run)]
    if options.dry_run:
        for arm, seed in missing:
            print("python", shlex.join(spec.command(arm, seed, root)))
        return 0
    failed = Runner(spec, root, len(gpus) or options.jobs, gpus).run(missing)
    table = Sweep.load(root) if root.is_dir() else Sweep((), ())
    table = table if known is None else known.joined(table)
    print(table.text())
    if options.csv:
        write_atomically(options.csv, table.csv())
    if options.markdown:
        write_atomically(options.markdown, table.markdown() + "\n")
    for arm, seed in failed:
        print(f"error: {arm}/seed{seed} did not finish: {_last_line(root / arm / f'seed{seed}.log')}", file=sys.stderr)
    return 1 if failed else 0


def is_finished(root: Path, arm: str, seed: int) -> bool:
    """Whether a run has written its report, which it does last."""
    return (root / arm / f"seed{seed}" / REPORT_FILE).exists()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "nothing was logged; an arm before it failed")


if __name__ == "__main__":
    sys.exit(main())
