"""Diagnostics against dense computations, and on planted updates."""

import math

import pytest
import torch
from adapters_support import attach, token_ids

from vgrout_pl.adapters import Route, blocks, diagnostics, module_diagnostics, routed, routed_layers

IDS = token_ids()


@torch.no_grad()
def plant(model, block_name, row, column, size=1.0):
    """Give one block of every module the update size * B0[:, column] A0[row]^T, by moving B alone."""
    for block in blocks(model):
        if block.block == block_name:
            block.B[:, row] += size * block.B0[:, column]


@pytest.mark.parametrize("init", ["scorda", "gaussian", "antipasto"])
def test_norms_and_cosines_are_those_of_the_dense_updates(init):
    model = attach(init, perturb=0.1)
    for (name, layer), got in zip(routed_layers(model), module_diagnostics(model), strict=True):
        d, q = (layer.get_delta_weight(b).double() for b in ("deployed", "quarantine"))
        assert got.module == name
        assert got.deployed_delta == pytest.approx(float(d.norm()), rel=1e-4)
        assert got.quarantine_delta == pytest.approx(float(q.norm()), rel=1e-4)
        assert got.delta_share == pytest.approx(float(q.norm() / (d.norm() + q.norm())), rel=1e-4)
        assert got.cosine == pytest.approx(float((d * q).sum() / (d.norm() * q.norm())), abs=1e-5)
        for side, overlap in ((2, got.input_overlap), (0, got.output_overlap)):
            a, b = (torch.linalg.svd(m)[side] for m in (d, q))
            a, b = (a[:3], b[:3]) if side == 2 else (a[:, :3].T, b[:, :3].T)
            assert overlap == pytest.approx(float((a @ b.T).square().sum()) / 3, abs=1e-4)


def test_an_update_through_the_seed_is_all_seeded_and_one_beside_it_not_at_all():
    for row, expected in ((0, 1.0), (1, 0.0)):
        model = attach("scorda")
        plant(model, "quarantine", row, 2)
        for got in module_diagnostics(model):
            assert got.seeded_share == pytest.approx(expected, abs=1e-6)
    reverse = attach("scorda_rev")
    plant(reverse, "deployed", 0, 1)
    assert diagnostics(module_diagnostics(reverse))["quarantine/seeded_share"] == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(diagnostics(module_diagnostics(attach("pissa", perturb=0.1)))["quarantine/seeded_share"])


def test_the_seeded_share_is_the_energy_read_along_the_axis():
    model = attach("scorda", perturb=0.1)
    for (_, layer), got in zip(routed_layers(model), module_diagnostics(model), strict=True):
        delta = (layer.get_delta_weight("deployed") + layer.get_delta_weight("quarantine")).double()
        axis = layer.block("quarantine")[2][0].double()
        assert got.seeded_share == pytest.approx(float((delta @ axis).norm() / delta.norm()) ** 2, rel=1e-3)


def test_blocks_on_orthogonal_directions_do_not_overlap():
    model = attach("random_split")
    plant(model, "deployed", 0, 0)
    plant(model, "quarantine", 1, 1)
    summary = diagnostics(module_diagnostics(model))
    assert summary["quarantine/cosine"] == pytest.approx(0.0, abs=1e-6)
    assert summary["quarantine/delta_share"] == pytest.approx(0.5, abs=1e-6)


def test_a_fresh_adapter_has_no_shares_rather_than_invented_ones():
    summary = diagnostics(module_diagnostics(attach("scorda")))
    assert summary["quarantine/deployed_delta"] == summary["quarantine/quarantine_delta"] == 0.0
    undefined = ("delta_share", "gradient_share", "seeded_share", "cosine", "input_overlap", "output_overlap")
    assert all(math.isnan(summary[f"quarantine/{name}"]) for name in undefined)


def test_the_gradient_share_follows_the_routes():
    shares = {}
    for route in (Route.KEEP, Route.ROUTE, Route.ABSORB):
        model = attach("scorda", perturb=0.05)
        with routed(model, [route] * len(IDS)):
            model(input_ids=IDS).logits.square().mean().backward()
        shares[route] = diagnostics(module_diagnostics(model))["quarantine/gradient_share"]
    assert shares[Route.KEEP] == 0.0 and shares[Route.ROUTE] == 1.0 and 0.1 < shares[Route.ABSORB] < 0.9


def test_the_summary_pools_norms_over_modules_before_it_takes_shares():
    model = attach("gaussian", perturb=0.1)
    rows = module_diagnostics(model)
    d, q = (math.sqrt(sum(getattr(r, name) ** 2 for r in rows)) for name in ("deployed_delta", "quarantine_delta"))
    assert diagnostics(rows)["quarantine/delta_share"] == pytest.approx(q / (d + q))
