"""The bench for one GPU runs, at a small scale on the CPU."""

import json
import subprocess
import sys

import pytest
import torch

PARTS = {"correctness", "step", "plain generate", "floor"}


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
