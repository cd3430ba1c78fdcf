"""SIGKILL at any moment, any number of times in a row: the run ends with the bytes of one that was left in peace."""

import csv
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.loop.conftest import SMALL, command

RUN = "absorb-scorda/seed0"
EXACT = (
    "rollouts.jsonl",
    "blocks.jsonl",
    "eval.json",
    "config.yaml",
    "guard.json",
    "deployed/adapter_model.safetensors",
)
PATIENCE = 300
LONG = (pytest.mark.full, pytest.mark.timeout(3600))

SIZE = ("--model.group_size=8",)
PLAIN = ("--trainer.max_steps=6", "--trainer.val_check_interval=3", "--checkpoint.every_n_train_steps=2")
POINTS = [
    "generation@0#9",
    "line of rollouts.jsonl@0",
    "backward@1",
    "line of metrics.csv@1",
    "checkpoint bytes@2#3",
    "place of last.ckpt@2",
    "grading@2",
    "scoring@2",
    "forward@2",
    "optimizer@2",
    "optimizer done@2",
    "validation@3",
    "validation over@3",
    "place of metrics.csv@3",
    "place of previous.ckpt@4",
    "place of last.ckpt@4",
    "checkpoint done@4",
    "place of metrics.csv@4",
    "backward done@5",
    "checkpoint bytes@6",
    "export@6",
    "evaluation@6#3",
    "evaluation over@6",
    "place of eval.json@6",
    "exported@6#2",
    "report@6",
    "place of report.md@6",
]
SEVERAL = (
    "--trainer.max_steps=8",
    "--model.updates_per_window=2",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=8",
    "--checkpoint.every_n_train_steps=3",
)
SEVERAL_POINTS = [
    "forward@1#2",
    "place of last.ckpt@4",
    "generation@4#7",
    "backward@5#2",
    "optimizer done@5",
    "validation over@8",
]


def struck(point, root, options, name="SIGKILL", code=-signal.SIGKILL):
    """Start or resume a run that gets a signal at a point; returns its output."""
    given = ["--config", "configs/demo.yaml", *SMALL, *SIZE, *options, f"--trainer.default_root_dir={root}"]
    started = [sys.executable, "-m", "tests.loop.killing", name, point, "fit", *given, "--ckpt_path=last"]
    done = subprocess.run(
        started, capture_output=True, text=True, timeout=PATIENCE, check=False, start_new_session=True
    )
    assert done.returncode == code, f"{point} was not reached:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


def metrics_of(run):
    """metrics.csv without its timings."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [[(name, value) for name, value in row.items() if not re.match(r"step_time|time/", name)] for row in rows]


def assert_same_run(run, whole):
    assert metrics_of(run) == metrics_of(whole)
    for name in EXACT:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert (run / "report.md").exists()
    assert not (run / "changes.jsonl").exists()
    assert not list((run / "checkpoints").glob(".*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were left in peace, each once; where the run to be struck shall be (its path is part of it)."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cli.py"])

        def made(options):
            if options not in runs:
                root = tmp_path_factory.mktemp("whole") / "runs"
                command("fit", *SIZE, *options, config="configs/demo.yaml", root=root)
                runs[options] = Path(shutil.move(root, root.with_name("whole"))) / RUN
                rows = [dict(row) for row in metrics_of(runs[options])]
                assert sum(float(row["grad_norm"] or 0) > 0 for row in rows) >= 4, "this run trains on too little"
            root = runs[options].parents[2] / "runs"
            shutil.rmtree(root, ignore_errors=True)
            return runs[options], root

        yield made


def finish(root, options):
    command("fit", *SIZE, *options, "--ckpt_path=last", config="configs/demo.yaml", root=root)


@pytest.mark.parametrize(
    ("options", "points"),
    [
        pytest.param(PLAIN, POINTS, id="every phase", marks=LONG),
        pytest.param(SEVERAL, SEVERAL_POINTS, id="several updates and micro-batches", marks=LONG),
    ],
)
def test_a_run_killed_at_any_moment_and_again_ends_bit_for_bit_as_if_nothing_had_happened(whole, options, points):
    expected, root = whole(options)
    for number, point in enumerate(points, start=1):
        struck(point, root, options)
        print(f"{number}: killed at {point}")
        assert not (root / RUN / "report.md").exists()
    finish(root, options)
    assert_same_run(root / RUN, expected)


def saved_step(root):
    return torch.load(root / RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_a_run_killed_three_times_and_stopped_by_a_signal_between_goes_on_bit_for_bit(whole):
    expected, root = whole(PLAIN)
    struck("generation@1#9", root, PLAIN)
    done = struck("backward@2", root, PLAIN, "SIGTERM", code=143)
    assert saved_step(root) == 3, "the step was not finished and saved"
    assert [row for row in metrics_of(root / RUN) if dict(row)["val/deployed/solve"]], "the validation was not finished"
    assert "resume with --ckpt_path last" in done.stdout
    assert "Traceback" not in done.stderr
    struck("place of last.ckpt@4", root, PLAIN)
    struck("evaluation over@6", root, PLAIN)
    finish(root, PLAIN)
    assert_same_run(root / RUN, expected)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_signal_ends_windows_of_several_updates_whole_and_an_evaluation_at_once(whole):
    expected, root = whole(SEVERAL)
    struck("forward@3#2", root, SEVERAL, "SIGTERM", code=143)
    assert saved_step(root) == 4
    struck("optimizer@7", root, SEVERAL, "SIGINT", code=130)
    assert saved_step(root) == 8
    assert not (root / RUN / "eval.json").exists()
    struck("evaluation@8", root, SEVERAL, "SIGTERM", code=143)
    assert not (root / RUN / "eval.json").exists()
    finish(root, SEVERAL)
    assert_same_run(root / RUN, expected)
