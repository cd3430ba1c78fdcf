"""What every init owes, on every architecture: the contract of the routed adapter."""

import copy

import pytest
import torch
from adapters_support import ARCHITECTURES, attach, perturb_blocks, tiny_model, token_ids
from peft import PeftModel

from vgrout_pl.adapters import (
    INITS,
    Route,
    ablated,
    adapter_state,
    block_delta_norms,
    block_gradient_norms,
    export_as_trained,
    export_deployed,
    export_quarantine,
    merged,
    quarantine_only,
    reference_policy,
    routed,
    routed_layers,
    trained_tensors,
)

IDS = token_ids()
# every init once, the fitted kind on every architecture, and bfloat16 bases
CASES = [
    *((init, "qwen3", torch.float32) for init in INITS),
    *(("scorda", architecture, torch.float32) for architecture in ARCHITECTURES if architecture != "qwen3"),
    *(("scorda", architecture, torch.bfloat16) for architecture in ("qwen3", "gpt_neox")),
]
FULL = [
    pytest.param(init, architecture, dtype, marks=pytest.mark.full)
    for init in INITS
    for architecture in ARCHITECTURES
    for dtype in (torch.float32, torch.bfloat16)
    if (init, architecture, dtype) not in CASES
]
everywhere = pytest.mark.parametrize(
    ("init", "architecture", "dtype"),
    CASES + FULL,
    ids=lambda value: str(value).removeprefix("torch."),
)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def gradients(model, ids, routes, row_weights=None):
    """Gradients of a loss that is a sum over rows, each row with its own weight."""
    model.zero_grad(set_to_none=True)
    weights = torch.ones(len(ids)) if row_weights is None else row_weights
    with routed(model, routes):
        out = torch.log_softmax(model(input_ids=ids).logits.float(), -1)[..., 3].sum(1)
        (out * weights).sum().backward()
    return {(t.module, t.block, t.label): t.parameter.grad.clone() for t in trained_tensors(model)}


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}


@everywhere
def test_the_fresh_adapter_changes_no_bit_of_any_logit(init, architecture, dtype):
    bare = logits(tiny_model(architecture, dtype))
    model = attach(init, architecture, dtype)
    assert torch.equal(logits(model), bare)
    with routed(model, list(Route)):
        assert torch.equal(logits(model), bare)
    assert torch.equal(model(input_ids=IDS).logits, bare)
    assert block_delta_norms(model) == {"deployed": 0.0, "quarantine": 0.0}


@everywhere
def test_attaching_leaves_every_base_weight_as_it_was(init, architecture, dtype):
    before = tiny_model(architecture, dtype).state_dict()
    model = attach(init, architecture, dtype, perturb=0.1)
    logits(model)
    after = {n.replace(".base_layer", ""): w for n, w in model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], weight) and after[name].dtype == dtype for name, weight in before.items())


@everywhere
def test_both_blocks_are_trainable_in_float32_and_alive(init, architecture, dtype):
    model = attach(init, architecture, dtype)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in model.named_parameters() if ".lora_" in n}
    assert {t.block for t in trained_tensors(model)} == {"deployed", "quarantine"}
    assert {value.dtype for value in adapter_state(model).values()} == {torch.float32}
    for _, layer in routed_layers(model):
        for block in ("deployed", "quarantine"):
            assert all(bool(t.isfinite().all()) for t in layer.sources(block))
            if layer.stack_copies == 2:
                assert layer.block(block)[0].norm(dim=1).min() > 1e-3 and layer.block(block)[1].norm(dim=0).min() > 1e-3


@everywhere
def test_rows_of_a_mixed_batch_train_exactly_the_blocks_of_their_route(init, architecture, dtype):
    model = attach(init, architecture, dtype, perturb=0.05)
    for row, trains in ((0, {"deployed"}), (1, {"quarantine"}), (2, {"deployed", "quarantine"})):
        weights = torch.eye(4)[row]
        grads = gradients(model, IDS, [Route.KEEP, Route.ROUTE, Route.ABSORB, Route.NONE], weights)
        for (module, block, _), grad in grads.items():
            assert bool(grad.any()) == (block in trains), (module, block, row)


@everywhere
def test_gradients_of_a_mixed_batch_are_the_sum_over_its_rows_taken_alone(init, architecture, dtype):
    model = attach(init, architecture, dtype, perturb=0.05)
    routes = [Route.KEEP, Route.ROUTE, Route.ABSORB, Route.NONE]
    together = gradients(model, IDS, routes)
    alone = [gradients(model, IDS[i : i + 1], routes[i : i + 1]) for i in range(4)]
    for key, grad in together.items():
        expected = sum(g[key] for g in alone)
        scale = expected.abs().max()
        torch.testing.assert_close(grad / scale, expected / scale, **tolerance(dtype))


@everywhere
def test_states_of_single_rows_equal_separate_calls(init, architecture, dtype):
    model = attach(init, architecture, dtype, perturb=0.05)
    with ablated(model):
        deployed = logits(model)
    with quarantine_only(model):
        quarantine = logits(model)
    both, base = logits(model), logits(tiny_model(architecture, dtype))
    assert not torch.allclose(both, deployed, atol=1e-3) and not torch.allclose(both, quarantine, atol=1e-3)
    row = torch.eye(4, dtype=torch.bool)
    with ablated(model, row[0]), quarantine_only(model, row[1]), reference_policy(model, row[2]):
        mixed = logits(model)
    expected = torch.stack([deployed[0], quarantine[1], base[2], both[3]])
    torch.testing.assert_close(mixed, expected, **tolerance(dtype))


@everywhere
def test_every_context_restores_every_bit_also_after_an_exception(init, architecture, dtype):
    model = attach(init, architecture, dtype, perturb=0.05)
    before = logits(model)
    for context in (ablated, quarantine_only, reference_policy, lambda m: routed(m, [Route.KEEP] * 4)):
        with pytest.raises(RuntimeError, match="inside"), context(model):
            assert not torch.equal(logits(model), before)
            raise RuntimeError("inside")
        assert torch.equal(logits(model), before)


@everywhere
def test_the_reference_policy_is_the_bare_base_bit_for_bit(init, architecture, dtype):
    bare = logits(tiny_model(architecture, dtype))
    model = attach(init, architecture, dtype, perturb=0.3)
    with reference_policy(model):
        assert torch.equal(logits(model), bare)
        with torch.enable_grad():
            assert torch.equal(model(input_ids=IDS).logits, bare)


@everywhere
def test_saving_perturbing_and_loading_brings_back_every_logit(init, architecture, dtype):
    model = attach(init, architecture, dtype, perturb=0.05)
    before, saved = logits(model), copy.deepcopy(adapter_state(model))
    assert len(saved) == sum(1 for n in model.state_dict() if "lora_" in n)
    perturb_blocks(model, 0.3, seed=9)
    assert not torch.allclose(logits(model), before, atol=1e-2)
    model.load_state_dict(saved, strict=False)
    assert torch.equal(logits(model), before)


@everywhere
def test_an_export_loaded_by_plain_peft_equals_the_state_it_was_taken_from(init, architecture, dtype, tmp_path):
    model = attach(init, architecture, dtype, perturb=0.05)
    export_deployed(model, tmp_path / "deployed")
    export_quarantine(model, tmp_path / "quarantine")
    export_as_trained(model, tmp_path / "both")
    with ablated(model):
        deployed = logits(model)
    with quarantine_only(model):
        quarantine = logits(model)
    for name, expected in (("deployed", deployed), ("quarantine", quarantine), ("both", logits(model))):
        plain = PeftModel.from_pretrained(tiny_model(architecture, dtype), str(tmp_path / name)).eval()
        limit = 1e-4 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
        assert (logits(plain) - expected).abs().max() <= limit


@pytest.mark.parametrize("init", list(INITS))
def test_merging_changes_nothing_but_speed_and_restores_the_very_weights(init):
    model = attach(init, perturb=0.05)
    weights = {n: w.clone() for n, w in model.state_dict().items()}
    base_weight = next(name for name in weights if name.endswith("base_layer.weight"))
    for context in (ablated, quarantine_only, reference_policy, lambda m: routed(m, [Route.ABSORB] * 4)):
        with context(model):
            expected = logits(model)
            with merged(model):
                assert (logits(model) - expected).abs().max() <= 1e-4
    with pytest.raises(RuntimeError, match="inside"), merged(model):
        assert not torch.equal(model.state_dict()[base_weight], weights[base_weight])
        raise RuntimeError("inside")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("init", list(INITS))
def test_no_context_touches_requires_grad_and_peft_disable_adapter_is_respected(init):
    model = attach(init, perturb=0.05)
    trainable = [p.requires_grad for p in model.parameters()]
    contexts = (ablated, quarantine_only, reference_policy, merged, lambda m: routed(m, [Route.ROUTE] * 4))
    for context in contexts:
        with context(model):
            assert [p.requires_grad for p in model.parameters()] == trainable
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model()))
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert block_gradient_norms(model) == {"deployed": 0.0, "quarantine": 0.0}
