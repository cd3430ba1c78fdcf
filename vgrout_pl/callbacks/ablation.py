"""The end of a run: ablate the quarantine, evaluate both sides of it, and say what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from vgrout_pl.callbacks.counts import GradeCounts, independent_trials
from vgrout_pl.callbacks.heal import HEALED, RetainHeal
from vgrout_pl.evaluation import StateChooser
from vgrout_pl.preflight import callbacks_of, roles
from vgrout_pl.provenance import provenance
from vgrout_pl.report import CellResult, Results, cells_text, verdict
from vgrout_pl.run_directory import RESULTS_FILE
from vgrout_pl.types import EvalBatch

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

Cell = tuple[str, str, str, str]


class DeployAblation(StateChooser, Callback):
    """Final evaluation with the quarantine as trained and ablated: writes ``eval.json``, prints the 2 x 2 table.

    Works in Lightning's test loop (``fit`` on the command line ends with it; ``test`` repeats it): every cell of
    ``ProblemDataModule.test_dataloader`` is sampled in every state, same prompts and sampling seeds on all sides.
    Where the router ships the quarantine, "deployed" is "as trained": sampled once, recorded as both.

    Args:
        states: model states to evaluate: ``as_trained``, ``deployed``, ``quarantine_only``, ``base``.
    """

    stage = "test"

    def __init__(self, states: tuple[str, ...] = ("as_trained", "deployed", "quarantine_only", "base")):
        super().__init__(states)
        if not {"as_trained", "deployed"} <= set(states):
            raise ValueError(f"ablation.states: expected as_trained and deployed among them; got {list(states)}")
        self.results: Results | None = None
        self._counts: GradeCounts[Cell] = GradeCounts()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self._counts = GradeCounts()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count one batch of a cell, per grading mode."""
        _, router = roles(trainer)
        recorded = dict(outputs)
        if router.ships_as_trained and "as_trained" in outputs:
            recorded["deployed"] = outputs["as_trained"]
        for state in (*self.states, *HEALED):
            if state not in recorded:
                continue
            by_mode: dict[str, list] = {}
            for problem, grade in zip(batch.rows, recorded[state], strict=True):
                by_mode.setdefault(problem.mode, []).append(grade)
            for mode, grades in by_mode.items():
                self._counts.add((state, batch.problems_from, batch.markers, mode), grades, batch.samples)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``eval.json`` into the run directory and print the table with one honest sentence."""
        cells = []
        phase = "before" if any(isinstance(c, RetainHeal) and c.steps for c in callbacks_of(trainer)) else "none"
        for (state, problems, markers, mode), count in self._counts.gathered().items():
            if not count["n"]:
                rank_zero_warn(f"the grader could not judge a single answer of {state}, {problems}, {markers}, {mode}")
                continue
            cells.append(
                CellResult.from_counts(
                    state=state.removesuffix("_healed"),
                    heal="after" if state in HEALED else phase,
                    problems=problems,
                    markers=markers,
                    mode=mode,
                    n=count["n"],
                    hack=count["hack"],
                    solve=count["solve"],
                    format=count["format"],
                    trials=independent_trials(count),
                )
            )
        self.results = Results(tuple(cells), provenance(trainer, cast("GRPOModule", pl_module)))
        publish(self.results, Path(trainer.default_root_dir))


@rank_zero_only
def publish(results: Results, run_dir: Path) -> None:
    """Save the results in the run directory and print them."""
    results.save(run_dir / RESULTS_FILE)
    print(f"\n{cells_text(results)}\n\n{verdict(results)}\n", flush=True)
