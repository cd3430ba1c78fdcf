"""Shared settings: one thread, offline, and the longer proofs only on request."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if os.environ.get("VGROUT_FULL"):
        return
    skip = pytest.mark.skip(reason="longer proof: run `just test-full` (VGROUT_FULL=1)")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)
