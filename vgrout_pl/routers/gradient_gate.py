"""route_v: the score is a gradient at the deployed bottleneck along a direction."""

from __future__ import annotations

from vgrout_pl.directions.direction_source import DirectionSource
from vgrout_pl.directions.gradients import GradientReader
from vgrout_pl.directions.pair_sources import SelfGeneratedPairs
from vgrout_pl.directions.scores import Aggregation
from vgrout_pl.routers.bands import Bands
from vgrout_pl.routers.gate import Gate


class GradientGate(Gate):
    """Cut rollouts by the gradient of their mean NLL, by a probe on the deployed bottleneck, along a direction.

    One forward and one backward pass over all rows, prompts not shared; see
    :class:`~vgrout_pl.directions.gradients.GradientReader`. The direction is the same gradient's difference over pairs.

    Args:
        direction: where the direction comes from; None: pairs that the policy writes itself.
        aggregation: how the modules' scores are put together.
        refresh_every: windows between two extractions; 0: one extraction for the run.
        bands: thresholds and buffer.
        pair_batch_size: pairs read together at an extraction.
    """

    name = "route_v"

    def __init__(
        self,
        direction: DirectionSource | None = None,
        aggregation: Aggregation = "dot",
        refresh_every: int = 5,
        bands: Bands = Bands(),  # noqa: B008 - frozen
        pair_batch_size: int = 8,
    ):
        source = direction or SelfGeneratedPairs()
        super().__init__(source, GradientReader(), aggregation, refresh_every, bands, pair_batch_size)
