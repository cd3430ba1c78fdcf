"""The routed layer and model under torch.compile: one graph, the same values and gradients, in every state."""

import pytest
import torch
from adapters_support import ROWS, attach, perturb_blocks, token_ids
from torch import nn

from vgrout_pl.adapters import (
    RoutedLoraConfig,
    ablated,
    attach_routed_adapter,
    reference_policy,
    routed,
    trained_tensors,
)


class OneLinear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up_proj = nn.Linear(8, 12)

    def forward(self, x):
        return self.up_proj(x)


def gradients(model, forward, inputs, routes):
    model.zero_grad()
    with routed(model, routes):
        forward(inputs).square().sum().backward()
    return [t.parameter.grad.clone() for t in trained_tensors(model)]


def check(model, eager, backend, inputs):
    torch._dynamo.reset()
    compiled = torch.compile(eager, backend=backend, fullgraph=True)
    expected, got = (gradients(model, forward, inputs, [0, 1, 2, 3]) for forward in (eager, compiled))
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * float(a.abs().max() + 1e-3))

    def same(x):
        a, b = eager(x), compiled(x)
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
        return a

    with torch.no_grad():
        plain = same(inputs)
        with ablated(model):
            assert not torch.allclose(same(inputs), plain, atol=1e-4)
        with ablated(model, torch.tensor([True, False, False, True])):
            same(inputs)
        with reference_policy(model):
            same(inputs)
        same(inputs[:, :1])
        perturb_blocks(model, 0.1)
        assert not torch.allclose(same(inputs), plain, atol=1e-4)
        same(inputs[:, :1])


def test_a_compiled_layer_equals_the_eager_one_in_every_state_without_a_graph_break():
    model = attach_routed_adapter(OneLinear(), RoutedLoraConfig(r=2, task_type=None))
    perturb_blocks(model, 0.1)
    inputs = torch.randn(ROWS, 5, 8, generator=torch.Generator().manual_seed(0))
    check(model, model.get_base_model(), "aot_eager", inputs)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("init", ["gaussian", "antipasto"])
def test_a_compiled_model_equals_the_eager_one_in_every_state_without_a_graph_break(
    backend, init, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a cache that no other process writes to
    model = attach(init, perturb=0.05)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model.get_base_model()

        def forward(self, ids):
            return self.inner(input_ids=ids, use_cache=False).logits

    check(model, Logits(), backend, token_ids())
