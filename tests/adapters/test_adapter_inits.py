"""Every init against a direct float64 computation of its formula on small matrices."""

import pytest
import torch

from vgrout_pl.adapters.inits import INITS, InitRequest, init_strategy, module_generator, register_init
from vgrout_pl.adapters.inits.base import InitStrategy
from vgrout_pl.adapters.inits.corda import CovarianceRoot

D_OUT, D_IN, RANK, PAIRS = 24, 16, 3, 5


def request(seed=0, d_out=D_OUT, d_in=D_IN, rank=RANK, **options):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=draw) @ torch.diag(torch.linspace(2, 0.2, d_in))
    deltas = torch.randn(PAIRS, d_in, generator=draw) * torch.linspace(0.1, 3, d_in) + 0.5
    options.setdefault("deltas", deltas)
    return InitRequest(name="m", weight=weight, rank=rank, generator=module_generator(seed, "m"), **options)


def built(name, **options):
    req = request(**options)
    (ad, bd, *_), (aq, bq, *_) = init_strategy(name).build(req)
    return req, ad.double(), bd.double(), aq.double(), bq.double()


def same_up_to_sign(got, expected):
    """Rows equal up to one sign each."""
    cosines = (got * expected).sum(1) / (got.norm(dim=1) * expected.norm(dim=1))
    return bool((cosines.abs() > 1 - 1e-6).all()) and torch.allclose(got.norm(dim=1), expected.norm(dim=1), atol=1e-5)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def dense_covariance(deltas, eps):
    c = deltas.T @ deltas / len(deltas)
    return c + eps * c.trace() / c.shape[0] * torch.eye(c.shape[0], dtype=c.dtype)


@pytest.mark.parametrize("name", list(INITS))
def test_shapes_and_norms_are_those_of_the_init(name):
    _, ad, bd, aq, bq = built(name)
    assert ad.shape == aq.shape == (RANK, D_IN) and bd.shape == bq.shape == (D_OUT, RANK)
    if name not in ("gaussian", "antipasto"):
        for norms in (ad.norm(dim=1), aq.norm(dim=1), bd.norm(dim=0), bq.norm(dim=0)):
            torch.testing.assert_close(norms, torch.ones(RANK, dtype=torch.float64), rtol=0, atol=1e-5)


def test_gaussian_has_the_stated_variances_and_independent_blocks():
    _, ad, bd, aq, bq = built("gaussian", d_out=600, d_in=800, rank=50, deltas=None)
    for a in (ad, aq):
        assert float(a.square().mean()) == pytest.approx(1 / 800, rel=0.03)
    for b in (bd, bq):
        assert float(b.square().mean()) == pytest.approx(1 / 100, rel=0.03)
    assert float((ad * aq).sum() / (ad.norm() * aq.norm())) == pytest.approx(0, abs=0.02)


def test_gaussian_unit_is_the_gaussian_draw_at_unit_scale():
    _, ad, bd, _, _ = built("gaussian")
    _, ad1, bd1, _, _ = built("gaussian_unit")
    torch.testing.assert_close(ad1, unit(ad), rtol=0, atol=1e-6)
    torch.testing.assert_close(bd1.T, unit(bd.T), rtol=0, atol=1e-6)


def test_random_split_is_one_orthonormal_set_dealt_to_both_blocks():
    _, ad, bd, aq, bq = built("random_split")
    eye = torch.eye(2 * RANK, dtype=torch.float64)
    rows, columns = torch.cat([ad, aq]), torch.cat([bd, bq], 1)
    torch.testing.assert_close(rows @ rows.T, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(columns.T @ columns, eye, rtol=0, atol=1e-5)


def test_pissa_deals_the_leading_singular_directions_alternately():
    req, ad, bd, aq, bq = built("pissa")
    u, s, vh = torch.linalg.svd(req.weight.double())
    assert same_up_to_sign(ad, vh[0 : 2 * RANK : 2]) and same_up_to_sign(aq, vh[1 : 2 * RANK : 2])
    assert same_up_to_sign(bd.T, u.T[0 : 2 * RANK : 2]) and same_up_to_sign(bq.T, u.T[1 : 2 * RANK : 2])
    # the signs of a pair belong together: A0 read through W gives the singular value, not its negative
    through = torch.einsum("or,oi,ri->r", bd, req.weight.double(), ad)
    torch.testing.assert_close(through, s[0 : 2 * RANK : 2], rtol=1e-5, atol=1e-5)


def test_the_low_rank_covariance_root_is_the_dense_one():
    req = request()
    deltas = req.deltas.double()
    c = dense_covariance(deltas, 1e-3)
    values, vectors = torch.linalg.eigh(c)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    got = CovarianceRoot(deltas, 1e-3).right_multiply(torch.eye(D_IN, dtype=torch.float64))
    torch.testing.assert_close(got, root, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got @ got, c, rtol=1e-9, atol=1e-9)


def test_corda_deals_the_contrastive_basis_computed_densely_in_float64():
    req, ad, bd, aq, bq = built("corda")
    values, vectors = torch.linalg.eigh(dense_covariance(req.deltas.double(), 1e-3))
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    u, _, vh = torch.linalg.svd(req.weight.double() @ root)
    rows = unit(vh @ root)
    assert same_up_to_sign(ad, rows[0 : 2 * RANK : 2]) and same_up_to_sign(aq, rows[1 : 2 * RANK : 2])
    assert same_up_to_sign(bd.T, u.T[0 : 2 * RANK : 2]) and same_up_to_sign(bq.T, u.T[1 : 2 * RANK : 2])
    assert bool((torch.einsum("or,oi,ri->r", bd, req.weight.double(), ad) > 0).all())


def test_antipasto_keeps_the_contrastive_basis_with_its_lengths_and_strengths():
    req = request()
    values, vectors = torch.linalg.eigh(dense_covariance(req.deltas.double(), 1e-3))
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    u, s, vh = torch.linalg.svd(req.weight.double() @ root)
    for first, (rows, columns, strengths) in enumerate(init_strategy("antipasto").build(req)):
        taken = slice(first, 2 * RANK, 2)
        assert same_up_to_sign(rows.double(), (vh @ root)[taken])
        assert same_up_to_sign(columns.T.double(), u.T[taken])
        torch.testing.assert_close(strengths.double(), s[taken], rtol=1e-5, atol=1e-5)


def direct_scorda(req, seed_quarantine):
    w, mean = req.weight.double(), req.deltas.double().mean(0)
    u_in = mean / mean.norm()
    u_out = w @ u_in / (w @ u_in).norm()
    u, _, vh = torch.linalg.svd(w)
    rows = unit(vh - torch.outer(vh @ u_in, u_in))
    columns = unit(u.T - torch.outer(u.T @ u_out, u_out))
    first = RANK if seed_quarantine else RANK - 1
    rest = slice(first, 2 * RANK - 1)
    seeded = torch.cat([u_in[None], rows[rest] if seed_quarantine else rows[:first]])
    seeded_out = torch.cat([u_out[None], columns[rest] if seed_quarantine else columns[:first]])
    other = (rows[:first], columns[:first]) if seed_quarantine else (rows[rest], columns[rest])
    return (*other, seeded, seeded_out) if seed_quarantine else (seeded, seeded_out, *other)


@pytest.mark.parametrize(("name", "seed_quarantine"), [("scorda", True), ("scorda_rev", False)])
def test_scorda_is_the_formula_with_its_sign_and_the_deployed_block_first(name, seed_quarantine):
    req, ad, bd, aq, bq = built(name)
    expected = direct_scorda(req, seed_quarantine)
    for got, want in zip((ad, bd.T, aq, bq.T), expected, strict=True):
        assert same_up_to_sign(got, want)
    seeded, seeded_out, other = (aq, bq.T, ad) if seed_quarantine else (ad, bd.T, aq)
    axis = expected[2][0] if seed_quarantine else expected[0][0]
    assert float(seeded[0] @ axis) > 0.999999  # the sign, not only the line
    assert float(seeded_out[0] @ (req.weight.double() @ axis)) > 0
    assert float((seeded[1:] @ axis).abs().max()) < 1e-6 and float((other @ axis).abs().max()) < 1e-6


def test_turning_the_pairs_round_turns_the_seed_round_and_nothing_else():
    req = request()
    forward = init_strategy("scorda").build(req)
    backward = init_strategy("scorda").build(request(deltas=-req.deltas))
    torch.testing.assert_close(backward.quarantine[0][0], -forward.quarantine[0][0])
    torch.testing.assert_close(backward.quarantine[1][:, 0], -forward.quarantine[1][:, 0])
    torch.testing.assert_close(backward.deployed[0], forward.deployed[0], rtol=0, atol=1e-5)


def test_several_signed_directions_are_the_group_means_orthogonalised_in_order():
    groups = torch.tensor([1, 0, 1, 0, 1])
    req, ad, _, aq, bq = built("scorda", groups=groups, signed_directions=2)
    deltas, w = req.deltas.double(), req.weight.double()
    first, second = deltas[groups == 0].mean(0), deltas[groups == 1].mean(0)
    u1 = first / first.norm()
    u2 = second - (second @ u1) * u1
    u2 = u2 / u2.norm()
    torch.testing.assert_close(aq[:2], torch.stack([u1, u2]), rtol=0, atol=1e-6)
    o1 = w @ u1 / (w @ u1).norm()
    o2 = w @ u2 - (w @ u2 @ o1) * o1
    torch.testing.assert_close(bq[:, :2].T, torch.stack([o1, o2 / o2.norm()]), rtol=0, atol=1e-6)
    assert float((torch.cat([ad, aq[2:]]) @ torch.stack([u1, u2]).T).abs().max()) < 1e-6


def test_a_seed_along_a_singular_direction_leaves_no_noise_row_behind():
    req = request()
    _, _, vh = torch.linalg.svd(req.weight)
    parallel = request(deltas=vh[1].repeat(PAIRS, 1))
    (ad, bd), (aq, _) = init_strategy("scorda").build(parallel)
    expected = [vh[i] for i in (0, 2, 3)]
    assert same_up_to_sign(ad.double(), torch.stack(expected).double())
    assert bool((ad @ vh[1]).abs().max() < 1e-6) and bool(torch.isfinite(bd).all() and torch.isfinite(aq).all())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("corda", {"deltas": torch.zeros(PAIRS, D_IN)}, "expected contrastive differences; got none that is not zero"),
        ("scorda", {"deltas": torch.zeros(PAIRS, D_IN)}, "signed direction 1 vanishes"),
        ("scorda", {"signed_directions": 2}, "expected pairs in 2 groups; got 0"),
        (
            "scorda",
            {"signed_directions": 2, "groups": torch.tensor([0, 0, 1, 1, 2])},
            "expected pairs in 2 groups; got 3",
        ),
    ],
)
def test_statistics_without_a_direction_are_refused_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        built(name, **options)
    assert "\n" not in str(error.value)


def test_a_registered_init_is_available_by_name_and_a_taken_name_is_refused():
    strategy = InitStrategy("planted", init_strategy("pissa").build)
    register_init(strategy)
    try:
        assert init_strategy("planted") is strategy
        with pytest.raises(ValueError, match="expected a new name; got 'planted'"):
            register_init(strategy)
    finally:
        del INITS["planted"]
