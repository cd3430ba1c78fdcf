"""Files that survive a crash, a full disk and a hostile hand: lines are whole, checkpoints are read or passed over."""

import csv
import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch

from vgrout_pl.callbacks.jsonl import append_records, drop_from_step
from vgrout_pl.checkpoint_io import DurableCheckpointIO, checkpoints_in, defect, last_checkpoint, set_aside_later
from vgrout_pl.logger import RunCSVLogger
from vgrout_pl.run_directory import append


@contextmanager
def files_of_at_most(size):
    """Let every write beyond ``size`` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def metrics_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- lines


def test_records_of_earlier_steps_survive_a_resume_whatever_their_text(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    kept = [{"step": 0, "text": "a\u2028b\u0085c"}, {"step": 1, "text": "\u2029"}]
    append_records(path, [*kept, {"step": 2, "text": ""}])
    with path.open("a") as file:
        file.write('{"step": 2, "te')
    drop_from_step(path, 2)
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == kept


def test_a_line_torn_inside_a_character_or_a_step_goes_and_nothing_else(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    append_records(path, [{"step": 0, "text": "é"}, {"step": 1, "text": "é"}])
    whole = path.read_bytes()
    for torn in ('{"step": 2, "text": "é'.encode()[:-1], b'{"step": 1'):
        path.write_bytes(whole + torn)
        drop_from_step(path, 5)
        assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"rollouts.jsonl, line 2: expected a JSON object with a step"):
        drop_from_step(path, 3)


def test_a_row_of_metrics_torn_inside_its_step_does_not_count_as_an_earlier_step(tmp_path):
    logger = RunCSVLogger(str(tmp_path))
    for step in range(13):
        logger.log_metrics({"a": 0.5, "zeta": step}, step=step)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"0.5,1")
    again = RunCSVLogger(str(tmp_path))
    again.drop_from_step(12)
    assert [row["step"] for row in metrics_of(tmp_path)] == [str(step) for step in range(12)]
    again.log_metrics({"a": 0.25, "new": 1.0}, step=12)
    rows = metrics_of(tmp_path)
    assert [row["zeta"] for row in rows] == [*map(str, range(12)), ""]
    assert (rows[12]["a"], rows[12]["new"], rows[3]["new"]) == ("0.25", "1.0", "")


def test_a_line_that_finds_no_room_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "lines"
    append(path, b"x" * 3000)
    with files_of_at_most(4096), pytest.raises(OSError, match=r"File too large.*lines"):
        append(path, b"y" * 3000)
    assert path.read_bytes() == b"x" * 3000
    append(path, b"z")
    assert path.read_bytes() == b"x" * 3000 + b"z"


# ---------------------------------------------------------------- checkpoint files


def content(step):
    return {"state_dict": {"w": torch.full((2000,), float(step))}, "global_step": step, "loops": {}}


def saved(directory, *steps):
    for step in steps:
        DurableCheckpointIO().save_checkpoint(content(step), directory / "last.ckpt")


def step_in(path):
    return DurableCheckpointIO().load_checkpoint(path)["global_step"]


def test_the_checkpoint_before_the_last_one_stays(tmp_path):
    saved(tmp_path, 2, 4, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert (step_in(tmp_path / "last.ckpt"), step_in(tmp_path / "previous.ckpt")) == (6, 4)


def test_a_checkpoint_that_finds_no_room_leaves_both_that_were_there(tmp_path):
    saved(tmp_path, 2, 4)
    with files_of_at_most(4096), pytest.raises(OSError, match="File too large"):
        saved(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert (step_in(tmp_path / "last.ckpt"), step_in(tmp_path / "previous.ckpt")) == (4, 2)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


BREAK = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "one bit of a tensor": lambda path: flip(path),
    "text": lambda path: path.write_text("no checkpoint"),
    "other tensors": lambda path: torch.save({"w": torch.zeros(2)}, path),
    "code": lambda path: torch.save({**content(9), "bomb": Bomb(path.with_name("exploded"))}, path),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # the one tensor is nearly all of the file
    path.write_bytes(data)


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_last_checkpoint_is_passed_over_with_one_line(tmp_path, capsys, how):
    saved(tmp_path, 2, 4)
    assert last_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    assert capsys.readouterr().out == ""
    BREAK[how](tmp_path / "last.ckpt")
    assert last_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'last.ckpt'} cannot be read (")
    assert not (tmp_path / "exploded").exists()
    BREAK[how](tmp_path / "previous.ckpt")
    with pytest.raises(ValueError, match=r"expected a checkpoint that can be read in .*; got 2 broken"):
        last_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_not_run_even_if_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "last.ckpt"
    BREAK["code"](path)
    assert defect(path) is not None
    with pytest.raises(Exception, match="Weights only load failed"):
        DurableCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "exploded").exists()


def test_what_lies_beyond_the_step_that_a_run_goes_on_from_is_set_aside(tmp_path):
    saved(tmp_path, 2, 4)
    DurableCheckpointIO().save_checkpoint(content(3), tmp_path / "step000003.ckpt")
    (tmp_path / "step000001.ckpt").write_bytes(b"")
    set_aside_later(tmp_path, 3)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["previous.ckpt", "step000003.ckpt"]
    assert step_in(tmp_path / "last.ckpt.abandoned") == 4
    assert (tmp_path / "step000001.ckpt.abandoned").exists()
    assert last_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
