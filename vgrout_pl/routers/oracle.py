"""The upper bound of any router: the true label decides, with as much noise as is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vgrout_pl.routers.base import LabelsUsed
from vgrout_pl.routers.flagging import FlaggingRouter, Rest
from vgrout_pl.types import Labels, Rollouts

Label = Literal["hacked", "channel"]


class Oracle(FlaggingRouter):
    """Route the rows that the grader labels; a seeded share of them is missed, of the others routed falsely.

    Args:
        rest: the route of rows that are not flagged.
        recall: probability that a labelled row is flagged.
        false_route_rate: probability that any other row is.
        label: ``hacked``, paid for the loophole without being correct; or ``channel``, the loophole was used. A right
            answer that uses the loophole as well is a ``channel`` alone: under ``hacked`` it is kept, and teaches the
            deployed block the loophole.
    """

    name = "oracle"
    labels_used = LabelsUsed.ORACLE

    def __init__(
        self, rest: Rest = "keep", recall: float = 1.0, false_route_rate: float = 0.0, label: Label = "hacked"
    ):
        super().__init__(rest)
        if label not in get_args(Label):
            raise ValueError(f"router.label: expected {' | '.join(get_args(Label))}; got {label!r}")
        self.label = label
        for what, share in (("recall", recall), ("false_route_rate", false_route_rate)):
            if not 0 <= share <= 1:
                raise ValueError(f"router.{what}: expected a share in [0, 1]; got {share}")
        self.recall, self.false_route_rate = recall, false_route_rate
        if recall < 1 or false_route_rate > 0:
            self.labels_used = LabelsUsed.NOISY

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Append the label, unless it is ``hacked``, and the noise: ``oracle-channel-recall0.5-false0.1``."""
        recall, false = settings.get("recall", 1.0), settings.get("false_route_rate", 0.0)
        label = settings.get("label", "hacked")
        noise = (f"-recall{recall:g}" if recall < 1 else "") + (f"-false{false:g}" if false else "")
        return cls.name + (f"-{label}" if label != "hacked" else "") + noise

    def flags(self, rollouts: Rollouts, labels: Labels | None) -> Tensor:
        """The label, with noise."""
        assert labels is not None
        labelled = torch.tensor([getattr(grade, self.label) for grade in labels.grades], dtype=torch.bool)
        drawn = self.uniforms(rollouts, "oracle")[self.own(rollouts)]
        return torch.where(labelled, drawn < self.recall, drawn < self.false_route_rate)

    def provenance(self) -> dict[str, object]:
        """The label and its noise."""
        noise = {"recall": self.recall, "false_route_rate": self.false_route_rate}
        return {**super().provenance(), "label": self.label, **noise}
