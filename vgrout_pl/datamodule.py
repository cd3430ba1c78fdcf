"""The LightningDataModule: which problems are shown, with which hints, and which cells are evaluated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L

from vgrout_pl.env import Problem, load_problems, novel_marker, training_marker
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.splits import load_partition
from vgrout_pl.loaders import EvalLoader, WindowLoader
from vgrout_pl.policy import ORGANISM, load_tokenizer
from vgrout_pl.preflight import callbacks_of
from vgrout_pl.rollout import encode_prompts
from vgrout_pl.seeding import derived_seed, derived_uniform
from vgrout_pl.types import EvalBatch, Window, WindowBoundary

EVAL_CELLS = (("test", "novel"), ("test", "training"), ("test", "none"), ("train", "training"))


def _known_modes(name: str, given: str | list[str]) -> list[str]:
    modes = [given] if isinstance(given, str) else list(given)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(f"data.{name}: expected one or more of {', '.join(MODES)}; got {unknown or 'none'}")
    return modes


class ProblemDataModule(L.LightningDataModule):
    """Problems, hints and markers of a run; everything drawn is a function of (seed, step, problem).

    Args:
        problems: ``organism``, or a JSONL file of training problems.
        eval_problems: JSONL file of held-out problems, split by hash into validation and test; with ``organism``
            problems it stays empty.
        mode: grading mode, or several that are drawn per (step, problem).
        eval_mode: grading modes of validation and of the final evaluation, for loopholes that training never shows;
            null: those of training.
        partition: JSON file that gives each training problem its mode (``vgrout_pl.env.splits.save_partition``);
            problems of other modes than ``mode`` are left out, and no mode is drawn.
        prompts_per_step: prompts of one optimizer step over all processes (P).
        hint_free_share: probability that a problem is shown without its hint and graded by the tests alone.
        original_marker_share: probability that a training prompt discloses the mode's original marker rather than
            one of its training family.
        max_prompt_tokens: longest prompt (tokens).
        validation_size: validation problems (at most).
        test_size: test problems (at most).
        train_eval_size: training problems of the final evaluation (at most).
        eval_batch_size: problems sampled together in evaluation.
        eval_samples: completions of each problem in evaluation; intervals count problems, not completions, as
            independent.
        test_seed: draw the test problems of ``organism`` anew from this seed, from a region that no setting was ever
            chosen on; null: its usual ones.
        seed: of everything drawn; the command line links it to ``seed_everything``.
    """

    def __init__(
        self,
        problems: str = ORGANISM,
        eval_problems: str | None = None,
        mode: str | list[str] = "run_tests",
        eval_mode: str | list[str] | None = None,
        partition: str | None = None,
        prompts_per_step: int = 8,
        hint_free_share: float = 0.5,
        original_marker_share: float = 1.0,
        max_prompt_tokens: int = 1536,
        validation_size: int = 64,
        test_size: int = 320,
        train_eval_size: int = 160,
        eval_batch_size: int = 160,
        eval_samples: int = 1,
        test_seed: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.modes = _known_modes("mode", mode)
        self.eval_modes = self.modes if eval_mode is None else _known_modes("eval_mode", eval_mode)
        for name, share in (("hint_free_share", hint_free_share), ("original_marker_share", original_marker_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"data.{name}: expected a share in [0, 1]; got {share}")
        if (eval_problems is None) != (problems == ORGANISM):
            raise ValueError(
                "data.eval_problems: expected a JSONL file of held-out problems beside a file of training ones, and "
                f"none beside {ORGANISM}; got {eval_problems} beside {problems}; set both or neither"
            )
        if test_seed is not None and problems != ORGANISM:
            raise ValueError(
                f"data.test_seed: expected null beside files of problems; got {test_seed} beside {problems}; it draws "
                f"problems of {ORGANISM}"
            )
        sizes = {"validation_size": validation_size, "test_size": test_size, "train_eval_size": train_eval_size}
        sizes |= {
            "eval_batch_size": eval_batch_size,
            "eval_samples": eval_samples,
            "max_prompt_tokens": max_prompt_tokens,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"data.{name}: expected at least 1; got {size}")
        self.problems, self.eval_problems = problems, eval_problems
        self.prompts_per_step, self.hint_free_share = prompts_per_step, hint_free_share
        self.original_marker_share, self.max_prompt_tokens = original_marker_share, max_prompt_tokens
        self.sizes = {"validation": validation_size, "test": test_size, "train": train_eval_size}
        self.eval_batch_size, self.eval_samples, self.seed = eval_batch_size, eval_samples, seed
        self.partition, self.test_seed = partition, test_seed
        self.splits: dict[str, list[Problem]] = {}

    def setup(self, stage: str) -> None:
        """Read all splits, hint-free; hints are put in when a problem is shown."""
        if not self.splits:
            self.splits = self._organism() if self.eval_problems is None else self._files(self.eval_problems)
            if self.partition is not None:
                self._keep_partition(self.partition)
            if len(self.splits["train"]) < self.prompts_per_step:
                raise ValueError(
                    f"data.prompts_per_step: expected at most the {len(self.splits['train'])} training problems; "
                    f"got {self.prompts_per_step}"
                )

    def _keep_partition(self, path: str) -> None:
        """Keep the training problems whose mode is one of :attr:`modes`."""
        mode_of = load_partition(path)
        missing = [p.id for p in self.splits["train"] if str(p.id) not in mode_of]
        if missing:
            raise ValueError(
                f"data.partition: expected a mode for every training problem; {path} has none for {len(missing)} of "
                f"{len(self.splits['train'])}, for example {missing[0]!r}; add them"
            )
        self.splits["train"] = [p for p in self.splits["train"] if mode_of[str(p.id)] in self.modes]
        self._mode_of = mode_of

    def _mode_drawn(self, problem: Problem, *key: object) -> str:
        """The mode of one showing: the partition's, or drawn."""
        if self.partition is not None:
            return self._mode_of[str(problem.id)]
        return self.modes[derived_seed("mode", *key) % len(self.modes)]

    def _organism(self) -> dict[str, list[Problem]]:
        from vgrout_pl import organism

        splits = {name: organism.problems(name, mode="gt_only") for name in ("train", "validation", "test")}
        if self.test_seed is not None:
            splits["test"] = organism.problems("fresh", mode="gt_only", seed=self.test_seed)
        return splits

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
        for mode in dict.fromkeys((*self.modes, *self.eval_modes)):
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
        """Problems outside a window for its places [n] whose groups gave nothing to compare, hints drawn.

        No problem comes twice, in any draw or process, until all have come.
        """
        index, rank, world = window.step // window.updates, self._trainer.global_rank, self._trainer.world_size
        used = {problem.id for problem in self.window(index)}
        free = [problem for problem in self.splits["train"] if problem.id not in used] or self.splits["train"]
        order = random.Random(derived_seed("spare", self.seed, index)).sample(range(len(free)), len(free))
        first = ((draw - 1) * world + rank) * len(window.problems)
        return [self.shown(free[order[(first + place) % len(free)]], index) for place in places]

    def shown(self, problem: Problem, window: int) -> Problem:
        """Draw hint-free or hinted, the mode and the marker for one showing of a training problem."""
        key = (self.seed, window, problem.id)
        if derived_uniform("hint-free", *key) < self.hint_free_share:
            return problem.with_mode("gt_only")
        mode = self._mode_drawn(problem, *key)
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
        modes = [m for m in self.eval_modes if m != "gt_only"]
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
        samples = self.eval_samples
        return [EvalBatch(problems_from, markers, i, shown[at : at + size], samples) for i, at in enumerate(starts)]

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
