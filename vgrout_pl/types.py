"""What travels through one optimizer step. Shapes: P prompts, G completions a prompt, N = P G rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vgrout_pl.env import Grade, Problem


class Window:
    """The problems of one window of rollouts (this process' share), yielded once a micro-batch and update.

    Attributes:
        step: index of the optimizer step that its first update makes.
        update: index of the update, 0 <= update < updates.
        updates: optimizer steps made on this window.
        micro: index of the micro-batch, 0 <= micro < micro_batches.
        micro_batches: how many micro-batches an update is made of.
        problems: P problems, hints as shown.
    """

    def __init__(
        self, step: int, micro: int, micro_batches: int, problems: list[Problem], update: int = 0, updates: int = 1
    ):
        self.step, self.micro, self.micro_batches, self.problems = step, micro, micro_batches, problems
        self.update, self.updates = update, updates

    @property
    def is_first(self) -> bool:
        """Whether the window begins with this micro-batch."""
        return self.micro == 0 and self.update == 0

    @property
    def is_last(self) -> bool:
        """Whether the window is over after this micro-batch."""
        return self.micro == self.micro_batches - 1 and self.update == self.updates - 1


@dataclass
class Labels:
    """What the grader knows about each row; handed only to components that declare it.

    Attributes:
        grades: N grades.
        hacked: bool [N], paid for the loophole without being correct.
        correct: bool [N], passes the strict oracle.
    """

    grades: list[Grade]
    hacked: Tensor
    correct: Tensor

    @classmethod
    def from_grades(cls, grades: list[Grade], device: torch.device | None = None) -> Labels:
        """Build the label tensors of a list of grades."""
        return cls(
            grades=grades,
            hacked=torch.tensor([g.hacked for g in grades], device=device),
            correct=torch.tensor([g.correct for g in grades], device=device),
        )


@dataclass
class Rollouts:
    """N = P G completions of one window, group by group, with every per-row stream that is not a label.

    Attributes:
        step: index of the optimizer step.
        group_size: G.
        problem_ids: N ids.
        modes: N grading modes, as disclosed in the prompts.
        markers: N names or phrases that the prompts disclose, None where the mode has none.
        prompts: N prompt texts.
        completions: N completion texts.
        prompt_ids: [N, S] left-padded.
        prompt_mask: bool [N, S].
        prompt_of: int [N], equal for rows of the same prompt.
        completion_ids: [N, T] right-padded.
        completion_mask: bool [N, T], the end-of-turn token included.
        ablated: bool [N], rows sampled with the quarantine ablated.
        teacher: bool [N], rows taken from a pool.
        redrawn: bool [N], rows of groups that took the place of a group without reward differences.
        truncated: bool [N], rows that reached the longest completion without an end-of-turn token.
        rewards: [N].
        reward_parts: name of each reward function -> [N], NaN where it gave none.
        advantages: [N].
        routes: int [N], values of ``Route``; [N, T] where each completion token has a route of its own, padding ABSORB.
        old_logprobs: [N, T] under each row's own sampling state, at the start of the window.
        start_logprobs: [N, T] in the state each row trains in, at the start of the window; None in its first update.
        reference_logprobs: [N, T] under the policy without its adapter, or None.
    """

    step: int
    group_size: int
    problem_ids: list[str]
    modes: list[str]
    markers: list[str | None]
    prompts: list[str]
    completions: list[str]
    prompt_ids: Tensor
    prompt_mask: Tensor
    prompt_of: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    ablated: Tensor
    truncated: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    teacher: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    redrawn: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    reward_parts: dict[str, Tensor] = field(default_factory=dict)
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    routes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    old_logprobs: Tensor | None = None
    start_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.problem_ids)

    def route_share(self, route: int) -> Tensor:
        """Share of each row's completion tokens on a route, float [N]: 0 or 1 where whole rows are routed."""
        if self.routes.dim() == 1:
            return (self.routes == route).float()
        mask = self.completion_mask
        return ((self.routes == route) & mask).sum(1) / mask.sum(1).clamp_min(1)

    def rows(self, index: Tensor) -> Rollouts:
        """Return the rows at ``index`` (int [n]), in that order."""
        picked: dict[str, object] = {}
        chosen = index.tolist()
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor) and len(value) == len(self):
                picked[entry.name] = value[index]
            elif isinstance(value, list):
                picked[entry.name] = [value[i] for i in chosen]
            elif isinstance(value, dict):
                picked[entry.name] = {name: part[index] for name, part in value.items()}
            else:
                picked[entry.name] = value
        return Rollouts(**picked)  # type: ignore[arg-type]


def joined(parts: Sequence[Rollouts], pad: int) -> Rollouts:
    """Put whole groups of one step together: prompts padded on the left, completions on the right."""
    first = parts[0]

    def tensor(name: str, left: bool = False) -> Tensor:
        values = [getattr(part, name) for part in parts]
        if values[0].dim() < 2:
            return torch.cat(values)
        gaps = [max(value.shape[1] for value in values) - value.shape[1] for value in values]
        filler = pad if name.endswith("_ids") else 0
        sides = [(gap, 0) if left else (0, gap) for gap in gaps]
        return torch.cat([F.pad(v, side, value=filler) for v, side in zip(values, sides, strict=True)])

    def texts(name: str) -> list[Any]:
        return [value for part in parts for value in getattr(part, name)]

    groups = torch.arange(sum(len(part) for part in parts) // first.group_size, device=first.prompt_ids.device)
    return Rollouts(
        step=first.step,
        group_size=first.group_size,
        problem_ids=texts("problem_ids"),
        modes=texts("modes"),
        markers=texts("markers"),
        prompts=texts("prompts"),
        completions=texts("completions"),
        prompt_ids=tensor("prompt_ids", left=True),
        prompt_mask=tensor("prompt_mask", left=True),
        prompt_of=groups.repeat_interleave(first.group_size),
        completion_ids=tensor("completion_ids"),
        completion_mask=tensor("completion_mask"),
        ablated=tensor("ablated"),
        truncated=tensor("truncated"),
        teacher=tensor("teacher"),
        rewards=tensor("rewards"),
        old_logprobs=None if first.old_logprobs is None else tensor("old_logprobs"),
        reward_parts={name: torch.cat([part.reward_parts[name] for part in parts]) for name in first.reward_parts},
    )


class WindowObserver:
    """Mix-in of callbacks that watch every window, labels included (logs, guards; never routers)."""

    def on_rollouts(self, trainer: Trainer, module: LightningModule, rollouts: Rollouts, labels: Labels) -> None:
        """Look at a window after it was graded and routed, before its first backward pass."""
        raise NotImplementedError


class WindowBoundary:
    """Mix-in of callbacks that act between two windows (checkpoints, guards).

    Everything of the steps before is done then, logging and validation included, and nothing of the next window is.
    """

    def on_window_boundary(self, trainer: Trainer, module: LightningModule) -> None:
        """Act before a window is drawn; called on all processes, before the first window too."""
        raise NotImplementedError


class EvalBatch:
    """Problems of one evaluation cell, sampled under one seed in every model state.

    Attributes:
        problems_from: "test", "validation" or "train".
        markers: "novel", "training" or "none" (hint-free).
        index: position of the batch in its cell; with the cell's name it seeds the sampling.
        problems: the problems, hints as shown (this process' share).
        samples: completions of each problem.
        first: place of the first problem in the whole batch.
    """

    def __init__(
        self, problems_from: str, markers: str, index: int, problems: list[Problem], samples: int = 1, first: int = 0
    ):
        self.problems_from, self.markers, self.index, self.problems = problems_from, markers, index, problems
        self.samples, self.first = samples, first

    def share(self, rank: int, world_size: int) -> EvalBatch:
        """The consecutive problems that one process samples; earlier processes have one more where that is uneven."""
        start, end = (-(-len(self.problems) * place // world_size) for place in (rank, rank + 1))
        return EvalBatch(
            self.problems_from, self.markers, self.index, self.problems[start:end], self.samples, self.first + start
        )

    @property
    def rows(self) -> list[Problem]:
        """The problem of each completion, in the order in which they are graded."""
        return [problem for problem in self.problems for _ in range(self.samples)]
