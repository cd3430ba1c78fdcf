"""Two gloo processes on the CPU, through the command line: the run, its files and its end are those of one process.

The runs have what makes processes differ: a gate whose buffer is everybody's, completions of unequal lengths, a process
without a group to learn from, cells that cannot be dealt evenly.
"""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vgrout_pl.cli import main

RUN = "route_a-scorda/seed0"
SETTINGS = (
    "--config=configs/router/route_a.yaml",
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=6",
    "--trainer.accumulate_grad_batches=2",
    "--checkpoint.every_n_train_steps=1",
    "--checkpoint.keep_every_n_steps=2",
    "--data.prompts_per_step=4",
    "--data.eval_batch_size=4",
    "--data.validation_size=3",
    "--data.test_size=5",
    "--data.train_eval_size=1",
    "--ablation.states=[as_trained,deployed]",
    "--model.grader_workers=1",
)
AT_STEP_2 = "checkpoints/step000002.ckpt"
STRATEGIES = ("ddp", "fsdp")
PATIENCE = 240


def launched(strategy, root, *args):
    """The command of a run on two processes."""
    overlay = f"configs/strategy/{strategy}.yaml"
    start = [sys.executable, "cli.py", "fit", "--config", "configs/demo.yaml", "--config", overlay, *SETTINGS]
    return [*start, f"--trainer.default_root_dir={root}", *args]


def two_processes(strategy, root, *args):
    done = subprocess.run(
        launched(strategy, root, *args), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "MEMBER: 2/2" in done.stdout
    return root / RUN


def one_process(root, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cli.py"])
        main(["fit", "--config=configs/demo.yaml", *SETTINGS, f"--trainer.default_root_dir={root}", *args])
    return root / RUN


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return one_process(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Finished runs of two processes, each strategy's once."""
    runs = {}

    def made(strategy):
        if strategy not in runs:
            runs[strategy] = two_processes(strategy, tmp_path_factory.mktemp(strategy))
        return runs[strategy]

    return made


def checkpoint(run, name="checkpoints/last.ckpt"):
    return torch.load(run / name, weights_only=True)


def assert_same_training(run, other, name="checkpoints/last.ckpt"):
    """Adapter, optimizer and counters of two checkpoints."""
    first, second = checkpoint(run, name), checkpoint(other, name)
    assert first["global_step"] == second["global_step"]
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for key, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][key], value, rtol=0, atol=1e-5, msg=key)
    (one,), (two,) = first["optimizer_states"], second["optimizer_states"]
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for number, moments in one["state"].items():
        for name, value in moments.items():
            torch.testing.assert_close(two["state"][number][name], value, rtol=1e-3, atol=1e-7, msg=f"{number} {name}")
    (gate,) = (key for key in first["callbacks"] if "Gate" in key)
    buffers = [saved["callbacks"][gate]["buffer"] for saved in (first, second)]
    assert len(buffers[0]["features"])
    for key in ("features", "stamps", "marks"):
        torch.testing.assert_close(buffers[1][key], buffers[0][key], rtol=0, atol=1e-5)


def rollouts(run):
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


def logged(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value and not re.match("step_time|time/", name)}
            for row in csv.DictReader(file)
        ]


def results(run):
    return json.loads((run / "eval.json").read_text())["results"]


# ---------------------------------------------------------------- the same run


def test_the_run_has_what_makes_processes_differ(one):
    rows = rollouts(one)
    learning = {step: [0, 0] for step in range(3)}
    tokens = {step: [0, 0] for step in range(3)}
    for step in range(3):
        for group in range(4):
            members = [row for row in rows if (row["step"], row["group"]) == (step, group)]
            learning[step][group // 2] += len({row["reward"] for row in members}) > 1
            tokens[step][group // 2] += sum(row["tokens"] for row in members)
    assert any((first == 0) != (second == 0) for first, second in learning.values()), "no process idles"
    assert all(first != second for first, second in tokens.values()), "lengths are equal"
    assert {row["route"] for row in rows} == {"keep", "absorb", "route"}
    assert all(row["grad_norm"] > 0 for row in logged(one) if "grad_norm" in row)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_what_one_trains_on_the_same_window(one, two, strategy):
    run = two(strategy)
    assert_same_training(one, run)
    assert_same_training(one, run, AT_STEP_2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_sample_route_log_and_evaluate_what_one_does(one, two, strategy):
    run = two(strategy)
    for mine, theirs in zip(rollouts(run), rollouts(one), strict=True):
        assert mine.pop("advantage") == pytest.approx(theirs.pop("advantage"), abs=1e-6)
        assert mine == theirs
    for mine, theirs in zip(logged(run), logged(one), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            same = mine[name] == pytest.approx(value, rel=1e-4, abs=1e-5)
            assert same or (math.isnan(value) and math.isnan(mine[name])), name
    assert results(run) == results(one)
    assert {cell["n"] for cell in results(run)} == {5, 1}
    assert any(0 < cell["format"]["rate"] < 1 for cell in results(run)), "nothing to compare"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_writes_the_files(one, two, strategy):
    names = [{str(p.relative_to(run)) for p in run.rglob("*")} for run in (one, two(strategy))]
    assert names[0] == names[1]
    exported = [torch.load(run / AT_STEP_2, weights_only=True)["state_dict"] for run in (one, two(strategy))]
    assert all(type(value) is torch.Tensor for state in exported for value in state.values())
    from safetensors.torch import load_file

    first, second = (load_file(run / "deployed" / "adapter_model.safetensors") for run in (one, two(strategy)))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- going on


def unfinished(run, root):
    """A copy of a run's directory as it was after its second step."""
    shutil.copytree(run, root / RUN)
    kept = root / RUN / "checkpoints"
    (root / RUN / AT_STEP_2).replace(kept / "last.ckpt")
    (kept / "previous.ckpt").unlink()
    for name in ("eval.json", "report.md"):
        (root / RUN / name).unlink()
    return root


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_of_two_processes_goes_on_with_one(one, two, strategy, tmp_path):
    run = one_process(unfinished(two(strategy), tmp_path), "--ckpt_path=last")
    assert_same_training(one, run)
    assert [row["completion"] for row in rollouts(run)] == [row["completion"] for row in rollouts(one)]
    assert results(run) == results(one)
    (note,) = map(json.loads, (run / "changes.jsonl").read_text().splitlines())
    assert note["changed"]["trainer.devices"] == [2, 1]


@pytest.mark.parametrize(
    ("strategy", "begun"),
    [
        pytest.param("fsdp", "one"),
        pytest.param("ddp", "one", marks=pytest.mark.full),
        pytest.param("ddp", "fsdp", marks=pytest.mark.full),
        pytest.param("fsdp", "ddp", marks=pytest.mark.full),
    ],
)
def test_a_run_goes_on_with_two_processes_however_it_began(one, two, strategy, begun, tmp_path):
    earlier = one if begun == "one" else two(begun)
    run = two_processes(strategy, unfinished(earlier, tmp_path), "--ckpt_path=last")
    assert_same_training(one, run)
    assert [row["completion"] for row in rollouts(run)] == [row["completion"] for row in rollouts(one)]
    assert results(run) == results(one)


# ---------------------------------------------------------------- a process dies


def child_of(parent):
    """The run's second process."""
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            if (
                entry.name.isdigit()
                and int(status[1]) == parent
                and b"LOCAL_RANK=1" in (entry / "environ").read_bytes()
            ):
                return int(entry.name)
        except (OSError, IndexError):
            continue
    raise AssertionError("there is no second process")


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def struck(strategy, root, rank):
    """Kill one process of a run that trains, once it has a checkpoint; returns exit code and stderr."""
    with subprocess.Popen(
        launched(strategy, root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        until = time.monotonic() + PATIENCE
        while not (root / RUN / "checkpoints" / "last.ckpt").exists():
            assert run.poll() is None and time.monotonic() < until, run.communicate()
            time.sleep(0.05)
        child = child_of(run.pid)
        os.kill(child if rank else run.pid, signal.SIGKILL)
        _, errors = run.communicate(timeout=60)  # both ends of the pipe: the child has ended too
        assert not is_alive(child)
        return run.returncode, errors


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("strategy", "rank"),
    [
        ("ddp", 1),
        pytest.param("ddp", 0, marks=pytest.mark.full),
        pytest.param("fsdp", 0, marks=pytest.mark.full),
        pytest.param("fsdp", 1, marks=pytest.mark.full),
    ],
)
def test_a_process_that_is_killed_takes_the_job_down_and_the_run_goes_on(one, strategy, rank, tmp_path):
    code, errors = struck(strategy, tmp_path, rank)
    assert code == (1 if rank else -signal.SIGKILL)
    (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
    assert ("process 1 of this run was killed by SIGKILL" if rank else "process 0 of this run has ended") in line
    assert "resume with --ckpt_path last" in line
    assert not (tmp_path / RUN / "eval.json").exists()
    run = two_processes(strategy, tmp_path, "--ckpt_path=last")
    assert_same_training(one, run)
    assert results(run) == results(one)
