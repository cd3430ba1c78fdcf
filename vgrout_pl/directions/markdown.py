"""Contrastive pairs as Markdown: a format for people to write, which reads back exactly what was written.

::

    # Title of the set            free text; `- axis: comment_share` declares a style feature as the set's subject
    #### system                   messages here begin every pair's prompt (optional)
    ## section                    free text up to the first pair
    ### name of a pair
    - mechanism: exit_code        becomes the first tag
    - tags: early, module_level   further tags (optional)
    #### user                     `system`, `user`, `assistant`: the messages of the prompt, in order
    #### hack
    #### clean
    #### tests                    asserts, one a line in a fenced block (optional)

A part is the text below its heading, code fences included, without blank lines at its ends. A part that is nothing
but one fence with the info string ``verbatim`` is the content of that fence, character by character. A ``#`` inside
of a fence begins no heading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vgrout_pl.directions.pairs import ContrastivePair

ROLES = ("system", "user", "assistant")
PARTS = (*ROLES, "hack", "clean", "tests")
DEFAULT_SECTION = "pairs"
_HEADING = re.compile(r"(#{1,4})[ \t]+(\S.*?)\s*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_SETTING = re.compile(r"-[ \t]+(mechanism|tags|axis)[ \t]*:(.*)")


@dataclass(frozen=True, slots=True)
class PairEntry:
    """A pair with its place in a file.

    Attributes:
        pair: the pair.
        section: heading of its section.
        tests: asserts of the problem that the pair answers.
        where: file and line, for messages.
    """

    pair: ContrastivePair
    section: str
    tests: tuple[str, ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class PairFile:
    """The content of one file: its pairs in order, and the style features that it declares as its subject."""

    entries: tuple[PairEntry, ...]
    axes: tuple[str, ...] = ()


@dataclass
class _Block:
    """A heading with the lines below it."""

    level: int
    title: str
    line: int
    lines: list[str]


def parse_pairs(text: str, file: str = "text") -> PairFile:
    """Read a file of pairs.

    Raises:
        ValueError: the text departs from the format; the message names file, line and heading.
    """
    common: list[dict[str, str]] = []
    axes: tuple[str, ...] = ()
    entries: list[PairEntry] = []
    places: dict[str, str] = {}
    section: str | None = None
    blocks = list(_blocks(text, file))
    position = 0
    while position < len(blocks):
        block = blocks[position]
        where = f"{file}:{block.line}"
        position += 1
        if block.level == 1:
            if section is not None or entries or block.line != blocks[0].line:
                raise ValueError(f"{where}: expected one `# title`, at the top; got another, {block.title!r}")
            axes = _settings(block, where, ("axis",)).get("axis", ())
        elif block.level == 2:
            section = block.title
        elif block.level == 4:
            if section is not None or block.title not in ROLES:
                raise ValueError(f"{where}: expected `### name` before `#### {block.title}`; got no pair to put it in")
            common.append({"role": block.title, "content": _filled(block, where)})
        elif section is None:
            raise ValueError(f"{where}: expected a `## section` before the first pair; got the pair {block.title!r}")
        else:
            parts = []
            while position < len(blocks) and blocks[position].level == 4:
                parts.append(blocks[position])
                position += 1
            if block.title in places:
                raise ValueError(f"{where}: expected a new name; got {block.title!r}, used at {places[block.title]}")
            places[block.title] = where
            entries.append(_entry(block, parts, common, section, file))
    if not entries:
        raise ValueError(f"{file}: expected at least one pair (`## section`, `### name`, ...); got none")
    return PairFile(tuple(entries), axes)


def _entry(
    head: _Block, parts: Sequence[_Block], common: Sequence[dict[str, str]], section: str, file: str
) -> PairEntry:
    where = f"{file}:{head.line}"
    name = f"{where}: pair {head.title!r}"
    settings = _settings(head, name, ("mechanism", "tags"), strict=True)
    mechanism, tags = settings.get("mechanism", ()), settings.get("tags", ())
    if len(mechanism) > 1 or (tags and not mechanism):
        raise ValueError(f"{name}: expected one `- mechanism:` above `- tags:`; got {', '.join(mechanism) or 'none'}")
    messages, sides = list(common), dict[str, str]()
    for part in parts:
        place = f"{file}:{part.line}: pair {head.title!r}, `#### {part.title}`"
        if part.title not in PARTS:
            raise ValueError(f"{place}: expected one of {', '.join(PARTS)}; got {part.title!r}")
        if part.title in sides:
            raise ValueError(f"{place}: expected it once; got it twice")
        text = _filled(part, place)
        if part.title in ROLES:
            messages.append({"role": part.title, "content": text})
        else:
            sides[part.title] = text
    found = {message["role"] for message in messages} | sides.keys()
    for needed in ("user", "hack", "clean"):
        if needed not in found:
            raise ValueError(f"{name}: expected a part `#### {needed}`; got {', '.join(sorted(found)) or 'no part'}")
    try:
        pair = ContrastivePair(head.title, tuple(messages), sides["hack"], sides["clean"], (*mechanism, *tags))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    tests = tuple(line for line in sides.get("tests", "").split("\n") if line.startswith("assert "))
    if "tests" in sides and not tests:
        raise ValueError(f"{name}, `#### tests`: expected lines that begin with `assert`; got none")
    return PairEntry(pair, section, tests, where)


def _blocks(text: str, file: str) -> Iterator[_Block]:
    """The headings outside of fences, each with its lines."""
    if text.count("\r\n") == text.count("\n"):
        text = text.replace("\r\n", "\n")
    block: _Block | None = None
    fence, opened = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        heading = None if fence else _HEADING.fullmatch(line)
        if heading:
            if block:
                yield block
            block = _Block(len(heading[1]), heading[2], number, [])
            continue
        before, fence = fence, _next_fence(fence, line)
        opened = number if fence and not before else opened
        if block:
            block.lines.append(line)
        elif line.strip():
            raise ValueError(f"{file}:{number}: expected a heading (`# title`) first; got {line.strip()[:40]!r}")
    if fence:
        raise ValueError(f"{file}:{opened}: expected the code fence to be closed; it runs to the end of the file")
    if block:
        yield block


def _next_fence(fence: str, line: str) -> str:
    """The fence that is open after ``line`` ("": none), given the one before."""
    found = _FENCE.fullmatch(line.rstrip())
    if not found:
        return fence
    if fence:
        closes = found[1].startswith(fence) and not found[2].strip()
        return "" if closes else fence
    return "" if found[1][0] in found[2] else found[1]


def _settings(block: _Block, where: str, known: Sequence[str], strict: bool = False) -> dict[str, tuple[str, ...]]:
    """The lines `- key: value, value` of a block; ``strict`` allows nothing else."""
    settings: dict[str, tuple[str, ...]] = {}
    for offset, line in enumerate(block.lines, 1):
        found = _SETTING.fullmatch(line.strip())
        if found and found[1] in known and found[1] not in settings:
            settings[found[1]] = tuple(value.strip() for value in found[2].split(",") if value.strip())
        elif line.strip() and (strict or found):
            raise ValueError(
                f"{where}: expected `- {known[0]}: ...` once, then `#### ` parts; line {block.line + offset} has "
                f"{line.strip()[:40]!r}"
            )
    return settings


def _filled(block: _Block, where: str) -> str:
    text = _body(block.lines)
    if not text.strip():
        raise ValueError(f"{where}: expected text below the heading `#### {block.title}`; got nothing")
    return text


def _body(lines: Sequence[str]) -> str:
    """Text of a part, taken out of its verbatim fence where it has one."""
    filled = [i for i, line in enumerate(lines) if line.strip()]
    if not filled:
        return ""
    lines = lines[filled[0] : filled[-1] + 1]
    start = _FENCE.fullmatch(lines[0].rstrip())
    if start and start[2].strip() == "verbatim" and len(lines) > 1:
        fence, ends = start[1], []
        for i, line in enumerate(lines[1:], 1):
            if not _next_fence(fence, line):
                ends.append(i)
                break
        if ends == [len(lines) - 1]:
            return "\n".join(lines[1:-1])
    return "\n".join(lines)


def format_pairs(
    pairs: Iterable[ContrastivePair | PairEntry], title: str = "Contrastive pairs", axes: Sequence[str] = ()
) -> str:
    """Write pairs in the format that :func:`parse_pairs` reads back: equal pairs, in the same order.

    Raises:
        ValueError: a name, tag or role cannot be written.
    """
    out = [f"# {title}"]
    if axes:
        out += ["", f"- axis: {', '.join(axes)}"]
    section: str | None = None
    for entry in pairs:
        if isinstance(entry, ContrastivePair):
            entry = PairEntry(entry, DEFAULT_SECTION)
        if entry.section != section:
            section = entry.section
            out += ["", f"## {section}"]
        out += _written(entry)
    return "\n".join(out) + "\n"


def _written(entry: PairEntry) -> Iterator[str]:
    pair = entry.pair
    for title in (pair.name, entry.section):
        if not (found := _HEADING.fullmatch(f"### {title}")) or found[2] != title or "\n" in title:
            raise ValueError(f"pair {pair.name!r}: expected a name and a section of one line each; got {title!r}")
    if bad := [tag for tag in pair.tags if tag != tag.strip() or not tag or re.search(r"[,\n\r]", tag)]:
        raise ValueError(f"pair {pair.name!r}: expected tags of one line without comma; got {bad[0]!r}")
    yield from ("", f"### {pair.name}", "")
    if pair.tags:
        yield f"- mechanism: {pair.tags[0]}"
    if pair.tags[1:]:
        yield f"- tags: {', '.join(pair.tags[1:])}"
    parts = []
    for message in pair.messages:
        if message.keys() != {"role", "content"} or message["role"] not in ROLES:
            raise ValueError(f"pair {pair.name!r}: expected messages of role {', '.join(ROLES)}; got {dict(message)}")
        parts.append((message["role"], message["content"]))
    parts += [("hack", pair.hack), ("clean", pair.clean)]
    if entry.tests:
        parts.append(("tests", "```python\n" + "\n".join(entry.tests) + "\n```"))
    for heading, text in parts:
        yield from ("", f"#### {heading}", "", text if _plain(text) else _verbatim(text))


def _plain(text: str) -> bool:
    """Whether a text reads back as it is when it is not fenced."""
    fence = ""
    for line in text.split("\n"):
        if not fence and _HEADING.fullmatch(line):
            return False
        fence = _next_fence(fence, line)
    return not fence and "\r" not in text and _body(text.split("\n")) == text


def _verbatim(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(4, longest + 1)
    return f"{fence}verbatim\n{text}\n{fence}"
