"""The guard of a run: watches every step, warns, and stops before a run destroys what it has learned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from vgrout_pl.adapters import block_gradient_norms
from vgrout_pl.adapters.layer import whole_tensor
from vgrout_pl.callbacks.guard_rule import Rule
from vgrout_pl.callbacks.guard_rules import DeadGroups, GateStarvation, NoEmergence, NonFinite, OverRouting
from vgrout_pl.callbacks.guard_runaway import Runaway, Surge
from vgrout_pl.callbacks.guard_watch import Finding, Watch
from vgrout_pl.checkpoint_io import UNREADABLE, checkpoints_in
from vgrout_pl.preflight import callbacks_of, roles
from vgrout_pl.processes import gathered
from vgrout_pl.report.files import write_atomically
from vgrout_pl.report.guard import load_guard
from vgrout_pl.report.run_report import write_report
from vgrout_pl.run_directory import GUARD_FILE, REPORT_FILE
from vgrout_pl.types import Labels, Rollouts, WindowObserver

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule


class GuardError(RuntimeError):
    """Raised on every process when a rule stops the run; the message is one line for the person who reads it."""


class DivergenceGuard(WindowObserver, Callback):
    """Watch the students' rows of every optimizer step; warn or stop as the rules say.

    Rewards, losses and gradients that are not finite stop the run before the optimizer step that would take them in.
    The other rules read the step's metrics at its end. On a stop nothing more is saved, evaluated or exported: the step
    goes to metrics.csv, the report is written, and :class:`GuardError` is raised (exit code 3 on the command line).
    ``<run>/guard.json`` holds every finding, and on a stop the last good checkpoint. While the sign of a runaway
    stands no checkpoint is written over that one.

    Args:
        runaway: log-probability far down with a high gradient norm or divergence, for several steps.
        surge: divergence and gradient norm that multiply twice in a row.
        non_finite: anything that is not a finite number.
        dead_groups: no group with a difference in reward.
        no_emergence: no hacks on hinted rows.
        over_routing: most rows routed, few of them hacks.
        gate_starvation: a gate that never uses one of its routes.
    """

    def __init__(
        self,
        runaway: Runaway = Runaway(),  # noqa: B008 - frozen
        surge: Surge = Surge(),  # noqa: B008 - frozen
        non_finite: NonFinite = NonFinite(),  # noqa: B008 - frozen
        dead_groups: DeadGroups = DeadGroups(),  # noqa: B008 - frozen
        no_emergence: NoEmergence = NoEmergence(),  # noqa: B008 - frozen
        over_routing: OverRouting = OverRouting(),  # noqa: B008 - frozen
        gate_starvation: GateStarvation = GateStarvation(),  # noqa: B008 - frozen
    ):
        self.rules: dict[str, Rule] = {
            rule.name: rule
            for rule in (runaway, surge, non_finite, dead_groups, no_emergence, over_routing, gate_starvation)
            if rule.action != "off"
        }
        self._watches = {name: Watch(rule) for name, rule in self.rules.items()}
        self._records: list[dict[str, Any]] = []
        self._seen: list[str] = []
        self._losses: list[Tensor] = []
        self._refused = False

    # ---------------------------------------------------------------- state

    @property
    def suspicious(self) -> bool:
        """Whether the sign of a rule that stops for spoiled weights stands: such a state is not worth saving."""
        return any(w.streak and w.rule.spoils and w.rule.action == "stop" for w in self._watches.values())

    def state_dict(self) -> dict[str, Any]:
        """How long each sign has stood, what is compared with, and what was found."""
        return {
            "watches": {name: watch.state_dict() for name, watch in self._watches.items()},
            "records": list(self._records),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as if the run had never stopped; rules that are new start anew."""
        for name, state in state_dict["watches"].items():
            if name in self._watches:
                self._watches[name].load_state_dict(state)
        self._records = list(state_dict["records"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out what this run's router cannot do, and begin (or go on with) the record."""
        _, router = roles(trainer)
        given = {route.name.lower() for route in router.gives}
        starvation = self.rules.get(GateStarvation.name)
        if isinstance(starvation, GateStarvation):
            routes = tuple(route for route in starvation.routes if route in given) if len(given) > 1 else ()
            self._watches[starvation.name].rule = replace(starvation, routes=routes)
        run = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (load_guard(run) or {}).get("stopped"):
            (run / REPORT_FILE).unlink(missing_ok=True)  # a report says that a run has ended
        self._write(trainer, None)

    # ---------------------------------------------------------------- before the optimizer step: finite or not

    def on_rollouts(self, trainer: Trainer, module: LightningModule, rollouts: Rollouts, labels: Labels) -> None:
        """Look at every number a window came with."""
        self._seen = nonfinite_rows(rollouts)
        self._losses = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss of a micro-batch; it is looked at when the step is complete, to wait for the device once."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Refuse a step whose rewards, loss or gradient are not finite."""
        if NonFinite.name not in self.rules:
            return
        seen = [*self._seen, *nonfinite_losses(self._losses), *nonfinite_gradient(cast("GRPOModule", pl_module))]
        self._seen, self._losses, self._refused = [], [], bool(seen)
        watch = self._watches[NonFinite.name]
        finding = watch.count(trainer.global_step, True, "; ".join(seen), {}) if seen else None
        self._act(trainer, [finding] if finding else [], {})

    # ---------------------------------------------------------------- at the end of the step: everything else

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the step's metrics before every rule."""
        if batch.micro != batch.micro_batches - 1:
            return
        step, metrics = trainer.global_step - 1, cast("GRPOModule", pl_module).step_metrics
        findings = []
        for name, watch in self._watches.items():
            if name != NonFinite.name:
                found = watch.observe(step, metrics)
            else:  # NaN stands for what a step has no instance of
                infinite = {key: value for key, value in metrics.items() if math.isinf(value)}
                sign = None if self._refused else bool(infinite)
                found = watch.count(step, sign, f"{', '.join(infinite)} is not finite", infinite)
            findings += [found] if found else []
        self._act(trainer, findings, metrics)

    # ---------------------------------------------------------------- acting

    def _act(self, trainer: Trainer, findings: list[Finding], metrics: Mapping[str, float]) -> None:
        """Record what was found on any process, and stop on all of them where one has to."""
        if not trainer.strategy.reduce_boolean_decision(bool(findings), all=False):
            return
        findings = _gathered(findings)
        self._records += [finding.record() for finding in findings]
        stops = [finding for finding in findings if finding.action == "stop"]
        for finding in findings:
            if finding.action == "warn":
                _say(f"warning: {finding}; {finding.advice}")
        self._write(trainer, stops[0] if stops else None)
        if stops:
            self._stop(trainer, stops[0], metrics)

    def _stop(self, trainer: Trainer, finding: Finding, metrics: Mapping[str, float]) -> None:
        run = Path(trainer.default_root_dir)
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(dict(metrics), finding.step)
                logger.save()
        if trainer.is_global_zero:
            try:
                write_report(run)
            except (ValueError, OSError) as error:
                _say(f"warning: no report of the stopped run: {error}")
        trainer.strategy.barrier()  # a process that ends makes Lightning kill the others
        good = good_checkpoint(trainer, finding.since)
        kept = f"the last good checkpoint is {good[0]} (step {good[1]})" if good else "there is no good checkpoint"
        raise GuardError(f"stopped: {finding}; {kept}; {finding.advice}; see {run / GUARD_FILE}")

    def _write(self, trainer: Trainer, stop: Finding | None) -> None:
        if not trainer.is_global_zero:
            return
        good = good_checkpoint(trainer, stop.since) if stop else None
        record = {
            "schema": 1,
            "stopped": stop.record() if stop else None,
            "checkpoint": {"path": str(good[0]), "step": good[1]} if good else None,
            "findings": self._records,
        }
        path = Path(trainer.default_root_dir) / GUARD_FILE
        write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def suspicious(trainer: Trainer) -> bool:
    """Whether a guard of this trainer sees the sign of spoiled weights."""
    return any(isinstance(callback, DivergenceGuard) and callback.suspicious for callback in callbacks_of(trainer))


def good_checkpoint(trainer: Trainer, since: int) -> tuple[Path, int] | None:
    """The newest checkpoint of this run that was saved before optimizer step ``since`` was taken, and its step."""
    for callback in trainer.checkpoint_callbacks:
        directory = getattr(callback, "dirpath", None) or Path(trainer.default_root_dir) / "checkpoints"
        for path in checkpoints_in(Path(directory)):
            try:
                step = torch.load(path, map_location="meta", weights_only=True, mmap=True)["global_step"]
            except UNREADABLE:
                continue
            if step <= since:
                return path, step
    return None


def nonfinite_rows(rollouts: Rollouts) -> list[str]:
    """Name the streams of a window that hold a number that is not finite.

    Per-row streams must be finite everywhere. Per-token streams are NaN in rows that were not scored; in a row that was
    they must be finite on its completion.
    """
    found = []
    for entry in fields(rollouts):
        values = getattr(rollouts, entry.name)
        if not isinstance(values, Tensor) or not values.is_floating_point() or len(values) != len(rollouts):
            continue
        bad = ~values.isfinite()
        if values.dim() > 1:
            mask = rollouts.completion_mask[:, : values.shape[1]]
            unscored = (values.isnan() | ~mask).all(1)
            bad = (bad & mask).any(1) & ~unscored
        if bad.any():
            row = int(bad.nonzero()[0])
            found.append(
                f"{entry.name} of {int(bad.sum())} of {len(rollouts)} rows is not finite, first row {row} (problem "
                f"{rollouts.problem_ids[row]})"
            )
    return found


def nonfinite_losses(losses: list[Tensor]) -> list[str]:
    """Name the loss where that of a micro-batch is not finite."""
    bad = torch.stack(losses)[~torch.stack(losses).isfinite()] if losses else torch.empty(0)
    return [f"the loss is {float(bad[0])}"] if len(bad) else []


def nonfinite_gradient(module: GRPOModule) -> list[str]:
    """Name the trained tensors whose gradient is not finite."""
    if all(map(math.isfinite, block_gradient_norms(module.policy).values())):
        return []
    gradients = ((name, p.grad) for name, p in module.policy.named_parameters() if p.grad is not None)
    names = [name for name, gradient in gradients if not bool(whole_tensor(gradient).isfinite().all())]
    more = f" and of {len(names) - 1} more tensors" if len(names) > 1 else ""
    return [f"the gradient of {names[0]}{more} is not finite" if names else "the gradient's norm is not finite"]


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)


def _gathered(findings: list[Finding]) -> list[Finding]:
    """The findings of all processes, each rule's once, the same on every process."""
    parts = reversed(gathered(findings))
    return list({finding.rule: finding for part in parts for finding in part}.values())
