"""Whole runs of gates: killed and resumed, in micro-batches, and on two processes."""

import csv
import json
import signal
import subprocess
import sys

import pytest
import torch

from tests.loop.conftest import SMALL, command
from vgrout_pl.cli import RunCLI

BASE = (
    "--trainer.max_steps=6",
    "--trainer.val_check_interval=100",
    "--trainer.limit_val_batches=0",
    "--checkpoint.every_n_train_steps=2",
    "--model.group_size=8",
    "--model.optimization.lr=0.01",
)


def options(router):
    return ("--config", f"configs/router/{router}.yaml", "--router.init_args.refresh_every=3", *BASE)


@pytest.fixture
def train(monkeypatch):
    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setattr(RunCLI, "after_fit", lambda self: None)

    def run(root, router, *args):
        command("fit", *options(router), *args, config="configs/demo.yaml", root=root)
        return root / f"{router}-scorda" / "seed0"

    return run


def logged(run):
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["reward"]]
    wanted = [key for key in rows[0] if key.startswith("route/")]
    return [{key: row[key] for key in wanted} for row in rows]


def routes(run):
    lines = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    return [(line["step"], line["route"]) for line in lines]


@pytest.mark.parametrize("router", ["route_a", pytest.param("route_v", marks=pytest.mark.full)])
def test_a_gate_killed_between_checkpoints_goes_on_with_the_same_routes(train, tmp_path, router):
    whole = train(tmp_path / "whole", router)
    start = [
        sys.executable,
        "-m",
        "tests.loop.killing",
        "SIGKILL",
        "backward@3",
        "fit",
        "--config",
        "configs/demo.yaml",
        *SMALL,
    ]
    start += [*options(router), f"--trainer.default_root_dir={tmp_path / 'killed'}"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    run = train(tmp_path / "killed", router, "--ckpt_path=last")
    assert {route for _, route in routes(run)} == {"keep", "absorb", "route"}
    assert routes(run) == routes(whole)
    assert logged(run) == logged(whole)
    assert (run / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()
    first, second = (torch.load(r / "checkpoints/last.ckpt", weights_only=True) for r in (whole, run))
    (gate,) = [key for key in first["callbacks"] if key.endswith("Gate")]
    for name, value in first["callbacks"][gate]["buffer"].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second["callbacks"][gate]["buffer"][name])), name
    assert torch.equal(first["callbacks"][gate]["direction"], second["callbacks"][gate]["direction"])


@pytest.mark.full
def test_the_number_of_micro_batches_changes_no_route(train, tmp_path):
    steps = ("--trainer.max_steps=2",)
    one = train(tmp_path / "one", "route_a", *steps)
    four = train(tmp_path / "four", "route_a", *steps, "--trainer.accumulate_grad_batches=4")
    assert routes(one) == routes(four)


@pytest.mark.full
def test_two_processes_cut_by_the_same_thresholds_over_all_rows(tmp_path):
    start = [sys.executable, "cli.py", "fit", "--config", "configs/demo.yaml", *SMALL, *options("route_a")]
    start += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    start += ["--router=tests.routers.two_processes.Witness", f"--trainer.default_root_dir={tmp_path}"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"witness.rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == len(second) == 6
    for one, two in zip(first, second, strict=True):
        assert str(one["thresholds"]) == str(two["thresholds"])
        assert torch.equal(one["direction"], two["direction"])
        assert torch.equal(one["features"], two["features"])
        assert torch.equal(one["stamps"], two["stamps"])
        assert not torch.equal(one["scores"], two["scores"]), "each process has rows of its own"
    assert len(first[-1]["features"]) > 0
    assert first[-1]["thresholds"][0] < first[-1]["thresholds"][1], "this run cuts nothing"
