"""Randomness that depends on names, never on history: the same (seed, step, problem) always draws the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: object) -> int:
    """Hash the parts to a seed in [0, 2^63): equal parts give equal seeds on every machine and Python."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def derived_uniform(*parts: object) -> float:
    """Hash the parts to a number uniform in [0, 1)."""
    return derived_seed(*parts) / 2**63


@contextmanager
def seeded(*parts: object, device: torch.device | None = None) -> Iterator[None]:
    """Run a block under torch's global generators seeded from the parts, and give the generators back as they were."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(*parts))
        yield
