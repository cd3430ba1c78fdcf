"""Antipasto: gains and a rotation on frozen directions."""

import pytest
import torch
from adapters_support import ROWS, attach, perturb_blocks, token_ids

from vgrout_pl.adapters import (
    Route,
    ablated,
    adapter_state,
    block_delta_norms,
    blocks,
    decay_toward_init,
    routed,
    routed_layers,
    trained_tensors,
)
from vgrout_pl.adapters.antipasto import cayley

IDS = token_ids()


def test_the_cayley_map_gives_a_rotation_and_the_identity_at_zero():
    x = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = cayley(x)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(5, dtype=torch.float64))
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)
    assert torch.equal(cayley(torch.zeros(5, 5)), torch.eye(5))
    torch.testing.assert_close(cayley(x + torch.ones(5, 5)), rotation)  # a symmetric part does nothing
    quarter = torch.tensor([[0.0, 0.5], [0.0, 0.0]])  # K = [[0, .5], [-.5, 0]], angle -2 atan(.5)
    torch.testing.assert_close(cayley(quarter), torch.tensor([[0.6, -0.8], [0.8, 0.6]]))


def test_each_block_updates_the_weight_by_its_formula():
    model = attach("antipasto", perturb=0.1)
    for _, layer in routed_layers(model):
        v, u, s, gain = layer.sources("deployed")
        expected = u @ torch.diag(s * torch.tanh(gain)) @ v
        torch.testing.assert_close(layer.get_delta_weight("deployed"), expected)
        v, u, s, gain, skew = layer.sources("quarantine")
        k = skew - skew.T
        rotation = torch.linalg.inv(torch.eye(3) + k) @ (torch.eye(3) - k)
        expected = u @ torch.diag(s * torch.tanh(gain)) @ rotation @ v
        torch.testing.assert_close(layer.get_delta_weight("quarantine"), expected, rtol=1e-4, atol=1e-5)


def test_only_gains_and_the_rotation_of_the_quarantine_train():
    model = attach("antipasto")
    assert {(t.block, t.label) for t in trained_tensors(model)} == {
        ("deployed", "gain"),
        ("quarantine", "gain"),
        ("quarantine", "skew"),
    }
    names = {name.rsplit(".", 2)[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"lora_gain", "lora_skew"}
    assert not any(bool(t.init.any()) for t in trained_tensors(model))
    assert len(adapter_state(model)) == 9 * 14


def test_a_batch_of_keep_rows_leaves_zero_gradients_and_not_missing_ones_in_the_quarantine():
    model = attach("antipasto", perturb=0.05)
    with routed(model, [Route.KEEP] * ROWS):
        model(input_ids=IDS).logits.square().sum().backward()
    for tensor in trained_tensors(model):
        assert tensor.parameter.grad is not None
        assert bool(tensor.parameter.grad.any()) == (tensor.block == "deployed")


def test_decay_pulls_gains_and_rotation_toward_nothing():
    model = attach("antipasto", perturb=0.1)
    before = [t.parameter.detach().clone() for t in trained_tensors(model)]
    decay_toward_init(model, 0.25)
    for tensor, old in zip(trained_tensors(model), before, strict=True):
        torch.testing.assert_close(tensor.parameter.detach(), 0.75 * old)


def test_delta_norms_are_those_of_the_dense_updates():
    model = attach("antipasto", perturb=0.1)
    dense = {
        block: sum(float(layer.get_delta_weight(block).square().sum()) for _, layer in routed_layers(model)) ** 0.5
        for block in ("deployed", "quarantine")
    }
    assert block_delta_norms(model) == pytest.approx(dense, rel=1e-4)


def test_scales_multiply_what_a_gain_can_do():
    plain, scaled = attach("antipasto"), attach("antipasto", deployed_scale=0.5, quarantine_scale=3.0)
    for model in (plain, scaled):
        perturb_blocks(model, 0.05)
    norms = block_delta_norms(plain)
    expected = {"deployed": 0.25 * norms["deployed"], "quarantine": 9.0 * norms["quarantine"]}
    assert block_delta_norms(scaled) == pytest.approx(expected, rel=1e-4)


def test_what_needs_lora_blocks_or_peft_merging_says_so():
    model = attach("antipasto", perturb=0.1)
    with pytest.raises(ValueError, match=r"expected LoRA blocks; model\.layers\.0\..*q_proj is AntipastoLinear"):
        next(blocks(model))
    with pytest.raises(ValueError, match="expected an export"):
        model.merge_and_unload()


def test_a_decoding_step_follows_a_changed_gain():
    model = attach("antipasto", perturb=0.1)
    with torch.no_grad(), ablated(model):
        model(input_ids=IDS)
        before = model(input_ids=IDS[:, :1]).logits
        perturb_blocks(model, 0.2)
        assert not torch.allclose(model(input_ids=IDS[:, :1]).logits, before, atol=1e-3)
