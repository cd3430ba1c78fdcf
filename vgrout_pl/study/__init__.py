"""The classifier study: before any training, whether a direction tells hacks from solves better than chance does."""

from vgrout_pl.study.core import ORACLE, Block, Cell, Design, Family, Study
from vgrout_pl.study.metrics import METRICS, measure
from vgrout_pl.study.rollouts import StoredRollout, choose, load_rollouts
from vgrout_pl.study.scores import scores_along

__all__ = [
    "METRICS",
    "ORACLE",
    "Block",
    "Cell",
    "Design",
    "Family",
    "StoredRollout",
    "Study",
    "choose",
    "load_rollouts",
    "measure",
    "scores_along",
]
