"""Targets, settings and their errors, decay, norms, checkpoints."""

import pytest
import torch
from adapters_support import attach, perturb_blocks, tiny_model, token_ids

from vgrout_pl.adapters import (
    RoutedLoraConfig,
    ablated,
    adapter_state,
    attach_routed_adapter,
    block_delta_norms,
    blocks,
    check_adapter_fits,
    check_adapter_state,
    decay_toward_init,
    export_deployed,
    install_decay_toward_init,
    is_adapter_key,
    quarantine_share,
)

IDS = token_ids()


@pytest.mark.parametrize(
    ("architecture", "suffixes"),
    [
        ("qwen3", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_targets_are_every_projection_and_never_the_head(architecture, suffixes, targets):
    with torch.device("meta"):
        model = tiny_model(architecture)
    names = check_adapter_fits(model, RoutedLoraConfig(r=2, target_modules=targets))
    assert {name.rsplit(".", 1)[-1] for name in names} == suffixes
    assert len(names) == 2 * len(suffixes)


def test_peft_target_syntax_lists_and_regular_expressions_work():
    model = tiny_model()
    assert check_adapter_fits(model, RoutedLoraConfig(r=2, target_modules=["v_proj"])) == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    pattern = r".*layers\.1\.mlp\.(up|down)_proj"
    config = RoutedLoraConfig(r=2, target_modules=pattern)
    names = ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"]
    assert check_adapter_fits(model, config) == names
    assert {b.module for b in blocks(attach_routed_adapter(model, config))} == set(names)
    config = RoutedLoraConfig(r=2, target_modules=["up_proj"], layers_to_transform=[1])
    assert check_adapter_fits(tiny_model(), config) == names[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "magic"}, r"init: expected one of gaussian, .*; got 'magic'"),
        ({"r": 0}, "r: expected a rank of at least 1; got 0"),
        ({"deployed_scale": 0.0}, "deployed_scale: expected a positive finite number; got 0.0"),
        ({"quarantine_scale": float("nan")}, "quarantine_scale: expected a positive finite number"),
        ({"narrow": "maybe"}, "narrow: expected error, cap or skip"),
        ({"lora_dropout": 0.1}, "lora_dropout: a routed adapter supports 0.0 only; got 0.1"),
        ({"signed_directions": 5, "r": 4}, "signed_directions: expected 1..r = 4; got 5"),
    ],
)
def test_wrong_settings_are_refused_before_there_is_a_model(options, message):
    with pytest.raises(ValueError, match=message) as error:
        RoutedLoraConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_modules": ["c_attn"]},
            r"at least one nn.Linear of the model to match; got c_attn; the model has: down",
        ),
        ({"target_modules": ["lm_head"]}, "expected no output head; got lm_head"),
        ({"init": "pissa", "r": 9}, r"needs 2 r = 18 orthogonal directions, but .*k_proj is \[16, 32\]; set r <= 8"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_on_the_meta_device(options, message):
    with torch.device("meta"):
        model = tiny_model()
    with pytest.raises(ValueError, match=message) as error:
        check_adapter_fits(model, RoutedLoraConfig(**{"r": 2, **options}))
    assert "\n" not in str(error.value)


def test_narrow_modules_are_capped_or_skipped_only_on_request(tmp_path):
    capped = attach_routed_adapter(tiny_model(), RoutedLoraConfig(r=12, init="pissa", narrow="cap"))
    ranks = {b.module.rsplit(".", 1)[-1]: b.A.shape[0] for b in blocks(capped)}
    assert ranks == {
        "q_proj": 12,
        "k_proj": 8,
        "v_proj": 8,
        "o_proj": 12,
        "gate_proj": 12,
        "up_proj": 12,
        "down_proj": 12,
    }
    assert {b.scaling for b in blocks(capped)} == {1.0}
    skipped = check_adapter_fits(tiny_model(), RoutedLoraConfig(r=12, init="pissa", narrow="skip"))
    assert {n.rsplit(".", 1)[-1] for n in skipped} == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    perturb_blocks(capped, 0.05)
    from peft import PeftModel

    export_deployed(capped, tmp_path)
    plain = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    with torch.no_grad(), ablated(capped):
        assert (plain(input_ids=IDS).logits - capped(input_ids=IDS).logits).abs().max() <= 1e-4


def test_the_seed_and_the_module_name_alone_decide_the_random_inits():
    first, again, other = attach(init_seed=3), attach(init_seed=3), attach(init_seed=4)
    state = adapter_state(first)
    assert all(torch.equal(value, adapter_state(again)[name]) for name, value in state.items())
    assert not any(torch.equal(value, adapter_state(other)[name]) for name, value in state.items())
    before = torch.random.get_rng_state()
    attach_routed_adapter(tiny_model(), RoutedLoraConfig(r=2))
    torch.manual_seed(0)
    tiny_model()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_scale_of_each_block_is_a_knob_of_its_own():
    plain, scaled = attach("pissa"), attach("pissa", deployed_scale=0.5, quarantine_scale=3.0)
    for a, b in zip(blocks(plain), blocks(scaled), strict=True):
        factor = {"deployed": 0.5, "quarantine": 3.0}[a.block]
        torch.testing.assert_close(b.A0, factor * a.A0)
        torch.testing.assert_close(b.B0, factor * a.B0)
        assert torch.equal(b.A, b.A0)


def test_peft_alpha_scales_the_update_and_its_export_alike(tmp_path):
    from peft import PeftModel

    plain, doubled = attach(), attach(lora_alpha=6)
    perturb_blocks(plain, 0.05)
    perturb_blocks(doubled, 0.05)
    norms = block_delta_norms(plain)
    assert block_delta_norms(doubled) == pytest.approx({name: 2 * value for name, value in norms.items()})
    export_deployed(doubled, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    with torch.no_grad(), ablated(doubled):
        assert (loaded(input_ids=IDS).logits - doubled(input_ids=IDS).logits).abs().max() <= 1e-4


def test_an_uninitialised_adapter_is_loudly_not_a_number_until_a_state_is_loaded():
    trained = attach("scorda", perturb=0.1)
    fresh = attach_routed_adapter(tiny_model(), RoutedLoraConfig(r=3, init="scorda"), initialise=False).eval()
    with torch.no_grad():
        assert fresh(input_ids=IDS).logits.isnan().all()
        check_adapter_state(fresh, adapter_state(trained))
        fresh.load_state_dict(adapter_state(trained), strict=False)
        assert torch.equal(fresh(input_ids=IDS).logits, trained(input_ids=IDS).logits)


def test_a_calibrated_init_without_statistics_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"init scorda: expected a calibration; got None; run collect_calibration"):
        attach_routed_adapter(tiny_model(), RoutedLoraConfig(r=2, init="scorda"))


def test_decay_pulls_toward_the_init_and_not_toward_zero():
    model = attach(perturb=0.1)
    expected = [(b.A0 + 0.75 * (b.A - b.A0), b.B0 + 0.75 * (b.B - b.B0)) for b in blocks(model)]
    decay_toward_init(model, 0.25)
    for block, (a, b) in zip(blocks(model), expected, strict=True):
        torch.testing.assert_close(block.A.data, a)
        torch.testing.assert_close(block.B.data, b)


def test_the_decay_hook_reads_the_learning_rate_of_each_step():
    model = attach(perturb=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.5, weight_decay=0.0)
    handle = install_decay_toward_init(optimizer, model, weight_decay=0.2)
    block = next(blocks(model))
    distance = float((block.A - block.A0).detach().norm())
    for lr, left in ((0.5, 0.9), (1.0, 0.9 * 0.8), (0.0, 0.9 * 0.8)):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        assert float((block.A - block.A0).detach().norm()) == pytest.approx(left * distance, rel=1e-4)
    handle.remove()
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert float((block.A - block.A0).detach().norm()) == pytest.approx(0.72 * distance, rel=1e-4)
    with pytest.raises(ValueError, match="expected weight_decay 0"):
        install_decay_toward_init(torch.optim.AdamW(parameters, weight_decay=0.1), model, 0.1)


def test_delta_norms_and_the_quarantine_share_are_those_of_the_dense_updates():
    model = attach(perturb=0.1)
    squares = {"deployed": 0.0, "quarantine": 0.0}
    for b in blocks(model):
        squares[b.block] += (b.B @ b.A - b.B0 @ b.A0).detach().square().sum().item()
    norms = block_delta_norms(model)
    assert norms == pytest.approx({name: value**0.5 for name, value in squares.items()}, rel=1e-4)
    assert quarantine_share({"deployed": 3.0, "quarantine": 1.0}) == 0.25
    assert quarantine_share({"deployed": 0.0, "quarantine": 0.0}) != quarantine_share(
        {"deployed": 0.0, "quarantine": 0.0}
    )


def test_adapter_keys_are_the_eight_tensors_of_each_module_whatever_the_prefix():
    model = attach()
    own = [name for name in model.state_dict() if is_adapter_key("policy." + name)]
    assert len(own) == 4 * sum(1 for _ in blocks(model))
    assert not any("base_layer" in name or "embed" in name or "norm" in name for name in own)


def test_a_checkpoint_of_another_adapter_is_refused_with_its_first_difference():
    model = attach()
    wider = {"policy." + k: v for k, v in adapter_state(attach(r=4)).items()}
    with pytest.raises(ValueError, match=r"another adapter shape: expected \[3, 48\] at .*; got \[4, 48\]"):
        check_adapter_state(model, wider, prefix="policy.")
    fewer = adapter_state(attach(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="it lacks"):
        check_adapter_state(model, fewer)
    plain = {k.replace(".deployed.", ".default."): v for k, v in model.state_dict().items() if "quarantine" not in k}
    with pytest.raises(ValueError, match="it holds none"):
        check_adapter_state(model, {k: v for k, v in plain.items() if "init" not in k})


def test_peft_save_pretrained_is_refused_rather_than_losing_the_frozen_init(tmp_path):
    with pytest.raises(ValueError, match="expected export_deployed"):
        attach().save_pretrained(str(tmp_path))


def test_a_third_adapter_beside_the_blocks_is_refused():
    from peft import LoraConfig

    with pytest.raises(ValueError, match="deployed and quarantine alone; got 'extra'"):
        attach().add_adapter("extra", LoraConfig(r=2, target_modules=["q_proj"]))


def test_a_second_adapter_on_the_same_model_is_refused():
    with pytest.raises(ValueError, match="expected a bare model; got one with an adapter"):
        attach_routed_adapter(attach(), RoutedLoraConfig(r=2))
