"""Tests of a problem: ``assert CALL == EXPR`` taken apart, so that the graded process gets to see the CALL alone."""

from __future__ import annotations

import ast
import marshal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import CodeType
from typing import Any

from vgrout_pl.env.sandbox.canonical import DIGEST_SIZE, NotPlain, digest, sealed

EQUAL, IS, IN, TRUE, FALSE = "==", "is", "in", "true", "false"
_EMPTY_VALUES: tuple[object, ...] = (0, "", b"", (), [], {}, frozenset(), None, range(0))
EMPTY = frozenset(map(digest, _EMPTY_VALUES))
RELATIONS = {"is_same_list": "list", "is_same_tree": "tree"}  # as the public benchmark's set-up code names them
IMPORTABLE = frozenset(sys.stdlib_module_names) | {"numpy", "sortedcontainers"}


@dataclass(frozen=True)
class Check:
    """One test: the call that the answer's process evaluates, and what its value has to be.

    Attributes:
        call: source of the call.
        form: how the value is compared, one of EQUAL, IS, IN, TRUE, FALSE.
        source: source of the expected value ("" for TRUE and FALSE).
        digests: digests that pass; None while the source is no literal and has not been evaluated yet.
        number: place of the test in its problem, from 1.
        shape: "list" or "tree" where linked structures are compared node by node, else "".
    """

    call: str
    form: str
    source: str
    digests: frozenset[bytes] | None
    number: int
    shape: str = ""

    def holds(self, payload: bytes, token: bytes) -> bool:
        """Whether a value record (sealed digest and kind; b"": no plain value) passes the test."""
        if len(payload) != DIGEST_SIZE + 1 or self.digests is None:
            return False
        value, kind = payload[:DIGEST_SIZE], payload[DIGEST_SIZE:]
        if self.form == EQUAL and len(self.digests) == 1:
            return value == sealed(next(iter(self.digests)), token)
        if self.form == TRUE:
            return all(value != sealed(empty, token) for empty in EMPTY)
        if self.form == IS and (kind == b"B") != (self.source in ("True", "False")):
            return False
        return any(value == sealed(passing, token) for passing in self.digests)

    def alone(self) -> Check:
        """The expected value as a call of its own, to be evaluated where there is no answer."""
        return Check(self.source, EQUAL, "", frozenset(), self.number, self.shape)

    def expected(self) -> Any:
        """The expected value, where it is a literal (else an object that equals nothing)."""
        try:
            return ast.literal_eval(self.source)
        except (ValueError, SyntaxError):
            return object()


@dataclass(frozen=True, eq=False)
class Tests:
    """All tests of a problem, and what its runs need besides the answer."""

    setup: str
    checks: tuple[Check, ...]
    entries: tuple[tuple[str, str], ...]
    imports: tuple[str, ...]

    @cached_property
    def code(self) -> bytes:
        """The calls, compiled by this interpreter, which is the fork-servers' too: a marshalled tuple of code objects.

        Made once, with the tests, and not for each fork-server.

        Raises:
            ValueError: a call is too deeply nested to compile.
        """
        compiled: list[CodeType] = []
        for check in self.checks:
            try:
                compiled.append(compile(check.call, f"<test {len(compiled)}>", "eval", dont_inherit=True))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                raise ValueError(
                    f"test {check.number}: expected a call that compiles; got {type(error).__name__}: {error}"
                ) from None
        return marshal.dumps(tuple(compiled))

    @property
    def pending(self) -> tuple[int, ...]:
        """Indices of checks whose expected value is an expression that has yet to be evaluated."""
        return tuple(i for i, check in enumerate(self.checks) if check.digests is None)


@lru_cache(maxsize=4096)
def parse_tests(tests: tuple[str, ...], setup: str) -> Tests:
    """Take the tests of a problem apart.

    Raises:
        ValueError: there is no test, or one is not of a form that can be judged outside of the answer's process.
    """
    if not tests:
        raise ValueError("expected at least one test; got none (a problem without tests cannot be graded)")
    checks, entries = [], set()
    relations = {name: shape for name, shape in RELATIONS.items() if f"def {name}(" in setup}
    for number, test in enumerate(tests, 1):
        check, entry = parse_test(test, number, relations)
        checks.append(check)
        entries.add(entry)
    taken_apart = Tests(setup, tuple(checks), tuple(sorted(entries)), _imports(setup))
    assert taken_apart.code
    return taken_apart


def parse_test(test: str, number: int = 1, relations: Mapping[str, str] | None = None) -> tuple[Check, tuple[str, str]]:
    """Return the check of one assert, and the (class or "", function) that it calls.

    Args:
        test: source of the assert.
        number: its place, for messages.
        relations: functions of the set-up code that compare linked structures, with the shape that each compares;
            ``assert same(CALL, EXPR)`` is then judged as an equality, outside of the answer's process.

    Raises:
        ValueError: the test is not one ``assert`` of a supported form.
    """
    if not isinstance(test, str):
        raise ValueError(f"test {number}: expected a string with one assert; got {type(test).__name__}")
    try:
        body = ast.parse(test.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"test {number}: expected `assert CALL == EXPR`; got a syntax error: {error}") from None
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise ValueError(f"test {number}: expected one statement `assert CALL == EXPR`; got {_short(test)}")
    call, form, value, shape = _taken_apart(body[0].test, relations or {}, number, test)
    entry = _entry(call)
    if entry is None:
        raise ValueError(f"test {number}: expected a call of the answer on one side of the assert; got {_short(test)}")
    wrapped = not (isinstance(call, ast.Call) and _callee(call) == entry)
    if wrapped and (value is None or (isinstance(value, ast.Constant) and isinstance(value.value, bool))):
        raise ValueError(
            f"test {number}: {_short(test)} would be judged inside the answer's process; write `assert CALL == EXPR`"
        )
    if value is not None and any(isinstance(n, ast.Name) and n.id in entry for n in ast.walk(value)):
        raise ValueError(f"test {number}: the expected value may not depend on the answer; got {_short(test)}")
    lines = test.strip().split("\n")
    source = _segment(lines, value) if value is not None else ""
    digests = None if shape else _digests(form, value, number)
    return Check(_segment(lines, call), form, source, digests, number, shape), entry


def _taken_apart(
    node: ast.expr, relations: Mapping[str, str], number: int, test: str
) -> tuple[ast.expr, str, ast.expr | None, str]:
    """Split the condition of an assert into call, form, expected expression and shape."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand, FALSE, None, ""
    name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if isinstance(node, ast.Call) and name in relations and len(node.args) == 2 and not node.keywords:
        left, right = node.args if _method(node.args[0]) else node.args[::-1]
        return left, EQUAL, right, relations[name]
    if not isinstance(node, ast.Compare):
        return node, TRUE, None, ""
    left, right = node.left, node.comparators[0]
    operator = node.ops[0]
    if len(node.ops) == 1 and isinstance(operator, ast.Eq):
        return (right, EQUAL, left, "") if _entry(left) is None else (left, EQUAL, right, "")
    singleton = isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))
    if len(node.ops) == 1 and isinstance(operator, ast.Is) and singleton:
        return left, IS, right, ""
    if len(node.ops) == 1 and isinstance(operator, ast.In) and isinstance(right, ast.List | ast.Tuple | ast.Set):
        return left, IN, right, ""
    raise ValueError(
        f"test {number}: expected `assert CALL == EXPR` (or `is None/True/False`, `in [..]`, a bare or negated call); "
        f"got {_short(test)}"
    )


def _digests(form: str, value: ast.expr | None, number: int) -> frozenset[bytes] | None:
    if value is None:
        return EMPTY if form == FALSE else frozenset()
    try:
        literal = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        if form == IN:
            raise ValueError(f"test {number}: expected literals after `in`; got {ast.unparse(value)[:80]}") from None
        return None
    try:
        return frozenset(digest(item) for item in (literal if form == IN else [literal]))
    except NotPlain as error:
        raise ValueError(f"test {number}: no value can equal the expected one: {error}") from None


def _method(node: ast.AST) -> bool:
    """Whether an expression calls a method of a class."""
    entry = _entry(node)
    return entry is not None and entry[0] != ""


def _entry(node: ast.AST) -> tuple[str, str] | None:
    """The method of a class, or else the function, that an expression calls."""
    function: tuple[str, str] | None = None
    for inner in ast.walk(node):
        callee = _callee(inner)
        if callee and callee[0]:
            return callee
        function = callee or function
    return function


def _callee(node: ast.AST) -> tuple[str, str] | None:
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name):
        return "", node.func.id
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name):
            return owner.func.id, node.func.attr
        if isinstance(owner, ast.Name):
            return owner.id, node.func.attr
    return None


def _segment(lines: Sequence[str], node: ast.expr) -> str:
    """Source text of a node, in parentheses where it spans lines."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    if first == last:
        return lines[first].encode()[node.col_offset : node.end_col_offset].decode()
    head = lines[first].encode()[node.col_offset :].decode()
    tail = lines[last].encode()[: node.end_col_offset].decode()
    return "(" + "\n".join([head, *lines[first + 1 : last], tail]) + ")"


def _imports(setup: str) -> tuple[str, ...]:
    """Modules that the set-up code imports and the fork-server may import ahead."""
    try:
        tree = ast.parse(setup)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"setup_code: expected Python; got a syntax error: {error}") from None
    return tuple(sorted({name for name in _imported(tree) if name.split(".")[0] in IMPORTABLE}))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:97] + "...")
