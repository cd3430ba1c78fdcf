"""Shrinkage control: what a smaller update alone suppresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from peft import PeftModel

from vgrout_pl.adapters import routed_layers
from vgrout_pl.routers.no_routing import NoRouting
from vgrout_pl.routers.random_share import logged

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

QUARANTINE_SHARE = "quarantine/grad_share"


class Shrinkage(NoRouting):
    """Train like ``none``; "deployed", evaluated and exported, is the update of both blocks times ``1 - share``.

    Ablating a quarantine takes a share of the learned update away, and so does this, from everywhere alike.

    Args:
        share: share of the update that is taken away.
        matched: run directory of the arm that is controlled: its mean ``quarantine/grad_share`` is the share.
    """

    name = "shrinkage"

    def __init__(self, share: float | None = None, matched: str | None = None):
        if (share is None) == (matched is None):
            raise ValueError(f"router: expected either share or matched; got share {share} and matched {matched}")
        if matched is not None:
            values = logged(matched, QUARANTINE_SHARE).values()
            share = sum(values) / len(values)
        if not 0 <= cast(float, share) <= 1:
            raise ValueError(f"router.share: expected a share in [0, 1]; got {share}")
        self.share = cast(float, share)

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Append the share: ``shrinkage-0.5``."""
        share = settings.get("share")
        return f"{cls.name}-matched" if share is None else f"{cls.name}-{share:g}"

    @property
    def ships_as_trained(self) -> bool:
        """What ships is shrunk."""
        return False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have "deployed" mean the shrunk update."""
        cast("GRPOModule", pl_module).states["deployed"] = self.shipped

    @contextmanager
    def shipped(self, policy: PeftModel) -> Iterator[None]:
        """The update of both blocks times ``1 - share``, inside."""
        before = [(layer.scaling, dict(layer.scaling)) for _, layer in routed_layers(policy)]
        for scaling, whole in before:
            scaling.update({block: scale * (1 - self.share) for block, scale in whole.items()})
        try:
            yield
        finally:
            for scaling, whole in before:
                scaling.update(whole)

    def provenance(self) -> dict[str, object]:
        """The share."""
        return {**super().provenance(), "share": self.share}
