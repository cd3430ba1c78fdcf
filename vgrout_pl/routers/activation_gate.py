"""route_a: the score is a pooled activation along a direction."""

from __future__ import annotations

from vgrout_pl.directions.direction_source import DirectionSource
from vgrout_pl.directions.features import ActivationReader, Pooling, Site
from vgrout_pl.directions.pair_sources import AuthoredPairs
from vgrout_pl.directions.scores import Aggregation
from vgrout_pl.routers.bands import Bands
from vgrout_pl.routers.gate import Gate


class ActivationGate(Gate):
    """Cut rollouts by their pooled activations along a direction.

    ``score = sum_m <h_m, v_m>``, h_m the mean over completion tokens of A_D x in module m. One pass without gradient
    over all rows, which for the rows that were sampled ablated is one that the step needs anyway.

    The signed inits (scorda) take the pairs' direction out of the deployed block, so that its bottleneck cannot see
    what those pairs show: read site ``residual`` there, or take another init.

    Routes are given to whole rollouts: the adapter's masks act on rows. ``pooling: max`` lets a single token decide.

    Args:
        direction: where the direction comes from; None: authored pairs.
        site: what is read; see :class:`~vgrout_pl.directions.features.ActivationReader`.
        layers: decoder layers of site ``residual``; None: all.
        pooling: over the completion's tokens.
        aggregation: how the modules' scores are put together.
        refresh_every: windows between two extractions; 0: one extraction for the run.
        bands: thresholds and buffer.
        pair_batch_size: pairs read together at an extraction.
    """

    name = "route_a"

    def __init__(
        self,
        direction: DirectionSource | None = None,
        site: Site = "bottleneck",
        layers: list[int] | None = None,
        pooling: Pooling = "mean",
        aggregation: Aggregation = "dot",
        refresh_every: int = 5,
        bands: Bands = Bands(),  # noqa: B008 - frozen
        pair_batch_size: int = 8,
    ):
        reader = ActivationReader(site, layers, pooling)
        super().__init__(direction or AuthoredPairs(), reader, aggregation, refresh_every, bands, pair_batch_size)
