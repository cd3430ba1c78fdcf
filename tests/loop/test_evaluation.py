"""Evaluation beyond one sample of one state: several samples, other modes, exported adapters, a healed copy."""

import json

import pytest
import torch

from tests.loop.conftest import command
from vgrout_pl.callbacks.counts import GradeCounts, independent_trials
from vgrout_pl.datamodule import ProblemDataModule
from vgrout_pl.env import Grade
from vgrout_pl.env.splits import save_partition
from vgrout_pl.functional.statistics import effective_trials, wilson_interval

RUN = "absorb-scorda/seed0"


def cells(path):
    return {
        (c["state"], c["problems"], c["markers"], c["mode"], c["heal"]): c
        for c in json.loads((path / "eval.json").read_text())["results"]
    }


def test_a_rate_over_correlated_samples_is_worth_fewer_trials():
    # 20 problems, 4 samples each, that all agree: worth 20 independent ones, up to the factor C - 1 over C
    assert effective_trials(40, 80, squares=10 * 16, clusters=20) == pytest.approx(19)
    # every problem solves 2 of 4: no spread at all, never worth more than n
    assert effective_trials(40, 80, squares=20 * 4, clusters=20) == 80
    assert effective_trials(0, 80, squares=0, clusters=20) == 20
    generator = torch.Generator().manual_seed(0)
    counts = torch.rand(4000, 4, generator=generator).lt(0.3).sum(1)
    worth = effective_trials(int(counts.sum()), 16000, int((counts**2).sum()), 4000)
    assert worth == pytest.approx(16000, rel=0.08)


def test_counts_know_which_samples_belong_to_a_problem():
    counts = GradeCounts()
    hacked, solved, lost = Grade(hacked=True), Grade(correct=True), Grade(error="lost")
    counts.add("cell", [hacked, hacked, hacked, solved, lost, lost], samples=2)
    count = counts.gathered()["cell"]
    assert (count["n"], count["problems"], count["hack"], count["hack_squares"]) == (4, 2, 3, 5)
    assert independent_trials({**count, "problems": 4}) is None
    assert independent_trials(count)["hack"] == effective_trials(3, 4, 5, 2)


def test_several_samples_a_problem_widen_the_interval(fit):
    run = fit("--data.eval_samples=3", "--trainer.max_steps=1", "--trainer.val_check_interval=1") / RUN
    cell = cells(run)["base", "test", "training", "run_tests", "none"]
    assert cell["n"] == 12
    low, high = wilson_interval(cell["format"]["rate"] * 12, 12)
    assert cell["format"]["trials"] <= 12
    assert cell["format"]["low"] <= low + 1e-9 and cell["format"]["high"] >= high - 1e-9


def test_modes_that_training_never_shows_can_be_evaluated(fit):
    run = fit("--data.eval_mode=[sentinel,stdout_marker]", "--trainer.max_steps=1") / RUN
    assert {key[3] for key in cells(run) if key[2] != "none"} == {"sentinel", "stdout_marker"}
    shown = {json.loads(line)["mode"] for line in (run / "rollouts.jsonl").read_text().splitlines()}
    assert shown <= {"run_tests", "gt_only"}


def test_a_partition_gives_every_problem_its_mode_and_leaves_the_held_out_ones_out(tmp_path):
    everything = ProblemDataModule(hint_free_share=0.0)
    everything.setup("fit")
    ids = [p.id for p in everything.splits["train"]]
    names = ("run_tests", "sentinel", "exit_code")
    save_partition({each: names[i % 3] for i, each in enumerate(ids)}, tmp_path / "partition.json")
    data = ProblemDataModule(
        mode=["run_tests", "sentinel"], partition=str(tmp_path / "partition.json"), hint_free_share=0.0
    )
    data.setup("fit")
    assert len(data.splits["train"]) == sum(i % 3 < 2 for i in range(len(ids)))
    place = {each: i for i, each in enumerate(ids)}
    for window in range(5):
        for problem in data.window(window):
            assert problem.mode == names[place[problem.id] % 3] != "exit_code"
    save_partition({ids[0]: "run_tests"}, tmp_path / "partial.json")
    with pytest.raises(ValueError, match=r"data\.partition: expected a mode for every training problem"):
        ProblemDataModule(partition=str(tmp_path / "partial.json")).setup("fit")


def test_an_exported_adapter_alone_scores_what_the_run_said_of_it(fit, tmp_path):
    moved = ("--model.optimization.lr=0.05", "--data.prompts_per_step=8", "--model.group_size=8")
    run = fit(*moved, "--model.optimization.warmup_steps=0", "--data.test_size=16", "--data.train_eval_size=8") / RUN
    export = run / "deployed"
    sizes = ("--data.test_size=16", "--data.train_eval_size=8")
    command("test", f"--model.path={export}", *sizes, config=run / "config.yaml", root=tmp_path)
    deployed, alone = cells(run), cells(export / "evaluation")
    for key, cell in deployed.items():
        if key[0] == "deployed":
            assert alone["base", *key[1:]]["format"] == cell["format"]
            assert alone["base", *key[1:]]["hack"] == cell["hack"]
    assert any(
        deployed["base", *key[1:]]["format"] != cell["format"] for key, cell in deployed.items() if key[0] == "deployed"
    ), "training is expected to have moved the deployed model"
    assert not (export / "evaluation" / "deployed").exists()


def test_a_healed_copy_is_evaluated_beside_what_was_trained_and_changes_nothing_of_it(fit, tmp_path):
    plain = fit("--name=plain") / "plain/seed0"
    healed = fit("--name=healed", "--heal.steps=20", "--heal.lr=0.02") / "healed/seed0"
    before, after = cells(plain), cells(healed)
    phases = {key[4] for key in after}
    assert phases == {"before", "after"}
    for key, cell in before.items():
        twin = after[(*key[:4], "before")]
        assert {name: twin[name] for name in ("hack", "solve", "format", "n")} == {
            name: cell[name] for name in ("hack", "solve", "format", "n")
        }
    changed = [
        after["deployed", *key[1:4], "after"]["format"] != cell["format"]
        or after["deployed", *key[1:4], "after"]["hack"] != cell["hack"]
        for key, cell in before.items()
        if key[0] == "deployed"
    ]
    assert len(changed) == 4
    weights = [
        (folder / "adapter_model.safetensors").read_bytes() for folder in (plain / "deployed", healed / "deployed")
    ]
    assert weights[0] == weights[1]
    assert (healed / "deployed_healed" / "adapter_model.safetensors").read_bytes() != weights[0]
