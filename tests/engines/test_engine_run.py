"""Whole runs of the command line whose completions come from a server."""

import csv
import json
import math
import subprocess
import sys

import pytest
import torch

from tests.engines.lora_server import LoraServer
from vgrout_pl import organism
from vgrout_pl.cli import main
from vgrout_pl.module import GRPOModule

RUN = "absorb-scorda/seed0"
TINY = (
    "--data.validation_size=1",
    "--data.test_size=1",
    "--data.train_eval_size=1",
    "--model.grader_workers=1",
    "--trainer.val_check_interval=2",
    "--checkpoint.every_n_train_steps=1",
)
SMALL = (*TINY, "--trainer.max_steps=2", "--data.prompts_per_step=2", "--model.group_size=4")


@pytest.fixture
def fit(server, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cli.py"])

    def run(*args, url=server.url):
        engine = "--model.engine.init_args"
        where = (f"{engine}.base_url={url}", f"{engine}.lora_dir={tmp_path / 'adapters'}", f"{engine}.retries=1")
        overlays = ("--config=configs/demo.yaml", "--config=configs/engine/server.yaml")
        main(["fit", *overlays, *where, f"--trainer.default_root_dir={tmp_path}", *args])
        return tmp_path / RUN

    return run


def steps(run):
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["loss"]]


def failure(fit, capsys, *args):
    """The one line that a run ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        fit(*args)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert ended.value.code == 1 and len(lines) == 1
    return lines[0]


def test_a_run_trains_on_what_the_server_samples(fit, server, tmp_path):
    run = fit(*TINY, "--trainer.max_steps=2", "--data.prompts_per_step=8", "--model.group_size=8")
    first, second = steps(run)
    for row in (first, second):
        assert float(row["grad_norm"]) > 0 and math.isfinite(float(row["loss"]))
        assert float(row["engine/logprob_gap"]) < 1e-4
    assert float(first["engine/base_gap"]) < 1e-4, "an adapter begins without effect"
    assert float(second["engine/base_gap"]) > 1e-3
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 2 * 64
    assert all(math.isfinite(row["advantage"]) for row in rollouts) and any(row["advantage"] for row in rollouts)
    assert sum(body["n"] for body in server.asked if body["n"] in (6, 2)) == len(rollouts)
    assert {record["state"] for record in json.loads((run / "eval.json").read_text())["results"]} == {
        "as_trained",
        "deployed",
        "quarantine_only",
        "base",
    }
    assert not server.loaded and not list((tmp_path / "adapters").iterdir())


@pytest.mark.full
def test_a_server_that_serves_the_base_stops_the_run_once_the_adapter_has_moved(fit, server, capsys, tmp_path):
    server.serves_base = True
    size = ("--data.prompts_per_step=8", "--model.group_size=8", "--trainer.max_steps=2")
    line = failure(fit, capsys, *TINY, *size)
    assert "expected the server to sample" in line and "base model" in line
    assert len(steps(tmp_path / RUN)) == 1
    assert (tmp_path / RUN / "checkpoints" / "last.ckpt").is_file()


def test_a_server_that_dies_in_a_window_ends_the_run_and_keeps_the_checkpoint(fit, server, capsys, tmp_path):
    server.dies_after = 5  # a window of this size is four requests
    line = failure(fit, capsys, *SMALL)
    assert "got no connection" in line and "--ckpt_path last" in line
    assert len(steps(tmp_path / RUN)) == 1
    assert (tmp_path / RUN / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.full
def test_a_run_goes_on_with_a_server_at_another_address(fit, server, capsys):
    server.dies_after = 5
    failure(fit, capsys, *SMALL)
    other = LoraServer(organism.CHECKPOINT, "organism")
    run = fit(*SMALL, "--ckpt_path=last", url=other.url)
    other.close()
    assert len(steps(run)) == 2 and (run / "eval.json").is_file()


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_sample_what_one_does_and_one_of_them_loads(fit, server, tmp_path, strategy):
    """The server is asked by both; adapters are exported and loaded once."""
    size = (*TINY, "--trainer.max_steps=2", "--data.prompts_per_step=8", "--model.group_size=8")
    one = fit(*size)
    loads = sum(what == "load" for what, _ in server.log)
    asked = [(body["prompt"], body["n"], body["seed"]) for body in server.asked]
    server.asked.clear()
    engine = "--model.engine.init_args"
    root = tmp_path / "two"
    command = [sys.executable, "cli.py", "fit", "--config=configs/demo.yaml", "--config=configs/engine/server.yaml"]
    command += [
        f"--config=configs/strategy/{strategy}.yaml",
        f"{engine}.base_url={server.url}",
        f"{engine}.lora_dir={root}/lora",
    ]
    command += [*size, f"--trainer.default_root_dir={root}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "MEMBER: 2/2" in done.stdout
    assert sum(what == "load" for what, _ in server.log) == 2 * loads and not server.loaded
    assert sorted((body["prompt"], body["n"], body["seed"]) for body in server.asked) == sorted(asked)
    rollouts = [(run / "rollouts.jsonl").read_text().splitlines() for run in (one, root / RUN)]
    texts = [[json.loads(line)["completion"] for line in lines] for lines in rollouts]
    assert sorted(texts[0]) == sorted(texts[1])
    adapters = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (one, root / RUN)]
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, rtol=0, atol=1e-5)
    for first, second in zip(steps(one), steps(root / RUN), strict=True):
        assert float(second["grad_norm"]) == pytest.approx(float(first["grad_norm"]), rel=1e-3)
        assert float(second["engine/logprob_gap"]) < 1e-4


def test_what_can_be_is_checked_before_a_weight_is_read(fit, server, capsys, monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("weights were read before the server was asked")

    monkeypatch.setattr("vgrout_pl.module.load_base", loaded)
    server.max_lora_rank = 16
    assert "--max-lora-rank of at least 32" in failure(fit, capsys, *SMALL)


def test_the_engine_is_no_setting_of_runs_that_sample_in_process(capsys, monkeypatch):
    """A resumed run from before there were engines finds no changed setting, and logs what it logged."""
    assert not any(name.startswith("engine/") for name in GRPOModule().metrics.compute())
    monkeypatch.setattr("sys.argv", ["cli.py"])
    with pytest.raises(SystemExit):
        main(["fit", "--config=configs/demo.yaml", "--print_config"])
    assert "engine: null" in capsys.readouterr().out


def test_an_engine_that_there_is_not(fit, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        fit("--model.engine=Nope")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith("error: model.engine: expected null, vgrout_pl.engines.ServerEngine") and "Nope" in line
