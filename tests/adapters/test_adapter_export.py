"""What leaves the house: standard LoRA directories, merged models, and the command that writes them."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
import yaml
from adapters_support import attach, perturb_blocks, tiny_model, token_ids
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vgrout_pl.adapters import (
    RoutedLoraConfig,
    ablated,
    adapter_state,
    attach_routed_adapter,
    export_as_trained,
    export_deployed,
    export_quarantine,
)
from vgrout_pl.adapters.__main__ import main
from vgrout_pl.adapters.card import VLLM_RANKS, model_card
from vgrout_pl.adapters.export import export_merged, merge_update, push_to_hub
from vgrout_pl.adapters.run import load_run
from vgrout_pl.policy import load_base

IDS = token_ids()


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(("export", "factor"), [(export_deployed, 2), (export_quarantine, 2), (export_as_trained, 4)])
def test_an_export_is_a_plain_lora_directory_that_strict_servers_accept(export, factor, tmp_path):
    model = attach(r=4, perturb=0.05)
    export(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config) <= set(LoraConfig().to_dict())
    assert config["peft_type"] == "LORA" and config["r"] == 4 * factor == config["lora_alpha"]
    assert config["r"] <= VLLM_RANKS[-1] and config["bias"] == "none" and not config["use_dora"]
    assert not config["rank_pattern"] and not config["alpha_pattern"] and config["modules_to_save"] is None
    assert set(config["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    linear = {n: m for n, m in tiny_model().named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    expected = {}
    for name, module in linear.items():
        expected[f"base_model.model.{name}.lora_A.weight"] = (4 * factor, module.in_features)
        expected[f"base_model.model.{name}.lora_B.weight"] = (module.out_features, 4 * factor)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == expected
    assert {t.dtype for t in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("rank", "line"),
    [(6, "--max-lora-rank 8`"), (64, "--max-lora-rank 64`"), (300, "--max-lora-rank 320`"), (600, "rank 512 at most")],
)
def test_the_card_says_how_to_serve_the_rank(rank, line):
    card = model_card("deployed", "some/base", rank=rank, modules=7)
    assert line in card and "Not evaluated: make no claim" in card and "base_model: some/base" in card


def test_a_server_that_rounds_the_factors_to_bfloat16_keeps_a_small_update(tmp_path):
    model = attach(perturb=1e-4)
    export_deployed(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    from vgrout_pl.adapters import blocks

    for block in blocks(model):
        if block.block != "deployed":
            continue
        exact = (block.B.double() @ block.A.double() - block.B0.double() @ block.A0.double()).detach()
        a, b = (tensors[f"base_model.model.{block.module}.lora_{k}.weight"].bfloat16().double() for k in "AB")
        rounded = (b @ a - exact).norm() / exact.norm()
        naive = [t.detach().bfloat16().double() for t in (block.A, block.B, block.A0, block.B0)]
        textbook = (naive[1] @ naive[0] - naive[3] @ naive[2] - exact).norm() / exact.norm()
        assert rounded < 0.01 and textbook > 0.3


def test_an_update_of_relative_size_1e_4_keeps_six_digits_through_its_file(tmp_path):
    model = attach(perturb=1e-4)
    export_deployed(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    from vgrout_pl.adapters import blocks

    for block in blocks(model):
        if block.block == "deployed":
            exact = (block.B.double() @ block.A.double() - block.B0.double() @ block.A0.double()).detach()
            a, b = (tensors[f"base_model.model.{block.module}.lora_{k}.weight"].double() for k in "AB")
            assert (b @ a - exact).norm() < 1e-6 * exact.norm()


def test_a_fresh_process_without_this_package_computes_the_same_logits(tmp_path):
    model = attach("scorda", perturb=0.05)
    tiny_model().save_pretrained(tmp_path / "base")
    export_deployed(model, tmp_path / "adapter")
    torch.save(IDS, tmp_path / "ids.pt")
    script = (
        "import sys, torch; from peft import PeftModel; from transformers import AutoModelForCausalLM as M;"
        f"d = {str(tmp_path)!r}; m = PeftModel.from_pretrained(M.from_pretrained(d + '/base'), d + '/adapter').eval();"
        "torch.set_num_threads(1);"
        "torch.save(m(input_ids=torch.load(d + '/ids.pt')).logits.detach(), d + '/out.pt');"
        "assert not any(n.startswith('vgrout_pl') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    with ablated(model):
        assert (torch.load(tmp_path / "out.pt") - logits(model)).abs().max() <= 1e-4


def test_target_modules_fall_back_to_full_names_where_suffixes_would_match_too_much(tmp_path):
    model = attach(target_modules=r".*layers\.1\..*up_proj", perturb=0.05)
    export_deployed(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.mlp.up_proj"]
    plain = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    with ablated(model):
        assert (logits(plain) - logits(model)).abs().max() <= 1e-4


@pytest.mark.parametrize("init", ["scorda", "antipasto"])
@pytest.mark.parametrize("what", ["deployed", "as_trained"])
def test_a_merged_model_in_float32_equals_the_state_it_was_taken_from(init, what, tmp_path):
    model = attach(init, perturb=0.05)
    base = tiny_model()
    assert export_merged(base, model, tmp_path, what) < 1e-5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    if what == "deployed":
        with ablated(model):
            expected = logits(model)
    else:
        expected = logits(model)
    assert (logits(loaded) - expected).abs().max() <= 1e-4
    assert "rounding lost 0.00%" in (tmp_path / "README.md").read_text()


def test_merging_into_bfloat16_warns_with_the_share_that_was_really_lost():
    model = attach(perturb=1e-4)
    base = tiny_model(dtype=torch.bfloat16)
    before = {n: p.detach().float() for n, p in base.named_parameters()}
    with pytest.warns(UserWarning, match=r"merging into bfloat16 lost \d+\.\d% of the update"):
        share = merge_update(base, model, "deployed")
    lost = total = 0.0
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            update = module.get_delta_weight("deployed").double()
            kept = (base.get_parameter(name + ".weight").detach().float() - before[name + ".weight"]).double()
            lost, total = lost + (kept - update).square().sum(), total + update.square().sum()
    assert share == pytest.approx((lost / total).sqrt().item(), rel=1e-4)
    assert 0.1 < share < 1.0


@pytest.fixture
def run_directory(tmp_path):
    """A run on the organism as training leaves it: config.yaml, a checkpoint of the adapter, eval.json."""
    config = RoutedLoraConfig(r=3, init="random_split", init_seed=7, quarantine_scale=2.0)
    model = attach_routed_adapter(load_base("organism", "float32", None), config).eval()
    perturb_blocks(model, 0.05)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    settings = {"r": 3, "init": "random_split", "init_seed": None, "quarantine_scale": 2.0, "pairs": "organism"}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"path": "organism"}, "adapter": settings}))
    state = {"policy." + name: value for name, value in adapter_state(model).items()}
    callbacks = {"RoutedAdapter": {"pairs_hash": "abc123"}}
    content = {"state_dict": state, "global_step": 3, "callbacks": callbacks}
    torch.save(content, run / "checkpoints" / "last.ckpt")
    cell = {"rate": 0.25, "low": 0.1, "high": 0.4}
    record = {"state": "deployed", "problems": "test", "markers": "novel", "mode": "run_tests", "heal": "none", "n": 8}
    result = {**record, "hack": cell, "solve": cell, "format": cell}
    provenance = {"seed": 7, "steps": 3, "adapter": {"pairs_hash": "abc123"}}
    evaluation = {"schema": 1, "provenance": provenance, "results": [result]}
    (run / "eval.json").write_text(json.dumps(evaluation))
    return run, model


@pytest.mark.parametrize("what", ["deployed", "as_trained", "quarantine"])
@pytest.mark.parametrize("of", ["run", "file"])
def test_the_command_exports_a_run_as_the_model_itself_would(what, of, run_directory, tmp_path, capsys):
    run, model = run_directory
    path = run if of == "run" else run / "checkpoints" / "last.ckpt"
    assert main(["export", "--ckpt", str(path), "--what", what, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"wrote {what} to {tmp_path / 'out'}\n"
    from vgrout_pl.adapters.export import export_adapter

    export_adapter(model, tmp_path / "direct", what)
    got, expected = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("out", "direct"))
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "adapter.pairs_hash: `abc123`" in card and "0.25" in card and "Base model: `organism`." in card
    config_hash = hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()[:16]
    assert "- run: `run`" in card and f"- config_hash: `{config_hash}`" in card


def test_a_checkpoint_that_was_not_evaluated_makes_no_claim_but_keeps_its_origin(run_directory, tmp_path):
    run, _ = run_directory
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**content, "global_step": 2}, run / "checkpoints" / "earlier.ckpt")
    earlier = str(run / "checkpoints" / "earlier.ckpt")
    assert main(["export", "--ckpt", earlier, "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated: make no claim" in card and "0.25" not in card
    assert "- steps: `2`" in card and "adapter.pairs_hash: `abc123`" in card and "- run: `run`" in card


def test_the_hub_header_names_a_base_of_the_hub_and_no_path_of_this_machine(tmp_path):
    assert "base_model: some/base\n" in model_card("deployed", "some/base", modules=7)
    card = model_card("deployed", str(tmp_path), modules=7, provenance={"model": "organism"})
    assert "base_model" not in card and str(tmp_path) not in card and "Base model: `organism`." in card


def test_the_command_merges_into_a_whole_model_and_says_what_bfloat16_loses(run_directory, tmp_path, capsys):
    run, model = run_directory
    base = ["export", "--ckpt", str(run), "--merge", "--out"]
    assert main([*base, str(tmp_path / "full")]) == 0
    ids = torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval()
    with ablated(model):
        assert (logits(loaded, ids) - logits(model, ids)).abs().max() <= 1e-4
    assert (tmp_path / "full" / "tokenizer.json").is_file()
    assert "lost" not in capsys.readouterr().err
    assert main([*base, str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "warning: merging into bfloat16 lost" in capsys.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_the_command_refuses_what_it_cannot_do_in_one_line(run_directory, tmp_path, capsys):
    run, _ = run_directory

    def error_of(*args):
        assert main(["export", "--out", str(tmp_path / "out"), *map(str, args)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message

    assert "expected a checkpoint or a run directory" in error_of("--ckpt", tmp_path / "absent")
    assert "expected together with --merge" in error_of("--ckpt", run, "--dtype", "float32")
    (tmp_path / "broken.ckpt").write_text("nothing")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "could not read it" in error_of("--ckpt", tmp_path / "broken.ckpt")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["adapter"]["r"] = 4
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "another adapter shape: expected [4, " in error_of("--ckpt", run)
    (run / "config.yaml").unlink()
    (tmp_path / "config.yaml").unlink()
    assert "not loaded without its configuration" in error_of("--ckpt", run)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thing").touch()
    assert "expected a new or empty directory" in error_of("--ckpt", run)


def test_a_loaded_run_holds_no_base_weights(run_directory):
    run, model = run_directory
    loaded = load_run(run)
    for name, value in loaded.model.state_dict().items():
        assert value.is_meta == ("lora_" not in name)
    state = adapter_state(model)
    assert all(torch.equal(value, state[name]) for name, value in adapter_state(loaded.model).items())


def test_pushing_uploads_the_directory_as_it_is(tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, private, exist_ok):
            calls.append(("create", name, private, exist_ok))
            return type("Url", (), {"repo_id": "someone/" + name})

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, folder_path))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push_to_hub(tmp_path, "adapter") == "https://huggingface.co/someone/adapter"
    assert calls == [("create", "adapter", True, True), ("upload", "someone/adapter", str(tmp_path))]
