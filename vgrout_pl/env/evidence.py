"""What the grader knows about one run of an answer, and the parsing of the records that the answer's process sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vgrout_pl.env.asserts import Check
from vgrout_pl.env.sandbox.canonical import DIGEST_SIZE
from vgrout_pl.env.sandbox.runner import EXITED, FINISHED, HEADER, OPAQUE, PARSED, PROBED, RAISED, SETUP_FAILED, VALUE


@dataclass(frozen=True)
class Evidence:
    """Facts about one run.

    Attributes:
        status: exit status of the answer's main process (None: ended by a signal).
        stopped: the limit that ended it ("cpu", "wall", "idle", "records"), if any; "server": its own fork-server.
        fenced: the completion holds a block that claims to be Python.
        compiles: at least one block compiles.
        returned: per call that came to an end, the payload of its value (b"": no plain value).
        equal: per test, whether its call returned the expected value.
        exited_at: where SystemExit with status 0 came up first: 0 the answer's own code, i the i-th call.
        phrase: the mode's phrase was seen on stdout.
        file: content of the mode's file.
        probe: JSON value of the mode's probe.
        expected: index of a test -> its expected value.
        error: why the run says nothing about the answer (the problem's own set-up code failed).
    """

    status: int | None = None
    stopped: str | None = None
    fenced: bool = False
    compiles: bool = False
    returned: Mapping[int, bytes] = field(default_factory=dict)
    equal: tuple[bool, ...] = ()
    exited_at: int | None = None
    phrase: bool = False
    file: str | None = None
    probe: Any = None
    expected: Callable[[int], Any] = field(default=lambda _: None, repr=False)
    error: str | None = None


def weigh(
    observed: Mapping[str, Any], records: bytes, token: bytes, checks: tuple[Check, ...], pristine: bool = False
) -> Evidence:
    """Join what the fork-server observed with what the process sent; records that break the protocol void all calls.

    Args:
        observed: the reply of the fork-server.
        records: bytes from the graded process, not trusted.
        token: the token that its records must carry.
        checks: the problem's tests.
        pristine: no answer ran, so that a failure of the set-up code can be believed.
    """
    code = observed["status"]
    status = (code >> 8) & 0xFF if code >= 0 and code & 0x7F == 0 else None
    facts = _read(records, token, len(checks))
    complete = facts.valid and status == FINISHED and observed["stopped"] is None
    payloads = facts.returned if facts.valid else {}
    equal = tuple([check.holds(payloads.get(i, b""), token) for i, check in enumerate(checks)])
    return Evidence(
        status=status,
        stopped=observed["stopped"],
        fenced=facts.fenced,
        compiles=facts.compiles,
        returned=facts.returned,
        equal=equal,
        exited_at=facts.exited_at,
        phrase=bool(observed["phrase"]),
        file=observed["file"],
        probe=facts.probe if complete else None,
        expected=lambda i: checks[i].expected(),
        error=facts.error if pristine else None,
    )


@dataclass
class _Facts:
    valid: bool = True
    fenced: bool = False
    compiles: bool = False
    returned: dict[int, bytes] = field(default_factory=dict)
    exited_at: int | None = None
    probe: Any = None
    error: str | None = None


def _read(records: bytes, token: bytes, calls: int) -> _Facts:
    """Read the records: the parse first, then one for each call in order, then the probe; anything else is invalid."""
    facts = _Facts()
    position, following, parsed, probed = 0, 1, False, False
    while position < len(records):
        if len(records) - position < HEADER.size:
            facts.valid = False
            break
        owner, kind, index, length = HEADER.unpack_from(records, position)
        position += HEADER.size
        payload = records[position : position + length]
        position += length
        if owner != token or len(payload) != length or (kind == PARSED) == parsed or probed:
            facts.valid = False
            break
        if kind == PARSED:
            parsed = True
            facts.fenced, facts.compiles = bool(payload[:1] == b"\1"), bool(payload[1:2] == b"\1")
        elif kind == SETUP_FAILED and following == 1:
            facts.error = payload.decode("utf-8", "replace")
            facts.valid = False
        elif kind == EXITED and index == 0:
            facts.exited_at = 0
        elif kind in (VALUE, OPAQUE, RAISED, EXITED) and index == following <= calls:
            facts.returned[index - 1] = payload if kind == VALUE and length == DIGEST_SIZE + 1 else b""
            following += 1
            if kind == EXITED and facts.exited_at is None:
                facts.exited_at = index
        elif kind == PROBED:
            probed = True
            facts.probe = _json(payload)
        else:
            facts.valid = False
            break
    return facts


def _json(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None
