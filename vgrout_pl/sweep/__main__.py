"""``python -m vgrout_pl.sweep SPEC``: run what is not finished of a sweep, then print the table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vgrout_pl.report.files import write_atomically
from vgrout_pl.report.results import MIXED
from vgrout_pl.report.sweep import Sweep
from vgrout_pl.sweep import specification
from vgrout_pl.sweep.runner import Runner, is_finished, last_line
from vgrout_pl.sweep.specification import Specification, existing_files


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 if every run of the sweep is finished."""
    parser = argparse.ArgumentParser(
        prog="python -m vgrout_pl.sweep",
        description="Run the arms x seeds of a file that are not finished, each in its own process; print the table."
        f"\nCalled again, it goes on where it was stopped.\n\n{specification.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", type=Path, help="YAML file of the sweep")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a file that every run takes after those of the sweep and before its arm's; may be given several times",
    )
    parser.add_argument(
        "--root", type=Path, help="folder of the run directories; default: runs/<names of SPEC and --config>"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="these instead of the file's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--gpus", help="devices to deal out, one a run, for example 0,1,2,3; sets --jobs")
    parser.add_argument(
        "--known",
        type=Path,
        metavar="CSV",
        help="table whose runs are finished elsewhere: left out; of their setting, only the modes are compared",
    )
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
    spec = replace(spec, configs=(*spec.configs, *existing_files("--config", options.config)))
    root = options.root or Path("runs") / "-".join(Path(file).stem for file in (options.spec, *options.config))
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
    if known is not None:
        _check_known(options.known, known, spec, missing, root)
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
        print(f"error: {arm}/seed{seed} did not finish: {last_line(root / arm / f'seed{seed}.log')}", file=sys.stderr)
    return 1 if failed else 0


def _check_known(path: Path, known: Sweep, spec: Specification, missing: Sequence[tuple[str, int]], root: Path) -> None:
    """Raise ValueError where the table's runs are of other modes, or a run would wait for one that is only there."""
    for arm, seed, results in known.finished:
        wanted = spec.evaluated_modes(arm) if arm in spec.arms else None
        there = {cell.mode for cell in results.cells if cell.markers == "training"}
        if wanted and there and MIXED not in there and there != wanted:
            raise ValueError(
                f"--known: expected runs of this sweep's setting; {path} has {arm} of seed {seed} in the modes "
                f"{', '.join(sorted(there))}, this sweep evaluates it in {', '.join(sorted(wanted))}; give the table "
                "of this setting, or leave out --known"
            )
    elsewhere = {(arm, seed) for arm, seed, _ in known.finished}
    for arm, seed in missing:
        for other in spec.arms[arm].after:
            if (other, seed) in elsewhere and not is_finished(root, other, seed):
                raise ValueError(
                    f"--known: expected runs that others read to be in this root; {arm} of seed {seed} comes after "
                    f"{other} of seed {seed}, which {path} has and {root} has not; finish that one there first "
                    f"(--arms {other} --seeds {seed} without --known), or leave {arm} out of --arms"
                )


if __name__ == "__main__":
    sys.exit(main())
