"""Plain values as canonical bytes: two values are equal under Python's honest ``==`` iff their bytes are equal.

The graded process sends a digest of these bytes, the grader compares it with the digest of the expected value; so no
object, no ``repr`` and no pickle of an answer is ever decoded. Values are read by exact type through the slots of the
builtin base types, with references taken when this module is loaded, before any answer runs:

* ``1 == True == 1.0 == Fraction(1) == Decimal(1)`` share their bytes, ``(1,) != [1]``, floats are exact;
* instances of subclasses of a builtin type (Counter, namedtuple, IntEnum, ..) stand for their base value;
* every other type, and everything that holds a NaN, has no bytes: :class:`NotPlain`.
"""

from __future__ import annotations

import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from math import gcd
from operator import index
from typing import Any

try:  # the C module alone: `hashlib` would map OpenSSL into every graded process
    from _blake2 import blake2b
except ImportError:  # pragma: no cover
    from hashlib import blake2b

MAX_DEPTH = 20_000
MAX_NODES = 4_000_000
MAX_BYTES = 64 << 20
DIGEST_SIZE = 16
_HEAP_TYPE = 1 << 9
_DECIMAL_EXPONENT = 10_000

_mro_of = type.__dict__["__mro__"].__get__
_flags_of = type.__dict__["__flags__"].__get__
_module_of = type.__dict__["__module__"].__get__
_name_of = type.__dict__["__name__"].__get__
_pack = struct.pack

LINKS = {"list": ("next",), "tree": ("right", "left")}
ORDERED, UNORDERED, MAPPING = 0, 1, 2
Opened = tuple[bytes, Iterator[Any], int]


class NotPlain(Exception):  # noqa: N818  (an outcome, not a failure)
    """The value has no canonical bytes: a foreign type, a NaN, or more than the stated budget."""


def digest(value: object) -> bytes:
    """Digest of :func:`canonical` bytes, ``DIGEST_SIZE`` long."""
    data: bytes = blake2b(canonical(value), digest_size=DIGEST_SIZE).digest()
    return data


def sealed(value_digest: bytes, token: bytes) -> bytes:
    """Digest of a token and a digest, both of fixed length: what one answer sent is of no use to the next."""
    data: bytes = blake2b(token + value_digest, digest_size=DIGEST_SIZE).digest()
    return data


def flattened(value: Any, shape: str) -> object:
    """A linked list (``val``, ``next``) or binary tree (``val``, ``left``, ``right``) as a plain list, in preorder.

    Two structures are the same, values and form, iff their lists are equal; any other shape leaves the value as it is.
    """
    if shape not in LINKS:
        return value
    found: list[object] = []
    stack = [value]
    while stack:
        node = stack.pop()
        found.append(() if node is None else (node.val,))
        if node is not None:
            stack.extend(getattr(node, link) for link in LINKS[shape])
        if len(found) > MAX_NODES >> 4:
            raise NotPlain("too large")
    return found


def canonical(value: object) -> bytes:
    """Return the canonical bytes of a plain value, without recursion.

    Raises:
        NotPlain: see the class; budgets are MAX_DEPTH open containers, MAX_NODES leaves, MAX_BYTES bytes.
    """
    plain = _LEAVES.get(type(value))
    if plain is not None:
        data = plain(value)
        if len(data) > MAX_BYTES:
            raise NotPlain("too large")
        return data
    out: list[bytes] = []
    stack: list[tuple[Iterator[Any], int, int, int]] = []
    items: Iterator[Any] = iter((value,))
    kind, start = ORDERED, 0
    while True:
        for item in items:
            if type(item) is int:
                out.append(b"i%x;" % item)
                continue
            leaf = _LEAVES.get(type(item))
            if leaf is not None:
                out.append(leaf(item))
                continue
            part = _open(item)
            if isinstance(part, bytes):
                out.append(part)
                continue
            if len(stack) >= MAX_DEPTH or len(out) > MAX_NODES:
                raise NotPlain("too deep or too large")
            stack.append((items, kind, start, len(out)))
            start = len(out)
            out.append(part[0])
            items, kind = part[1], part[2]
            break
        else:
            if not stack:
                break
            _close(out, start, kind)
            items, kind, start, opened_at = stack.pop()
            if kind != ORDERED:
                out[opened_at:] = [b"".join(out[opened_at:])]
    return _within_budget(out)


def _within_budget(parts: list[bytes]) -> bytes:
    if sum(map(len, parts)) > MAX_BYTES:
        raise NotPlain("too large")
    return b"".join(parts)


def _close(out: list[bytes], start: int, kind: int) -> None:
    """Sort the children of a set, or the pairs of a mapping, which follow their header at ``out[start]``."""
    if kind == UNORDERED:
        out[start + 1 :] = sorted(out[start + 1 :])
    elif kind == MAPPING:
        pairs = sorted(zip(out[start + 1 :: 2], out[start + 2 :: 2], strict=True))
        out[start + 1 :] = chain.from_iterable(pairs)


def _open(value: object) -> bytes | Opened:
    """Bytes of a leaf, or the opened container, of a value whose exact type is no builtin leaf."""
    kind = type(value)
    opener = _CONTAINERS.get(kind)
    if opener is not None:
        return opener(value)
    for base in _mro_of(kind):
        if base in _LEAVES:
            return _LEAVES[base](value)
        if base in _CONTAINERS:
            return _CONTAINERS[base](value)
    if _module_of(kind) == "numpy" and not _flags_of(kind) & _HEAP_TYPE:
        return _numpy_scalar(value, _name_of(kind))
    raise NotPlain(f"an object of type {_name_of(kind)}")


def _numpy_scalar(value: Any, name: str) -> bytes:
    """A numpy scalar that is no subclass of a Python number, read through its C type (never a class of an answer)."""
    if name in ("bool", "bool_"):
        return b"i1;" if value else b"i0;"
    if name.startswith(("int", "uint", "long", "ulong", "short", "byte")) and name != "longdouble":
        return b"i%x;" % index(value)
    if name in ("float16", "float32"):
        return _float(float(value))
    if name == "complex64":
        return _complex(complex(value))
    raise NotPlain(f"an object of type numpy.{name}")


def _float(value: float) -> bytes:
    if float.is_integer(value):
        return b"i%x;" % float.__int__(value)
    if value != value:
        raise NotPlain("NaN equals nothing")
    return b"d" + _pack("<d", value)


def _rational(numerator: int, denominator: int) -> bytes:
    """A fraction in lowest terms, in the bytes of the int or float that equals it, where there is one."""
    if denominator == 1:
        return b"i%x;" % numerator
    try:
        nearest = numerator / denominator
    except OverflowError:
        nearest = 0.0
    if nearest.as_integer_ratio() == (numerator, denominator):
        return _float(nearest)
    return b"Q%x/%x;" % (numerator, denominator)


def _complex(value: complex) -> bytes:
    real, imag = _complex_real(value), _complex_imag(value)
    return _float(real) if imag == 0 else b"c" + _float(real) + _float(imag)


def _text(value: str) -> bytes:
    data = str.encode(value, "utf-8", "surrogatepass")
    return b"s%x:" % len(data) + data


def _range(value: range) -> bytes:
    length = len(value)
    ends = (value[0] if length else 0, value[1] - value[0] if length > 1 else 0)
    return b"r%x,%x,%x;" % (length, *ends)


_complex_real = complex.__dict__["real"].__get__
_complex_imag = complex.__dict__["imag"].__get__


def _decimal(value: Any) -> bytes:
    sign, digits, exponent = Decimal.as_tuple(value)
    if exponent == "F":
        return _float(float("-inf" if sign else "inf"))
    if isinstance(exponent, str):
        raise NotPlain("NaN equals nothing")
    if abs(exponent) > _DECIMAL_EXPONENT and any(digits):
        raise NotPlain("the exponent of a Decimal is out of bounds")
    return _rational(*Decimal.as_integer_ratio(value))


def _fraction(value: Any) -> bytes:
    numerator, denominator = _numerator(value), _denominator(value)
    if type(numerator) is not int or type(denominator) is not int or denominator < 1:
        raise NotPlain("a tampered Fraction")
    divisor = gcd(numerator, denominator)
    return _rational(numerator // divisor, denominator // divisor)


def _moment(value: Any) -> bytes:
    """A date, time or datetime without a time zone."""
    base: Any = next(t for t in _mro_of(type(value)) if t in _MOMENTS)
    if _MOMENTS[base](value) is not None:
        raise NotPlain("a time with a zone")
    data = base.isoformat(value).encode()
    return b"D%s%x:" % (base.__name__.encode(), len(data)) + data


_numerator = Fraction.__dict__["_numerator"].__get__
_denominator = Fraction.__dict__["_denominator"].__get__
_MICROSECOND = timedelta(microseconds=1)
_MOMENTS: dict[type, Callable[[Any], Any]] = {
    datetime: datetime.__dict__["tzinfo"].__get__,
    time: time.__dict__["tzinfo"].__get__,
    date: lambda _: None,
}
_LEAVES: dict[type, Callable[[Any], bytes]] = {
    int: lambda value: b"i%x;" % int.__add__(value, 0),
    bool: lambda value: b"i1;" if value else b"i0;",
    float: lambda value: _float(float.__add__(value, 0.0)),
    complex: _complex,
    str: _text,
    bytes: lambda value: b"b%x:" % bytes.__len__(value) + bytes.__getitem__(value, slice(None)),
    bytearray: lambda value: b"b%x:" % bytearray.__len__(value) + bytes(bytearray.__getitem__(value, slice(None))),
    range: _range,
    type(None): lambda _: b"n",
    type(...): lambda _: b"e",
    Decimal: _decimal,
    Fraction: _fraction,
    timedelta: lambda value: b"T%x;" % timedelta.__floordiv__(value, _MICROSECOND),
    **dict.fromkeys(_MOMENTS, _moment),
}
_CONTAINERS: dict[type, Callable[[Any], Opened]] = {
    list: lambda v: (b"l%x:" % list.__len__(v), list.__iter__(v), ORDERED),
    tuple: lambda v: (b"t%x:" % tuple.__len__(v), tuple.__iter__(v), ORDERED),
    deque: lambda v: (b"q%x:" % deque.__len__(v), deque.__iter__(v), ORDERED),
    array: lambda v: (b"a%x:" % array.__len__(v), iter(array.tolist(v)), ORDERED),
    set: lambda v: (b"S%x:" % set.__len__(v), set.__iter__(v), UNORDERED),
    frozenset: lambda v: (b"S%x:" % frozenset.__len__(v), frozenset.__iter__(v), UNORDERED),
    dict: lambda v: (b"m%x:" % dict.__len__(v), chain.from_iterable(dict.items(v)), MAPPING),
    type({}.keys()): lambda v: (b"S%x:" % len(v), iter(v), UNORDERED),
    type({}.items()): lambda v: (b"S%x:" % len(v), iter(v), UNORDERED),
}
