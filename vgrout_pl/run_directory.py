"""The directory of a run: what is in it, and when it may be written to."""

from __future__ import annotations

import shutil
from pathlib import Path

RESULTS_FILE = "eval.json"
METRICS_FILE = "metrics.csv"
BLOCKS_FILE = "blocks.jsonl"


def last_checkpoint(directory: Path) -> Path | None:
    """The newest ``last*.ckpt`` of a directory, None where there is none."""
    found = sorted(directory.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def refuse_taken(run_dir: Path, ckpt_path: str | None, overwrite: bool) -> None:
    """Raise unless a run may be written to ``run_dir``.

    Raises:
        ValueError: it holds a finished run, or an unfinished one that is not being resumed; or it shall be both
            resumed and written over.
    """
    if overwrite and ckpt_path is not None:
        raise ValueError(
            f"overwrite: expected false beside a ckpt_path; got true and {ckpt_path}; a run is resumed or started anew"
        )
    if overwrite:
        return
    if (run_dir / RESULTS_FILE).exists():
        raise ValueError(
            f"run directory: expected an unused one; {run_dir} holds a finished run; give another --name or "
            "--seed_everything, or --overwrite true"
        )
    if ckpt_path is None and (run_dir / METRICS_FILE).exists():
        raise ValueError(
            f"run directory: expected an unused one; {run_dir} holds an unfinished run; resume it with "
            "--ckpt_path last, or start anew with --overwrite true"
        )


def clear_run(run_dir: Path) -> None:
    """Remove what an earlier run wrote to ``run_dir``; nothing else in it is touched."""
    for name in (METRICS_FILE, "rollouts.jsonl", BLOCKS_FILE, RESULTS_FILE, "report.md", "config.yaml", "hparams.yaml"):
        (run_dir / name).unlink(missing_ok=True)
    for name in ("checkpoints", "deployed", "plots"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
