"""A system call filter for the answers, in classic BPF, for x86_64 and aarch64; other machines do without.

It refuses the network, kernel objects that outlive a process, and interfaces that an answer has no use for.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from . import linux

EPERM, EACCES, ENOSYS = 1, 13, 38
AF_UNIX = 1
NAMESPACES = 0x7E020080  # the CLONE_NEW* flags

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_SET_SECCOMP, _FILTER = 22, 2
_X32 = 0x40000000


@dataclass(frozen=True)
class Machine:
    """Numbers of the refused system calls on one architecture."""

    audit: int
    socket: int
    clone: int
    refused: tuple[int, ...]
    clone3: int = 435
    io_uring: tuple[int, ...] = (425, 426, 427)


# shmget semget msgget mq_open · add_key request_key keyctl · ptrace process_vm_readv process_vm_writev · mount umount2
# pivot_root unshare setns · bpf perf_event_open userfaultfd open_by_handle_at · kexec_load and the module calls
MACHINES = {
    "x86_64": Machine(
        audit=0xC000003E,
        socket=41,
        clone=56,
        refused=(
            *(29, 64, 68, 240, 248, 249, 250, 101, 310, 311, 165, 166, 155, 272, 308),
            *(321, 298, 323, 304, 246, 175, 313, 176),
        ),
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        socket=198,
        clone=220,
        refused=(
            *(194, 190, 186, 180, 217, 218, 219, 117, 270, 271, 40, 39, 41, 97, 268),
            *(280, 241, 282, 265, 104, 105, 273, 106),
        ),
    ),
}


def install() -> None:
    """Filter this process and all that it will fork, for good; needs no privilege once no_new_privs is set.

    Raises:
        OSError: the kernel has no seccomp filters, or the architecture is not known here.
    """
    machine = MACHINES.get(os.uname().machine)
    if machine is None:
        raise OSError(f"no system call numbers for {os.uname().machine}")
    code = program(machine)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    linux.prctl_pointer(_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header))


def program(machine: Machine) -> bytes:
    """The filter's instructions, 8 bytes each."""
    rules: list[tuple[int, int, int, int]] = []

    def refuse_if(code: int, operand: int, error: int) -> None:
        rules.extend([(code, 0, 1, operand), (_RETURN, 0, 0, _REFUSE | error)])

    rules.extend([(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, machine.audit), (_RETURN, 0, 0, _REFUSE | ENOSYS)])
    rules.append((_LOAD, 0, 0, _NUMBER))
    refuse_if(_GREATER, _X32, ENOSYS)
    for number in (*machine.refused, *machine.io_uring):
        refuse_if(_EQUAL, number, EPERM)
    refuse_if(_EQUAL, machine.clone3, ENOSYS)  # its flags lie in memory; the C library falls back to clone
    rules.extend([(_EQUAL, 0, 4, machine.socket), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 0, 1, AF_UNIX)])
    rules.extend([(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE | EACCES)])
    rules.extend([(_EQUAL, 0, 3, machine.clone), (_LOAD, 0, 0, _FIRST_ARGUMENT)])
    refuse_if(_ANY_BIT, NAMESPACES, EPERM)
    rules.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", code, yes, no, operand) for code, yes, no, operand in rules)
