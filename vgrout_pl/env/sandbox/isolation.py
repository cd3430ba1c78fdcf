"""Walls around the graded processes, as many as the machine grants: found at start, once per fork-server."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, field
from typing import Any

from . import landlock, linux, root, seccomp

STACK_MB = 64
SHARED_USER_MARGIN = 128
LEAST: dict[str, float] = {
    "cpu_seconds": 0.1,
    "wall_seconds": 0.1,
    "idle_seconds": 0.1,
    "memory_mb": 128,
    "file_mb": 1,
    "processes": 1,
    "open_files": 64,
    "records_mb": 1,
}
TIERS = ("limits", "uid", "confined", "namespaces")


@dataclass(frozen=True)
class Limits:
    """Budgets of one answer (its whole process tree shares the wall clock, each process has the others alone).

    Attributes:
        cpu_seconds: CPU time of the answer's main process.
        wall_seconds: time from start to the last kill; generous, because a busy machine must not fail an answer.
        idle_seconds: time without any use of the CPU, by which sleepers are told.
        memory_mb: address space of each process.
        file_mb: size of each file that it writes, and of its private folder where that is a file system of its own.
        processes: processes and threads alive at once.
        open_files: descriptors of each process.
        records_mb: what it may send back; stdout is searched but not kept.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 120.0
    idle_seconds: float = 10.0
    memory_mb: int = 2048
    file_mb: int = 32
    processes: int = 32
    open_files: int = 128
    records_mb: int = 8

    def __post_init__(self) -> None:
        """Refuse budgets under which no answer could run."""
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}; got {getattr(self, name)}")


@dataclass
class Isolation:
    """What separates an answer from the machine; ``tier`` sums it up, ``refused`` tells why a wall is missing."""

    uid: int | None = None
    user_namespace: bool = False
    pid_namespace: bool = False
    network_namespace: bool = False
    private_root: bool = False
    landlock: bool = False
    syscall_filter: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def tier(self) -> str:
        """The best that holds.

        ``namespaces``: a private root, no network, own pids. ``confined``: Landlock and the system call filter hide
        files and network. ``uid``: another user, no more. ``limits``: the budgets alone.
        """
        hidden = self.private_root or self.landlock
        if self.pid_namespace and self.network_namespace and self.private_root:
            return "namespaces"
        if hidden and (self.network_namespace or self.syscall_filter):
            return "confined"
        return "uid" if self.uid is not None else "limits"

    def report(self) -> dict[str, Any]:
        """All fields and the tier, as plain data."""
        return {"tier": self.tier, **asdict(self)}


def leave_namespaces(isolation: Isolation, avoided: Container[str] = ()) -> None:
    """Unshare what the machine allows; call it single-threaded, then fork: the child is the first of its pids."""
    if "namespaces" in avoided:
        isolation.refused |= dict.fromkeys(("private_root", "pid_namespace", "network_namespace"), "not wanted")
        return
    if os.geteuid() != 0:
        uid, gid = os.geteuid(), os.getegid()
        try:
            linux.unshare(linux.CLONE_NEWUSER)
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{uid} {uid} 1")
            _write("/proc/self/gid_map", f"{gid} {gid} 1")
            isolation.user_namespace = True
        except OSError as error:
            isolation.refused["user_namespace"] = str(error)
    for name, flag in (
        ("pid_namespace", linux.CLONE_NEWPID),
        ("network_namespace", linux.CLONE_NEWNET),
        ("ipc_namespace", linux.CLONE_NEWIPC | linux.CLONE_NEWUTS),
    ):
        try:
            linux.unshare(flag)
        except OSError as error:
            isolation.refused[name] = str(error)
    isolation.network_namespace = "network_namespace" not in isolation.refused


def choose_uid(isolation: Isolation, seed: int, avoided: Container[str] = ()) -> None:
    """Pick an unprivileged user for the answers, where this process may change its user at all."""
    if os.geteuid() != 0 or "uid" in avoided:
        return
    candidate = 61_000 + seed % 4_000
    if _holds_as(candidate, lambda: None):
        isolation.uid = candidate
    else:
        isolation.refused["uid"] = "this root user may not become another one"


def _holds_as(uid: int, action: Callable[[], object]) -> bool:
    """Whether an action succeeds in a process of another user."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _readable_by(uid: int) -> bool:
    return _holds_as(uid, lambda: os.close(os.open(os.__file__, os.O_RDONLY)))


def enter_private_root(isolation: Isolation, base: str, size_mb: int) -> str:
    """Make ``base`` the root of a file system with nothing but Python's library; return the folder for answers."""
    if "private_root" in isolation.refused:
        return base
    try:
        root.change_root(base, size_mb)
        isolation.private_root = True
        return root.WORK
    except OSError as error:
        isolation.refused["private_root"] = str(error)
        with contextlib.suppress(OSError):
            linux.unmount(base)
        return base


def settle(isolation: Isolation, limits: Limits, folder: str, avoided: Container[str] = ()) -> int | None:
    """Set in the fork-server what its children inherit, and give up what it needs no more.

    Returns:
        The Landlock rule set that the answers have to enter, where they have no private root.
    """
    megabyte = 1 << 20
    processes = limits.processes
    if isolation.uid is None and not isolation.user_namespace:
        processes += _own_threads() + SHARED_USER_MARGIN
    for what, value in (
        (resource.RLIMIT_AS, limits.memory_mb * megabyte),
        (resource.RLIMIT_FSIZE, limits.file_mb * megabyte),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, STACK_MB * megabyte),
        (resource.RLIMIT_NPROC, processes),
    ):
        _limit(what, value)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    if isolation.uid is not None and not isolation.private_root and not _readable_by(isolation.uid):
        isolation.refused["uid"] = "another user cannot read Python's library here"
        isolation.uid = None
    if isolation.uid is None:
        linux.drop_capabilities()
    rules = None
    if not isolation.private_root and "landlock" not in avoided:
        try:
            devices = [f"/dev/{name}" for name in root.DEVICES]
            packages = [os.path.join(path, name) for path in root.site_folders() for name in root.PACKAGES]
            rules = landlock.ruleset([*root.library_folders(), *packages], [folder, *devices])
            isolation.landlock = True
        except OSError as error:
            isolation.refused["landlock"] = str(error)
    if "syscall_filter" not in avoided:
        try:
            seccomp.install()
            isolation.syscall_filter = True
        except OSError as error:
            isolation.refused["syscall_filter"] = str(error)
    return rules


def enter_answer(isolation: Isolation, limits: Limits, rules: int | None) -> None:
    """Give up the last rights, in a forked process that is about to run an answer."""
    if rules is not None:
        landlock.restrict(rules)
    _limit(resource.RLIMIT_CPU, int(limits.cpu_seconds) + 2)
    if isolation.uid is not None:
        os.setgroups([])
        os.setresgid(isolation.uid, isolation.uid, isolation.uid)
        os.setresuid(isolation.uid, isolation.uid, isolation.uid)
    if not isolation.pid_namespace:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


def _own_threads() -> int:
    """Threads of this user on this machine: where the user is shared, the limit has to leave room for them."""
    count = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
