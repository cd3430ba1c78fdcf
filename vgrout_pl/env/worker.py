"""One fork-server as the grader sees it: a pair of pipes with frames in flight, never a blocking read."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vgrout_pl.env.asserts import Tests
from vgrout_pl.env.sandbox.cleanup import empty_folder
from vgrout_pl.env.sandbox.isolation import Limits

START_SECONDS = 60.0
END_SECONDS = 5.0
MAX_DEFINED = 256
MAX_FRAME = 64 << 20
_LENGTH = struct.Struct("<I")
# glibc: an answer's larger objects come from its heap, which it keeps, and not from a mapping each
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
_BOOT = """
import sys, types
package = types.ModuleType("vgrout_sandboxed")
package.__path__ = [sys.argv[1]]
sys.modules["vgrout_sandboxed"] = package
sys.argv[1:] = []
from vgrout_sandboxed.sandbox.server import main
main()
"""


class WorkerDiedError(RuntimeError):
    """The fork-server ended, or did not speak its protocol."""


class Worker:
    """A running fork-server; replies come in the order of the requests."""

    def __init__(self, limits: Limits, avoided: Sequence[str] = ()) -> None:
        """Start a fresh interpreter (no fork of this process) and wait for its report."""
        self.base = tempfile.mkdtemp(prefix="vgrout-")
        environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", **_ALLOCATOR}
        command = [sys.executable, "-S", "-s", "-P", "-X", "utf8", "-c", _BOOT, str(Path(__file__).parent)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._stdin, self._stdout):
            os.set_blocking(descriptor, False)
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._defined: dict[Tests, int] = {}
        self._serial = 0
        try:
            self.send({"limits": asdict(limits), "base": self.base, "avoided": list(avoided)})
            self.isolation: dict[str, Any] = json.loads(self._first_frame())
        except BaseException:
            self.close(graceful=False)
            raise

    def fileno(self) -> tuple[int, int]:
        """Descriptors to wait for: (readable, writable)."""
        return self._stdout, self._stdin

    @property
    def process_id(self) -> int:
        """Id of the outermost process."""
        return self._process.pid

    @property
    def wants_to_write(self) -> bool:
        """Whether requests are waiting for room in the pipe."""
        return bool(self._outgoing)

    def send(self, message: Mapping[str, Any], attachment: bytes | None = None) -> None:
        """Queue a request, with raw bytes behind it where it announces some, and write what the pipe takes."""
        for data in (json.dumps(message).encode(), attachment):
            if data is not None:
                self._outgoing += _LENGTH.pack(len(data)) + data
        self.pump_out()

    def run(self, tests: Tests, response: bytes | None, mode: str, marker: str | None, token: bytes) -> None:
        """Request one run, after the definition of its tests where this server does not know them."""
        number = self._defined.get(tests)
        if number is None:
            if len(self._defined) >= MAX_DEFINED:
                self.send({"forget": True})
                self._defined.clear()
            number = self._defined[tests] = self._serial = self._serial + 1
            shapes = [check.shape for check in tests.checks]
            definition = {"setup": tests.setup, "shapes": shapes, "entries": tests.entries, "imports": tests.imports}
            self.send({"define": number, **definition}, tests.code)
        answers = response is not None
        request = {"run": number, "answers": answers, "mode": mode, "marker": marker, "token": token.hex()}
        self.send(request, response)

    def pump_out(self) -> None:
        """Write queued bytes until the pipe is full."""
        try:
            while self._outgoing:
                del self._outgoing[: os.write(self._stdin, memoryview(self._outgoing)[: 1 << 16].tobytes())]
        except BlockingIOError:
            return
        except OSError as error:
            raise WorkerDiedError(f"the fork-server closed its pipe: {error}") from None

    def pump_in(self) -> list[tuple[dict[str, Any], bytes]]:
        """Read what is there, and return all complete replies as (observed, records)."""
        try:
            while True:
                data = os.read(self._stdout, 1 << 18)
                if not data:
                    raise WorkerDiedError("the fork-server ended")
                self._incoming += data
        except BlockingIOError:
            pass
        replies = []
        while (first := self._frame_at(0)) is not None and (second := self._frame_at(first[1])) is not None:
            try:
                observed = json.loads(first[0])
            except ValueError:
                raise WorkerDiedError("the fork-server sent no JSON") from None
            replies.append((observed, second[0]))
            del self._incoming[: second[1]]
        return replies

    def _frame_at(self, position: int) -> tuple[bytes, int] | None:
        """The frame at an offset of the buffer and the offset behind it; None while it is not complete."""
        start = position + _LENGTH.size
        if len(self._incoming) < start:
            return None
        size = _LENGTH.unpack_from(self._incoming, position)[0]
        if size > MAX_FRAME:
            raise WorkerDiedError(f"the fork-server announced a frame of {size} bytes")
        if len(self._incoming) < start + size:
            return None
        return bytes(self._incoming[start : start + size]), start + size

    def _first_frame(self) -> bytes:
        deadline = time.monotonic() + START_SECONDS
        while (frame := self._frame_at(0)) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._stdout], [], [], left)[0]:
                raise WorkerDiedError(f"the fork-server did not start within {START_SECONDS:.0f} s")
            try:
                data = os.read(self._stdout, 1 << 16)
            except BlockingIOError:
                continue
            if not data:
                raise WorkerDiedError("the fork-server ended while it started; its message is on stderr")
            self._incoming += data
        del self._incoming[: frame[1]]
        return frame[0]

    def close(self, graceful: bool = True) -> None:
        """End the fork-server with all its descendants and remove its folder; safe to call again."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(END_SECONDS if graceful else END_SECONDS / 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):
            empty_folder(self.base)
        shutil.rmtree(self.base, ignore_errors=True)
