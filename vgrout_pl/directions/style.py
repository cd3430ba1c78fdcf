"""Style of a completion in numbers, and how well one number alone tells the two sides of a set of pairs apart."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[^\sA-Za-z0-9_]")
_PUNCTUATION = re.compile(r"[^\sA-Za-z0-9]")
_CODE = re.compile(r"^ {0,3}```[^\n`]*\n(.*?)(?:^ {0,3}```|\Z)", re.DOTALL | re.MULTILINE)


def code_of(text: str) -> str:
    """The fenced code of a completion, or all of it where nothing is fenced."""
    return "\n".join(_CODE.findall(text)) or text


def words(text: str) -> list[str]:
    """Names, numbers and single punctuation marks of a text, in order."""
    return _WORD.findall(text)


def comment_share(text: str) -> float:
    """Characters in ``#`` comments as a share of the code."""
    code = code_of(text)
    return sum(map(len, _tokens(code, tokenize.COMMENT))) / max(1, len(code))


def identifier_length(text: str) -> float:
    """Mean length of the names in the code, keywords left out."""
    names = _names(text)
    return sum(map(len, names)) / max(1, len(names))


def underscore_share(text: str) -> float:
    """Share of the names in the code that have an underscore inside."""
    names = _names(text)
    return sum("_" in name.strip("_") for name in names) / max(1, len(names))


def _names(text: str) -> list[str]:
    return [name for name in _tokens(code_of(text), tokenize.NAME) if not keyword.iskeyword(name)]


def _tokens(code: str, kind: int) -> list[str]:
    """Tokens of a kind, as far as the code can be read."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == kind:
                found.append(token.string)
    except (tokenize.TokenError, SyntaxError):
        pass
    return found


def blank_lines(text: str) -> float:
    """Number of empty lines."""
    return float(sum(not line.strip() for line in text.split("\n")))


def punctuation_share(text: str) -> float:
    """Share of the characters that are neither letters, digits nor space."""
    return len(_PUNCTUATION.findall(text)) / max(1, len(text))


def _count(word: str) -> Callable[[str], float]:
    return lambda text: float(_tokens(code_of(text), tokenize.NAME).count(word))


LENGTH = "length"
FEATURES: dict[str, Callable[[str], float]] = {
    LENGTH: lambda text: float(len(text)),
    "lines": lambda text: float(text.count("\n") + 1),
    "comment_share": comment_share,
    "identifier_length": identifier_length,
    "underscore_share": underscore_share,
    "defs": _count("def"),
    "imports": _count("import"),
    "prints": _count("print"),
    "asserts": _count("assert"),
    "blank_lines": blank_lines,
    "punctuation_share": punctuation_share,
}


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """P(a positive value > a negative one) + P(equal) / 2, over all pairs of values.

    Raises:
        ValueError: one of the two is empty.
    """
    if not positive or not negative:
        raise ValueError(f"expected values on both sides; got {len(positive)} and {len(negative)}")
    a = torch.tensor(positive, dtype=torch.float64)[:, None]
    b = torch.tensor(negative, dtype=torch.float64)
    return float(((a > b).double() + 0.5 * (a == b).double()).mean())


def paired_t(differences: Sequence[float]) -> float:
    """Student's t of paired differences, mean / (sd / sqrt n); 0 where all are 0, infinite where all are equal."""
    values = torch.tensor(differences, dtype=torch.float64)
    if len(values) < 2 or not values.any():
        return 0.0
    return float(values.mean() / (values.std() / len(values) ** 0.5))


def permutation_p(hack: Sequence[float], clean: Sequence[float], n: int = 5000, seed: int = 0) -> float:
    """Two-sided p of the AUROC when the sides of each pair are swapped at random: (1 + hits) / (1 + n).

    The AUROC is linear in the hack side's ranks among all values, so that a swap of pair i moves it by the difference
    of the pair's two ranks.
    """
    gaps = _rank_gaps(hack, clean)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n, len(hack)), generator=generator).double() * 2 - 1
    return float((1 + ((signs @ gaps).abs() >= gaps.sum().abs() - 1e-9).sum()) / (1 + n))


def _rank_gaps(hack: Sequence[float], clean: Sequence[float]) -> Tensor:
    values = torch.tensor([*hack, *clean], dtype=torch.float64)
    ranks = (values[:, None] > values).double().sum(1) + 0.5 * (values[:, None] == values).double().sum(1)
    return ranks[: len(hack)] - ranks[len(hack) :]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m is max over j <= i of (m - j) p_j, at most 1."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = highest
    return corrected


def shingles(text: str, size: int = 5) -> frozenset[tuple[str, ...]]:
    """All runs of ``size`` words of the code, Solution's boilerplate included."""
    found = words(code_of(text))
    return frozenset(tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1)))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Size of the intersection over size of the union."""
    return len(a & b) / max(1, len(a | b))
