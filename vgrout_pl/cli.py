"""The command line: Lightning's CLI with the roles of this system as named groups."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from vgrout_pl.callbacks import (
    BlockDiagnostics,
    DeployAblation,
    DivergenceGuard,
    ExportAdapter,
    PeriodicValidation,
    RetainHeal,
    RolloutLog,
    RoutedAdapter,
    RunReport,
    StepLog,
)
from vgrout_pl.callbacks.checkpoint import WindowCheckpoint
from vgrout_pl.callbacks.guard import GuardError
from vgrout_pl.callbacks.progress import RunProgressBar
from vgrout_pl.checkpoint_io import chosen_checkpoint
from vgrout_pl.console import condensed, fail, quiet
from vgrout_pl.datamodule import ProblemDataModule
from vgrout_pl.env import GraderError
from vgrout_pl.logger import RunCSVLogger
from vgrout_pl.module import GRPOModule
from vgrout_pl.plan.trainer import PlanningTrainer
from vgrout_pl.policy import is_adapter_directory
from vgrout_pl.processes import LOOK_EVERY, SAFE, WatchOthers, first_process_fails_too, is_lost_connection
from vgrout_pl.report.files import write_atomically
from vgrout_pl.resume import changes_since, described, note_changes, refuse_changed
from vgrout_pl.routers import Router
from vgrout_pl.run_directory import CONFIG_FILE, clear_run, refuse_taken, told
from vgrout_pl.signals import stop_at_once

GROUPS = {
    "adapter": RoutedAdapter,
    "validation": PeriodicValidation,
    "heal": RetainHeal,
    "ablation": DeployAblation,
    "rollout_log": RolloutLog,
    "guard": DivergenceGuard,
    "diagnostics": BlockDiagnostics,
    "export": ExportAdapter,
    "step_log": StepLog,
    "report": RunReport,
    "checkpoint": WindowCheckpoint,
}
TRAINER_DEFAULTS = {
    "default_root_dir": "runs",
    "max_epochs": -1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,
    "gradient_clip_val": 1.0,
    "inference_mode": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


USAGE = "cli.py %s --config FILE [--config OVERLAY ...] [--KEY VALUE ...]"
DESCRIPTIONS = {
    "fit": "Train a policy with a routed adapter by GRPO, then ablate the quarantine, evaluate and report. Later files "
    "and keys win: cli.py fit --config configs/demo.yaml --config configs/router/oracle.yaml --seed_everything 1. "
    "Resume with --ckpt_path last. Groups of keys: trainer, model, data, adapter, router, validation, ablation, "
    "rollout_log, guard, diagnostics, export, step_log, checkpoint. A run that the guard stops ends with exit code 3.",
    "validate": "Evaluate a checkpoint on the validation problems, as trained and deployed: give the run's config.yaml "
    "and --ckpt_path last.",
    "test": "Repeat the final evaluation of a checkpoint, which rewrites eval.json and the report of its run: give the "
    "run's config.yaml and --ckpt_path last. Or evaluate an exported adapter by itself: --model.path DIR without "
    "--ckpt_path, which writes to DIR/evaluation.",
    "plan": "Say what a step of a configuration takes before it runs, without weights: parameters, memory by part, "
    "tokens, FLOPs, and the time on a GPU (--gpu) or on this machine (--measure).",
}


class OneLineParser(LightningArgumentParser):
    """A parser that says what is wrong in one line and exits with 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the one line that matters."""
        raise SystemExit(fail(condensed(message), code=2))


class RunCLI(LightningCLI):
    """Adds the named groups, the run directory ``<default_root_dir>/<name>/seed<k>``, and the final evaluation."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands without ``predict``, which has no meaning here, and ``plan``."""
        own = {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}
        return {**own, "plan": {"model", "datamodule"}}

    def _parse_ckpt_path(self) -> None:
        """Take no configuration from a checkpoint: what runs is what the files and keys say."""

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Replace Lightning's seed, which may also be a switch, by a number."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of everything that is drawn.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups of roles and the name of the experiment."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the experiment, for the run directory <default_root_dir>/<name>/seed<k>; "
            "default: <router>-<init>.",
        )
        parser.add_argument(
            "--torch_threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads of torch; 1 is fastest for tiny models. Default: torch's own choice.",
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Start anew in a run directory that holds a run already."
        )
        parser.add_argument(
            "--allow_changed",
            type=list[str],
            default=[],
            help="Settings, or groups of them, that may differ from those that a resumed run began with.",
        )
        parser.add_lightning_class_args(Router, "router", subclass_mode=True, required=True)
        for group, kind in GROUPS.items():
            parser.add_lightning_class_args(kind, group)
        parser.link_arguments("seed_everything", "data.seed")

    @property
    def run_dir(self) -> Path:
        """Where this run writes; the evaluation of an exported adapter writes inside the adapter's folder."""
        config = self.config[self.subcommand]
        if self._evaluates_export:
            return Path(config["model"]["path"]) / "evaluation"
        module, _, kind = config["router"]["class_path"].rpartition(".")
        router = getattr(importlib.import_module(module), kind)
        arm = router.run_name(config["router"].get("init_args") or {})
        name = config["name"] or f"{arm}-{config['adapter']['init']}"
        return Path(config["trainer"]["default_root_dir"]) / name / f"seed{config['seed_everything']}"

    @property
    def _evaluates_export(self) -> bool:
        """Whether an exported adapter alone is evaluated, without a checkpoint."""
        config = self.config[self.subcommand]
        return (
            self.subcommand in ("validate", "test")
            and config["ckpt_path"] is None
            and is_adapter_directory(str(config["model"]["path"]))
        )

    def before_instantiate_classes(self) -> None:
        """Refuse a run directory that would be written over, find the checkpoint, set the threads."""
        config = self.config[self.subcommand]
        if config["torch_threads"] is not None:
            torch.set_num_threads(config["torch_threads"])
        self.checkpoint: Path | None = None
        if self.subcommand == "plan":
            return
        if self.subcommand == "fit":
            refuse_taken(self.run_dir, config["ckpt_path"], config["overwrite"])
        self._find_checkpoint()

    def _find_checkpoint(self) -> None:
        """Resolve ``ckpt_path``; refuse to train on under settings that are silently others than the run's."""
        config, fitting = self.config[self.subcommand], self.subcommand == "fit"
        directory = Path(config["checkpoint"]["dirpath"] or self.run_dir / "checkpoints")
        self.checkpoint = chosen_checkpoint(
            config["ckpt_path"], directory, required=not fitting and not self._evaluates_export
        )
        if not fitting or self.checkpoint is None:
            return
        present = self._parser(self.subcommand).dump(config, skip_none=False)
        changed = changes_since(self.checkpoint, self.run_dir, present)
        refuse_changed(changed, config["allow_changed"])
        for line in described(changed) if not getattr(rank_zero_only, "rank", 0) else ():
            print(f"resumed with {line}", flush=True)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Point Lightning at the run directory; fitting always writes metrics.csv, other loggers come beside it."""
        config = self.config_init[self.subcommand]["trainer"]
        loggers = config["logger"]
        loggers = loggers if isinstance(loggers, list) else [loggers] if loggers not in (None, True, False) else []
        checkpoint = self.config_init[self.subcommand]["checkpoint"]
        checkpoint.dirpath = checkpoint.dirpath or str(self.run_dir / "checkpoints")
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        own_bar = any(isinstance(callback, ProgressBar) for callback in given)
        bar = [] if own_bar or config["enable_progress_bar"] is False else [RunProgressBar()]
        config["callbacks"] = [*given, *bar, WatchOthers()]
        run_dir = str(self.run_dir)
        if self.subcommand == "fit":
            loggers = [RunCSVLogger(run_dir), *loggers]
        if self.subcommand == "plan":  # a plan needs none of the devices it is made for
            config.accelerator, config.devices, config.num_nodes, config.strategy = "cpu", 1, 1, "auto"
        return super().instantiate_trainer(default_root_dir=run_dir, logger=loggers or False, **kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Tell the trainer of the checkpoint early, so that a resumed run is not calibrated again."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs.pop("ckpt_path", None)
        self.trainer.ckpt_path = self.checkpoint
        return kwargs

    def after_fit(self) -> None:
        """Evaluate the finished run: every cell as trained and with the quarantine ablated."""
        self.trainer.ckpt_path = None
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)


class SaveRunConfig(SaveConfigCallback):
    """Save the complete configuration as ``<run>/config.yaml``, re-runnable, once everything else was accepted.

    ``overwrite``, ``ckpt_path`` and ``allow_changed`` are orders for one start, not part of the experiment: saved as
    their defaults.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait: a configuration that is refused leaves no trace."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the run directory where that was asked for, and save."""
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        if self.config["overwrite"]:
            clear_run(run_dir)
        saved = self.config.clone()
        saved["overwrite"], saved["ckpt_path"], saved["allow_changed"] = False, None, []
        text = self.parser.dump(saved, skip_none=False)
        if trainer.ckpt_path is not None:
            note_changes(run_dir, Path(trainer.ckpt_path), text, cast(GRPOModule, pl_module).trained_steps)
        write_atomically(run_dir / CONFIG_FILE, text)


@stop_at_once()
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 1 or 2, not a traceback.

    SIGINT and SIGTERM end it with 130 and 143: during training after the window under way, with a checkpoint. Set
    ``VGROUT_TRACEBACK=1`` to see where an error was raised.
    """
    quiet()
    try:
        RunCLI(
            GRPOModule,
            ProblemDataModule,
            trainer_class=PlanningTrainer,
            args=list(args) if args is not None else None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=OneLineParser,
            parser_kwargs={name: {"description": text, "usage": USAGE % name} for name, text in DESCRIPTIONS.items()},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
        )
    except GuardError as stop:
        raise SystemExit(fail(str(stop), code=3) if not getattr(rank_zero_only, "rank", 0) else 3) from None
    except GraderError as error:
        if os.environ.get("VGROUT_TRACEBACK"):
            raise
        raise SystemExit(fail(f"grader: {told(error)}; {SAFE}")) from None
    except RuntimeError as error:
        if os.environ.get("VGROUT_TRACEBACK") or not is_lost_connection(error):
            raise
        time.sleep(5 * LOOK_EVERY)  # where a process was killed, the watch says so and ends this one
        raise SystemExit(fail(f"another process of this run has ended; {SAFE}")) from None
    except (ValueError, OSError, MisconfigurationException, SafetensorError) as error:
        if os.environ.get("VGROUT_TRACEBACK"):
            raise
        if getattr(rank_zero_only, "rank", 0) and first_process_fails_too():
            raise SystemExit(1) from None
        raise SystemExit(fail(told(error))) from None
