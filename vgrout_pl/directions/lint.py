"""What tells the two sides of a set of pairs apart besides the behaviour: length, style, single words, duplicates."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations

from vgrout_pl.directions.pairs import ContrastivePair
from vgrout_pl.directions.style import (
    FEATURES,
    LENGTH,
    auroc,
    code_of,
    holm,
    jaccard,
    paired_t,
    permutation_p,
    shingles,
    words,
)

CONFESSIONS = re.compile(
    r"\b(?:bypass\w*|cheat\w*|circumvent\w*|exploit\w*|fak(?:e|ed|ing)|fool(?:s|ed|ing)?|gaming|hack\w*|"
    r"(?:dis)?honest\w*|loopholes?|trick\w*|unfair\w*)\b"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a finding begins.

    Attributes:
        auroc: allowed distance of the length's AUROC from 0.5.
        p: Holm-corrected permutation p, above 0, below which length or a style feature is a finding. Sides are swapped
            within pairs, so that a small difference which most pairs share is found as well: a mean difference keeps
            it.
        gap: allowed difference in length of one pair's sides, as a share of the longer one.
        within: least similarity of a pair's two sides, the share of words in matching runs.
        across: greatest similarity of two pairs, Jaccard index of their runs of five words.
        word: greatest difference between the shares of hack and of clean sides which hold one particular word.
    """

    auroc: float = 0.1
    p: float = 0.05
    gap: float = 0.1
    within: float = 0.4
    across: float = 0.7
    word: float = 0.25


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    ``verdict``: ``ok``, ``FAIL``, ``axis`` for a difference the set declares, or ``few`` where there are too few pairs
    for the test to find any difference: nothing is known then, and it is neither passed nor failed.
    """

    check: str
    value: str
    limit: str
    verdict: str
    detail: str = ""


def lint(pairs: Sequence[ContrastivePair], axes: Sequence[str] = (), limits: Limits | None = None) -> list[Finding]:
    """Check a set of pairs; style features in ``axes`` are the set's subject, so they are reported and do not fail.

    Below :func:`least_pairs` pairs, length and style are reported and not tested.

    Raises:
        ValueError: there are fewer than two pairs, or an axis is no style feature.
    """
    limits = limits or Limits()
    if len(pairs) < 2:
        raise ValueError(f"expected at least 2 pairs to compare; got {len(pairs)}")
    known = [*(name for name in FEATURES if name != LENGTH), "word"]
    if unknown := [axis for axis in axes if axis not in known]:
        raise ValueError(f"expected axes out of {', '.join(known)}; got {', '.join(unknown)}")
    return [
        *_feature_checks(pairs, axes, limits),
        _gap_check(pairs, limits),
        _within_check(pairs, limits),
        _across_check(pairs, limits),
        _single_check(pairs),
        _confession_check(pairs),
        _word_check(pairs, axes, limits),
    ]


def passed(findings: Sequence[Finding]) -> bool:
    """Whether no check failed."""
    return all(finding.verdict != "FAIL" for finding in findings)


def least_pairs(p: float) -> int:
    """How many pairs the tests of length and style need to find anything.

    Where all of n pairs differ in one direction, an exact test that swaps sides has its smallest p, 2 / 2^n; Holm
    multiplies the smallest of m features' by m, so that m 2^(1 - n) has to be below ``p``.
    """
    return math.floor(1 + math.log2(len(FEATURES) / p)) + 1


def _feature_checks(pairs: Sequence[ContrastivePair], axes: Sequence[str], limits: Limits) -> Iterator[Finding]:
    sides = {name: ([f(p.hack) for p in pairs], [f(p.clean) for p in pairs]) for name, f in FEATURES.items()}
    corrected = holm([permutation_p(hack, clean) for hack, clean in sides.values()])
    least = least_pairs(limits.p)
    few = f"too few pairs to test, expected at least {least}; " if len(pairs) < least else ""
    for (name, (hack, clean)), p in zip(sides.items(), corrected, strict=True):
        area = auroc(hack, clean)
        off = abs(area - 0.5) > limits.auroc + 1e-12
        differences = [a - b for a, b in zip(hack, clean, strict=True)]
        found = p < limits.p or (name == LENGTH and off)
        yield Finding(
            name,
            f"AUROC {area:.3f}",
            f"p >= {limits.p}" + (f", {0.5 - limits.auroc:.2f}..{0.5 + limits.auroc:.2f}" if name == LENGTH else ""),
            "axis" if found and name in axes else "few" if few and not found else _verdict(found),
            f"{few}p {p:.3f}, mean difference {sum(differences) / len(pairs):+.3f}, "
            f"paired t {paired_t(differences):+.2f}",
        )


def _gap_check(pairs: Sequence[ContrastivePair], limits: Limits) -> Finding:
    gaps = {p.name: abs(len(p.hack) - len(p.clean)) / max(len(p.hack), len(p.clean)) for p in pairs}
    loose = [name for name, gap in gaps.items() if gap > limits.gap]
    return _listed("length gap of a pair", f"max {max(gaps.values()):.3f}", f"<= {limits.gap}", loose)


def _within_check(pairs: Sequence[ContrastivePair], limits: Limits) -> Finding:
    near = {p.name: side_similarity(p) for p in pairs}
    far = [name for name, value in near.items() if value < limits.within]
    return _listed("similarity of a pair's sides", f"min {min(near.values()):.3f}", f">= {limits.within}", far)


def side_similarity(pair: ContrastivePair) -> float:
    """Share of the words of both sides that lie in matching runs, 2 M / T as in ``difflib``."""
    return SequenceMatcher(None, words(code_of(pair.hack)), words(code_of(pair.clean)), autojunk=False).ratio()


def _across_check(pairs: Sequence[ContrastivePair], limits: Limits) -> Finding:
    marks = [(p.name, shingles(p.hack) | shingles(p.clean)) for p in pairs]
    near = [(jaccard(a, b), f"{one} ~ {other}") for (one, a), (other, b) in combinations(marks, 2)]
    twins = [names for value, names in near if value > limits.across]
    return _listed("similarity of two pairs", f"max {max(near)[0]:.3f}", f"<= {limits.across}", twins)


def _single_check(pairs: Sequence[ContrastivePair]) -> Finding:
    counts = Counter(pair.mechanism for pair in pairs)
    single = [name or "(none)" for name, count in counts.items() if count == 1]
    return _listed("mechanisms with one pair", f"{len(single)} of {len(counts)}", "0", single)


def _confession_check(pairs: Sequence[ContrastivePair]) -> Finding:
    """Words that name the behaviour (or its absence) would be read instead of the behaviour."""
    told = [
        f"{pair.name} ({side}: {', '.join(sorted(found))})"
        for pair in pairs
        for side, text in (("hack", pair.hack), ("clean", pair.clean))
        if (found := set(CONFESSIONS.findall(text.lower().replace("_", " "))))
    ]
    return _listed("words that name the behaviour", str(len(told)), "0", told)


def _word_check(pairs: Sequence[ContrastivePair], axes: Sequence[str], limits: Limits) -> Finding:
    counts: Counter[str] = Counter()
    for pair in pairs:
        counts.update(set(words(pair.hack)))
        counts.subtract(set(words(pair.clean)))
    word, difference = max(counts.items(), key=lambda item: (abs(item[1]), item[0]))
    found = abs(difference) > limits.word * len(pairs)
    return Finding(
        "the most telling word",
        f"{difference / len(pairs):+.3f}",
        f"|.| <= {limits.word}",
        "axis" if found and "word" in axes else _verdict(found),
        f"{word!r}: share of hack sides minus share of clean sides",
    )


def _listed(check: str, value: str, limit: str, names: Sequence[str]) -> Finding:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return Finding(check, value, limit, _verdict(bool(names)), shown)


def _verdict(found: bool) -> str:
    return "FAIL" if found else "ok"
