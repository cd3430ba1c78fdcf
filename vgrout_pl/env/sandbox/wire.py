"""Frames of ``<u32 length><bytes>`` over pipes."""

from __future__ import annotations

import os
import struct

LENGTH = struct.Struct("<I")


def frame(data: bytes) -> bytes:
    """A length and the data."""
    return LENGTH.pack(len(data)) + data


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_both(descriptor: int, head: bytes, body: memoryview) -> None:
    """Write two parts to a blocking descriptor, in one call where it takes them, without a copy of the second."""
    count = os.writev(descriptor, [head, body])
    write_all(descriptor, head[count:])
    write_all(descriptor, body[max(0, count - len(head)) :])


def read_buffer(descriptor: int) -> bytearray:
    """Read one frame into a buffer of its own, which leaves no other copy in this process."""
    header = _read_exactly(descriptor, LENGTH.size) or LENGTH.pack(0)
    buffer = bytearray(LENGTH.unpack(header)[0])
    view = memoryview(buffer)
    while view:
        count = os.readv(descriptor, [view])
        if not count:
            break
        view = view[count:]
    return buffer


def read_frame(descriptor: int) -> bytes | None:
    """Read one frame; None at the end of the pipe."""
    header = _read_exactly(descriptor, LENGTH.size)
    return None if header is None else _read_exactly(descriptor, LENGTH.unpack(header)[0])


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    parts = []
    while size:
        data = os.read(descriptor, min(size, 1 << 20))
        if not data:
            return None
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
