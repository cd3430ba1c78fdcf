"""Shrinkage control: what a smaller update alone suppresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer

from vgrout_pl.adapters import routed_layers
from vgrout_pl.routers.no_routing import NoRouting
from vgrout_pl.routers.random_share import logged

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

QUARANTINE_SHARE = "quarantine/grad_share"


class Shrinkage(NoRouting):
    """Train like ``none``; then multiply the update of both blocks by ``1 - share``, and evaluate and ship that.

    Ablating a quarantine takes a share of the learned update away, and so does this, from everywhere alike. The
    checkpoint holds the update as trained; scaled is what the final evaluation, ``test`` and the export see.

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
        self._scaled = False

    @classmethod
    def run_name(cls, settings: Mapping[str, Any]) -> str:
        """Append the share: ``shrinkage-0.5``."""
        share = settings.get("share")
        return f"{cls.name}-matched" if share is None else f"{cls.name}-{share:g}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shrink before anything is exported."""
        self._shrink(cast("GRPOModule", pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shrink where this process has not trained."""
        self._shrink(cast("GRPOModule", pl_module))

    def _shrink(self, module: GRPOModule) -> None:
        if self._scaled:
            return
        self._scaled = True
        for _, layer in routed_layers(module.policy):
            for block in layer.scaling:
                layer.scaling[block] *= 1 - self.share

    def provenance(self) -> dict[str, object]:
        """The share."""
        return {**super().provenance(), "share": self.share}
