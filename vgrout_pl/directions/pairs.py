"""Contrastive pairs: one prompt answered twice, once with the behaviour to be routed away and once without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """One authored pair; the two completions share the prompt and should differ along one axis only.

    Attributes:
        name: unique within a set, for reports and for selection by prefix.
        messages: chat messages (``role``, ``content``) of the shared prompt.
        hack: completion that shows the behaviour.
        clean: completion that does not.
        tags: labels for selection; the first one is the mechanism.
    """

    name: str
    messages: tuple[Mapping[str, str], ...]
    hack: str
    clean: str
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Freeze the sequences and refuse a pair that could not carry a contrast."""
        object.__setattr__(self, "messages", tuple(dict(message) for message in self.messages))
        object.__setattr__(self, "tags", tuple(self.tags))
        if not self.messages:
            raise ValueError(f"pair {self.name!r}: expected at least one chat message; got none")
        for side in ("hack", "clean"):
            if not getattr(self, side).strip():
                raise ValueError(f"pair {self.name!r}: expected text on the {side} side; got an empty completion")
        if self.hack == self.clean:
            raise ValueError(f"pair {self.name!r}: expected two different completions; hack and clean are equal")

    @property
    def mechanism(self) -> str:
        """The first tag, or "" where the pair has none; signed inits and the linter group pairs by it."""
        return self.tags[0] if self.tags else ""


def pairs_hash(pairs: Iterable[ContrastivePair]) -> str:
    """SHA-256 (hex) of the content of a set of pairs, whatever their order."""
    records = sorted(
        json.dumps([p.name, [dict(m) for m in p.messages], p.hack, p.clean, list(p.tags)], sort_keys=True)
        for p in pairs
    )
    return hashlib.sha256("\n".join(records).encode()).hexdigest()
