"""Append-only JSON lines that survive a crash and a resume."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vgrout_pl.report.files import write_atomically


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append one line a record."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def drop_from_step(path: Path, step: int) -> None:
    """Keep the records of earlier steps only: what a resumed run will write again goes, a torn last line too.

    Raises:
        ValueError: a line before the last is no record.
    """
    if not path.exists():
        return
    kept = []
    *lines, _torn = path.read_text(encoding="utf-8").split("\n")
    for line in lines:
        if json.loads(line)["step"] < step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))
