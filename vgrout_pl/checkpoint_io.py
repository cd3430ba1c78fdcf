"""Checkpoint files: written whole or not at all, read without running code, checked before they are trusted."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, safe against a crash at any moment and against code inside them.

    A file is written beside its place, brought to the disk and renamed; the ``last.ckpt`` that was there becomes
    ``previous.ckpt``. Reading is ``torch.load(weights_only=True)``, whatever the caller asks for. Paths with a protocol
    (``s3://``) are written by Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write one file.

        Raises:
            OSError: it could not be written; what was there before is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            _write(checkpoint, partial)
            if path.name == LAST and path.exists():
                path.replace(path.with_name(PREVIOUS))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_directory(path.parent)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read one file; ``weights_only`` is true always."""
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


class _Sink:
    """A file for ``torch.save``, which turns the error of a failed write into one of its own: keeps the first."""

    def __init__(self, file: Any):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            sink = _Sink(file)
            try:
                torch.save(checkpoint, sink)  # type: ignore[arg-type]  # it writes and flushes
            except Exception:
                if sink.error is not None:
                    raise sink.error from None
                raise
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def defect(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in a few words; None for one that can be read.

    Every byte is checked against the checksums of the file; no tensor is kept and no code in it is run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"{damaged} in it is damaged"
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except UNREADABLE as error:
        return type(error).__name__
    if not isinstance(content, dict) or not {"state_dict", "global_step", "loops"} <= content.keys():
        return "it is another file of tensors"
    return None


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)


def checkpoints_in(directory: Path) -> list[Path]:
    """All checkpoints of a run, the one to resume from first: last, previous, then others from new to old."""
    first = [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]
    others = (path for path in directory.glob("*.ckpt") if path not in first)
    return first + sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint of a run that can be read; None where there is none at all.

    A broken one is passed over with one line of warning.

    Raises:
        ValueError: there are some, and none can be read.
    """
    found = checkpoints_in(directory)
    for path in found:
        problem = defect(path)
        if problem is None:
            return path
        _say(f"warning: {path} cannot be read ({problem}): trying the one before it")
    if found:
        raise ValueError(
            f"ckpt_path: expected a checkpoint that can be read in {directory}; got {len(found)} broken; restore one "
            "from a copy, or start anew with --overwrite true"
        )
    return None


def set_aside_later(directory: Path, step: int) -> None:
    """Rename the checkpoints of later steps, and those that cannot be read, to ``<name>.abandoned``.

    A run that goes on from ``step`` takes another way from there: a crash before its next checkpoint must not lead it
    back to them.
    """
    for path in checkpoints_in(directory):
        try:
            later = torch.load(path, map_location="meta", weights_only=True, mmap=True)["global_step"] > step
        except UNREADABLE:
            later = True
        if later:
            print(f"{path} is set aside: the run goes on from step {step}", flush=True)
            path.replace(path.with_name(f"{path.name}.abandoned"))


def chosen_checkpoint(given: str | None, directory: Path, *, required: bool) -> Path | None:
    """The checkpoint that ``ckpt_path`` means.

    Args:
        given: a path; ``last``: the newest of ``directory`` that can be read; None: the same where one is required,
            else none.
        directory: the checkpoints of the run.
        required: whether there must be one (evaluation), or training may start without.

    Raises:
        ValueError: the given path does not exist or is broken, or there is none where one is required.
    """
    if given is not None and given != "last":
        path = Path(given)
        if not path.is_file():
            raise ValueError(f"ckpt_path: expected an existing checkpoint, or last; got {given}; check the path")
        problem = defect(path)
        if problem is not None:
            raise ValueError(
                f"ckpt_path: expected a checkpoint of this package; could not read {given} ({problem}); give another, "
                "or start anew"
            )
        return path
    if given is None and not required:
        return None
    newest = last_checkpoint(directory)
    if newest is None and required:
        raise ValueError(f"ckpt_path: expected a checkpoint in {directory}; found none; give --ckpt_path")
    if newest is None:
        _say(f"no checkpoint in {directory} yet: starting from the first step")
    return newest
