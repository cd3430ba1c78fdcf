"""What a resumed run takes from its directory: the newest readable checkpoint, and the settings it began with."""

import csv
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.loop.conftest import command
from vgrout_pl.checkpoint_io import DurableCheckpointIO
from vgrout_pl.optim import Optimization, build_optimizer, warmup_cosine
from vgrout_pl.resume import apply_options, changed_settings, refuse_changed

RUN = "absorb-scorda/seed0"
FOUR = ("--trainer.max_steps=4", "--checkpoint.every_n_train_steps=2", "--trainer.val_check_interval=4")
ADAPTER = "deployed/adapter_model.safetensors"


def metrics_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def step_in(path):
    return DurableCheckpointIO().load_checkpoint(path)["global_step"]


# ---------------------------------------------------------------- settings


def test_settings_that_the_numbers_depend_on_are_compared_and_named():
    old = {
        "seed_everything": 0,
        "model": {"optimization": {"lr": 0.1}, "grader_workers": 2},
        "router": {"class_path": "A"},
        "trainer": {"max_steps": 6, "gradient_clip_val": 1.0},
        "ckpt_path": None,
    }
    new = {
        "seed_everything": 0,
        "model": {"optimization": {"lr": 0.2}, "grader_workers": 8},
        "router": {"class_path": "B", "init_args": {"x": 1}},
        "trainer": {"max_steps": 12, "gradient_clip_val": 2.0},
        "ckpt_path": "last",
    }
    changed = changed_settings(old, new)
    assert changed == {
        "model.optimization.lr": (0.1, 0.2),
        "model.grader_workers": (2, 8),
        "router.class_path": ("A", "B"),
        "router.init_args.x": (None, 1),
        "trainer.max_steps": (6, 12),
        "trainer.gradient_clip_val": (1.0, 2.0),
    }
    with pytest.raises(ValueError) as caught:
        refuse_changed(changed, ["router"])
    line = str(caught.value)
    assert "model.optimization.lr: 0.1 -> 0.2; trainer.gradient_clip_val: 1.0 -> 2.0; set them back" in line
    assert "--allow_changed '[model.optimization.lr, trainer.gradient_clip_val]'" in line
    refuse_changed(changed, ["router", "model.optimization", "trainer.gradient_clip_val"])


def optimizer_and_schedule(options, total, steps=0):
    policy = torch.nn.Linear(2, 2)
    optimizer, schedule = build_optimizer(policy, options, total)
    for _ in range(steps):
        policy(torch.ones(2)).sum().backward()
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def resumed(options, total, optimizer, schedule):
    new, new_schedule = optimizer_and_schedule(options, total)
    new.load_state_dict(optimizer.state_dict())
    new_schedule.load_state_dict(schedule.state_dict())
    trainer = SimpleNamespace(optimizers=[new], lr_scheduler_configs=[SimpleNamespace(scheduler=new_schedule)])
    apply_options(trainer)
    return new, new_schedule


def test_a_restored_optimizer_obeys_the_present_settings_and_unchanged_ones_change_no_bit(monkeypatch):
    monkeypatch.setattr("vgrout_pl.optim.install_decay_toward_init", lambda *_: None)
    first = Optimization(lr=0.3, warmup_steps=2)
    optimizer, schedule = optimizer_and_schedule(first, total=7, steps=4)
    same, _ = resumed(first, 7, optimizer, schedule)
    assert same.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    other, other_schedule = resumed(Optimization(lr=0.1, betas=(0.5, 0.6), warmup_steps=2), 20, optimizer, schedule)
    (group,) = other.param_groups
    assert group["lr"] == 0.1 * warmup_cosine(4, 2, 20)
    assert group["betas"] == (0.5, 0.6)
    other_schedule.step()
    assert group["lr"] == pytest.approx(0.1 * warmup_cosine(5, 2, 20))


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of four steps; each test gets its own copy, as if killed before its final evaluation."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cli.py"])
        command("fit", *FOUR, config="configs/demo.yaml", root=root)
    return root


@pytest.fixture
def unfinished(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for name in ("eval.json", "report.md"):
        (tmp_path / RUN / name).unlink()
    return tmp_path


def refused(fit, capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        fit(*args)
    assert caught.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    return line


def test_a_run_whose_last_checkpoint_is_broken_goes_on_from_the_one_before_bit_for_bit(
    fit, finished, unfinished, capsys
):
    os.truncate(unfinished / RUN / "checkpoints" / "last.ckpt", 1000)
    fit(*FOUR, "--ckpt_path=last")
    assert "last.ckpt cannot be read (" in capsys.readouterr().out
    assert step_in(unfinished / RUN / "checkpoints" / "last.ckpt") == 4
    assert step_in(unfinished / RUN / "checkpoints" / "previous.ckpt") == 2
    for name in (ADAPTER, "rollouts.jsonl"):
        assert (unfinished / RUN / name).read_bytes() == (finished / RUN / name).read_bytes()
    results = [json.loads((root / RUN / "eval.json").read_text())["results"] for root in (finished, unfinished)]
    assert results[0] == results[1]


def test_other_settings_are_refused_and_a_longer_run_on_smaller_micro_batches_goes_on(fit, unfinished, capsys):
    run = unfinished / RUN
    before = (run / "config.yaml").read_bytes()
    line = refused(fit, capsys, *FOUR, "--ckpt_path=last", "--model.optimization.lr=0.5", "--data.mode=gt_only")
    assert "model.optimization.lr: 0.002 -> 0.5; data.mode: run_tests -> gt_only" in line
    assert "--allow_changed '[model.optimization.lr, data.mode]'" in line
    assert (run / "config.yaml").read_bytes() == before

    longer = ("--trainer.max_steps=6", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=12")
    fit(*longer, "--ckpt_path=last", "--model.optimization.lr=0.001", "--allow_changed=[model.optimization.lr]")
    assert "resumed with a learning rate whose cosine ends at step 6" in capsys.readouterr().out
    rates = {int(row["step"]): float(row["lr"]) for row in metrics_of(run) if row["lr"]}
    assert list(rates) == [0, 1, 2, 3, 4, 5]
    assert rates[4] == pytest.approx(0.001 * warmup_cosine(4, 5, 6))
    assert rates[5] == pytest.approx(0.001 * warmup_cosine(5, 5, 6))
    (note,) = map(json.loads, (run / "changes.jsonl").read_text().splitlines())
    assert note["step"] == 4
    assert note["changed"]["model.optimization.lr"] == [0.002, 0.001]
    assert note["changed"]["trainer.max_steps"] == [4, 6]


def test_last_without_a_checkpoint_starts_from_the_beginning(fit, tmp_path):
    run = tmp_path / RUN
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step,reward\r\n0,1\r\n")
    (run / "rollouts.jsonl").write_text('{"step": 0}\n{"step"')
    fit("--ckpt_path=last")
    assert [row["step"] for row in metrics_of(run) if row["reward"]] == ["0", "1"]
    assert len((run / "rollouts.jsonl").read_text().splitlines()) == 2 * 16


# ---------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size in KiB; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("mount"), reason="needs mount")
def test_a_disk_that_fills_up_costs_one_line_and_no_step_before_the_last_checkpoint(fit, finished, small_disk, capsys):
    size = (finished / RUN / "checkpoints" / "last.ckpt").stat().st_size // 1024
    place = small_disk(f"size={size + 400}k")
    line = refused(fit, capsys, *FOUR, f"--trainer.default_root_dir={place}")
    assert line.startswith("error: disk: expected room to write; got [Errno 28] No space left on device: ")
    assert "resume with --ckpt_path last" in line
    assert step_in(place / RUN / "checkpoints" / "last.ckpt") == 2
    assert [row["step"] for row in metrics_of(place / RUN)] == ["0", "1", "2", "3", "3"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    fit(*FOUR, "--ckpt_path=last", f"--trainer.default_root_dir={place}")
    for name in (ADAPTER, "rollouts.jsonl"):
        assert (place / RUN / name).read_bytes() == (finished / RUN / name).read_bytes()


@pytest.mark.full
def test_a_disk_without_room_for_the_export_is_one_line(fit, unfinished, small_disk, capsys):
    shutil.rmtree(unfinished / RUN / "deployed")
    content = sum(path.stat().st_size for path in unfinished.rglob("*") if path.is_file()) // 1024
    place = small_disk(f"size={content + 160}k")
    shutil.copytree(unfinished / "absorb-scorda", place / "absorb-scorda")
    line = refused(fit, capsys, *FOUR, "--ckpt_path=last", f"--trainer.default_root_dir={place}")
    assert line.startswith("error: disk: expected room to write; got ")
    assert "No space left on device" in line


def test_a_run_directory_that_cannot_be_written_is_one_line_and_leaves_no_trace(fit, tmp_path, capsys):
    (tmp_path / "absorb-scorda").write_text("a file")
    line = refused(fit, capsys)
    assert f"{tmp_path / 'absorb-scorda'} is no directory; give another --trainer.default_root_dir" in line


def test_a_read_only_disk_is_one_line(fit, small_disk, capsys):
    place = small_disk("size=1m,ro")
    line = refused(fit, capsys, f"--trainer.default_root_dir={place}/runs")
    assert f"{place} may not be written to" in line
