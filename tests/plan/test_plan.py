"""A plan counts what a real step does."""

import dataclasses
import json
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import lightning as L
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter
from vgrout_pl.callbacks import RoutedAdapter
from vgrout_pl.cli import main
from vgrout_pl.plan import GPUS, PHASES, Cost, Machine, Tally, window_cost, workload
from vgrout_pl.plan.passes import Passes
from vgrout_pl.plan.trace import Operation
from vgrout_pl.plan.workload import Batch
from vgrout_pl.policy import load_base
from vgrout_pl.routers import Absorb, ActivationGate, NoneMatched, NoRouting, RandomShare
from vgrout_pl.scoring import RowStates, score_completions

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    """The benches' modules: shape (bench/gpu), plan (bench)."""
    before = list(sys.path)
    sys.path[:0] = [str(BENCH / "gpu"), str(BENCH)]
    try:
        import plan
        import shape

        yield {"shape": shape, "plan": plan}
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def model(bench, tmp_path_factory):
    """A tiny Qwen3 with the organism's tokenizer, and the sizes of a step."""
    folder, scale = tmp_path_factory.mktemp("tiny"), bench["shape"].small_scale()
    return folder, scale, bench["shape"].write_model(folder, scale, torch.device("cpu"))


def operation(flops=0, moved=0, dtype=None):
    return Operation(flops, moved, dtype)


def test_a_product_is_counted_and_what_is_freed_lives_no_longer():
    fake = FakeTensorMode()
    with fake:
        a, b = torch.empty(4, 8), torch.empty(8, 16)
    tally = Tally(fake)
    with tally.under("x"):
        c = a @ b
        d = c.t() + 1
        del c
    cost = tally.cost("x")
    assert cost.flops == 2 * 4 * 8 * 16
    assert cost.product_bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert cost.bytes - cost.product_bytes == 2 * 4 * 4 * 16
    assert cost.calls == 2
    assert (tally.peak, tally.live) == (2 * 4 * 4 * 16, 4 * 4 * 16)
    assert d.shape == (16, 4)


def test_an_expanded_operand_is_read_once():
    fake = FakeTensorMode()
    with fake:
        a, b = torch.empty(8, 1, 4), torch.empty(4, 2).expand(8, 4, 2)
    tally = Tally(fake)
    with tally.under("x"):
        a.bmm(b)
    assert tally.cost("x").product_bytes == 4 * (8 * 4 + 4 * 2 + 8 * 2)


def test_costs_add_and_scale():
    cost = Cost(Counter({operation(10, 2, torch.float32): 3})) + Cost({operation(0, 5): 1.0}) * 4
    assert (cost.flops, cost.product_bytes, cost.bytes, cost.calls) == (30, 6, 26, 7)


def test_floor_and_estimate_by_hand():
    machine = Machine("m", 1000.0, 100.0, 10.0, None, 0.5, 0.5, 4.0, 1.0, True)
    cost = Cost({operation(1000, 30, torch.bfloat16): 2.0, operation(0, 8): 1.0})
    assert machine.floor(cost) == pytest.approx(6.0)  # 60 bytes at 10 a second, against 2 seconds of FLOPs
    assert machine.estimate(cost) == pytest.approx(2 * 30 / 5 + 8 / 4)
    serial = Machine("m", 1000.0, 100.0, 10.0, None, 0.5, 0.5, 4.0, 1.0, False)
    assert serial.estimate(cost) == pytest.approx(2 * 30 / 5 + 8 / 4 + 3)


def test_rows_are_dealt_as_a_window_deals_them(bench, model):
    folder, scale, _ = model
    module = bench["shape"].recipe_module(folder, scale)
    work = workload(module, RandomShare(0.5), 2, 4, 80, 12, rounded=True)
    assert sorted(work.routes.tolist()) == [1] * 4 + [3] * 4
    assert work.ablated.tolist() == [False, False, False, True] * 2
    assert work.dealt(torch.zeros(8, dtype=torch.long)) == {Batch((0, 0), (0,)): 4}
    keys = torch.tensor([0, 1, 1, 1, 0, 0, 0, 1])
    assert work.dealt(keys) == {Batch((0, 1), (0, 1)): 2, Batch((1, 1), (1,)): 1, Batch((0, 0), (0,)): 1}
    assert work.dealt(keys, keys == 1) == {Batch((1,), (1,)): 2, Batch((1, 1), (1,)): 1}


def test_only_rows_in_another_state_are_scored_again(bench, model):
    folder, scale, _ = model
    module = bench["shape"].recipe_module(folder, scale)
    absorb = workload(module, Absorb(), 2, 4, 80, 12, rounded=True)
    assert absorb.scored_again(Absorb()).tolist() == [False, False, False, True] * 2
    whole = workload(module, Absorb(), 2, 4, 80, 12, rounded=False)
    assert not whole.scored_again(Absorb()).any()
    gate = ActivationGate()
    gated = workload(module, gate, 2, 4, 80, 12, rounded=True)
    assert not (gated.scored_again(gate) & gated.ablated).any()
    tokens = ActivationGate(per_token=True)
    by_token = workload(module, tokens, 2, 4, 80, 12, rounded=True)
    assert torch.equal(by_token.scored_again(tokens), ~by_token.ablated)
    assert len(by_token.dealt(by_token.routes)) == 1, "prompts in one state"
    assert not workload(module, NoRouting(), 2, 4, 80, 12, rounded=True).ablated.any()


class Steps(L.Callback):
    """Closes the timer's last phase."""

    def on_train_batch_end(self, trainer, module, *_):
        module.timer.enter(None)


STEPS = [
    pytest.param(Absorb, "bfloat16", True, id="absorb in bfloat16, activations recomputed"),
    pytest.param(Absorb, "float32", False, id="absorb in float32", marks=pytest.mark.full),
    pytest.param(NoneMatched, "float32", False, id="none_matched in float32", marks=pytest.mark.full),
    pytest.param(NoRouting, "bfloat16", False, id="none in bfloat16", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("router", "dtype", "checkpointing"), STEPS)
def test_the_flops_of_a_real_step_are_those_planned(bench, model, router, dtype, checkpointing):
    folder, scale, tokenizer = model

    def module():
        made = bench["shape"].recipe_module(folder, scale)
        made.dtype_name, made.gradient_checkpointing = dtype, checkpointing
        return made

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=scale.micro_batches,
        limit_val_batches=0,
        callbacks=[RoutedAdapter(r=scale.rank, init="gaussian"), router(), Steps()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with bench["plan"].counted_by_phase() as counted:
        trainer.fit(module(), bench["shape"].FixedPrompts(scale, tokenizer))
    rounded = dtype == "bfloat16"
    sizes = (scale.prompts, scale.micro_batches, scale.prompt_tokens, scale.completion_tokens)
    work = workload(module(), router(), *sizes, rounded=rounded)
    planned = window_cost(module(), router(), RoutedLoraConfig(r=scale.rank), work).phases
    for phase, parts in PHASES.items():
        assert counted.get(phase, 0) == sum(planned[part].flops for part in parts), phase


def test_what_autograd_keeps_is_what_the_plan_keeps(bench, tmp_path):
    folder, scale = tmp_path, bench["shape"].small_scale()
    wide = {"hidden_size": 256, "intermediate_size": 512}  # so that the CPU's own copies of masks weigh little
    scale = dataclasses.replace(scale, model={**scale.model, **wide})
    bench["shape"].write_model(folder, scale, torch.device("cpu"))
    module = bench["shape"].recipe_module(folder, scale)
    work = workload(module, Absorb(), 1, 1, scale.prompt_tokens, scale.completion_tokens, rounded=True)
    config = RoutedLoraConfig(r=scale.rank)
    passes = Passes(module, config, work, checkpointing=False)
    tally, (batch,) = Tally(passes.fake), work.dealt(work.routes)
    logprobs = passes._logprobs(tally, "forward", batch, passes.training_states)
    planned = tally.live
    assert logprobs.shape == (scale.group, scale.completion_tokens)

    policy = attach_routed_adapter(load_base(str(folder), "bfloat16", None), config)
    held = {tensor.untyped_storage().data_ptr() for tensor in (*policy.parameters(), *policy.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows, prompt = scale.group, torch.randint(5, 400, (1, scale.prompt_tokens)).expand(scale.group, -1)
    completions = torch.randint(5, 400, (rows, scale.completion_tokens))
    states = RowStates.same(rows, nullcontext)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real = score_completions(
            policy,
            prompt,
            torch.ones_like(prompt, dtype=torch.bool),
            torch.zeros(rows, dtype=torch.long),
            completions,
            torch.ones_like(completions, dtype=torch.bool),
            states,
        )
    assert real[0].requires_grad
    assert sum(kept.values()) == pytest.approx(planned, rel=0.1)


@pytest.fixture
def plan(capsys, monkeypatch):
    """What the command prints."""
    monkeypatch.setattr("sys.argv", ["cli.py"])

    def run(*args):
        main(["plan", "--config", "configs/demo.yaml", *args])
        return capsys.readouterr().out

    return run


def test_the_command_knows_sizes_tokens_memory_and_time_of_the_organism(plan):
    made = json.loads(plan("--as_json=true", "--gpu=l40s", "--completion_tokens=32").splitlines()[-1])
    config = json.loads((Path("vgrout_pl/organism/checkpoint") / "config.json").read_text())
    assert made["parameters"]["modules"] == 7 * config["num_hidden_layers"]
    assert made["parameters"]["trained"] == made["parameters"]["frozen"]
    assert made["tokens"]["sampled"] == made["tokens"]["trained"] == 64 * 32
    assert made["tokens"]["prefilled"] == 2 * made["tokens"]["prompt"]
    assert made["machine"] == GPUS["l40s"].name
    assert made["memory"]["train_checkpointed"] < made["memory"]["train"] < made["memory"]["peak"]
    phases = made["phases"].values()
    assert all(phase["floor_s"] <= phase["estimate_s"] for phase in phases)
    assert made["step_estimate_s"] == pytest.approx(sum(phase["estimate_s"] for phase in phases))


REFUSED = {
    "--model.path=nobody/nothing": "model.path: expected a directory written by save_pretrained",
    "--devices=3": "devices: expected a number that divides the 8 prompts",
    "--gpu=abacus": "h200",
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_cannot_be_planned_is_one_line(plan, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        plan(option)
    assert stopped.value.code != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert REFUSED[option] in line
