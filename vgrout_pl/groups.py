"""Groups of completions: sampled, joined by teachers, graded and rewarded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from vgrout_pl.env import Grade, Problem
from vgrout_pl.functional import constant_groups
from vgrout_pl.objective import compared_states, window_advantages
from vgrout_pl.policy import base_of
from vgrout_pl.preflight import data_of, roles
from vgrout_pl.rewards import ENVIRONMENT, group_filled
from vgrout_pl.rollout import Grading, decode, encode_prompts
from vgrout_pl.sampling import SamplingRequest
from vgrout_pl.types import Labels, Rollouts, Window, joined

if TYPE_CHECKING:
    from vgrout_pl.env.pools import PoolRow
    from vgrout_pl.module import GRPOModule


def sample_window(module: GRPOModule, window: Window) -> tuple[Rollouts, Labels]:
    """Draw G completions for each problem of a window and grade them; draw anew what has nothing to compare.

    With ``redraws``, a group whose rewards are all equal gives way to a group of another problem, up to that many
    times; groups that never differ stay as they were first drawn.
    """
    size = module.group_size
    module.engine.publish(module.policy, also_ablated=bool(ablated_rows(module, 1).any()))
    draws = [sample_groups(module, window.problems, window.step, module.global_rank * len(window.problems))]
    chosen = [(0, group) for group in range(len(window.problems))]
    for draw in range(1, module.redraws + 1):
        constant = [place for place, (at, group) in enumerate(chosen) if _is_constant(module, draws[at][0], group)]
        counts = _of_all_processes(module, torch.tensor([len(constant)], device=module.device)).tolist()
        if not sum(counts):
            break
        if not constant:  # other processes still draw
            continue
        problems = data_of(module.trainer).spare(window, draw, constant)
        before = sum(counts[: module.global_rank])
        draws.append(sample_groups(module, problems, window.step, before, draw))
        for group, place in enumerate(constant):
            if not _is_constant(module, draws[draw][0], group):
                chosen[place] = (draw, group)
    if len(draws) == 1:
        rollouts, labels = draws[0]
    else:
        rows = [torch.arange(group * size, (group + 1) * size) for _, group in chosen]
        parts = [draws[at][0].rows(index.to(module.device)) for (at, _), index in zip(chosen, rows, strict=True)]
        rollouts = joined(parts, module.tokenizer.pad_token_id)
        grades = [draws[at][1].grades[i] for (at, _), index in zip(chosen, rows, strict=True) for i in index.tolist()]
        labels = Labels.from_grades(grades, module.device)
    rollouts.redrawn = torch.tensor([at > 0 for at, _ in chosen]).repeat_interleave(size).to(module.device)
    rollouts.advantages = window_advantages(module.objective, rollouts, _rewards_of_all(module, rollouts.rewards))
    return rollouts, labels


def _is_constant(module: GRPOModule, rollouts: Rollouts, group: int) -> bool:
    rows = slice(group * module.group_size, (group + 1) * module.group_size)
    states = compared_states(module.objective, rollouts)
    states = None if states is None else states[rows]
    return bool(constant_groups(rollouts.rewards[rows], module.group_size, states=states).all())


def _rewards_of_all(module: GRPOModule, rewards: Tensor) -> Tensor | None:
    """Rewards of all processes, where the objective's scale needs them."""
    if module.trainer.world_size == 1 or module.objective.reward_scale != "batch":
        return None
    return _of_all_processes(module, rewards)


def _of_all_processes(module: GRPOModule, values: Tensor) -> Tensor:
    """Values [n] of all processes, equally many of each, in the order of their ranks."""
    return values if module.trainer.world_size == 1 else cast(Tensor, module.all_gather(values)).flatten()


def sample_groups(
    module: GRPOModule, problems: Sequence[Problem], step: int, groups_before: int = 0, draw: int = 0
) -> tuple[Rollouts, Labels]:
    """Draw G completions for each problem, a share of them with the quarantine ablated, and grade and reward them.

    ``groups_before`` groups are drawn by the processes before this one: however many processes share a window, its
    rows have the same draws.

    A group is its teacher rows, then those sampled as trained, then those sampled ablated. Completions are graded
    while others still grow. In float32 the log-probabilities of the sampling pass are kept: they are those of a
    scoring pass to rounding. With a bfloat16 base or bf16-mixed they are not, and rows are scored where needed.
    """
    size, data, timer = module.group_size, data_of(module.trainer), module.timer
    texts, ids, mask = encode_prompts(module.tokenizer, problems, data.max_prompt_tokens)
    ids, mask = ids.to(module.device), mask.to(module.device)
    prompt_of = torch.arange(len(ids), device=ids.device).repeat_interleave(size)
    without = ablated_rows(module, len(ids))
    of_row = [problem for problem in problems for _ in range(size)]
    lessons = module.teacher.rows(problems, step, size)
    taught = torch.tensor([lesson is not None for lesson in lessons], device=ids.device)
    students = (~taught).nonzero().flatten()
    rounded = torch.is_autocast_enabled(module.device.type)
    keeps_sampled = base_of(module.policy).dtype == torch.float32 and not rounded
    seed = ("rollout", data.seed, step, 0, *([draw] if draw else []))
    students_a_group = len(students) // len(problems)  # the same in every group: teachers take a fixed number
    request = SamplingRequest(
        ids,
        mask,
        prompt_of[students],
        module.sampling,
        seed,
        without[students],
        module.logprob_temperature if keeps_sampled else None,
        groups_before * students_a_group,
    )
    with Grading(module.grader, [of_row[row] for row in students.tolist()]) as grading:

        def hand_over(rows: Tensor, tokens: Tensor, kept: Tensor) -> None:
            grading.add(rows.tolist(), decode(module.tokenizer, tokens, kept))

        with timer.phase("generate"):
            sampled = module.engine.generate(module.policy, module.tokenizer, request, hand_over)
        with timer.phase("grade"):
            of_students = iter(grading.result())
    grades = [next(of_students) if lesson is None else _cached_grade(lesson) for lesson in lessons]
    completion_ids, completion_mask = _with_lessons(module, sampled.ids, sampled.mask, students, lessons)
    truncated = completion_mask.sum(1) >= module.sampling.max_new_tokens
    truncated &= completion_ids[:, -1] != module.tokenizer.eos_token_id
    truncated[students] = ~sampled.stopped
    rollouts = Rollouts(
        step=step,
        group_size=size,
        problem_ids=[str(problem.id) for problem in of_row],
        modes=[problem.mode for problem in of_row],
        markers=[problem.lever for problem in of_row],
        prompts=[text for text in texts for _ in range(size)],
        completions=decode(module.tokenizer, completion_ids, completion_mask),
        prompt_ids=ids[prompt_of],
        prompt_mask=mask[prompt_of],
        prompt_of=prompt_of,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        truncated=truncated,
        teacher=taught,
        ablated=without,
    )
    if sampled.logprobs is not None:
        old = torch.full_like(completion_ids, float("nan"), dtype=torch.float32)
        old[students, : sampled.logprobs.shape[1]] = sampled.logprobs
        rollouts.old_logprobs = old
    rollouts.rewards = _rewarded(module, rollouts, grades)
    return rollouts, Labels.from_grades(grades, ids.device)


def _rewarded(module: GRPOModule, rollouts: Rollouts, grades: Sequence[Grade]) -> Tensor:
    """Weighted sum of the reward functions, [N]; where the grader fails, its part is the mean of the row's peers'.

    A broken grader is never a reward of 0: a row that nothing could judge has advantage 0, and one that only the
    user's functions judge differs from its peers by what they say.
    """
    tokens = [ids[keep].tolist() for ids, keep in zip(rollouts.completion_ids, rollouts.completion_mask, strict=True)]
    columns: dict[str, Sequence[Any]] = {
        "problem_id": rollouts.problem_ids,
        "mode": rollouts.modes,
        "marker": rollouts.markers,
        "grade": grades,
    }
    states = compared_states(module.objective, rollouts)
    states = None if states is None else states.cpu()
    judged = torch.tensor([math.nan if grade.error is not None else grade.reward for grade in grades])
    environment = group_filled(judged, module.group_size, states).tolist()
    rewards = module.rewards(environment, rollouts.prompts, rollouts.completions, tokens, columns)
    parts = {**rewards.parts, ENVIRONMENT: judged}
    rollouts.reward_parts = {name: part.to(module.device) for name, part in parts.items()}
    return group_filled(rewards.total, module.group_size, states).to(module.device)


def ablated_rows(module: GRPOModule, prompts: int) -> Tensor:
    """Mark the last ``deploy_sample_fraction`` of each group: bool [P G]; none where the quarantine ships."""
    _, router = roles(module.trainer)
    share = 0.0 if router.ships_quarantine else module.deploy_sample_fraction
    first = module.group_size - round(module.group_size * share)
    return (torch.arange(module.group_size) >= first).repeat(prompts).to(module.device)


def _cached_grade(lesson: PoolRow) -> Grade:
    """The grade that a teacher's row got when its pool was made."""
    return Grade(
        reward=lesson.reward,
        format_ok=True,
        compiles=True,
        correct=lesson.correct,
        channel=lesson.hacked,
        passed=lesson.correct or lesson.hacked,
        hacked=lesson.hacked,
        mechanism=lesson.mode if lesson.hacked else None,
    )


def _with_lessons(
    module: GRPOModule, ids: Tensor, mask: Tensor, students: Tensor, lessons: Sequence[PoolRow | None]
) -> tuple[Tensor, Tensor]:
    """Put the students' tokens [n, t] and the teachers' texts, tokenised now, into rows [N, T]."""
    if len(students) == len(lessons):
        return ids, mask
    room, end = module.sampling.max_new_tokens, module.tokenizer.eos_token_id
    tokens = {
        row: [*module.tokenizer(lesson.completion, add_special_tokens=False)["input_ids"], end][:room]
        for row, lesson in enumerate(lessons)
        if lesson is not None
    }
    longest = max(ids.shape[1], *(len(line) for line in tokens.values()))
    whole = torch.full((len(lessons), longest), module.tokenizer.pad_token_id, device=ids.device)
    kept = torch.zeros_like(whole, dtype=torch.bool)
    whole[students, : ids.shape[1]], kept[students, : ids.shape[1]] = ids, mask
    for row, line in tokens.items():
        whole[row, : len(line)] = torch.tensor(line, device=ids.device)
        kept[row, : len(line)] = True
    return whole, kept
