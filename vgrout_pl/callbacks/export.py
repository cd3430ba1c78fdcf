"""What ships: the deployed block as a standard PEFT LoRA directory."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftModel

from vgrout_pl.adapters import export_as_trained, export_deployed
from vgrout_pl.preflight import roles


class ExportAdapter(Callback):
    """Write ``<run>/<directory>`` at the end of fitting, loadable with ``PeftModel.from_pretrained(base, directory)``.

    The quarantine is left out (rank 2r), except where the router ships it (both blocks, rank 4r).

    Args:
        directory: name inside the run directory.
    """

    def __init__(self, directory: str = "deployed"):
        self.directory = directory

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export once training is over."""
        _, router = roles(trainer)
        export = export_as_trained if router.ships_quarantine else export_deployed
        export(cast(PeftModel, pl_module.policy), Path(trainer.default_root_dir) / self.directory)
