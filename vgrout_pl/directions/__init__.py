"""Contrastive pairs, the features of completions, and the directions that are extracted from them."""

from vgrout_pl.directions.batches import pair_batches
from vgrout_pl.directions.direction_source import DirectionSource, HaarRandom, OracleFit
from vgrout_pl.directions.evidence import LabelsUsed
from vgrout_pl.directions.extract import Extraction, PairFeatures, mean_direction, pair_features
from vgrout_pl.directions.features import ActivationReader, Layout, Reader
from vgrout_pl.directions.generate import generate_pairs
from vgrout_pl.directions.gradients import GradientReader
from vgrout_pl.directions.pair_sources import AuthoredPairs, PairSource, SelfGeneratedPairs, SignFlipped
from vgrout_pl.directions.pairs import ContrastivePair, pairs_hash
from vgrout_pl.directions.scores import row_scores
from vgrout_pl.directions.sources import load_pairs, packaged_sets, write_pairs

__all__ = [
    "ActivationReader",
    "AuthoredPairs",
    "ContrastivePair",
    "DirectionSource",
    "Extraction",
    "GradientReader",
    "HaarRandom",
    "LabelsUsed",
    "Layout",
    "OracleFit",
    "PairFeatures",
    "PairSource",
    "Reader",
    "SelfGeneratedPairs",
    "SignFlipped",
    "generate_pairs",
    "load_pairs",
    "mean_direction",
    "packaged_sets",
    "pair_batches",
    "pair_features",
    "pairs_hash",
    "row_scores",
    "write_pairs",
]
