"""The routed model at work: generation, decoding, checkpointing, mixed precision, composed states."""

import copy

import pytest
import torch
from adapters_support import ROWS, attach, perturb_blocks, tiny_model, token_ids

from vgrout_pl.adapters import (
    Route,
    ablated,
    adapter_state,
    blocks,
    clear_routes,
    merged,
    reference_policy,
    routed,
    routed_layers,
    set_routes,
)

IDS = token_ids()


def generate(model, ids, **options):
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **options
    )


def test_one_generate_call_serves_rows_in_different_states():
    model = attach(perturb=0.15)
    ids = IDS[:1].repeat(4, 1)
    with ablated(model):
        deployed = generate(model, ids)[0]
    with reference_policy(model):
        base = generate(model, ids)[0]
    both = generate(model, ids)[0]
    assert not torch.equal(both, deployed) and not torch.equal(both, base) and not torch.equal(deployed, base)
    rows = torch.tensor([True, False, False, True])
    with ablated(model, rows), reference_policy(model, torch.tensor([False, True, False, False])):
        mixed = generate(model, ids)
    assert torch.equal(mixed, torch.stack([deployed, base, both, deployed]))


def test_merged_generation_writes_the_same_tokens():
    model = attach(perturb=0.15)
    with ablated(model):
        expected = generate(model, IDS)
        with merged(model):
            assert torch.equal(generate(model, IDS), expected)


def test_decoding_sees_every_change_of_the_adapter_at_once():
    model = attach(perturb=0.1)
    step = {"input_ids": IDS[:, :1]}
    with torch.no_grad():
        model(input_ids=IDS)
        before = model(**step).logits
        assert torch.equal(model(**step).logits, before)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**step).logits.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        stepped = model(**step).logits
        assert not torch.allclose(stepped, before, atol=1e-3)
        perturb_blocks(model, 0.2)
        assert not torch.allclose(model(**step).logits, stepped, atol=1e-3)
        saved = copy.deepcopy(adapter_state(model))
        now = model(**step).logits
        perturb_blocks(model, 0.2, seed=6)
        model(**step)
        model.load_state_dict(saved, strict=False)
        assert torch.equal(model(**step).logits, now)
        with ablated(model):
            deployed = model(**step).logits
        assert not torch.allclose(deployed, now, atol=1e-3) and torch.equal(model(**step).logits, now)
        perturb_blocks(model, 0.2, seed=7)
        model(**step)
        model.load_state_dict(saved, strict=False, assign=True)
        assert torch.equal(model(**step).logits, now)


@pytest.mark.parametrize(
    ("dtype", "compute_dtype"),
    [(torch.float32, "base"), (torch.bfloat16, "base"), (torch.bfloat16, "float32"), (torch.float16, "base")],
)
def test_a_decoding_step_equals_the_full_forward_in_every_row_state(dtype, compute_dtype):
    model = attach(dtype=dtype, perturb=0.2, compute_dtype=compute_dtype)
    with torch.no_grad(), routed(model, [0, 1, 2, 3]), reference_policy(model, torch.tensor([0, 0, 1, 0]).bool()):
        full = model(input_ids=IDS).logits[:, -1]
        cache = model(input_ids=IDS[:, :-1], use_cache=True).past_key_values
        assert all(layer._decode_step is not None for _, layer in routed_layers(model))
        step = model(input_ids=IDS[:, -1:], past_key_values=cache).logits[:, -1]
    assert step.dtype == dtype
    scale = float(full.abs().max())
    torch.testing.assert_close(step, full, rtol=0, atol={torch.float32: 1e-5}.get(dtype, 0.03) * scale)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_changes_no_gradient_while_routes_stay_set(reentrant, dtype):
    def gradients(checkpoint):
        model = attach(perturb=0.05, dtype=dtype).train()
        if checkpoint:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        set_routes(model, torch.tensor([0, 1, 2, 3]))
        loss = model(input_ids=IDS, use_cache=False).logits.float().square().sum()
        loss.backward()
        clear_routes(model)
        return [p.grad for p in model.parameters() if p.requires_grad]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


@pytest.mark.parametrize("compute_dtype", ["base", "float32"])
def test_mixed_precision_keeps_the_zero_update_and_the_gates(compute_dtype):
    bare = tiny_model()
    model = attach(compute_dtype=compute_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = bare(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS).logits, expected)
        perturb_blocks(model, 1e-3)
        with torch.no_grad():
            both, step = model(input_ids=IDS).logits, model(input_ids=IDS[:, :1]).logits
            with reference_policy(model):
                assert torch.equal(model(input_ids=IDS).logits, expected)
        assert not torch.equal(both, expected) and torch.equal(step, model(input_ids=IDS[:, :1]).logits)
        with routed(model, [Route.KEEP, Route.KEEP, Route.ROUTE, Route.ROUTE]):
            for rows, trained in ((slice(2), "deployed"), (slice(2, 4), "quarantine")):
                model.zero_grad()
                model(input_ids=IDS).logits[rows].float().square().sum().backward()
                for block in blocks(model):
                    assert bool(block.A.grad.any()) == (block.block == trained)
                    assert block.A.grad.dtype == torch.float32


def test_bfloat16_computation_loses_no_more_of_a_small_update_than_of_a_large_one():
    for size in (1e-1, 1e-3, 1e-5):
        narrow, wide = (attach(dtype=torch.bfloat16, perturb=size, compute_dtype=c) for c in ("base", "float32"))
        x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
        layers = [dict(routed_layers(model))["model.layers.0.mlp.up_proj"] for model in (narrow, wide)]
        updates = []
        for layer in layers:
            left, right = layer.factors(("deployed",), x.dtype if layer is layers[0] else torch.float32)
            updates.append(((x.to(left) @ left.T) @ right.T).float())
        assert (updates[0] - updates[1]).norm() < 0.02 * updates[1].norm()


def test_set_routes_holds_until_cleared_and_survives_a_context_inside():
    model = attach(perturb=0.1)
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        set_routes(model, [Route.KEEP] * ROWS)
        keep = model(input_ids=IDS).logits
        with reference_policy(model):
            pass
        assert torch.equal(model(input_ids=IDS).logits, keep) and not torch.equal(keep, plain)
        clear_routes(model)
        assert torch.equal(model(input_ids=IDS).logits, plain)


def test_a_batch_of_another_size_than_the_routes_is_refused():
    model = attach(perturb=0.1)
    with routed(model, [0, 1, 2, 3]), torch.no_grad():
        model(input_ids=IDS)
        for ids in (IDS[:2], IDS[:2, :1], IDS[:1, :1]):
            with pytest.raises(ValueError, match=r"for a batch of 4; got [12]"):
                model(input_ids=ids)


def test_merging_refuses_what_it_could_not_do_exactly():
    with pytest.raises(ValueError, match="expected a float32 base"), merged(attach(dtype=torch.bfloat16)):
        pass
    model = attach(perturb=0.1)
    with ablated(model, torch.tensor([True, False])), pytest.raises(ValueError, match="one state"), merged(model):
        pass
    with merged(model):
        with pytest.raises(ValueError, match="no change of state inside merged"), ablated(model):
            pass
        with pytest.raises(ValueError, match="merged already"), merged(model):
            pass
        with pytest.raises(ValueError, match=r"expected torch.no_grad\(\)"):
            model(input_ids=IDS)


def test_peft_set_adapter_is_respected_alone_and_together_with_routes():
    model = attach(perturb=0.1)
    with torch.no_grad():
        with ablated(model):
            deployed = model(input_ids=IDS).logits
        with routed(model, [0, 1, 2, 3]), reference_policy(model, torch.tensor([True, False, False, False])):
            expected = model(input_ids=IDS).logits
            model.base_model.set_adapter(["deployed"])
            mixed = model(input_ids=IDS).logits
        assert torch.equal(mixed[0], expected[0]) and torch.allclose(mixed[1:], deployed[1:], atol=1e-5)
        assert torch.equal(model(input_ids=IDS).logits, deployed)
        model.base_model.set_adapter(["deployed", "quarantine"])
        assert not torch.allclose(model(input_ids=IDS).logits, deployed, atol=1e-3)
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)


def test_a_deep_copy_has_a_state_and_blocks_of_its_own():
    model = attach(perturb=0.1)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        both = model(input_ids=IDS).logits
        with ablated(copied):
            deployed = copied(input_ids=IDS).logits
            assert torch.equal(model(input_ids=IDS).logits, both)
        with ablated(model):
            assert torch.equal(model(input_ids=IDS).logits, deployed) and not torch.equal(deployed, both)
        perturb_blocks(copied, 0.2)
        assert torch.equal(model(input_ids=IDS).logits, both)


def test_peft_merge_and_unload_gives_the_plain_model_as_trained():
    model = attach(perturb=0.1)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        plain = model.merge_and_unload()
        assert not any("lora" in name for name, _ in plain.named_modules())
        assert (plain(input_ids=IDS).logits - expected).abs().max() <= 1e-4


def test_contexts_on_a_model_without_an_adapter_name_the_remedy():
    with (
        pytest.raises(ValueError, match="expected a model from attach_routed_adapter; got Qwen3ForCausalLM"),
        ablated(tiny_model()),
    ):
        pass


def test_one_block_merges_while_rows_differ_in_the_other():
    model = attach(perturb=0.1)
    rows = torch.tensor([True, False, True, False])
    weights = [layer.base_weight.clone() for _, layer in routed_layers(model)]
    ids = token_ids()
    with torch.no_grad():
        with ablated(model, rows):
            expected = model(ids).logits
        with merged(model, ("deployed",)):
            with ablated(model, rows):
                torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
            with ablated(model, ~rows):
                turned = model(ids).logits
        assert not torch.allclose(turned, expected, atol=1e-3)
        with ablated(model, ~rows):
            torch.testing.assert_close(model(ids).logits, turned, atol=1e-5, rtol=1e-5)
    for (_, layer), weight in zip(routed_layers(model), weights, strict=True):
        assert torch.equal(layer.base_weight, weight)
    with ablated(model, rows), pytest.raises(ValueError, match="seen by all rows"), merged(model, ("quarantine",)):
        pass
    with merged(model, ("deployed",)), pytest.raises(ValueError, match="no_grad"):
        model(ids)
