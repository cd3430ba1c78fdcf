"""The fused update against autograd on the formula, in float64."""

import itertools

import pytest
import torch

from vgrout_pl.adapters.functional import GatedLowRank, RoutedUpdate, add_update, stack_blocks
from vgrout_pl.adapters.state import BLOCKS, Route, RouteState, as_routes, as_rows

D_IN, D_OUT, RANK, ROWS, LENGTH = 5, 4, 2, 4, 3


def problem(seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tensors = [
        tuple(normal(*shape) for shape in ((RANK, D_IN), (D_OUT, RANK), (RANK, D_IN), (D_OUT, RANK))) for _ in BLOCKS
    ]
    return normal(ROWS, LENGTH, D_OUT), normal(ROWS, LENGTH, D_IN), tensors, normal(ROWS, LENGTH, D_OUT)


def by_the_formula(base, x, tensors, routes, scaling):
    rows = []
    for row, route in enumerate(routes):
        y = base[row]
        for name, (a, b, a0, b0) in zip(BLOCKS, tensors, strict=True):
            update = scaling * (x[row] @ a.T @ b.T - x[row] @ a0.T @ b0.T)
            if name == "quarantine" and route == Route.KEEP:
                continue
            y = y + (update.detach() if name == "deployed" and route == Route.ROUTE else update)
        rows.append(y)
    return torch.stack(rows)


def fused(base, x, tensors, routes, scaling):
    state = RouteState()
    state.change(routes=as_routes(routes))
    plan = state.plan
    used = tuple(BLOCKS.index(name) for name in plan.blocks)
    masks = plan.masks(RANK, 2, x.device, torch.float64)
    everything = [t for block in tensors for t in block]
    return RoutedUpdate.apply(base, x, *masks, scaling, torch.float64, used, *everything)


def outputs_and_gradients(function, routes, scaling):
    base, x, tensors, grad = problem()
    leaves = [base, x, *(t for block in tensors for t in block[:2])]
    for leaf in leaves:
        leaf.requires_grad_()
    out = function(base, x, tensors, routes, scaling)
    got = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    return [out, *(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(got, leaves, strict=True))]


@pytest.mark.parametrize("routes", list(itertools.combinations_with_replacement(Route, ROWS)), ids=str)
@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_values_and_all_gradients_equal_the_formula_for_every_mix_of_routes(routes, scaling):
    for got, expected in zip(
        outputs_and_gradients(fused, routes, scaling),
        outputs_and_gradients(by_the_formula, routes, scaling),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def by_the_formula_in_factors(base, x, left, right, routes):
    rows = []
    for row, route in enumerate(routes):
        h = x[row] @ left.T
        deployed, quarantine = h[:, :RANK] @ right[:, :RANK].T, h[:, RANK:] @ right[:, RANK:].T
        deployed = deployed.detach() if route == Route.ROUTE else deployed
        rows.append(base[row] + deployed + (0 if route == Route.KEEP else quarantine))
    return torch.stack(rows)


@pytest.mark.parametrize("routes", list(itertools.combinations_with_replacement(Route, ROWS)), ids=str)
def test_gated_factors_equal_the_formula_for_every_mix_of_routes(routes):
    base, x, tensors, grad = problem()
    left, right = torch.cat([tensors[0][0], tensors[1][0]]), torch.cat([tensors[0][1], tensors[1][1]], 1)
    leaves = [t.requires_grad_() for t in (base, x, left, right)]
    state = RouteState()
    state.change(routes=as_routes([*routes[:-1], Route.NONE]))  # one free row keeps both blocks in the plan
    got = GatedLowRank.apply(*leaves, *state.plan.masks(RANK, 1, left.device, left.dtype))
    expected = by_the_formula_in_factors(*leaves, [*routes[:-1], Route.NONE])
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_a_detached_block_passes_nothing_to_the_input():
    base, x, tensors, grad = problem()
    (a, b, a0, b0), quarantine = tensors
    still = [(a, b, a0, b0), (quarantine[2], quarantine[3], quarantine[2], quarantine[3])]
    x.requires_grad_()
    fused(base, x, still, [Route.ROUTE] * ROWS, 1.0).backward(grad)
    assert torch.equal(x.grad, torch.zeros_like(x))
    fused(base, x, still, [Route.ABSORB] * ROWS, 1.0).backward(grad)
    torch.testing.assert_close(x.grad, grad @ (b @ a - b0 @ a0))


def test_the_backward_keeps_no_more_than_that_of_a_lora_of_rank_4r():
    from peft import LoraConfig, get_peft_model
    from torch import nn

    from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter, routed

    def kept(model, *contexts):
        """Bytes of what autograd keeps, parameters and buffers left out."""
        own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        found = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        x = torch.randn(4, 64, 48, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        return sum(size for size, _ in found.values())

    def linear():
        return nn.Sequential(nn.Linear(48, 80))

    stock = kept(get_peft_model(linear(), LoraConfig(r=16, target_modules=["0"])))
    model = attach_routed_adapter(linear(), RoutedLoraConfig(r=4, target_modules=["0"], task_type=None))
    masks = 4 * 16 * 4
    assert kept(model) <= stock
    with routed(model, [0, 1, 2, 3]):
        assert kept(model) <= stock + masks


def test_the_update_keeps_its_digits_where_the_textbook_difference_loses_them():
    _, x, tensors, _ = problem()
    (_, _, a0, b0) = tensors[0]
    a, b = a0 + 1e-7 * tensors[1][0], b0 + 1e-7 * tensors[1][1]
    exact = x @ (b @ a - b0 @ a0).T
    block = tuple(t.float() for t in (a, b, a0, b0))
    left, right = stack_blocks([block], 1.0, torch.float32)
    zero = torch.zeros(ROWS, LENGTH, D_OUT)
    factored = add_update(zero, x.float(), left.t(), right.t(), None)
    textbook = x.float() @ block[0].T @ block[1].T - x.float() @ block[2].T @ block[3].T
    moved = x @ ((block[1].double() @ block[0].double()) - (block[3].double() @ block[2].double())).T
    assert (factored.double() - moved).norm() < 1e-5 * exact.norm()
    assert (textbook.double() - moved).norm() > 1e-2 * exact.norm()


def test_composed_states_take_blocks_away_and_never_give_them_back():
    state = RouteState()
    state.change(routes=as_routes([0, 1, 2, 3]))
    state.change(without=("quarantine",), rows=as_rows([True, False, False, False]))
    assert state.plan.forward_gates[:, 0].tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
    assert state.plan.gradient_gates[:, 0].tolist() == [[1, 0], [1, 0], [1, 1], [0, 1]]
    state.change(without=("deployed",), rows=as_rows([True, True, True, False]))
    assert state.plan.forward_gates[:, 0].tolist() == [[0, 0], [0, 0], [0, 1], [1, 1]]
    assert state.plan.gradient_gates[:, 0].tolist() == [[0, 0], [0, 0], [0, 1], [0, 1]]
    state.change(without=("deployed",), rows=True)
    assert state.plan.blocks == ("quarantine",)
    assert state.plan.forward_gates[:, 0].tolist() == [[0], [0], [1], [1]]


def test_rows_without_a_mask_cost_no_mask():
    state = RouteState()
    state.change(routes=as_routes([Route.NONE, Route.ABSORB]))
    assert (state.plan.blocks, state.plan.rows) == (BLOCKS, None)
    state.change(routes=as_routes([Route.KEEP, Route.KEEP]))
    assert (state.plan.blocks, state.plan.rows) == (("deployed",), None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_routes([0, 4]), r"expected values of Route \(0..3\); got \[0, 4\]"),
        (lambda: as_routes([[[0]]]), r"expected an int tensor \[rows\] or \[rows, positions\]"),
        (lambda: as_routes([True]), r"expected an int tensor .*; got torch.bool"),
        (lambda: as_rows([1, 0]), r"expected a bool tensor \[rows\]; got torch.int64"),
    ],
)
def test_malformed_routes_and_rows_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_refused_change_leaves_the_state_as_it_was():
    state = RouteState()
    state.change(routes=as_routes([0, 1]))
    plan = state.plan
    with pytest.raises(ValueError, match=r"expected one batch size; got \[2, 3\]"):
        state.change(without=("quarantine",), rows=as_rows([True, False, True]))
    assert state.plan is plan and state.without == {"deployed": False, "quarantine": False}
