"""A root file system of its own for the answers: Python's library, a few packages, and an empty working folder."""

from __future__ import annotations

import os
import sys
import sysconfig

from . import linux

PACKAGES = ("numpy", "numpy.libs", "sortedcontainers")
DEVICES = ("null", "zero", "random", "urandom")
WORK = "/work"


def change_root(base: str, size_mb: int) -> None:
    """Make ``base`` the root of this process, whose mount namespace this leaves; answers work in ``WORK``.

    Raises:
        OSError: the machine refuses; what was mounted on ``base`` is still there.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", base, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=16m,mode=755")
    for source in library_folders():
        _bind(source, base + source)
    _hide_packages(base)
    os.makedirs(base + "/dev", exist_ok=True)
    for name in DEVICES:
        with open(f"{base}/dev/{name}", "w"):
            pass
        linux.mount(f"/dev/{name}", f"{base}/dev/{name}", flags=linux.MS_BIND)
    for name in ("work", "tmp", "old"):
        os.mkdir(f"{base}/{name}")
    linux.mount(
        "tmpfs", f"{base}/work", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"size={size_mb}m,nr_inodes=8k,mode=711"
    )
    linux.pivot_root(base, f"{base}/old")
    os.chdir("/")
    linux.unmount("/old")
    linux.mount("", "/", flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)


def library_folders() -> list[str]:
    """Folders with the standard library and the shared objects that its modules may still load."""
    stdlib = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    wanted = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", os.path.join(sys.base_prefix, "lib"), *stdlib}
    return sorted(folder for folder in wanted if os.path.isdir(folder))


def _bind(source: str, target: str) -> None:
    """Show a folder read-only at ``target``; a link stays a link."""
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    if not os.path.isdir(target):
        os.makedirs(target)
    linux.mount(source, target, flags=linux.MS_BIND | linux.MS_REC)
    linux.mount("", target, flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | _locked_flags(target))


def _locked_flags(path: str) -> int:
    """Mount flags that an unprivileged remount has to keep."""
    present = os.statvfs(path).f_flag
    return sum(flag for flag in (linux.MS_NOSUID, linux.MS_NODEV, linux.MS_NOEXEC, 1024, 2048) if present & flag) | (
        1 << 21 if present & 4096 else 0
    )


def _hide_packages(base: str) -> None:
    """Cover every visible folder of installed packages, and ours; show only those that answers may import."""
    sources = {path for path in site_folders() if os.path.isdir(path)}
    wanted = {name: os.path.join(path, name) for path in sorted(sources) for name in PACKAGES}
    wanted = {name: path for name, path in wanted.items() if os.path.isdir(path)}
    staging = base + "/packages"
    for name, path in wanted.items():
        _bind(path, f"{staging}/{name}")
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for folder in (*sources, package):
        if os.path.isdir(base + folder):
            linux.mount("tmpfs", base + folder, "tmpfs", linux.MS_RDONLY)


def site_folders() -> list[str]:
    """Folders that may hold installed packages, of this environment and of the interpreter below it."""
    tail = os.path.relpath(sysconfig.get_path("purelib"), sys.prefix)
    return sorted({os.path.join(prefix, tail) for prefix in (sys.prefix, sys.base_prefix)})
