"""Inside the graded process: run the answer, then the calls, and send one record for each.

Nothing here knows an expected value or decides anything. What the answer does to this process can only change what it
sends about itself.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import json
import os
import struct
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .canonical import NotPlain, digest, flattened, sealed
from .extract import Parsed, parse

FINISHED = 113
HEADER = struct.Struct("<8scII")
PARSED, VALUE, OPAQUE, RAISED, EXITED, PROBED, SETUP_FAILED = b"C", b"V", b"O", b"R", b"Z", b"P", b"F"
MODULE = -1
FLUSH_AT = 1 << 15
MAX_PROBE_BYTES = 1 << 20
RECURSION_LIMIT = 10_000


@dataclass
class Session:
    """What a mode's probe gets to see, after all calls.

    Attributes:
        namespace: globals of the answer.
        entries: what the tests call, as (class name or "", function name).
        values: returned objects that are not plain, by index of their call.
    """

    namespace: dict[str, Any]
    entries: tuple[tuple[str, str], ...]
    values: dict[int, object] = field(default_factory=dict)


Probe = Callable[[Session, str | None], object]


@dataclass(slots=True)
class Work:
    """One answer to run: everything is known to the fork-server before the fork."""

    main: types.ModuleType
    response: bytearray | None
    setup: types.CodeType
    calls: tuple[types.CodeType, ...]
    shapes: tuple[str, ...]
    entries: tuple[tuple[str, str], ...]
    marker: str | None
    probe: Probe | None
    keeps_order: bool
    keeps_values: bool


class Channel:
    """The private descriptor: framed records, each behind the token of this answer."""

    def __init__(self, descriptor: int, token: bytes, prompt: bool, seals: bool) -> None:
        self._descriptor, self._token, self._prompt, self._seals = descriptor, token, prompt, seals
        self._pending = bytearray()

    def send_value(self, index: int, value: object, shape: str) -> None:
        """Queue the sealed digest of a value, with one letter for what ``is True`` needs beyond equality."""
        kind = b"B" if type(value) is bool else b"."
        content = digest(flattened(value, shape) if shape else value)
        if self._seals:
            content = sealed(content, self._token)
        self.send(VALUE, index, content + kind)

    def send(self, kind: bytes, index: int = 0, payload: bytes = b"", *, flush: bool = False) -> None:
        """Queue a record, and write the queue where it is long or must survive the process."""
        self._pending += HEADER.pack(self._token, kind, index, len(payload)) + payload
        if flush or self._prompt or len(self._pending) > FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Write all queued records."""
        view = memoryview(bytes(self._pending))
        self._pending.clear()
        while view:
            view = view[os.write(self._descriptor, view) :]


def run(work: Work, descriptor: int, token: bytes) -> NoReturn:
    """Run one answer to the end of its process, whose exit status is FINISHED unless the answer ended it."""
    try:
        channel = Channel(descriptor, token, work.keeps_order, work.response is not None)
        parsed = (
            parse(work.response.decode("utf-8", "surrogatepass")) if work.response is not None else Parsed(True, ())
        )
        compiles = work.response is None or bool(parsed.codes)
        channel.send(PARSED, payload=bytes([parsed.fenced, compiles]), flush=True)
        if compiles:
            _run_answer(work, parsed, channel)
        channel.flush()
        _finish()
    finally:
        os._exit(FINISHED)


def _run_answer(work: Work, parsed: Parsed, channel: Channel) -> None:
    namespace = work.main.__dict__
    sys.modules["builtins"], sys.modules["__main__"] = namespace["__builtins__"], work.main
    sys.setrecursionlimit(RECURSION_LIMIT)
    try:
        exec(work.setup, namespace)
    except BaseException as error:
        channel.send(SETUP_FAILED, payload=f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
        return
    session = Session(namespace, work.entries)
    for code in parsed.codes:
        try:
            exec(code, namespace)
        except SystemExit as error:
            if _exits_with_zero(error):
                channel.send(EXITED, 0)
        except BaseException:  # a failing demonstration below the definitions does not undo them
            pass
    for index, code in enumerate(work.calls):
        try:
            value = eval(code, namespace)
        except SystemExit as error:
            channel.send(EXITED if _exits_with_zero(error) else RAISED, index + 1)
            continue
        except BaseException:
            channel.send(RAISED, index + 1)
            continue
        try:
            channel.send_value(index + 1, value, work.shapes[index])
        except NotPlain:
            channel.send(OPAQUE, index + 1)
        except BaseException:  # a container that changes under the reader, a lack of memory
            channel.send(OPAQUE, index + 1)
        if work.keeps_values and type(value) not in _LIGHT:
            session.values[index] = value
    if work.probe is not None:
        channel.flush()
        _probe(work.probe, session, work.marker, channel)


_LIGHT = frozenset({int, bool, float, str, bytes, type(None)})


def _probe(probe: Probe, session: Session, marker: str | None, channel: Channel) -> None:
    try:
        payload = json.dumps(probe(session, marker)).encode()
    except BaseException:  # the answer's own code runs in there
        return
    if len(payload) <= MAX_PROBE_BYTES:
        channel.send(PROBED, payload=payload)


def fresh_main() -> types.ModuleType:
    """A ``__main__`` with a copy of the builtins, so that what an answer overwrites stays its own."""
    own_builtins = types.ModuleType("builtins")
    own_builtins.__dict__.update(builtins.__dict__)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = own_builtins
    return main


def _exits_with_zero(error: SystemExit) -> bool:
    """Whether the process would end with status 0, by the interpreter's own rules."""
    try:
        code = _exit_code_of(error)
    except AttributeError:
        return False
    if code is None:
        return True
    return isinstance(code, int) and int.__and__(code, 0xFF) == 0


_exit_code_of = SystemExit.__dict__["code"].__get__


def _finish() -> None:
    """End as the interpreter would: exit functions, then the buffers."""
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(BaseException):
            stream.flush()  # type: ignore[union-attr]
