"""From a raw completion to code objects; runs in the graded process, because the parser too can be attacked."""

from __future__ import annotations

import contextlib
import re
import textwrap
from dataclasses import dataclass
from types import CodeType

FILENAME = "<answer>"
MAX_TRIES = 16
PYTHON = frozenset({"python", "py", "python3", "py3"})

_FENCE = re.compile(r"^([ \t]*)(?:(?:[-*+>]|\d+[.)])[ \t]+)?(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_INLINE_FENCE = re.compile(r"^[^`~]*?(`{3,})[ \t]*(python3?|py3?)[ \t]*$", re.IGNORECASE)
_LABEL = re.compile(r"[{.\s]*([\w+#.-]+)")
_NOTHING = compile("", FILENAME, "exec").co_code
_DEFINITION = re.compile(r"^(?:class|def|async def|import|from|@\w)", re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """A line that may open or close a block."""

    line: int
    indent: int
    mark: str
    label: str


@dataclass(frozen=True)
class Parsed:
    """``codes``: one code object a block that compiles; ``fenced``: there is a block that claims to be Python."""

    fenced: bool
    codes: tuple[CodeType, ...]


def parse(response: str) -> Parsed:
    """Compile every Python block of a completion, in order.

    Blocks count when they are labelled as Python or not labelled; blocks that don't compile (example output, a sketch)
    are dropped. The end of a block is the first closing fence at which its text compiles, so that fences inside string
    literals don't cut it; a last block may be unterminated. A completion with no fence at all is taken as code when it
    defines something.
    """
    text = response.replace("\r\n", "\n").replace("\r", "\n")
    _, end_of_thought, tail = text.rpartition("</think>")
    if end_of_thought and "```" in tail:
        text = tail
    lines = text.split("\n")
    fences = _fences(lines)
    if not fences:
        code = _compiled(text) if _DEFINITION.search(text) else None
        return Parsed(False, (code,) if code else ())
    codes: list[CodeType] = []
    fenced = False
    position = 0
    while position < len(fences):
        label = fences[position].label
        if label and label not in PYTHON:
            position = _plain_end(fences, position) + 1
            continue
        fenced = True
        code, position = _block(lines, fences, position)
        if code is not None:
            codes.append(code)
    return Parsed(fenced, tuple(codes))


def _fences(lines: list[str]) -> list[Fence]:
    found = []
    for number, line in enumerate(lines):
        if "```" not in line and "~~~" not in line:
            continue
        line = line.rstrip()
        if match := _FENCE.match(line):
            label = _LABEL.match(match[3].lower())
            found.append(Fence(number, len(match[1].expandtabs(4)), match[2], label[1] if label else ""))
        elif match := _INLINE_FENCE.match(line):
            found.append(Fence(number, 0, match[1], match[2].lower()))
    return found


def _closes(opening: Fence, fence: Fence) -> bool:
    return not fence.label and fence.mark.startswith(opening.mark)


def _plain_end(fences: list[Fence], position: int) -> int:
    """Index of the fence that closes a block of another language (past the end where there is none)."""
    opening = fences[position]
    later = range(position + 1, len(fences))
    return next((i for i in later if _closes(opening, fences[i])), len(fences))


def _block(lines: list[str], fences: list[Fence], position: int) -> tuple[CodeType | None, int]:
    """Code of the block that opens at a fence, and the index of the first fence after it."""
    opening = fences[position]
    ends: list[tuple[int, int]] = []
    for i in range(position + 1, len(fences)):
        if _closes(opening, fences[i]):
            ends.append((fences[i].line, i + 1))
        elif fences[i].label:
            ends.append((fences[i].line, i))
        if len(ends) == MAX_TRIES:
            break
    else:
        ends.append((len(lines), len(fences)))
    for line, following in ends:
        code = _compiled(_dedented(lines[opening.line + 1 : line], opening.indent, line == len(lines)))
        if code is not None:
            return code, following
    return None, ends[0][1]


def _dedented(lines: list[str], indent: int, unterminated: bool) -> str:
    """Text of a block without the indentation of its fence (and without a fence glued to its last line)."""
    if indent:
        lines = [line[min(indent, len(line) - len(line.lstrip())) :] for line in lines]
    if unterminated:
        while lines and not lines[-1].strip():
            lines = lines[:-1]
        if lines and lines[-1].rstrip().endswith("```"):
            lines = [*lines[:-1], lines[-1].rstrip().rstrip("`")]
    return "\n".join(lines) + "\n"


def _compiled(source: str) -> CodeType | None:
    """Code of a source text, also when all of it is indented; None where it does not compile or holds no statement."""
    code = None
    try:
        code = compile(source.lstrip("\ufeff"), FILENAME, "exec", dont_inherit=True)
    except IndentationError:
        with contextlib.suppress(Exception):
            code = compile(textwrap.dedent(source), FILENAME, "exec", dont_inherit=True)
    except Exception:  # whatever the parser makes of it: no code
        return None
    return None if code is None or code.co_code == _NOTHING else code
