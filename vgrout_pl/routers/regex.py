"""The floor that a gate has to beat: what a look at the text gives away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vgrout_pl.directions.levers import shows_lever
from vgrout_pl.env.modes import LOOPHOLE_MODES
from vgrout_pl.routers.flagging import FlaggingRouter, Rest
from vgrout_pl.types import Labels, Rollouts


class Regex(FlaggingRouter):
    """Route the rows whose text defines or uses the loophole that their own prompt discloses.

    The pattern of each mode is :func:`~vgrout_pl.directions.levers.shows_lever`; no grade enters. Rows without a hint
    are never flagged.

    Args:
        modes: loophole modes whose pattern is known, rows of others are never flagged; None: all.
        rest: the route of all other rows.
    """

    name = "regex"

    def __init__(self, modes: list[str] | None = None, rest: Rest = "keep"):
        super().__init__(rest)
        unknown = [mode for mode in modes or () if mode not in LOOPHOLE_MODES]
        if unknown or modes == []:
            raise ValueError(f"router.modes: expected some of {', '.join(LOOPHOLE_MODES)}, or null; got {modes}")
        self.modes = LOOPHOLE_MODES if modes is None else modes

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Append the modes: ``regex-run_tests``."""
        return "-".join([cls.name, *(settings.get("modes") or ())])

    def flags(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """Rows whose completion shows the lever."""
        told = zip(rollouts.completions, rollouts.modes, rollouts.markers, strict=True)
        return torch.tensor([mode in self.modes and shows_lever(text, mode, mark) for text, mode, mark in told])
