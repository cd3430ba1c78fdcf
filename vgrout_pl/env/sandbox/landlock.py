"""Landlock: file access by path, for machines where no private root can be had. Needs Linux 5.13, no privilege."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from . import linux

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _READ_FILE, _READ_FOLDER = 1, 4, 8
_WRITE_FILE, _TRUNCATE, _DEVICE = 2, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_ALL_BY_VERSION = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
_TCP, _SCOPES = 3, 3


def version() -> int:
    """Version of the kernel's Landlock interface; OSError where there is none."""
    return linux.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))


def ruleset(readable: Iterable[str], writable: Iterable[str]) -> int:
    """Descriptor of a rule set: folders and files that may be read, folders where everything is allowed."""
    abi = version()
    rights = _ALL_BY_VERSION[min(abi, max(_ALL_BY_VERSION))]
    attributes = struct.pack("<QQQ", rights, _TCP, _SCOPES)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = linux.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    os.set_inheritable(rules, False)
    for path in readable:
        _allow(rules, path, _READ if os.path.isdir(path) else _READ_FILE)
    for path in writable:
        file_rights = rights & (_READ_FILE | _WRITE_FILE | _TRUNCATE | _DEVICE)
        _allow(rules, path, rights if os.path.isdir(path) else file_rights)
    return rules


def restrict(rules: int) -> None:
    """Confine this process, for good; no_new_privs has to be set."""
    linux.syscall(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0))


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = struct.pack("<Qi", rights, target)
        linux.syscall(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(target)
