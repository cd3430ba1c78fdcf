from __future__ import annotations

import datetime
import enum
import math
import os
import re
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgrout_pl.env.sandbox.canonical import MAX_DEPTH, NotPlain, canonical, digest, sealed

EXAMPLES = 3000 if os.environ.get("VGROUT_FULL") else 100

numbers = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.fractions(),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=8),
    st.complex_numbers(allow_nan=False),
)
characters = st.characters(codec=None, categories=None, min_codepoint=0)
hashable_leaves = st.one_of(st.none(), numbers, st.text(characters, max_size=6), st.binary(max_size=6))
leaves = st.one_of(
    hashable_leaves, st.binary(max_size=4).map(bytearray), st.builds(range, st.integers(-9, 9), st.integers(-9, 9))
)
hashables = st.recursive(
    hashable_leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=6,
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.sets(hashables, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
    ),
    max_leaves=12,
)


class Whole(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class Rows(list):
    def __iter__(self):
        return iter(())

    def __eq__(self, other):
        return True

    __hash__ = None


class Name(str):
    def encode(self, *_):
        return b"lie"


def disguised(value):
    """An equal value of other types, all the way down."""
    kind = type(value)
    if kind is bool or kind is int:
        return Whole(value) if value % 2 else (Fraction(value) if value % 3 else Decimal(value))
    if kind is float:
        return Decimal(value) if value % 2 else complex(value)
    if kind is str:
        return Name(value)
    if kind is bytes:
        return bytearray(value)
    if kind is list:
        return Rows(map(disguised, value))
    if kind is tuple:
        return namedtuple("Fields", [f"f{i}" for i in range(len(value))])(*map(disguised, value))
    if kind is set:
        return frozenset(value)
    if kind is dict:
        return defaultdict(int, {key: disguised(item) for key, item in reversed(value.items())})
    return value


@given(values, values)
@settings(max_examples=EXAMPLES, deadline=None)
def test_bytes_are_equal_iff_values_are(left, right):
    assert (canonical(left) == canonical(right)) == (left == right)


@given(values)
@settings(max_examples=EXAMPLES, deadline=None)
def test_an_equal_value_of_other_types_has_the_same_bytes(value):
    assert canonical(disguised(value)) == canonical(value)


@given(st.lists(numbers, min_size=2, max_size=2))
@settings(max_examples=EXAMPLES, deadline=None)
def test_numbers_of_different_types_compare_as_python_does(pair):
    left, right = pair
    assert (canonical(left) == canonical(right)) == (left == right)


@given(values)
@settings(max_examples=EXAMPLES // 3, deadline=None)
def test_a_nan_anywhere_equals_nothing(value):
    for holder in (
        [value, math.nan],
        {"key": (math.nan, value)},
        deque([[Decimal("nan")]]),
        (value, complex(0, math.nan)),
    ):
        with pytest.raises(NotPlain, match="NaN"):
            canonical(holder)


class Color(enum.IntEnum):
    RED = 3


def test_hand_made_pairs():
    point = namedtuple("Point", "x y")
    same = [
        (Color.RED, 3),
        (point(1, 2.0), (1, 2)),
        (Counter("aab"), {"b": 1, "a": 2}),
        (OrderedDict(a=1, b=2), {"b": 2, "a": 1}),
        ({1: 2}.keys(), {1}),
        ({1: 2}.items(), {(1, 2)}),
        (range(0, 3, 2), range(0, 4, 2)),
        (array("i", [1, 2]), array("d", [1.0, 2.0])),
        (datetime.timedelta(hours=24), datetime.timedelta(days=1)),
        (-0.0, 0),
        (10**400, Decimal(10) ** 400),
        (Fraction(1, 2), 0.5),
        (Whole(7), 7),
    ]
    different = [
        (0.1, Decimal("0.1")),
        (0.1, Fraction(1, 10)),
        ([1], (1,)),
        ([1], deque([1])),
        ([0, 1], range(2)),
        ("1", 1),
        ("a", b"a"),
        ("\ud800", "?"),
        (Whole(7), 8),
        (10**5000, 10**5000 + 1),
        (0, None),
        (False, None),
        ({}, []),
        ({}, set()),
        ("", b""),
        ([[], []], [[[]]]),
        ({"a": 1}, {"a": 2}),
        (datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1)),
        (2**53 + 1, float(2**53)),
        ("i1;", 1),
        (["i1;i2;"], [1, 2]),
    ]
    for left, right in same:
        assert canonical(left) == canonical(right), (left, right)
    for left, right in different:
        assert canonical(left) != canonical(right), (left, right)


@pytest.mark.parametrize(
    "value",
    [
        *(object(), object, len, lambda: 0, (i for i in ()), Exception(), type("C", (), {})(), {}.values(), iter([])),
        *(NotImplemented, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), Decimal("1e999999"), re.match("a", "a")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_objects_have_no_bytes(value):
    with pytest.raises(NotPlain):
        canonical([value])


def test_budgets():
    deep: list = []
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    assert len(canonical(deep)) > MAX_DEPTH
    cycle: list = []
    cycle.append(cycle)
    doubling: list = [0]
    for _ in range(40):
        doubling = [doubling, doubling]
    for value in (cycle, doubling, "x" * (65 << 20)):
        with pytest.raises(NotPlain, match="too"):
            canonical(value)


def test_numpy_scalars_are_numbers_and_arrays_are_nothing():
    numpy = pytest.importorskip("numpy")
    for kind in ("int8", "uint64", "float16", "float32", "float64", "complex64"):
        scalar = getattr(numpy, kind)(3)
        assert canonical(scalar) == canonical(3)
    assert canonical([numpy.bool_(True), numpy.str_("a"), numpy.bytes_(b"a")]) == canonical([1, "a", b"a"])
    for value in (numpy.array([3]), numpy.float64("nan"), numpy.datetime64("2020-01-01")):
        with pytest.raises(NotPlain):
            canonical(value)


def test_a_sealed_digest_is_of_one_run_only():
    assert sealed(digest(3), b"first") == sealed(digest(3.0), b"first")
    assert sealed(digest(3), b"first") != sealed(digest(3), b"second")
    assert sealed(digest(3), b"first") != sealed(digest(4), b"first")
