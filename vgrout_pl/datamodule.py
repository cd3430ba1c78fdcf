"""The LightningDataModule: which problems are shown, with which hints, and which cells are evaluated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L

from vgrout_pl.env import Problem, load_problems, novel_marker, training_marker
from vgrout_pl.env.modes import MODES
from vgrout_pl.policy import ORGANISM, load_tokenizer
from vgrout_pl.preflight import callbacks_of
from vgrout_pl.rollout import encode_prompts
from vgrout_pl.seeding import derived_seed, derived_uniform
from vgrout_pl.types import EvalBatch, Window, WindowBoundary

EVAL_CELLS = (("test", "novel"), ("test", "training"), ("test", "none"), ("train", "training"))


class WindowLoader:
    """Yields the windows of a run, each once a micro-batch, from the trainer's present step on.

    A window is a function of (seed, step), so the loader needs no state to resume.
    """

    def __init__(self, data: ProblemDataModule, trainer: L.Trainer):
        self.data, self.trainer = data, trainer

    def __len__(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Window]:
        trainer, updates = self.trainer, updates_of(self.trainer)
        for step in range(trainer.global_step, trainer.max_steps, updates):
            problems = self.data.window(step // updates, trainer.global_rank, trainer.world_size)
            for update in range(updates):
                for micro in range(trainer.accumulate_grad_batches):
                    yield Window(step, micro, trainer.accumulate_grad_batches, problems, update, updates)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: the trainer's step says where to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def updates_of(trainer: L.Trainer) -> int:
    """Optimizer steps that the trainer's module makes on one window."""
    return int(getattr(getattr(trainer, "lightning_module", None), "updates_per_window", 1))


class EvalLoader:
    """This process' share of each batch of some evaluation cells."""

    def __init__(self, batches: Sequence[EvalBatch], rank: int, world_size: int):
        self.batches = [
            EvalBatch(b.problems_from, b.markers, b.index * world_size + rank, b.problems[rank::world_size])
            for b in batches
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        return iter(self.batches)


class ProblemDataModule(L.LightningDataModule):
    """Problems, hints and markers of a run; everything drawn is a function of (seed, step, problem).

    Args:
        problems: ``organism``, or a JSONL file of training problems.
        eval_problems: JSONL file of held-out problems, split by hash into validation and test; with ``organism``
            problems it stays empty.
        mode: grading mode, or several that are drawn per (step, problem).
        prompts_per_step: prompts of one optimizer step over all processes (P).
        hint_free_share: probability that a problem is shown without its hint and graded by the tests alone.
        original_marker_share: probability that a training prompt discloses the mode's original marker rather than
            one of its training family.
        max_prompt_tokens: longest prompt (tokens).
        validation_size: validation problems (at most).
        test_size: test problems (at most).
        train_eval_size: training problems of the final evaluation (at most).
        eval_batch_size: problems sampled together in evaluation.
        seed: of everything drawn; the command line links it to ``seed_everything``.
    """

    def __init__(
        self,
        problems: str = ORGANISM,
        eval_problems: str | None = None,
        mode: str | list[str] = "run_tests",
        prompts_per_step: int = 8,
        hint_free_share: float = 0.5,
        original_marker_share: float = 1.0,
        max_prompt_tokens: int = 1536,
        validation_size: int = 64,
        test_size: int = 320,
        train_eval_size: int = 160,
        eval_batch_size: int = 160,
        seed: int = 0,
    ):
        super().__init__()
        self.modes = [mode] if isinstance(mode, str) else list(mode)
        unknown = [m for m in self.modes if m not in MODES]
        if unknown or not self.modes:
            raise ValueError(f"data.mode: expected one or more of {', '.join(MODES)}; got {unknown or 'none'}")
        for name, share in (("hint_free_share", hint_free_share), ("original_marker_share", original_marker_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"data.{name}: expected a share in [0, 1]; got {share}")
        if (eval_problems is None) != (problems == ORGANISM):
            raise ValueError(
                "data.eval_problems: expected a JSONL file of held-out problems beside a file of training ones, and "
                f"none beside {ORGANISM}; got {eval_problems} beside {problems}; set both or neither"
            )
        sizes = {"validation_size": validation_size, "test_size": test_size, "train_eval_size": train_eval_size}
        sizes |= {"eval_batch_size": eval_batch_size, "max_prompt_tokens": max_prompt_tokens}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"data.{name}: expected at least 1; got {size}")
        self.problems, self.eval_problems = problems, eval_problems
        self.prompts_per_step, self.hint_free_share = prompts_per_step, hint_free_share
        self.original_marker_share, self.max_prompt_tokens = original_marker_share, max_prompt_tokens
        self.sizes = {"validation": validation_size, "test": test_size, "train": train_eval_size}
        self.eval_batch_size, self.seed = eval_batch_size, seed
        self.splits: dict[str, list[Problem]] = {}

    def setup(self, stage: str) -> None:
        """Read all splits, hint-free; hints are put in when a problem is shown."""
        if not self.splits:
            self.splits = self._organism() if self.eval_problems is None else self._files(self.eval_problems)
            if len(self.splits["train"]) < self.prompts_per_step:
                raise ValueError(
                    f"data.prompts_per_step: expected at most the {len(self.splits['train'])} training problems; "
                    f"got {self.prompts_per_step}"
                )

    def _organism(self) -> dict[str, list[Problem]]:
        from vgrout_pl import organism

        return {name: organism.problems(name, mode="gt_only") for name in ("train", "validation", "test")}

    def _files(self, eval_problems: str) -> dict[str, list[Problem]]:
        train = load_problems(self.problems, mode="gt_only")
        held_out = load_problems(eval_problems, mode="gt_only")
        shared = {p.id for p in train} & {p.id for p in held_out}
        if shared:
            raise ValueError(
                f"data.eval_problems: expected problems that are not trained on; {len(shared)} ids are in both files, "
                f"for example {sorted(map(str, shared))[0]!r}; remove them from one"
            )
        held_out.sort(key=lambda problem: derived_seed("split", problem.id))
        size = self.sizes["validation"]
        if len(held_out) <= size:
            raise ValueError(
                f"data.validation_size: expected fewer than the {len(held_out)} held-out problems; got {size}"
            )
        return {"train": train, "validation": held_out[:size], "test": held_out[size:]}

    def longest_prompt(self, path: str) -> int:
        """Length (tokens) of the longest prompt that a run can show under a model's tokenizer.

        Every problem is measured hint-free, and in every mode under the original marker and the longest of the
        training and of the novel family.

        Raises:
            ValueError: a prompt is longer than ``max_prompt_tokens``.
        """
        tokenizer = load_tokenizer(path)
        hints: list[tuple[str, str | None]] = [("gt_only", None)]
        for mode in self.modes:
            families = (MODES[mode].training_markers, MODES[mode].novel_markers)
            longest = [
                max(family, key=lambda marker: len(tokenizer(marker)["input_ids"])) for family in families if family
            ]
            hints += [(mode, marker) for marker in (None, *longest)]
        shown = [p.with_mode(*hint) for split in self.splits.values() for p in split for hint in hints]
        return encode_prompts(tokenizer, shown, self.max_prompt_tokens)[1].shape[1]

    def showings(self) -> Iterator[Problem]:
        """Every way in which a training problem can be shown: hint-free, original marker, training family."""
        for problem in self.splits["train"]:
            if self.hint_free_share > 0:
                yield problem
            for mode in self.modes if self.hint_free_share < 1 else []:
                family = MODES[mode].training_markers if self.original_marker_share < 1 else ()
                for marker in (None, *family) if self.original_marker_share > 0 else family:
                    yield problem.with_mode(mode, marker)

    # ---------------------------------------------------------------- training windows

    def window(self, index: int, rank: int = 0, world_size: int = 1) -> list[Problem]:
        """Problems that one process shows in a window, hints drawn."""
        train, size = self.splits["train"], self.prompts_per_step
        picked = []
        for position in range(index * size, (index + 1) * size):
            epoch, offset = divmod(position, len(train))
            order = random.Random(derived_seed("order", self.seed, epoch)).sample(range(len(train)), len(train))
            picked.append(train[order[offset]])
        share = size // world_size
        return [self.shown(problem, index) for problem in picked[rank * share : (rank + 1) * share]]

    def spare(self, window: Window, draw: int, places: Sequence[int]) -> list[Problem]:
        """Other problems for the places [n] of a window whose groups gave nothing to compare, hints drawn."""
        used = {problem.id for problem in window.problems}
        free = [problem for problem in self.splits["train"] if problem.id not in used] or self.splits["train"]
        seed = ("spare", self.seed, window.step, draw, self._trainer.global_rank)
        return [self.shown(free[derived_seed(*seed, place) % len(free)], window.step) for place in places]

    def shown(self, problem: Problem, window: int) -> Problem:
        """Draw hint-free or hinted, the mode and the marker for one showing of a training problem."""
        key = (self.seed, window, problem.id)
        if derived_uniform("hint-free", *key) < self.hint_free_share:
            return problem.with_mode("gt_only")
        mode = self.modes[derived_seed("mode", *key) % len(self.modes)]
        marker = training_marker(problem.id, mode, f"{self.seed}/{window}", self.original_marker_share)
        return problem.with_mode(mode, marker)

    def train_dataloader(self) -> WindowLoader:
        """Windows of the whole run."""
        return WindowLoader(self, self._trainer)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Tell callbacks that one window is over and the next not yet drawn."""
        if isinstance(batch, Window) and batch.is_first:
            for callback in callbacks_of(self._trainer):
                if isinstance(callback, WindowBoundary):
                    callback.on_window_boundary(self._trainer, self._trainer.lightning_module)
        return batch

    # ---------------------------------------------------------------- evaluation cells

    def cell(self, problems_from: str, markers: str) -> list[EvalBatch]:
        """Batches of one evaluation cell: a split's first problems under novel, training or no markers.

        With several modes, problem i is shown in mode i mod their number; modes without a marker to exchange have no
        novel cell.
        """
        modes = [m for m in self.modes if m != "gt_only"]
        if markers == "novel":
            modes = [m for m in modes if MODES[m].novel_markers]
        problems = self.splits[problems_from][: self.sizes[problems_from]]
        if markers == "none":
            shown = [p.with_mode("gt_only") for p in problems]
        elif not modes:
            return []
        else:
            shown = []
            for index, problem in enumerate(problems):
                mode = modes[index % len(modes)]
                marker = novel_marker(problem.id, mode) if markers == "novel" else None
                shown.append(problem.with_mode(mode, marker))
        size = self.eval_batch_size
        starts = range(0, len(shown), size)
        return [EvalBatch(problems_from, markers, i, shown[at : at + size]) for i, at in enumerate(starts)]

    def val_dataloader(self) -> EvalLoader:
        """Validation problems with training markers."""
        return self._loader([("validation", "training")])

    def test_dataloader(self) -> EvalLoader:
        """The cells of the final evaluation."""
        return self._loader(EVAL_CELLS)

    def _loader(self, cells: Sequence[tuple[str, str]]) -> EvalLoader:
        batches = [batch for cell in cells for batch in self.cell(*cell)]
        return EvalLoader(batches, self._trainer.global_rank, self._trainer.world_size)

    @property
    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise ValueError("ProblemDataModule: expected a trainer for its loaders; got none; pass it to Trainer.fit")
        return self.trainer
