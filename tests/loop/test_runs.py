"""The whole loop through the command line: every YAML that can run here, and what a run leaves behind."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.loop.conftest import command
from vgrout_pl.organism import CHECKPOINT
from vgrout_pl.report import Results

CONFIGS = Path("configs")
NEEDS_A_POOL = "teachers"
OVERLAYS = sorted(
    path
    for folder in ("adapter", "intervention", "experiment")
    for path in (CONFIGS / folder).glob("*.yaml")
    if path.stem != NEEDS_A_POOL and "qwen3_4b" not in path.read_text()
)
"""Overlays of the demo; those of the real model are tried in tests/plan, the other folders where their parts are."""
ELSEWHERE = {"corda", "gaussian", "gaussian_unit", "pissa", "random_split", "scorda_rev"}
"""Inits that the fast suite tries in tests/adapters; their whole runs are the longer proof's."""
CASES = [pytest.param(path, marks=pytest.mark.full if path.stem in ELSEWHERE else ()) for path in OVERLAYS]
STATES = ("as_trained", "deployed")
CELLS = (("test", "novel"), ("test", "training"), ("test", "none"), ("train", "training"))


@pytest.mark.parametrize("overlay", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_overlay_composes_with_the_demo_and_finishes(fit, overlay):
    root = fit("--config", str(overlay))
    (run,) = root.glob("*/seed0")
    results = Results.load(run / "eval.json")
    for problems, markers in CELLS:
        for state in STATES:
            assert results.cell(state=state, problems=problems, markers=markers).n == 4
    assert (run / "report.md").stat().st_size > 0


def test_a_run_directory_holds_everything_that_was_promised(fit):
    run = fit("--seed_everything=3") / "absorb-scorda" / "seed3"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["adapter"]["r"] == 8
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["reward"]]
    assert [int(row["step"]) for row in steps] == [0, 1]
    for row in steps:
        assert 0 <= float(row["hack/rate"]) <= 1
        assert float(row["route/absorb_fraction"]) == 1
    assert all(float(row["grad_norm"]) > 0 for row in steps), "this run trains on nothing: choose another window"
    assert all(0 < float(row["quarantine/grad_share"]) < 1 for row in steps)
    assert any(row["val/deployed/hack"] for row in rows)
    lines = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 16
    assert {line["step"] for line in lines} == {0, 1}
    assert [line["ablated"] for line in lines[:4]] == [False, False, False, True]
    for line in lines:
        assert line["route"] == "absorb"
        grade = line["grade"]
        paid = 0.5 * grade["compiles"] + 3.0 * (grade["correct"] or grade["channel"])
        assert line["reward"] == paid
    provenance = json.loads((run / "eval.json").read_text())["provenance"]
    assert provenance["seed"] == 3
    assert provenance["adapter"]["pairs_hash"]
    assert provenance["config_hash"]
    assert {plot.stem for plot in (run / "plots").glob("*.png")} == {"blocks", "cells", "steps"}
    assert list((run / "checkpoints").glob("*.ckpt"))


def test_config_yaml_of_a_run_runs_again_with_the_same_result(fit, tmp_path):
    first = fit() / "absorb-scorda" / "seed0"
    second = fit(config=str(first / "config.yaml"), root=tmp_path / "again") / "absorb-scorda" / "seed0"
    assert (first / "rollouts.jsonl").read_bytes() == (second / "rollouts.jsonl").read_bytes()
    one, two = (Results.load(run / "eval.json") for run in (first, second))
    assert one.cells == two.cells


def test_validate_and_test_work_alone_on_a_finished_run_and_leave_its_metrics_alone(fit, tmp_path, capsys):
    run = fit() / "absorb-scorda" / "seed0"
    metrics, cells = (run / "metrics.csv").read_bytes(), Results.load(run / "eval.json").cells
    with (run / "metrics.csv").open() as file:
        validated = [row["val/deployed/format"] for row in csv.DictReader(file) if row["val/deployed/format"]]
    (run / "eval.json").unlink()
    capsys.readouterr()
    for subcommand in ("validate", "test"):
        command(subcommand, "--ckpt_path=last", config=run / "config.yaml", root=tmp_path)
    printed = capsys.readouterr().out
    assert "     2 validation: as trained" in printed
    assert re.search(rf"val/deployed/format\D+{float(validated[-1])}", printed)
    assert Results.load(run / "eval.json").cells == cells
    assert (run / "metrics.csv").read_bytes() == metrics


def test_overwrite_starts_anew_and_is_not_saved_as_part_of_the_experiment(fit):
    run = fit() / "absorb-scorda" / "seed0"
    first = (run / "rollouts.jsonl").read_bytes()
    (run / "notes.txt").write_text("mine")
    fit("--overwrite=true")
    assert (run / "rollouts.jsonl").read_bytes() == first
    assert yaml.safe_load((run / "config.yaml").read_text())["overwrite"] is False
    assert (run / "notes.txt").read_text() == "mine"


def test_the_export_is_a_plain_peft_adapter_and_the_checkpoint_holds_no_base(fit):
    varied = ("--data.prompts_per_step=8", "--model.group_size=8")
    run = fit("--model.optimization.lr=0.05", *varied) / "absorb-scorda" / "seed0"
    base = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    ids = torch.arange(5, 15).unsqueeze(0)
    bare = base(ids).logits
    model = PeftModel.from_pretrained(base, run / "deployed")
    assert type(model.peft_config["default"]).__name__ == "LoraConfig"
    assert model.peft_config["default"].r == 16
    with torch.no_grad():
        assert (model(ids).logits - bare).abs().max() > 1e-3
    (checkpoint, *_) = (run / "checkpoints").glob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state
    assert all("lora_" in key for key in state)


def test_none_ships_both_blocks_and_its_deployed_is_as_trained(fit):
    run = fit("--config", "configs/router/none.yaml") / "none-scorda" / "seed0"
    results = Results.load(run / "eval.json")
    for problems, markers in CELLS:
        one, two = (results.cell(state=state, problems=problems, markers=markers) for state in STATES)
        assert (one.n, one.hack, one.solve, one.format) == (two.n, two.hack, two.solve, two.format)
    lines = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert not any(line["ablated"] for line in lines)
    assert {line["route"] for line in lines} == {"none"}
    assert json.loads((run / "deployed" / "adapter_config.json").read_text())["r"] == 32


def test_tensorboard_comes_beside_the_csv_when_added_in_yaml(fit, tmp_path):
    overlay = tmp_path / "tensorboard.yaml"
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path / "tb")},
    }
    overlay.write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    run = fit("--config", str(overlay)) / "absorb-scorda" / "seed0"
    assert (run / "metrics.csv").exists()
    assert list((tmp_path / "tb").rglob("events.out.tfevents*"))


def test_a_user_callback_can_be_added_and_the_roles_stay(fit, tmp_path):
    overlay = tmp_path / "callback.yaml"
    callback = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    run = fit("--config", str(overlay)) / "absorb-scorda" / "seed0"
    assert (run / "eval.json").exists()
    assert "lr-AdamW" in (run / "metrics.csv").read_text()
