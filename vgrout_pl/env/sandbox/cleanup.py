"""Ending a process tree and emptying a folder, whatever an answer has left there."""

from __future__ import annotations

import contextlib
import os
import signal
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def end_tree(main: int, first_of_pids: bool) -> tuple[int, float]:
    """Kill and reap every descendant of this process; return the wait status of ``main``, and their CPU seconds.

    In a pid namespace whose first process we are, one ``kill(-1)`` reaches all others. Elsewhere we are the subreaper:
    what loses its parent becomes our child, and we kill until there are no children.
    """
    if first_of_pids and os.getpid() != 1:
        raise RuntimeError("kill(-1) outside of an own pid namespace")
    status, seconds = -1, 0.0
    _kill(-main)
    while True:
        if first_of_pids:
            _kill(-1)
        try:
            pid, code, usage = os.wait4(-1, 0 if first_of_pids else os.WNOHANG)
            if pid == 0:
                for child in descendants(os.getpid()):
                    _kill(child)
                pid, code, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return status, seconds
        seconds += usage.ru_utime + usage.ru_stime
        if pid == main:
            status = code


def _kill(target: int) -> None:
    try:
        os.kill(target, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def descendants(root: int) -> list[int]:
    """Ids of all processes below ``root``, by one reading of /proc."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found: list[int] = []
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found.extend(frontier)
    return found


def read_small_file(folder: str, name: str, limit: int = 4096) -> bytes | None:
    """First bytes of a regular file in a folder that we do not trust; None where there is none."""
    try:
        descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def empty_folder(path: str) -> bool:
    """Remove everything in a folder, without recursion: what is below a folder is first moved up to ``path``.

    Returns:
        True when nothing is left.
    """
    root = os.open(path, _DIRECTORY)
    try:
        serial = 0
        stubborn: set[str] = set()
        while names := [name for name in os.listdir(root) if name not in stubborn]:
            for name in names:
                if _removed(root, name):
                    continue
                try:
                    _open_up(root, name)
                    inner = os.open(name, _DIRECTORY, dir_fd=root)
                except OSError:
                    stubborn.add(name)
                    continue
                try:
                    for child in os.listdir(inner):
                        if _removed(inner, child):
                            continue
                        _open_up(inner, child)
                        serial += 1
                        os.rename(child, f".moved{serial}", src_dir_fd=inner, dst_dir_fd=root)
                except OSError:
                    stubborn.add(name)
                finally:
                    os.close(inner)
                if not _removed(root, name):
                    stubborn.add(name)
        return not stubborn
    finally:
        os.close(root)


def _open_up(folder: int, name: str) -> None:
    """Make a folder (and nothing else: no link) accessible to us."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        os.chmod(name, 0o700, dir_fd=folder)


def _removed(folder: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
        return True
    except IsADirectoryError:
        pass
    except OSError:
        return False
    try:
        os.rmdir(name, dir_fd=folder)
        return True
    except OSError:
        return False
