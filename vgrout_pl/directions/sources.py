"""Where pairs come from: a Markdown file, a packaged set, or the organism."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vgrout_pl.directions.markdown import PairEntry, PairFile, format_pairs, parse_pairs
from vgrout_pl.directions.pairs import ContrastivePair

SETS = Path(__file__).with_name("sets")
ORGANISM = "organism"
ORGANISM_PAIRS = 32


def packaged_sets() -> tuple[str, ...]:
    """Names of the sets that come with the package."""
    return tuple(sorted(path.stem for path in SETS.glob("*.md")))


def load_pairs(
    source: str | Path,
    sections: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    prefix: str | None = None,
    n: int | None = None,
) -> list[ContrastivePair]:
    """Load pairs and select among them; :func:`pairs_hash` of the result identifies the selection.

    Args:
        source: path of a Markdown file (:mod:`vgrout_pl.directions.markdown`), the name of a packaged set, or
            ``organism`` / ``organism:MODE,MODE`` for pairs on the organism's problems, the modes in turn.
        sections: keep pairs of these sections (organism: modes).
        tags: keep pairs that have at least one of these tags.
        prefix: keep pairs whose name begins so.
        n: how many pairs to take, from the start of the selection; None: all (organism: 32).

    Raises:
        ValueError: no such source, section or tag; a malformed file; fewer than ``n`` pairs, or none.
    """
    return [entry.pair for entry in load_entries(source, sections, tags, prefix, n).entries]


def load_entries(
    source: str | Path,
    sections: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    prefix: str | None = None,
    n: int | None = None,
) -> PairFile:
    """Like :func:`load_pairs`, but with each pair's section, tests and place, and the set's declared axes."""
    name = str(source)
    if n is not None and n < 1:
        raise ValueError(f"pairs {name}: expected n of at least 1; got {n}")
    if name.partition(":")[0] == ORGANISM:
        selects = sections is not None or tags is not None or prefix is not None
        found = _organism(name, ORGANISM_PAIRS if n is None or selects else n)
    else:
        found = _read(source)
    entries = list(found.entries)
    _check(name, "sections", sections, {entry.section for entry in entries})
    _check(name, "tags", tags, {tag for entry in entries for tag in entry.pair.tags})
    chosen = [
        entry
        for entry in entries
        if (sections is None or entry.section in sections)
        and (tags is None or set(tags) & set(entry.pair.tags))
        and (prefix is None or entry.pair.name.startswith(prefix))
    ]
    if not chosen or (n is not None and len(chosen) < n):
        raise ValueError(
            f"pairs {name}: expected at least {n or 1} of {len(entries)} pairs to match (sections "
            f"{_shown(sections)}, tags {_shown(tags)}, prefix {prefix or 'any'}); got {len(chosen)}"
        )
    return PairFile(tuple(chosen[:n]), found.axes)


def write_pairs(
    pairs: Iterable[ContrastivePair | PairEntry],
    path: str | Path,
    title: str = "Contrastive pairs",
    axes: Sequence[str] = (),
) -> None:
    """Write pairs to a Markdown file that :func:`load_pairs` reads back; a reader sees no file or the whole of it.

    Raises:
        ValueError: a name, tag or role cannot be written, or a name comes twice.
    """
    text = format_pairs(pairs, title, axes)
    parse_pairs(text, str(path))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.write_bytes(text.encode())
    draft.replace(path)


def _read(source: str | Path) -> PairFile:
    name = str(source)
    path = SETS / f"{name}.md" if name in packaged_sets() else Path(source)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"pairs: expected a Markdown file, {ORGANISM}[:MODE,...], or one of {', '.join(packaged_sets())}; got "
            f"{name!r} ({error.strerror or type(error).__name__})"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"pairs {name}: expected UTF-8; got {error}") from None
    return parse_pairs(text, path.name if path.parent == SETS else name)


def _organism(source: str, n: int) -> PairFile:
    from vgrout_pl.env.modes import LOOPHOLE_MODES
    from vgrout_pl.organism import pairs

    _, colon, given = source.partition(":")
    modes = tuple(mode.strip() for mode in given.split(",")) if colon else LOOPHOLE_MODES
    try:
        made = pairs(modes=modes, n=n, seed=0)
    except ValueError as error:
        raise ValueError(f"pairs {source}: {error}") from None
    return PairFile(tuple(PairEntry(pair, pair.tags[0], (), f"{source}: {pair.name}") for pair in made))


def _check(source: str, what: str, asked: Sequence[str] | None, known: Iterable[str]) -> None:
    if isinstance(asked, str):
        raise ValueError(f"pairs {source}: expected {what} as a list; got the text {asked!r}")
    missing = sorted(set(asked or ()) - set(known))
    if missing:
        raise ValueError(f"pairs {source}: expected {what} out of {', '.join(sorted(known))}; got {', '.join(missing)}")


def _shown(asked: Sequence[str] | None) -> str:
    return ", ".join(asked) if asked is not None else "any"
