"""What ships: the deployed block as a standard PEFT LoRA directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftModel

from vgrout_pl.adapters import export_as_trained, export_deployed
from vgrout_pl.callbacks.ablation import DeployAblation
from vgrout_pl.policy import is_adapter_directory
from vgrout_pl.preflight import callbacks_of, roles
from vgrout_pl.provenance import provenance
from vgrout_pl.report import cells_markdown
from vgrout_pl.report.run import Run

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule


class ExportAdapter(Callback):
    """Write ``<run>/<directory>``, loadable with ``PeftModel.from_pretrained(base, directory)``.

    The quarantine is left out (rank 2r), except where the router ships it (both blocks, rank 4r). Written at the end
    of fitting, and again after the final evaluation: its README card then holds the table of these very weights.

    Args:
        directory: name inside the run directory.
    """

    def __init__(self, directory: str = "deployed"):
        self.directory = directory

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export once training is over: an evaluation that fails must not cost the adapter."""
        self._export(trainer, pl_module, None)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export what was evaluated, with its evaluation; nothing where an exported adapter was."""
        module = cast("GRPOModule", pl_module)
        if not module.trained_steps and is_adapter_directory(module.path):
            return
        evaluated = (c.results for c in callbacks_of(trainer) if isinstance(c, DeployAblation))
        results = next((found for found in evaluated if found is not None), None)
        self._export(trainer, pl_module, None if results is None else cells_markdown(results))

    def _export(self, trainer: Trainer, pl_module: LightningModule, evaluation: str | None) -> None:
        run = Path(trainer.default_root_dir)
        _, router = roles(trainer)
        export = export_as_trained if router.ships_quarantine else export_deployed
        facts = {
            "run": Run(run, None, None, None).name,
            **provenance(trainer, cast("GRPOModule", pl_module)),
        }
        policy = cast(PeftModel, pl_module.policy)
        with router.shipped(policy):
            export(policy, run / self.directory, provenance=facts, evaluation=evaluation)
