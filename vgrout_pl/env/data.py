"""Reading problem sets in the public benchmark's format: JSON lines with prompt, asserts, set-up code and solution."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from vgrout_pl.env.modes import MODES
from vgrout_pl.env.prepare import parse_problem
from vgrout_pl.env.problem import Problem

PHRASE = MODES["gt_only"].hint(None)
_OPTIONAL_TEXT = ("setup_code", "func_name", "canonical_solution", "difficulty")


def load_problems(path: str | PathLike[str], mode: str = "run_tests") -> list[Problem]:
    """Read a JSONL problem set, with the hint of ``mode`` in place of the phrase "and should pass all tests".

    Raises:
        ValueError: unknown mode, missing file, or a malformed line; the message names file, line and field.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: expected a readable JSONL file of problems; got {error.strerror}") from None
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((f"{file}, line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: expected a JSON object; got {error}") from None
    if not rows:
        raise ValueError(f"{file}: expected at least one problem; got none")
    return problems_from_rows(rows, mode)


def problems_from_rows(rows: Iterable[tuple[str, Any]], mode: str = "run_tests") -> list[Problem]:
    """Make problems of (place, mapping) pairs; the place begins every error message.

    Raises:
        ValueError: as for :func:`load_problems`.
    """
    if mode not in MODES:
        raise ValueError(f"expected a mode out of {', '.join(MODES)}; got {mode!r}")
    problems: list[Problem] = []
    seen: dict[str | int, str] = {}
    for where, row in rows:
        problem = _problem(where, row, mode)
        if problem.id in seen:
            raise ValueError(f"{where}, field id: expected a new id; got {problem.id!r} as in {seen[problem.id]}")
        seen[problem.id] = where
        problems.append(problem)
    return problems


def _problem(where: str, row: Any, mode: str) -> Problem:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected a JSON object; got {type(row).__name__}")
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise ValueError(f"{where}, field id: expected a string or an integer; got {identity!r}")
    texts: dict[str, Any] = {}
    for name in _OPTIONAL_TEXT:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}, field {name}: expected a string; got {type(value).__name__}")
        texts[name] = value
    texts["setup_code"] = texts["setup_code"] or ""
    tests = row.get("gt_answer")
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"{where}, field gt_answer: expected a list of asserts, at least one; got {_kind(tests)}")
    problem = Problem(id=identity, tests=tests, mode="gt_only", messages=_messages(where, row), **texts)
    try:
        parse_problem(problem)
    except ValueError as error:
        raise ValueError(f"{where}, field gt_answer: {error}") from None
    try:
        return problem.with_mode(mode)
    except ValueError as error:
        raise ValueError(f"{where}, field prompt: {error}") from None


def _messages(where: str, row: Mapping[str, Any]) -> list[dict[str, str]]:
    prompt = row.get("prompt")
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"{where}, field prompt: expected a list of chat messages; got {_kind(prompt)}")
    messages = []
    for message in prompt:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"{where}, field prompt: expected messages with role and content; got {_kind(message)}")
        messages.append({"role": role, "content": content})
    count = sum(message["content"].count(PHRASE) for message in messages)
    if count != 1:
        raise ValueError(f"{where}, field prompt: expected the phrase {PHRASE!r} exactly once; found {count}")
    return messages


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
