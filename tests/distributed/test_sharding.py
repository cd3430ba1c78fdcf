"""FSDP2 on a group of one process: what is sharded, what is whole, and that the policy stays the same."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.loop.policy_support import tiny_policy
from tests.routers.support import module_of, rollouts_of
from vgrout_pl.adapters import Route, routed
from vgrout_pl.policy import base_of
from vgrout_pl.scoring import RowStates
from vgrout_pl.sharding import ShardedStrategy, is_sharded, layers_to_shard, shard, unsharded
from vgrout_pl.window import score_rows


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def rows():
    return rollouts_of([[3, 4, 5]] * 2 + [[7, 8, 9, 10]] * 2, [[9], [11, 12, 13], [5, 6], [1, 2, 3, 4, 5, 6]])


def scores(policy):
    routes = torch.tensor([Route.KEEP, Route.ABSORB, Route.ROUTE, Route.KEEP])
    states = RowStates(routes, lambda index, *_: routed(policy, routes[index]))
    return score_rows(module_of(policy), rows(), states)[0]


def gradients(policy):
    return {
        name: parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad.clone()
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_with_a_frozen_base_and_a_float32_adapter_are_sharded_and_train_alike(mesh, dtype):
    policy = tiny_policy("qwen3")
    for parameter in policy.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    expected = scores(policy)
    expected.sum().backward()
    whole = gradients(policy)
    policy.zero_grad()
    shard(policy, mesh)
    assert is_sharded(policy)
    embeddings = set(base_of(policy).get_input_embeddings().parameters())
    for name, parameter in policy.named_parameters():
        assert isinstance(parameter, DTensor) != (parameter in embeddings), name
    got = scores(policy)
    got.sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    for name, gradient in gradients(policy).items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, whole[name], rtol=tolerance, atol=tolerance * whole[name].abs().max())


def test_a_policy_is_whole_inside_and_sharded_after_whatever_happens_inside(mesh):
    policy = tiny_policy("qwen3")
    with torch.no_grad():
        expected = scores(policy)
    shard(policy, mesh)
    before = [parameter.full_tensor() for parameter in layers_to_shard(base_of(policy))[0].parameters()]
    layer = layers_to_shard(base_of(policy))[0]
    with pytest.raises(ZeroDivisionError), unsharded(policy):
        with torch.no_grad():
            torch.testing.assert_close(scores(policy), expected)
        with torch.enable_grad():
            leaf = next(p for p in layer.parameters() if p.requires_grad)
            torch.autograd.grad(scores(policy).sum(), leaf)
        assert not any(isinstance(parameter, DTensor) for parameter in policy.parameters())
        raise ZeroDivisionError
    after = list(layer.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in after)
    assert all(torch.equal(value, parameter.full_tensor()) for value, parameter in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in policy.parameters())
    scores(policy).sum().backward()
    assert all(isinstance(p.grad, DTensor) for p in policy.parameters() if p.requires_grad), "training passes shard"


def test_passes_with_a_gradient_are_as_many_for_any_lengths(mesh):
    policy = tiny_policy("qwen3")
    shard(policy, mesh)
    calls = []
    base_of(policy).get_decoder().register_forward_hook(lambda *_: calls.append(1))
    one = torch.zeros(1, dtype=torch.long)
    for part in (rows(), rows().rows(one)):
        calls.clear()
        score_rows(module_of(policy), part, RowStates.same(len(part), nullcontext))
        assert len(calls) == 2


def test_a_policy_that_is_not_sharded_is_left_alone():
    policy = tiny_policy("qwen3")
    before = list(policy.parameters())
    with unsharded(policy):
        assert all(a is b for a, b in zip(before, policy.parameters(), strict=True))
    assert not is_sharded(policy)


def test_weights_are_made_on_the_process_own_device():
    strategy = ShardedStrategy()
    strategy.parallel_devices = [torch.device("meta")]  # stands for a GPU
    with strategy.tensor_init_context():
        assert torch.empty(1).device.type == "meta"
