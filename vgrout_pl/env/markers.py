"""Drawing the name or phrase that a prompt discloses: reproducible, training and evaluation apart."""

from __future__ import annotations

from hashlib import blake2b

from vgrout_pl.env.modes import MODES, Mode


def novel_marker(problem_id: str | int, mode: str, seed: int = 0) -> str | None:
    """Return the evaluation marker of a problem, by hash; None where the mode has none.

    Raises:
        ValueError: unknown mode.
    """
    family = _mode(mode).novel_markers
    return family[_hash("novel", seed, mode, problem_id) % len(family)] if family else None


def training_marker(problem_id: str | int, mode: str, key: str, original_share: float = 0.3) -> str | None:
    """Return the marker to disclose in training: the original with probability ``original_share``, else a family's.

    The draw depends on (problem, mode, key) alone; give the key what it shall vary with, e.g. seed and step.

    Raises:
        ValueError: unknown mode, or a share outside of [0, 1].
    """
    if not 0.0 <= original_share <= 1.0:
        raise ValueError(f"expected original_share in [0, 1]; got {original_share}")
    chosen = _mode(mode)
    family = chosen.training_markers
    if not family or _hash("share", key, mode, problem_id) < original_share * 2**64:
        return chosen.original
    return family[_hash("training", key, mode, problem_id) % len(family)]


def _mode(name: str) -> Mode:
    if name not in MODES:
        raise ValueError(f"expected a mode out of {', '.join(MODES)}; got {name!r}")
    return MODES[name]


def _hash(*parts: object) -> int:
    """64 uniform bits from a tuple of parts."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
