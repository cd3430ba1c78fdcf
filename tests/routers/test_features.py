"""Features of a batch are those of every row alone, and nothing is disturbed by reading them."""

import pytest
import torch

from tests.loop.policy_support import CONFIGS, tiny_policy
from tests.routers.support import module_of, rollouts_of
from vgrout_pl.adapters import ablated, routed_layers
from vgrout_pl.adapters.antipasto import AntipastoLinear
from vgrout_pl.directions.direction_source import HaarRandom
from vgrout_pl.directions.features import ActivationReader, pooled, pooling_weights
from vgrout_pl.directions.gradients import GradientReader
from vgrout_pl.policy import base_of, checkpoint_activations
from vgrout_pl.routers import ActivationGate, GradientGate

PROMPTS = [[3, 4, 5], [3, 4, 5], [3, 4, 5], [7, 8, 9, 10, 11, 12], [7, 8, 9, 10, 11, 12], [7, 8, 9, 10, 11, 12]]
COMPLETIONS = [
    [9],
    [11, 12, 13, 14, 15],
    [21, 22, 23],
    [31, 32, 33, 34, 35, 36, 37, 38, 39],
    [5, 6],
    [1, 2, 3, 4, 5, 6],
]


def window(**options):
    return rollouts_of(PROMPTS, COMPLETIONS, ablated=[False, True] * 3, group_size=3, **options)


def inputs_alone(policy, row):
    """Input of every routed layer for one unpadded row, [s, d_in], and the completion's first position."""
    seen = {}

    def hook(name):
        return lambda module, args: seen.__setitem__(name, args[0][0].detach())

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in routed_layers(policy)]
    with ablated(policy), torch.no_grad():
        policy(input_ids=torch.tensor([PROMPTS[row] + COMPLETIONS[row]]))
    for handle in handles:
        handle.remove()
    return seen


def pooled_alone(values, pooling):
    if pooling == "mean":
        return values.mean(0)
    if pooling == "last_quarter":
        return values[-((len(values) + 3) // 4) :].mean(0)
    best = values.abs().argmax(0)
    return values[best, torch.arange(values.shape[1])]


def features_alone(policy, row, site, pooling):
    start, parts = len(PROMPTS[row]), []
    inputs = inputs_alone(policy, row)
    for name, layer in routed_layers(policy):
        a, b, a0, b0 = layer.block("deployed")
        left = a if site == "bottleneck" else b @ a - b0 @ a0
        parts.append(pooled_alone(inputs[name][start:] @ left.detach().T, pooling))
    return torch.cat(parts)


@pytest.mark.parametrize("pooling", ["mean", "last_quarter", "max"])
@pytest.mark.parametrize("site", ["bottleneck", "output"])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt_neox"])
def test_activations_of_a_batch_equal_those_of_rows_alone(architecture, site, pooling):
    policy = tiny_policy(architecture)
    gate = ActivationGate(HaarRandom(), site=site, pooling=pooling)
    got, _ = gate._read_rows(module_of(policy, micro_batches=2), window())
    assert got.shape == (6, gate.reader.layout(policy).size)
    for row in range(6):
        expected = features_alone(policy, row, site, pooling)
        torch.testing.assert_close(got[row], expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def last_layer(policy, ids):
    """What the last decoder layer puts out (the model's own list of hidden states has its last one normalised)."""
    kept = []
    layer = base_of(policy).get_decoder().layers[1]
    handle = layer.register_forward_hook(
        lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with ablated(policy), torch.no_grad():
        policy(input_ids=ids)
    handle.remove()
    return kept[0]


def test_the_residual_stream_of_chosen_layers():
    policy = tiny_policy()
    gate = ActivationGate(HaarRandom(), site="residual", layers=[-1])
    got, _ = gate._read_rows(module_of(policy), window())
    assert gate.reader.layout(policy).names == ("layers.1",)
    for row in range(6):
        ids = torch.tensor([PROMPTS[row] + COMPLETIONS[row]])
        expected = last_layer(policy, ids).reshape(ids.shape[1], -1)[len(PROMPTS[row]) :].mean(0)
        torch.testing.assert_close(got[row], expected, atol=1e-5, rtol=1e-4)


def gradient_alone(policy, row):
    """h summed over positions times B^T of the output's gradient, by autograd on one unpadded row with a probe."""
    probes, handles = {}, []

    def hook(name, layer):
        probe = torch.ones(layer.r["deployed"], requires_grad=True)
        probes[name] = probe
        a, b, *_ = layer.block("deployed")

        def after(module, args, output):
            h = args[0] @ a.T
            return output + ((h * probe) @ b.T - h @ b.T) * layer.scaling["deployed"]

        return after

    for name, layer in routed_layers(policy):
        handles.append(layer.register_forward_hook(hook(name, layer)))
    start = len(PROMPTS[row])
    ids = torch.tensor([PROMPTS[row] + COMPLETIONS[row]])
    with ablated(policy):
        logprobs = policy(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
    nll = -logprobs.gather(-1, ids[0, start:].unsqueeze(-1)).mean()
    gradients = torch.autograd.grad(nll, list(probes.values()))
    for handle in handles:
        handle.remove()
    return torch.cat(gradients)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_gradients_of_a_batch_equal_row_by_row_autograd_of_a_probe(architecture, checkpointing):
    policy = tiny_policy(architecture)
    expected = torch.stack([gradient_alone(policy, row) for row in range(6)])
    if checkpointing:
        checkpoint_activations(policy)
    got, _ = GradientGate(HaarRandom())._read_rows(module_of(policy, micro_batches=2), window())
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert float(expected.norm(dim=1).min()) > 1e-3, "gradients that vanish would agree with anything"


@pytest.mark.parametrize("gate", [ActivationGate, GradientGate])
def test_reading_gives_the_log_probabilities_of_ablated_rows_and_leaves_everything_as_it_was(gate):
    policy = tiny_policy()
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    rollouts = window()
    router = gate(HaarRandom())
    with torch.no_grad():
        logprobs = router.read(module_of(policy), rollouts, torch.ones(6, dtype=torch.bool))
    for row in range(6):
        ids, start = torch.tensor([PROMPTS[row] + COMPLETIONS[row]]), len(PROMPTS[row])
        if not rollouts.ablated[row]:
            assert logprobs[row].isnan().all()
            continue
        with ablated(policy), torch.no_grad():
            alone = policy(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        expected = alone.gather(-1, ids[0, start:].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(logprobs[row, : len(COMPLETIONS[row])], expected, atol=1e-5, rtol=1e-4)
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name])
        if parameter.requires_grad:
            assert bool((parameter.grad == 0.5).all()), name
    assert not any(module._forward_hooks for module in policy.modules())


@pytest.mark.parametrize("gate", [ActivationGate, GradientGate])
def test_features_stay_in_float32_under_autocast(gate):
    policy = tiny_policy("qwen3")
    gate, module = gate(direction=HaarRandom()), module_of(policy)
    exact, _ = gate._read_rows(module, window())
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = gate._read_rows(module, window())
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, rounded.bfloat16().float()), "the features themselves were rounded"
    assert torch.nn.functional.cosine_similarity(rounded, exact).min() > 0.95


def test_an_activation_pass_computes_a_shared_prompt_once():
    policy = tiny_policy()
    widths = []
    layer = base_of(policy).get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda module, args: widths.append(tuple(args[0].shape[:2])))
    ActivationGate(HaarRandom())._read_rows(module_of(policy), window())
    assert widths[0] == (2, 6)
    assert all(width <= 9 for _, width in widths[1:])


def test_pooling_by_hand():
    hidden = torch.tensor([[[1.0, -9.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0], [5.0, 2.0], [50.0, -50.0]]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    assert pooled(hidden, mask, "mean").tolist() == [[3.0, pytest.approx(-0.8)]]
    assert pooled(hidden, mask, "last_quarter").tolist() == [[4.5, 1.5]]
    assert pooled(hidden, mask, "max").tolist() == [[5.0, -9.0]]
    with pytest.raises(ValueError, match="at least one token"):
        pooling_weights(torch.zeros(1, 3, dtype=torch.bool), "mean")


def test_sites_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="layers: expected"):
        ActivationReader("bottleneck", layers=[1])
    with pytest.raises(ValueError, match="site: expected"):
        ActivationReader("logits")
    with pytest.raises(ValueError, match="out of the model's 2"):
        ActivationReader("residual", layers=[2]).layout(tiny_policy())
    policy = tiny_policy()
    layer = next(routed_layers(policy))[1]
    layer.__class__ = AntipastoLinear
    with pytest.raises(ValueError, match="gradient features: expected LoRA blocks"):
        GradientReader().layout(policy)
