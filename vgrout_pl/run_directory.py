"""The directory of a run: what is in it, when it may be written to, and how lines are added to its files."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

RESULTS_FILE = "eval.json"
METRICS_FILE = "metrics.csv"
BLOCKS_FILE = "blocks.jsonl"
REPORT_FILE = "report.md"
CHANGES_FILE = "changes.jsonl"
CONFIG_FILE = "config.yaml"
GUARD_FILE = "guard.json"
WRITTEN = (
    METRICS_FILE,
    "rollouts.jsonl",
    "self_generated_pairs.md",
    BLOCKS_FILE,
    RESULTS_FILE,
    REPORT_FILE,
    CHANGES_FILE,
    CONFIG_FILE,
    GUARD_FILE,
)
PARSERS_WORDS = "Does not validate against any of the Union subtypes"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_taken(run_dir: Path, ckpt_path: str | None, overwrite: bool) -> None:
    """Raise unless a run may be written to ``run_dir``.

    Raises:
        ValueError: it cannot be written to; it holds a finished run (its report is written last), or an unfinished one
            that is not being resumed; or it shall be both resumed and written over.
    """
    if overwrite and ckpt_path is not None:
        raise ValueError(
            f"overwrite: expected false beside a ckpt_path; got true and {ckpt_path}; a run is resumed or started anew"
        )
    _refuse_unwritable(run_dir)
    if overwrite:
        return
    evaluated, reported = (run_dir / RESULTS_FILE).exists(), (run_dir / REPORT_FILE).exists()
    if evaluated and (reported or ckpt_path is None):
        raise ValueError(
            f"run directory: expected an unused one; {run_dir} holds a finished run; give another --name or "
            "--seed_everything, or --overwrite true"
        )
    if ckpt_path is None and (run_dir / METRICS_FILE).exists():
        raise ValueError(
            f"run directory: expected an unused one; {run_dir} holds an unfinished run; resume it with "
            "--ckpt_path last, give another --name or --seed_everything, or start anew with --overwrite true"
        )


def _refuse_unwritable(run_dir: Path) -> None:
    """Ask the nearest directory that exists, so that a refusal leaves no trace."""
    nearest = next(path for path in (run_dir, *run_dir.absolute().parents) if os.path.lexists(path))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        kind = "may not be written to" if nearest.is_dir() else "is no directory"
        raise ValueError(
            f"run directory: expected one that can be written; {nearest} {kind}; give another "
            "--trainer.default_root_dir"
        )


def clear_run(run_dir: Path) -> None:
    """Remove what an earlier run wrote to ``run_dir``; nothing else in it is touched."""
    for name in WRITTEN:
        (run_dir / name).unlink(missing_ok=True)
    for name in ("checkpoints", "deployed", "plots", "self_generated_pairs"):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to a file, all of it or nothing; it is on the disk when this returns.

    Raises:
        OSError: it could not be written; the file is as it was.
    """
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from error
        except BaseException:
            file.truncate(before)
            raise


def told(error: Exception) -> str:
    """Say in one line what went wrong; where no room was left, what to do.

    What a class of the configuration says of its own arguments comes wrapped in its parser's words and all the
    arguments, once for each level: its own words are told.
    """
    while str(error).startswith(PARSERS_WORDS) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(str(error).split())
    if not (isinstance(error, OSError) and error.errno in FULL) and os.strerror(errno.ENOSPC) not in text:
        return text
    return (
        f"disk: expected room to write; got {text}; finished steps up to the last checkpoint are safe: make room, then "
        "resume with --ckpt_path last"
    )
