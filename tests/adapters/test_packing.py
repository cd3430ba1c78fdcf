"""Packed copies of the weights: the same model, weights untouched, everything back as it was."""

from contextlib import nullcontext

import pytest
import torch
from adapters_support import ROWS, attach, perturb_blocks, token_ids

from vgrout_pl.adapters import ablated, is_packable, merged, packed, quarantine_only, reference_policy, routed_layers
from vgrout_pl.adapters.packed_linear import PackedLinear

IDS = token_ids()
SOME = torch.arange(ROWS) % 2 == 0
STATES = {
    "as trained": lambda model: nullcontext(),
    "ablated": ablated,
    "quarantine only": quarantine_only,
    "reference": reference_policy,
    "some rows ablated": lambda model: ablated(model, SOME),
    "some rows the reference": lambda model: reference_policy(model, SOME),
}


def logits(model):
    """Of the last two positions: one that comes with the prompt, one decoded."""
    with torch.no_grad():
        first = model(input_ids=IDS[:, :-1], use_cache=True)
        step = model(input_ids=IDS[:, -1:], past_key_values=first.past_key_values)
    return torch.stack([first.logits[:, -1], step.logits[:, -1]])


def weights(model):
    return [layer.base_weight.clone() for _, layer in routed_layers(model)]


def tolerance(values):
    """What float32 or bfloat16 (8 bits, over two layers) can differ by."""
    return {"rtol": 0, "atol": (1e-5 if values.dtype == torch.float32 else 0.03) * float(values.abs().max())}


@pytest.mark.parametrize("compute_dtype", ["base", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("architecture", ["qwen3", "gpt_neox"])
def test_a_packed_model_computes_the_same(architecture, state, dtype, compute_dtype):
    model = attach(architecture=architecture, dtype=dtype, perturb=0.2, compute_dtype=compute_dtype)
    with STATES[state](model):
        expected = logits(model)
        with packed(model):
            assert all(layer._packed is not None for _, layer in routed_layers(model))
            torch.testing.assert_close(logits(model), expected, **tolerance(expected))
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("init", ["gaussian", "antipasto"])
@pytest.mark.parametrize("state", ["as trained", "ablated", "quarantine only"])
def test_all_blocks_in_force_can_be_merged_into_the_copies(init, state):
    model = attach(init, perturb=0.2)
    before = weights(model)
    with STATES[state](model):
        expected = logits(model)
        with packed(model, "all"):
            assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
            torch.testing.assert_close(logits(model), expected, **tolerance(expected))


def test_one_block_can_be_merged_while_rows_differ_in_the_other():
    model = attach(perturb=0.2)
    with ablated(model, SOME):
        expected = logits(model)
    with packed(model, ("deployed",)), ablated(model, SOME):
        torch.testing.assert_close(logits(model), expected, **tolerance(expected))
        with ablated(model):
            deployed = logits(model)
    with ablated(model):
        torch.testing.assert_close(deployed, logits(model), **tolerance(expected))


def test_a_change_of_a_block_beside_the_copies_is_seen_at_once():
    model = attach(perturb=0.2)
    with packed(model):
        before = logits(model)
        perturb_blocks(model, 0.2, seed=8)
        after = logits(model)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, logits(model), **tolerance(after))


def test_everything_is_as_before_after_an_exception():
    model = attach(perturb=0.2)
    expected, before = logits(model), weights(model)
    with pytest.raises(RuntimeError, match="inside"), packed(model, "all"):
        logits(model)
        raise RuntimeError("inside")
    assert all(layer._packed is None and layer._decode_step is None for _, layer in routed_layers(model))
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_what_cannot_be_packed_or_trained_is_one_clear_error():
    model = attach()
    with packed(model), pytest.raises(ValueError, match=r"packed: expected torch\.no_grad"):
        model(input_ids=IDS)
    with pytest.raises(ValueError, match=r"packed: expected whole float32 or bfloat16 .* is float64"):
        packed(attach().double()).__enter__()
    with pytest.raises(ValueError, match="expected a float32 base"), packed(attach(dtype=torch.bfloat16), "all"):
        pass
    with ablated(model, SOME), pytest.raises(ValueError, match="one state"), packed(model, "all"):
        pass


def test_contexts_that_would_drop_the_adapter_are_refused():
    model = attach(perturb=0.2)
    expected = logits(model)
    with packed(model):
        with pytest.raises(ValueError, match="packed already"), merged(model):
            pass
        with pytest.raises(ValueError, match="packed already"), packed(model):
            pass
        torch.testing.assert_close(logits(model), expected, **tolerance(expected))
        with pytest.raises(ValueError, match="expected no change"):
            model.load_state_dict(model.state_dict())
        with pytest.raises(ValueError, match="without autocast"), torch.autocast("cpu", dtype=torch.bfloat16):
            logits(model)
    with merged(model), packed(model):
        torch.testing.assert_close(logits(model), expected, **tolerance(expected))
    with packed(model):
        model.merge_adapter()
        torch.testing.assert_close(logits(model), expected, **tolerance(expected))
        model.unmerge_adapter()
    other = attach()
    with packed(other), pytest.raises(ValueError, match="expected no change"):
        other.double()
    with pytest.raises(ValueError, match="expected blocks out of deployed, quarantine; got 'nonsense'"):
        packed(model, ("nonsense",)).__enter__()


def test_only_models_that_gain_by_it_are_packed(monkeypatch):
    model = attach()
    assert not is_packable(model), "a call costs more than reading 32 x 32 weights"
    monkeypatch.setattr("vgrout_pl.adapters.packing.LEAST_WEIGHT", 1)
    assert is_packable(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_packable(model)
    assert not is_packable(attach(dtype=torch.float16))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_packable(model)
    assert not is_packable(model.to("meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7), (64, 33), (96, 1)])
def test_a_packed_product_is_the_product(shape, dtype):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype)
    x = torch.randn(2, 3, shape[1], generator=generator).to(dtype)
    wide = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    out = PackedLinear(weight, bias)(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), wide, rtol=0, atol=(1e-5 if dtype == torch.float32 else 0.02) * 10)
    rows = torch.randn(6, shape[0], generator=generator).to(dtype)
    added = PackedLinear(weight).added_to(rows, x.flatten(0, 1))
    expected = rows.double() + x.flatten(0, 1).double() @ weight.double().t()
    torch.testing.assert_close(added.double(), expected, rtol=0, atol=(1e-5 if dtype == torch.float32 else 0.02) * 10)
