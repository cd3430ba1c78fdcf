"""What the guard of a run found, read back from ``guard.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vgrout_pl.run_directory import GUARD_FILE


def load_guard(run_dir: Path) -> Mapping[str, Any] | None:
    """Read ``guard.json`` of a run directory; None where there is none.

    Raises:
        ValueError: the file is broken.
    """
    path = run_dir / GUARD_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from error
    if not isinstance(record, Mapping) or not {"stopped", "checkpoint", "findings"} <= record.keys():
        raise ValueError(f"{path}: expected an object with stopped, checkpoint and findings")
    return record


def guard_markdown(run_dir: Path) -> Iterator[str]:
    """Yield the report's section: why the run was stopped, and every warning; nothing where no rule acted."""
    record = load_guard(run_dir)
    if record is None or not record["findings"]:
        return
    yield "## Guard"
    stopped = record["stopped"]
    if stopped is not None:
        good = record["checkpoint"]
        kept = f"Last good checkpoint: `{good['path']}` (step {good['step']})." if good else "There is no checkpoint."
        advice = stopped["advice"][0].upper() + stopped["advice"][1:]
        yield f"**Stopped: {_sentence(stopped)}.** {kept} {advice}."
    warnings = [finding for finding in record["findings"] if finding["action"] == "warn"]
    if warnings:
        yield "\n".join(f"- Warning: {_sentence(finding)}; {finding['advice']}." for finding in warnings)


def _sentence(finding: Mapping[str, Any]) -> str:
    step, since = finding["step"], finding["since"]
    steps = f"at step {step}" if since == step else f"at steps {since} to {step}"
    return f"{finding['rule'].replace('_', ' ')} {steps}: {finding['happened']}"
