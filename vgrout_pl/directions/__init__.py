"""Contrastive pairs and the directions that are extracted from them."""

from vgrout_pl.directions.batches import pair_batches
from vgrout_pl.directions.generate import generate_pairs
from vgrout_pl.directions.pairs import ContrastivePair, pairs_hash
from vgrout_pl.directions.sources import load_pairs, packaged_sets, write_pairs

__all__ = [
    "ContrastivePair",
    "generate_pairs",
    "load_pairs",
    "packaged_sets",
    "pair_batches",
    "pairs_hash",
    "write_pairs",
]
