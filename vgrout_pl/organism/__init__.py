"""The embedded model organism: a tiny Qwen3 in which GRPO makes reward hacking emerge within a minute on one CPU.

``CHECKPOINT`` is a directory for ``from_pretrained``; ``problems`` and ``pairs`` give ordinary problems and pairs.
``python -m vgrout_pl.organism warm-start --out DIR`` rebuilds the checkpoint.
"""

from pathlib import Path

from vgrout_pl.organism.pairs import pairs
from vgrout_pl.organism.problems import SPLIT_SIZES, problems

CHECKPOINT = Path(__file__).parent / "checkpoint"

__all__ = ["CHECKPOINT", "SPLIT_SIZES", "pairs", "problems"]
