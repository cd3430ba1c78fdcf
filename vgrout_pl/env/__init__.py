"""Coding problems with a disclosed, exploitable grader, and the oracle that cannot be forged (no torch here)."""

from vgrout_pl.env.problem import Problem

__all__ = ["Problem"]
