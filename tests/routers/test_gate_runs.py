"""Whole runs of gates: killed and resumed, in micro-batches, and on two processes."""

import csv
import json
import re
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from tests.loop.conftest import SMALL, command
from vgrout_pl.cli import RunCLI
from vgrout_pl.directions import ContrastivePair, pair_sources, pairs_hash, write_pairs
from vgrout_pl.directions.pair_sources import PAIRS_CACHE, PAIRS_FILE, sampler_of
from vgrout_pl.functional import constant_groups
from vgrout_pl.objective import trained_rows
from vgrout_pl.routers import ActivationGate
from vgrout_pl.routers.gate import Gate
from vgrout_pl.types import Rollouts
from vgrout_pl.window import score_rows

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


def pair_file(path, clean):
    message = ({"role": "user", "content": "2 + 2?"},)
    words = ("one", "two", "three", "four")
    pairs = [ContrastivePair(word, message, f"{word} run_tests", f"{word} {clean}") for word in words]
    write_pairs(pairs, path, "Pairs")
    return pairs_hash(pairs)


def test_a_resumed_gate_keeps_the_pairs_it_began_with_though_their_file_has_changed(train, tmp_path):
    file, source = tmp_path / "pairs.md", "--router.init_args.direction"
    own = (f"{source}=vgrout_pl.directions.AuthoredPairs", f"{source}.init_args.source={file}", "--name=own")
    first, steps = pair_file(file, "x"), "--trainer.max_steps"

    def direction(root):
        callbacks = torch.load(root / "own/seed0/checkpoints/last.ckpt", weights_only=True)["callbacks"]
        return next(state for key, state in callbacks.items() if key.endswith("Gate"))["direction"]

    train(tmp_path / "whole", "route_a", *own, f"{steps}=5")
    train(tmp_path / "cut", "route_a", *own, f"{steps}=2")
    then = direction(tmp_path / "cut")
    second = pair_file(file, "return sorted(y)")
    said = rf"run began with \(hash {first}\); the source now has others \(hash {second}"
    with pytest.warns(UserWarning, match=said):
        train(tmp_path / "cut", "route_a", *own, f"{steps}=5", "--ckpt_path=last")
    now = direction(tmp_path / "cut")
    assert torch.equal(now, direction(tmp_path / "whole"))
    assert not torch.equal(now, then), "it was extracted anew in between"


def test_a_gate_that_the_init_makes_blind_says_so(train, tmp_path):
    steps = "--trainer.max_steps=1"
    with pytest.warns(UserWarning, match="adapter.init scorda takes the direction of its pairs out of the deployed"):
        train(tmp_path / "blind", "route_a", steps)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*takes the direction of its pairs.*")
        train(tmp_path / "sees", "route_a", steps, "--adapter.init=gaussian")


def test_a_buffer_that_will_be_large_is_told(train, tmp_path):
    many = 10_000_000
    with pytest.warns(
        UserWarning, match=rf"router.bands: {many} rollouts of \d+ features in float32 will take"
    ) as told:
        train(tmp_path, "route_a_residual", "--trainer.max_steps=1", f"--router.init_args.bands.max_rollouts={many}")
    (line,) = [str(each.message) for each in told if "rollouts of" in str(each.message)]
    features, gibibytes = re.search(r"of (\d+) features.*take ([\d.]+) GiB", line).groups()
    assert float(gibibytes) == pytest.approx(many * int(features) * 4 / 2**30, abs=0.05)


def test_self_generation_goes_on_after_a_crash_and_cleans_up(train, tmp_path, monkeypatch):
    run_dir, asked = tmp_path / "route_v-scorda" / "seed0", []

    def sampler(module):
        sample = sampler_of(module)

        def counted(prompts, seed):
            if len(asked) == 3:
                asked.append(None)
                raise OSError("the machine went away")
            asked.append(seed)
            return sample(prompts, seed)

        return counted

    monkeypatch.setattr(pair_sources, "sampler_of", sampler)
    small = ("--router.init_args.direction=vgrout_pl.directions.SelfGeneratedPairs", "--name=route_v-scorda")
    small += ("--router.init_args.direction.init_args={n: 6, batch_size: 2}", "--trainer.max_steps=1")
    with pytest.raises(SystemExit):
        train(tmp_path, "route_v", *small)
    assert len(list((run_dir / PAIRS_CACHE).rglob("*.json"))) == 1
    train(tmp_path, "route_v", *small, "--overwrite=false")
    assert len(asked) == 3 + 1 + 4, "the first batch of three, both sides, was not asked for again"
    assert (run_dir / PAIRS_FILE).exists()
    assert not (run_dir / PAIRS_CACHE).exists()


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.full), "bfloat16"])
def test_rows_that_a_gate_has_read_in_their_sampling_state_are_not_scored_again(train, tmp_path, monkeypatch, dtype):
    passed: list[tuple[bool, bool]] = []
    """Whether the gate's, and whether sampled ablated: every row that passes through the model without gradient."""
    reading = []

    def read(self, module, rollouts, varied):
        reading.append(True)
        found = Gate.read(self, module, rollouts, varied)
        reading.clear()
        return found

    def score(module, rows, *args):
        if isinstance(rows, Rollouts):  # not the pairs
            passed.extend((bool(reading), row) for row in rows.ablated.tolist())
        return score_rows(module, rows, *args)

    monkeypatch.setattr(ActivationGate, "read", read)
    monkeypatch.setattr("vgrout_pl.window.score_rows", score)
    every_row = "--model.objective={beta: 0, entropy_bonus: 0.001, kl_constant_groups: true}"
    train(tmp_path, "route_a", "--trainer.max_steps=1", f"--model.dtype={dtype}", every_row)
    by_gate, by_step = ([ablated for of_gate, ablated in passed if of_gate == whose] for whose in (True, False))
    assert len(by_gate) == 32, "each row once"
    assert sum(by_gate) == 8
    assert sum(by_step) == 0, "the gate's pass is the ablated rows' scoring pass"
    assert bool(by_step) == (dtype == "bfloat16"), "in float32 sampling gave the log-probabilities of the others"


def test_rows_enter_a_gates_buffer_where_they_differ_from_those_they_are_compared_with(train, tmp_path, monkeypatch):
    entered, trained = [], []

    def read(self, module, rollouts, varied):
        entered.append(varied.clone())
        return Gate.read(self, module, rollouts, varied)

    def rows(objective, rollouts, updates=1):
        trained.append((trained_rows(objective, rollouts, updates), constant_groups(rollouts.rewards, 8)))
        return trained[-1][0]

    monkeypatch.setattr(ActivationGate, "read", read)
    monkeypatch.setattr("vgrout_pl.window.trained_rows", rows)
    train(tmp_path, "route_a", "--trainer.max_steps=3", "--model.objective={beta: 0, baseline: state}")
    for varied, (own, _) in zip(entered, trained, strict=True):
        assert torch.equal(varied, own)
    assert any(not torch.equal(varied, ~constant) for varied, (_, constant) in zip(entered, trained, strict=True)), (
        "in this run no group differs between its sampling states alone"
    )


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
