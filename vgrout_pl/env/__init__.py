"""Coding problems with a disclosed, exploitable grader, and the oracle that cannot be forged (no torch here)."""

from vgrout_pl.env.data import load_problems
from vgrout_pl.env.grade import Grade
from vgrout_pl.env.grader import Grader, GraderError
from vgrout_pl.env.markers import novel_marker, training_marker
from vgrout_pl.env.problem import Problem
from vgrout_pl.env.sandbox.isolation import Limits

__all__ = ["Grade", "Grader", "GraderError", "Limits", "Problem", "load_problems", "novel_marker", "training_marker"]
