"""A problem set of our own, easy to hard, that needs no download; `build.py` makes `problems.jsonl`."""

from __future__ import annotations

from pathlib import Path

from vgrout_pl.env.data import load_problems
from vgrout_pl.env.problem import Problem

PATH = Path(__file__).parent / "problems.jsonl"


def starter_problems(mode: str = "run_tests") -> list[Problem]:
    """The problems that ship with the package, under one mode."""
    return load_problems(PATH, mode)
