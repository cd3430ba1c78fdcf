"""Windows and evaluation cells are functions of (seed, step, problem)."""

import json
from types import SimpleNamespace

import pytest

from vgrout_pl.datamodule import ProblemDataModule
from vgrout_pl.env.modes import MODES
from vgrout_pl.loaders import WindowLoader
from vgrout_pl.organism import problems


def module(**options):
    data = ProblemDataModule(**options)
    data.setup("fit")
    return data


def shown(data, step):
    return [(p.id, p.mode, p.marker, p.messages) for p in data.window(step)]


def test_a_window_depends_on_seed_and_step_alone():
    one, two, other = module(), module(), module(seed=1)
    assert shown(one, 7) == shown(two, 7)
    assert shown(one, 7) != shown(one, 8)
    assert shown(one, 7) != shown(other, 7)


def test_an_epoch_shows_every_problem_once():
    data = module(prompts_per_step=10)
    steps = len(data.splits["train"]) // 10
    ids = [p.id for step in range(steps) for p in data.window(step)]
    assert len(ids) == len(set(ids)) == steps * 10


def test_processes_share_a_window_without_overlap():
    data = module(prompts_per_step=8)
    parts = [data.window(3, rank, 4) for rank in range(4)]
    assert [p for part in parts for p in part] == data.window(3)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 0.42, 0.58), (1.0, 1, 1)])
def test_hint_free_share(share, low, high):
    data = module(hint_free_share=share, prompts_per_step=50)
    drawn = [p.mode == "gt_only" for step in range(10) for p in data.window(step)]
    assert low <= sum(drawn) / len(drawn) <= high


def test_training_never_discloses_a_novel_marker_and_uses_the_family_as_often_as_asked():
    data = module(hint_free_share=0.0, original_marker_share=0.3, prompts_per_step=50)
    levers = [p.lever for step in range(10) for p in data.window(step)]
    assert not set(levers) & set(MODES["run_tests"].novel_markers)
    assert 0.22 <= levers.count("run_tests") / len(levers) <= 0.38


def test_several_modes_are_all_drawn_and_their_hint_is_in_the_prompt():
    names = ["run_tests", "exit_code", "sentinel"]
    data = module(mode=names, hint_free_share=0.0, prompts_per_step=50)
    window = data.window(0)
    assert {p.mode for p in window} == set(names)
    for problem in window:
        assert problem.messages[-1]["content"].count(MODES[problem.mode].hint(problem.lever)) == 1


def test_evaluation_cells():
    data = module(test_size=10, train_eval_size=6, eval_batch_size=4)
    novel, training, none = (data.cell("test", markers) for markers in ("novel", "training", "none"))
    assert [len(b.problems) for b in novel] == [4, 4, 2]
    assert all(p.marker in MODES["run_tests"].novel_markers for b in novel for p in b.problems)
    assert all(p.lever == "run_tests" for b in training for p in b.problems)
    assert all(p.mode == "gt_only" for b in none for p in b.problems)
    assert [p.id for b in novel for p in b.problems] == [p.id for b in none for p in b.problems]
    trained = {p.id for p in data.splits["train"]}
    assert {p.id for b in data.cell("train", "training") for p in b.problems} <= trained
    assert not trained & {p.id for b in novel for p in b.problems}


def test_modes_without_a_marker_have_no_novel_cell():
    assert module(mode="exit_code").cell("test", "novel") == []
    modes = {p.mode for b in module(mode=["exit_code", "sentinel"]).cell("test", "novel") for p in b.problems}
    assert modes == {"sentinel"}


def test_the_loader_goes_on_from_the_trainers_step():
    data = module(prompts_per_step=2)
    trainer = SimpleNamespace(global_step=3, max_steps=5, accumulate_grad_batches=2, global_rank=0, world_size=1)
    assert [(w.step, w.micro) for w in WindowLoader(data, trainer)] == [(3, 0), (3, 1), (4, 0), (4, 1)]
    assert len(WindowLoader(data, trainer)) == 10


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(i):
    problem = problems("train", mode="gt_only")[i]
    return {
        "id": i,
        "prompt": [dict(m) for m in problem.messages],
        "gt_answer": list(problem.tests),
        "setup_code": problem.setup_code,
        "func_name": "solve",
        "canonical_solution": problem.canonical_solution,
        "difficulty": "easy",
    }


def test_files_are_split_by_hash_without_overlap(tmp_path):
    train = write(tmp_path / "train.jsonl", [row(i) for i in range(4)])
    held = write(tmp_path / "test.jsonl", [row(i) for i in range(10, 20)])
    data = module(problems=train, eval_problems=held, validation_size=3, prompts_per_step=2)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "validation": 3, "test": 7}
    assert not {p.id for p in data.splits["validation"]} & {p.id for p in data.splits["test"]}


def test_a_problem_in_both_files_is_refused(tmp_path):
    train = write(tmp_path / "train.jsonl", [row(i) for i in range(4)])
    held = write(tmp_path / "test.jsonl", [row(i) for i in range(3, 9)])
    with pytest.raises(ValueError, match=r"data\.eval_problems: expected problems that are not trained on"):
        module(problems=train, eval_problems=held, validation_size=1, prompts_per_step=2)


def test_fresh_test_problems_are_new_texts_and_a_function_of_their_seed(tmp_path):
    usual, fresh, again, other = (module(test_seed=seed) for seed in (None, 1, 1, 2))

    def texts(data, split):
        return {p.messages[-1]["content"] for p in data.splits[split]}

    assert texts(fresh, "test") == texts(again, "test") != texts(other, "test")
    for split in ("train", "validation", "test"):
        assert not texts(fresh, "test") & texts(usual, split)
    assert texts(fresh, "train") == texts(usual, "train")
    assert len(fresh.splits["test"]) == len(usual.splits["test"])
    with pytest.raises(ValueError, match=r"data.test_seed: expected null beside files"):
        ProblemDataModule(problems="train.jsonl", eval_problems="test.jsonl", test_seed=1)
