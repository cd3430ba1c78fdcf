"""A policy on the organism, and a server of its base model."""

import copy

import pytest
import torch
from transformers import AutoTokenizer

from tests.engines.lora_server import LoraServer
from vgrout_pl import organism
from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter
from vgrout_pl.engines import InProcessEngine, ServerEngine, client
from vgrout_pl.policy import load_base

CONFIG = RoutedLoraConfig(r=2)


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(organism.CHECKPOINT, padding_side="left")


@pytest.fixture(scope="session")
def prompts(tokenizer):
    """Token ids [4, S] and mask of four hinted prompts of different lengths."""
    shown = organism.problems("train", mode="run_tests")[:4]
    texts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in shown]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"].bool()


@pytest.fixture(scope="session")
def _moved():
    model = attach_routed_adapter(load_base("organism", "float32", None), CONFIG)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def policy(_moved):
    """The organism with both blocks moved away from their init."""
    return copy.deepcopy(_moved)


@pytest.fixture
def server():
    running = LoraServer(organism.CHECKPOINT, "organism")
    yield running
    running.close()


@pytest.fixture
def served(server, tmp_path):
    """An engine that talks to :func:`server`, checked."""
    engine = ServerEngine(server.url, str(tmp_path / "adapters"), retries=2)
    engine.check("organism", CONFIG, 200)
    yield engine
    engine.close()


@pytest.fixture(params=["in_process", "server"])
def engine(request):
    """Each engine in turn."""
    return InProcessEngine() if request.param == "in_process" else request.getfixturevalue("served")
