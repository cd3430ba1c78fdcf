"""What joins the policy's own completions in a window: rewards of the user's, teachers, groups drawn anew."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from vgrout_pl import organism
from vgrout_pl.callbacks import RoutedAdapter
from vgrout_pl.datamodule import ProblemDataModule
from vgrout_pl.env import Grade, Grader
from vgrout_pl.env.pools import Pool, PoolRow
from vgrout_pl.module import GRPOModule
from vgrout_pl.objective import Objective
from vgrout_pl.optim import Optimization
from vgrout_pl.rewards import RewardSum
from vgrout_pl.routers import Absorb
from vgrout_pl.sampling import Sampling
from vgrout_pl.teachers import Teacher
from vgrout_pl.types import Window

FREE = Sampling(max_new_tokens=32, temperature=1.0, top_p=1.0, top_k=0)


class Seen(L.Callback):
    """Every window that was trained on, and what was logged."""

    def __init__(self):
        self.windows, self.logged = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.windows.append(module._window)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def trained(tmp_path, steps=1, prompts=2, data=None, accumulate=1, **options):
    module = GRPOModule(group_size=4, **{"sampling": FREE, "objective": Objective(beta=0.0), **options})
    seen = Seen()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        callbacks=[RoutedAdapter(r=2, init="gaussian"), Absorb(), seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, ProblemDataModule(prompts_per_step=prompts, max_prompt_tokens=128, **(data or {})))
    return seen


def every_other(completions, mode, **columns):
    return [float(i % 2) if mode[i] is not None else None for i in range(len(completions))]


def test_a_users_reward_function_is_weighted_added_and_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(Grader, "grade_batch", lambda grader, pairs: [Grade(reward=0.5) for _ in pairs])
    seen = trained(tmp_path, rewards=RewardSum([every_other], [2.0]))
    rollouts = seen.windows[0].rollouts
    assert rollouts.rewards.tolist() == [0.5, 2.5] * 4
    assert seen.logged[0]["rewards/every_other"] == 0.5
    assert seen.logged[0]["rewards/environment"] == 0.5
    assert rollouts.advantages.tolist() == [-1.0, 1.0] * 4


def pool_of_all(folder, solutions=3):
    pool = Pool()
    for problem in organism.problems("train", mode="gt_only"):
        for i in range(solutions):
            pool.add(PoolRow(str(problem.id), f"```python\nsolution {i}\n```", "gt_only", None, 3.5, True, False))
        for i in range(2):
            pool.add(PoolRow(str(problem.id), f"```python\nhack {i}\n```", "run_tests", None, 3.25, False, True))
    pool.save(folder)
    return str(folder)


@pytest.mark.parametrize("hint_free", [0.0, 1.0])
def test_teachers_take_their_rows_with_their_rewards_until_their_step(tmp_path, hint_free):
    teacher = Teacher(pool_of_all(tmp_path / "pool"), hacks=1, solutions=1, until_step=1)
    data = {"hint_free_share": hint_free, "original_marker_share": 1.0}
    first, second = (w.rollouts for w in trained(tmp_path, 2, data=data, teacher=teacher).windows)
    assert first.teacher.tolist() == [True, True, False, False] * 2
    assert not second.teacher.any()
    for row in first.teacher.nonzero().flatten().tolist():
        hack = row % 4 == 0 and hint_free == 0
        assert first.completions[row].startswith(f"```python\n{'hack' if hack else 'solution'}")
        assert float(first.rewards[row]) == (3.25 if hack else 3.5)
        assert not first.ablated[row]
    assert first.ablated.tolist() == [False, False, False, True] * 2
    lessons = [first.completions[row] for row in range(0, 8, 4)]
    assert all(text.count("```") == 2 for text in lessons)


def test_rates_count_the_policys_own_rows(tmp_path):
    teacher = Teacher(pool_of_all(tmp_path / "pool"), hacks=2, until_step=1)
    data = {"hint_free_share": 0.0, "original_marker_share": 1.0}
    logged = trained(tmp_path, data=data, teacher=teacher).logged[0]
    assert logged["hack/rate"] < 0.5, "two rows of four are a teacher's hacks"


def test_a_pool_without_enough_rows_is_refused_before_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("vgrout_pl.module.load_base", lambda *_: pytest.fail("weights were read"))
    teacher = Teacher(pool_of_all(tmp_path / "pool", solutions=1), solutions=2, until_step=1)
    with pytest.raises(ValueError, match=r"model\.teacher: expected at least 2 rows of kind solution"):
        trained(tmp_path, teacher=teacher)
    with pytest.raises(ValueError, match=r"at most 3 rows"):
        trained(tmp_path, teacher=Teacher(pool_of_all(tmp_path / "pool"), solutions=4, until_step=1))


def test_groups_without_reward_differences_give_way_to_other_problems(tmp_path, monkeypatch):
    asked = []

    def grades(grader, pairs):
        for _text, problem in pairs:
            asked.append(problem.id)
        first_two = list(dict.fromkeys(asked))[:2]
        return [Grade(reward=1.0 if p.id == first_two[0] else sum(t.encode()) % 61) for t, p in pairs]

    monkeypatch.setattr(Grader, "grade_batch", grades)
    seen = trained(tmp_path, redraws=3)
    rollouts = seen.windows[0].rollouts
    constant = asked[0]
    assert constant not in rollouts.problem_ids
    assert len(set(rollouts.problem_ids)) == 2
    assert seen.logged[0]["sampling/redrawn_fraction"] == 0.5
    assert seen.logged[0]["frac_reward_zero_std"] == 0
    assert rollouts.prompt_of.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(rollouts.completion_mask.any(1), torch.ones(8, dtype=torch.bool))


def test_several_updates_on_a_window_start_from_ratio_one_and_move_on(tmp_path):
    rewards = RewardSum([every_other])
    objective = Objective(beta=0.0)
    seen = trained(tmp_path, 4, rewards=rewards, updates_per_window=2, objective=objective, accumulate=2)
    assert len({id(window) for window in seen.windows}) == 2
    start = seen.windows[0].rollouts.start_logprobs
    live = seen.windows[0].rollouts.completion_mask
    assert torch.isfinite(start[live]).all()
    once = trained(tmp_path / "b", 1, rewards=rewards, objective=objective, accumulate=2).windows[0].rollouts
    assert torch.equal(once.completion_ids, seen.windows[0].rollouts.completion_ids)


def test_a_failed_grader_takes_nothing_from_a_row_that_a_users_function_judged(tmp_path, monkeypatch):
    grades = [Grade(reward=3.5), Grade(reward=0.5), Grade(reward=3.5), Grade(reward=0.0, error="killed")]
    monkeypatch.setattr("vgrout_pl.rollout.Grading.result", lambda grading: grades * 2)
    rollouts = trained(tmp_path, rewards=RewardSum([every_other])).windows[0].rollouts
    assert rollouts.rewards.tolist() == [3.5, 1.5, 3.5, 3.5] * 2
    assert rollouts.reward_parts["environment"].isnan().tolist() == [False, False, False, True] * 2


def test_a_divergence_that_sets_in_within_a_window_is_measured(tmp_path):
    objective = Objective(beta=0.0, beta_end=0.1, beta_steps=4)
    fast = Optimization(lr=1e-2, warmup_steps=0)
    rewards = RewardSum([every_other])
    seen = trained(tmp_path, 2, rewards=rewards, updates_per_window=2, objective=objective, optimization=fast)
    assert seen.logged[0]["kl"] < 1e-6 < 1e-4 < seen.logged[1]["kl"]
    assert seen.logged[1]["loss"] > seen.logged[1]["policy_loss"]


def test_the_students_log_probability_leaves_the_teachers_out(tmp_path):
    teacher = Teacher(pool_of_all(tmp_path / "pool"), hacks=1, solutions=1, until_step=1)
    seen = trained(tmp_path, teacher=teacher, rewards=RewardSum([every_other]))
    rollouts = seen.windows[0].rollouts
    own = rollouts.completion_mask & ~rollouts.teacher.unsqueeze(1)
    expected = float(rollouts.old_logprobs[own].mean())
    assert abs(seen.logged[0]["sampling/logprob"] - expected) < 1e-4


def test_a_process_without_constant_groups_waits_while_others_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning.pytorch.strategies.SingleDeviceStrategy.reduce_boolean_decision", lambda *_, **__: False
    )
    seen = trained(tmp_path, redraws=2, rewards=RewardSum([every_other], environment_weight=0.0))
    assert not seen.windows[0].rollouts.redrawn.any()


def test_spare_problems_are_new_to_the_window_and_never_come_twice():
    data = ProblemDataModule(prompts_per_step=4, max_prompt_tokens=128)
    data.setup("fit")
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    window = Window(6, 0, 1, data.window(3, 0, 2), update=0, updates=2)
    taken = [p.id for draw in (1, 2, 3) for p in data.spare(window, draw, [0, 1])]
    data.trainer.global_rank = 1
    taken += [p.id for draw in (1, 2, 3) for p in data.spare(window, draw, [0, 1])]
    assert len(set(taken)) == len(taken) == 12
    assert not set(taken) & {p.id for p in data.window(3)}
