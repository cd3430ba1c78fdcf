"""Every rollout of a run, kept for reading and for offline studies."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from vgrout_pl.adapters import Route
from vgrout_pl.callbacks.jsonl import append_records, drop_from_step
from vgrout_pl.processes import gathered
from vgrout_pl.types import Labels, Rollouts, WindowObserver


class RolloutLog(WindowObserver, Callback):
    """Append prompt, completion, grade and route of each row to ``<run>/<filename>``, one JSON object a line.

    On resume the rows of steps that will be trained again are dropped first. The first process writes the rows of all,
    in the order in which one process would have them.

    Args:
        filename: name inside the run directory.
        every_n_steps: log each n-th window; 0: none.
    """

    def __init__(self, filename: str = "rollouts.jsonl", every_n_steps: int = 1):
        self.filename, self.every_n_steps = filename, every_n_steps

    def path(self, trainer: Trainer) -> Path:
        """The file."""
        return Path(trainer.default_root_dir) / self.filename

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the steps that come."""
        if trainer.is_global_zero:
            path = self.path(trainer)
            path.parent.mkdir(parents=True, exist_ok=True)
            drop_from_step(path, trainer.global_step)

    def on_rollouts(self, trainer: Trainer, module: LightningModule, rollouts: Rollouts, labels: Labels) -> None:
        """Write one window."""
        if not self.every_n_steps or rollouts.step % self.every_n_steps:
            return
        first = trainer.global_rank * (len(rollouts) // rollouts.group_size)
        records = gathered([self.record(rollouts, labels, row, first) for row in range(len(rollouts))])
        if trainer.is_global_zero:
            append_records(self.path(trainer), [record for part in records for record in part])

    @staticmethod
    def record(rollouts: Rollouts, labels: Labels, row: int, first_group: int = 0) -> dict[str, object]:
        """One row as plain data; ``first_group`` groups are those of earlier processes."""
        grade = labels.grades[row]
        return {
            "step": rollouts.step,
            "group": first_group + row // rollouts.group_size,
            "problem": rollouts.problem_ids[row],
            "mode": rollouts.modes[row],
            "marker": rollouts.markers[row],
            "ablated": bool(rollouts.ablated[row]),
            "prompt": rollouts.prompts[row],
            "completion": rollouts.completions[row],
            "tokens": int(rollouts.completion_mask[row].sum()),
            "reward": float(rollouts.rewards[row]),
            "advantage": float(rollouts.advantages[row]),
            "route": _route(rollouts, row),
            "grade": {
                "format_ok": grade.format_ok,
                "compiles": grade.compiles,
                "correct": grade.correct,
                "channel": grade.channel,
                "hacked": grade.hacked,
                "mechanism": grade.mechanism,
                "error": grade.error,
            },
        }


def _route(rollouts: Rollouts, row: int) -> str | list[str]:
    """The row's route, or one for each of its tokens."""
    if rollouts.routes.dim() == 1:
        return Route(int(rollouts.routes[row])).name.lower()
    return [Route(route).name.lower() for route in rollouts.routes[row, rollouts.completion_mask[row]].tolist()]
