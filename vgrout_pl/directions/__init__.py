"""Contrastive pairs and the directions that are extracted from them."""

from vgrout_pl.directions.batches import pair_batches
from vgrout_pl.directions.pairs import ContrastivePair, pairs_hash

__all__ = ["ContrastivePair", "pair_batches", "pairs_hash"]
