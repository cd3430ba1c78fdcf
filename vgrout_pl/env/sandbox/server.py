"""The fork-server: a fresh, small interpreter that forks one child for each answer and sees it to its end.

Wire, both ways: frames of ``<u32 length><JSON>``; a reply is followed by ``<u32 length><raw records of the child>``.
Trusted facts (exit status, the phrase on stdout, the file, the times) are observed from here; the records are the
answer's own words, and are passed on unread.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import gc
import importlib
import json
import marshal
import mmap
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, NoReturn

from ..modes import MODES
from . import linux
from .canonical import digest
from .child import Child, Observed
from .cleanup import empty_folder, end_tree, read_small_file
from .extract import parse
from .isolation import (
    Isolation,
    Limits,
    choose_uid,
    enter_answer,
    enter_private_root,
    leave_namespaces,
    settle,
)
from .root import site_folders
from .runner import Work, fresh_main, run
from .wire import LENGTH, frame, read_buffer, read_frame, write_all, write_both

OWN_DESCRIPTORS = 32  # numbers below may be in use by the server
PRELOADED = (
    *("abc", "array", "bisect", "cmath", "collections.abc", "contextlib", "copy", "dataclasses", "datetime", "decimal"),
    *("enum", "fractions", "functools", "heapq", "io", "itertools", "json", "math", "numbers", "operator", "pathlib"),
    *("queue", "random", "re", "string", "struct", "textwrap", "threading", "time", "types", "typing"),
)


@dataclass
class Program:
    """A problem as the server keeps it: compiled once, run for many answers, which start from copies of ``main``."""

    main: ModuleType
    setup: CodeType
    calls: tuple[CodeType, ...]
    shapes: tuple[str, ...]
    entries: tuple[tuple[str, str], ...]


class Server:
    """State of one fork-server; requests are answered one at a time, in order."""

    def __init__(
        self, request: int, reply: int, isolation: Isolation, folder: str, limits: Limits, rules: int | None
    ) -> None:
        self._rules = rules
        self._request, self._reply = request, reply
        self._isolation, self._folder, self._limits = isolation, folder, limits
        self._programs: dict[int, Program] = {}
        self._answer_folder = os.path.join(folder, "answer")
        self._mains: dict[str, tuple[ModuleType, CodeType]] = {}
        self._records = memoryview(mmap.mmap(-1, limits.records_mb << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def serve(self) -> None:
        """Answer requests until the grader closes the pipe."""
        while (message := read_frame(self._request)) is not None:
            request = json.loads(message)
            if "define" in request:
                self._define(request)
            elif "forget" in request:
                self._programs.clear()
                self._mains.clear()
            else:
                observed, records = self._run(request)
                head = frame(json.dumps(vars(observed)).encode()) + LENGTH.pack(len(records))
                write_both(self._reply, head, records)
                records[:] = bytes(len(records))

    def _define(self, request: dict[str, Any]) -> None:
        calls = marshal.loads(read_buffer(self._request))
        for name in request["imports"]:
            try:
                importlib.import_module(name)
            except Exception:  # the problem's own setup code will say so
                continue
        setup = request["setup"]
        if setup not in self._mains:
            self._mains[setup] = _begun(setup, frozenset(request["imports"]) - {"builtins"})
        self._programs[request["define"]] = Program(
            *self._mains[setup],
            calls,
            tuple(request["shapes"]),
            tuple(tuple(entry) for entry in request["entries"]),
        )
        gc.freeze()  # a collection in a child must not touch, and so copy, what it shares with us

    def _run(self, request: dict[str, Any]) -> tuple[Observed, memoryview]:
        program = self._programs[request["run"]]
        mode = MODES[request["mode"]]
        marker = request["marker"]
        response = read_buffer(self._request) if request["answers"] else None
        work = Work(
            program.main,
            response,
            program.setup,
            program.calls,
            program.shapes,
            program.entries,
            marker,
            mode.probe,
            mode.keeps_order,
            mode.keeps_values,
        )
        self._fresh_folder()
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        text_read, text_write = os.pipe2(os.O_CLOEXEC)
        started = time.monotonic()
        pid = linux.fork()
        if pid == 0:
            self._become_answer(work, out_write, text_write, bytes.fromhex(request["token"]))
        if response is not None:
            response[:] = bytes(len(response))  # later children are copies of this process: leave them nothing to read
        os.close(out_write)
        os.close(text_write)
        needle = mode.phrase(marker).encode() if mode.phrase is not None else None
        child = Child(pid, out_read, text_read, self._records, needle, self._limits, self._request)
        child.first_of_pids = self._isolation.pid_namespace
        observed, records = child.see_to_the_end(started)
        if mode.file_name is not None:
            content = read_small_file(self._answer_folder, mode.file_name(marker))
            observed.file = None if content is None else content.decode("utf-8", "replace")
        observed.leftovers = not self._clean_folder()
        return observed, records

    def _become_answer(self, work: Work, out: int, text: int, token: bytes) -> NoReturn:
        try:
            os.setsid()
            os.dup2(self._null, 0)
            os.dup2(text, 1)
            os.dup2(self._null, 2)
            private = OWN_DESCRIPTORS + int.from_bytes(os.urandom(2), "little") % (
                self._limits.open_files - OWN_DESCRIPTORS
            )
            if out != private:
                os.dup2(out, private, inheritable=False)
            os.chdir(self._answer_folder)
            atexit._clear()
            enter_answer(self._isolation, self._limits, self._rules)
            os.closerange(3, private)
            os.closerange(private + 1, self._limits.open_files + 64)
            run(work, private, token)
        finally:
            os._exit(1)

    def _fresh_folder(self) -> None:
        os.mkdir(self._answer_folder, 0o700)
        if self._isolation.uid is not None:
            os.chown(self._answer_folder, self._isolation.uid, self._isolation.uid)

    def _clean_folder(self) -> bool:
        try:
            os.rmdir(self._answer_folder)
        except OSError:
            if not empty_folder(self._answer_folder):
                os.rename(self._answer_folder, f"{self._answer_folder}.{time.monotonic_ns()}")
                return False
            os.rmdir(self._answer_folder)
        return True


def _begun(setup: str, importable: frozenset[str]) -> tuple[ModuleType, CodeType]:
    """A ``__main__`` in which the leading imports of set-up code are done, and the code that is left.

    Done here are statements that import nothing but modules which this process imports anyway; whatever else the
    set-up code does happens behind the walls of each answer.
    """
    body = ast.parse(setup).body
    count = 0
    while count < len(body) and _imported_by(body[count]) <= importable:
        count += 1
    main = fresh_main()
    try:
        exec(compile(ast.Module(body[:count], []), "<setup>", "exec", dont_inherit=True), main.__dict__)
        return main, compile(ast.Module(body[count:], []), "<setup>", "exec", dont_inherit=True)
    except Exception:  # the answer's process will say so
        return fresh_main(), compile(setup, "<setup>", "exec", dont_inherit=True)


def _imported_by(statement: ast.stmt) -> set[str]:
    """Modules that a statement imports, if it does nothing else; else a name that no module has."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    if isinstance(statement, ast.ImportFrom) and not statement.level and statement.module != "__future__":
        return {str(statement.module)}
    return {""}


def main() -> None:
    """Take the pipes, raise the walls, and serve from behind them; the outer process waits, then sweeps."""
    request, reply = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    hello = json.loads(read_frame(request) or b"{}")
    limits = Limits(**hello["limits"])
    isolation = Isolation()
    _preload()
    choose_uid(isolation, os.getpid(), hello["avoided"])
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    leave_namespaces(isolation, hello["avoided"])
    inner = os.fork()
    if inner == 0:
        try:
            _serve(request, reply, isolation, hello, limits)
        finally:
            os._exit(0)
    os.close(request)
    os.close(reply)
    status = os.waitpid(inner, 0)[1]
    end_tree(inner, False)
    with contextlib.suppress(OSError):  # the grader does this too, unless it was killed
        empty_folder(hello["base"])
        os.rmdir(hello["base"])
    os._exit(0 if status == 0 else 1)


def _serve(request: int, reply: int, isolation: Isolation, hello: dict[str, Any], limits: Limits) -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    isolation.pid_namespace = os.getpid() == 1
    if not isolation.pid_namespace:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    if isolation.uid is not None:
        os.chmod(hello["base"], 0o711)
    folder = enter_private_root(isolation, hello["base"], limits.file_mb)
    sys.path.extend(["/packages"] if isolation.private_root else site_folders())
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME="/", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", LC_ALL="C.UTF-8")
    os.umask(0o077)
    rules = settle(isolation, limits, folder, hello["avoided"])
    _warm_up()
    for name in [name for name in sys.modules if name.startswith("vgrout_sandboxed")]:
        del sys.modules[name]
    server = Server(request, reply, isolation, folder, limits, rules)
    write_all(reply, frame(json.dumps(isolation.report()).encode()))
    gc.collect()
    gc.freeze()
    server.serve()


def _warm_up() -> None:
    """Run the common paths once, so that answers share the specialised bytecode and find nothing to build."""
    for _ in range(20):
        parse("```python\nclass Solution:\n    pass\n```\n")
        digest([1, 2.5, "a", (True, None), {1: {2}}])
    random.seed(0)


def _preload() -> None:
    """Import what answers usually import, and the helpers that `site` would have put in place."""
    import _sitebuiltins
    import builtins

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    for name in PRELOADED:
        importlib.import_module(name)
