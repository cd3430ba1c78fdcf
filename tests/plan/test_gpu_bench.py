"""The bench for one GPU runs, at a small scale on the CPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vgrout_pl import decoding

PARTS = {"correctness", "step", "graphs", "plain generate", "floor"}
GPU = Path(__file__).parents[2] / "bench" / "gpu"


@pytest.mark.full
def test_every_part_runs_small_and_every_check_holds():
    command = [sys.executable, "bench/gpu/run.py", "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["part"] for row in rows} == PARTS
    assert all(row["holds"] for row in rows if row["part"] == "correctness")
    whole = next(row for row in rows if row.get("phase") == "whole step")
    assert whole["seconds"] > whole["floor_s"] > 0
    assert "| phase | seconds | floor_s |" in done.stdout


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_scale_is_refused_in_one_line():
    done = subprocess.run([sys.executable, "bench/gpu/run.py"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("expected a CUDA device")


def test_captured_steps_are_held_against_plain_ones(tmp_path, monkeypatch):
    """What a capture does before, twice the step, in place of the capture: the rest of that part runs on the CPU."""
    monkeypatch.syspath_prepend(str(GPU))
    shape, steps = importlib.import_module("shape"), importlib.import_module("steps")
    captures = []

    def rehearsed(step):
        captures.append(1)
        step()
        step()
        return step

    monkeypatch.setattr(decoding, "captured", rehearsed)
    monkeypatch.setattr(decoding, "has_graphs", lambda base: True)
    scale, device = shape.small_scale(), torch.device("cpu")
    tokenizer = shape.write_model(tmp_path, scale, device)
    [row] = steps.graphs_agree(tmp_path, scale, tokenizer, device)
    assert captures == [1]
    assert row["rows"] == 8 and row["of"] == scale.completion_tokens
    assert row["mean equal tokens"] > 0 and row["mean logprob gap"] < 0.02
