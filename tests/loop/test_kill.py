"""SIGKILL at any moment, any number of times in a row: the run ends with the bytes of one that was left in peace."""

import csv
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests.loop.conftest import SMALL

RUN = "absorb-scorda/seed0"
EXACT = ("rollouts.jsonl", "blocks.jsonl", "eval.json", "config.yaml", "deployed/adapter_model.safetensors")
PATIENCE = 300

SIZE = ("--model.group_size=8",)
PLAIN = ("--trainer.max_steps=6", "--trainer.val_check_interval=3", "--checkpoint.every_n_train_steps=2")
POINTS = [
    "generation@0#9",
    "place of config.yaml@0",
    "line of rollouts.jsonl@0",
    "backward@1",
    "line of metrics.csv@1",
    "checkpoint bytes@2#3",
    "place of last.ckpt@2",
    "generation@2#5",
    "grading@2",
    "graded@2",
    "scoring@2",
    "forward@2",
    "backward done@2",
    "optimizer@2",
    "optimizer done@2",
    "line of rollouts.jsonl@3",
    "validation@3",
    "validation over@3",
    "place of metrics.csv@3#2",
    "place of previous.ckpt@4",
    "place of last.ckpt@4",
    "checkpoint done@4",
    "place of metrics.csv@4",
    "optimizer@5",
    "validation@6",
    "checkpoint bytes@6",
    "place of last.ckpt@6",
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
    "line of metrics.csv@3",
    "validation@4",
    "place of last.ckpt@4",
    "generation@4#7",
    "forward@4#3",
    "backward@5#2",
    "optimizer done@5",
    "place of previous.ckpt@6",
    "backward done@7",
    "validation over@8",
    "evaluation@8#2",
]


def arguments(root, options):
    given = ["fit", "--config", "configs/demo.yaml", *SMALL, *SIZE, *options, f"--trainer.default_root_dir={root}"]
    return [*given, "--ckpt_path=last"]


def killed(point, root, options):
    """Start or resume a run that is killed at a point."""
    command = [sys.executable, "-m", "tests.loop.killing", point, *arguments(root, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGKILL, f"{point} was not reached:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


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


def undisturbed(fit, root, options):
    """The whole run, in the place of the one to be killed (its path is part of its configuration), then moved."""
    fit(*SIZE, *options, root=root)
    whole = root.with_name("whole")
    shutil.move(root, whole)
    rows = [dict(row) for row in metrics_of(whole / RUN)]
    assert sum(float(row["grad_norm"] or 0) > 0 for row in rows) >= 4, "this run trains on too little"
    return whole / RUN


@pytest.mark.parametrize(
    ("options", "points"),
    [
        pytest.param(PLAIN, ["generation@1#9", "place of last.ckpt@4", "validation over@6"], id="three points"),
        pytest.param(PLAIN, POINTS, id="every phase", marks=pytest.mark.full),
        pytest.param(SEVERAL, SEVERAL_POINTS, id="several updates and micro-batches", marks=pytest.mark.full),
    ],
)
def test_a_run_killed_at_any_moment_and_again_ends_bit_for_bit_as_if_nothing_had_happened(
    fit, tmp_path, options, points
):
    root = tmp_path / "runs"
    whole = undisturbed(fit, root, options)
    for point in points:
        killed(point, root, options)
        assert not (root / RUN / "report.md").exists()
    fit(*SIZE, *options, "--ckpt_path=last", root=root)
    assert_same_run(root / RUN, whole)
