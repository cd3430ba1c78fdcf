"""A run that is killed goes on from its checkpoint and ends as if nothing had happened."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.loop.conftest import SMALL
from vgrout_pl.callbacks.jsonl import append_records, drop_from_step
from vgrout_pl.report import Results

STEPS = ("--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=6")
PATIENCE = 240


def killed_run(root: Path, until, *options: str, resume: bool = False) -> None:
    """Start or resume a run in a process of its own and SIGKILL it as soon as ``until(run directory)`` holds."""
    command = [sys.executable, "cli.py", "fit", "--config", "configs/demo.yaml", *SMALL, *options]
    command += ["--ckpt_path=last"] if resume else []
    run = root / "absorb-scorda" / "seed0"
    process = subprocess.Popen([*command, f"--trainer.default_root_dir={root}"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    try:
        while not until(run):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run did not get there in time"
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


def rollouts_of(run: Path) -> int:
    path = run / "rollouts.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def metrics_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in sorted(row.items()) if key != "step_time"} for row in rows]


@pytest.mark.parametrize(
    ("micro_batches", "kills"), [(1, [5 * 16]), (2, [3 * 16, 5 * 16])], ids=["once", "twice, with micro-batches"]
)
def test_a_run_killed_between_checkpoints_resumes_and_finishes_bit_for_bit(fit, tmp_path, micro_batches, kills):
    options = (
        *STEPS,
        f"--trainer.accumulate_grad_batches={micro_batches}",
        f"--trainer.val_check_interval={6 * micro_batches}",
    )
    whole = fit(*options, root=tmp_path / "whole") / "absorb-scorda" / "seed0"
    run = tmp_path / "killed" / "absorb-scorda" / "seed0"
    for kill, rows in enumerate(kills):
        killed_run(tmp_path / "killed", lambda run, rows=rows: rollouts_of(run) >= rows, *options, resume=kill > 0)
        assert list((run / "checkpoints").glob("last*.ckpt"))
        assert not (run / "eval.json").exists()
    fit(*options, "--ckpt_path=last", root=tmp_path / "killed")
    assert (run / "report.md").exists()
    assert (run / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()
    assert metrics_of(run) == metrics_of(whole)
    assert sum(float(row["grad_norm"] or 0) > 0 for row in metrics_of(run)) >= 4, "this run trains on too little"
    name = "deployed/adapter_model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert Results.load(run / "eval.json").cells == Results.load(whole / "eval.json").cells


def test_a_run_killed_in_its_final_evaluation_is_evaluated_on_resume(fit, tmp_path):
    root = tmp_path / "killed"
    fit(*STEPS, root=root)
    run = root / "absorb-scorda" / "seed0"
    before = Results.load(run / "eval.json").cells
    for name in ("eval.json", "report.md"):
        (run / name).unlink()
    fit(*STEPS, "--ckpt_path=last", root=root)
    assert Results.load(run / "eval.json").cells == before
    assert (run / "report.md").exists()


def test_records_of_earlier_steps_survive_a_resume_whatever_their_text(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    kept = [{"step": 0, "text": "a\u2028b\u0085c"}, {"step": 1, "text": "\u2029"}]
    append_records(path, [*kept, {"step": 2, "text": ""}])
    with path.open("a") as file:
        file.write('{"step": 2, "te')
    drop_from_step(path, 2)
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == kept


def test_last_without_a_checkpoint_starts_from_the_beginning(fit, tmp_path):
    run = tmp_path / "absorb-scorda" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step,reward\r\n0,1\r\n")
    (run / "rollouts.jsonl").write_text('{"step": 0}\n{"step"')
    fit("--ckpt_path=last")
    assert [row["step"] for row in metrics_of(run) if row["reward"]] == ["0", "1"]
    assert rollouts_of(run) == 2 * 16
