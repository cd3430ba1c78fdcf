"""Where a gate's direction comes from: the base of all sources, and those that need no pairs of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from vgrout_pl.directions.evidence import LabelsUsed
from vgrout_pl.directions.extract import Extraction, mean_direction
from vgrout_pl.directions.features import Layout
from vgrout_pl.directions.scores import unit_modules
from vgrout_pl.seeding import derived_seed

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule


class DirectionSource:
    """Gives a direction v [F], of unit norm (or 0) in every module, each time that a gate refreshes.

    Override :meth:`extract`. A row that scores high along v is taken for a hack.

    Attributes:
        name: short name, for run directories and tables.
        labels_used: what the direction rests on; the gate declares the same.
    """

    name: ClassVar[str] = "source"
    labels_used: LabelsUsed = LabelsUsed.NONE

    def check(self, module: GRPOModule) -> None:
        """Raise ValueError where the source does not fit the run; called before any weight is read."""

    def prepare(self, module: GRPOModule) -> None:
        """Make, once, what extractions need; called before the first of them, on all processes, and after a resume."""

    def extract(self, extraction: Extraction) -> Tensor | None:
        """Return the direction [F] on the present model; None while there is nothing to make it from."""
        raise NotImplementedError

    def provenance(self) -> dict[str, object]:
        """Facts for the run's record."""
        return {"source": self.name, "labels_used": str(self.labels_used)}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; tensors and plain data only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring back :meth:`state_dict`."""


class HaarRandom(DirectionSource):
    """Placebo: a direction drawn uniformly from the unit sphere of every module.

    The draw depends on (seed, index, name of the module) alone: the same index is the same direction in every run.

    Args:
        index: which of the random directions.
        seed: of the draws.
        redraw: draw another one at every refresh, rather than keep one for the run.
    """

    name = "haar"

    def __init__(self, index: int = 0, seed: int = 0, redraw: bool = False):
        self.index, self.seed, self.redraw = index, seed, redraw

    def extract(self, extraction: Extraction) -> Tensor:
        """The same direction, or the next one."""
        turn = (extraction.index,) if self.redraw else ()
        return haar_direction(extraction.layout, self.seed, self.index, *turn).to(extraction.device)

    def provenance(self) -> dict[str, object]:
        """The numbers that it is drawn from."""
        return {**super().provenance(), "index": self.index, "seed": self.seed, "redraw": self.redraw}


def haar_direction(layout: Layout, *parts: object) -> Tensor:
    """Uniform on the unit sphere of each module, float32 [F]; a function of ``parts`` and the modules' names."""
    drawn = []
    for name, width in zip(layout.names, layout.widths, strict=True):
        generator = torch.Generator().manual_seed(derived_seed("haar", *parts, name))
        drawn.append(torch.randn(width, generator=generator))
    return unit_modules(torch.cat(drawn), layout.widths)


class OracleFit(DirectionSource):
    """Mean difference between the hacks and the other rows of the run so far; for analysis: it uses true labels.

    None until the gate's buffer holds at least ``least`` rows of both kinds.

    Args:
        least: rows of each kind.
    """

    name = "oracle_fit"
    labels_used = LabelsUsed.ORACLE

    def __init__(self, least: int = 4):
        if least < 1:
            raise ValueError(f"OracleFit.least: expected at least 1 row of each kind; got {least}")
        self.least = least

    def extract(self, extraction: Extraction) -> Tensor | None:
        """v_m = unit(mean of hacks - mean of others)."""
        labelled = extraction.labelled
        if labelled is None or not self.least <= int(labelled.hacked.sum()) <= len(labelled.hacked) - self.least:
            return None
        features, hacked = labelled.features.float(), labelled.hacked
        difference = features[hacked].mean(0) - features[~hacked].mean(0)
        return mean_direction(difference.unsqueeze(0), extraction.layout)
