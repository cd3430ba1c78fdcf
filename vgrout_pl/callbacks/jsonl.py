"""Append-only JSON lines that survive a crash and a resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vgrout_pl.run_directory import append


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append one line a record: all of them or none.

    Raises:
        OSError: they could not be written; the file is as it was.
    """
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if text:
        append(path, text.encode())


def drop_from_step(path: Path, step: int) -> None:
    """Keep the records of earlier steps only: what a resumed run will write again goes, a torn last line too.

    Records stand in the order of their steps.

    Raises:
        ValueError: a whole line is no record of a step.
    """
    if not path.exists():
        return
    kept = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") or _step(line, path, number) >= step:
                break
            kept += len(line)
    if kept < path.stat().st_size:
        os.truncate(path, kept)


def _step(line: bytes, path: Path, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number}: expected a JSON object with a step; got {line[:60]!r}; restore the file, or move "
            "it away"
        ) from error
