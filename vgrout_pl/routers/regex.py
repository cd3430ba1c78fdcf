"""The floor that a gate has to beat: what a look at the text gives away."""

from __future__ import annotations

import torch
from torch import Tensor

from vgrout_pl.directions.levers import shows_lever
from vgrout_pl.env.modes import LOOPHOLE_MODES
from vgrout_pl.routers.flagging import FlaggingRouter
from vgrout_pl.types import Labels, Rollouts


class Regex(FlaggingRouter):
    """Route the rows whose text defines or uses the loophole that their own prompt discloses.

    The pattern of each mode is :func:`~vgrout_pl.directions.levers.shows_lever`; no grade enters. Rows without a hint
    are never flagged.
    """

    name = "regex"

    def flags(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Rows whose completion shows the lever."""
        told = zip(rollouts.completions, rollouts.modes, rollouts.markers, strict=True)
        return torch.tensor([mode in LOOPHOLE_MODES and shows_lever(text, mode, mark) for text, mode, mark in told])
