"""Leading singular directions by every route, against the full decomposition."""

import pytest
import torch

from vgrout_pl.adapters.inits import linalg


def heavy_tailed(rows, columns, seed=0, strength=6):
    """A random bulk plus a slowly falling spectrum, as trained weights have."""
    draw = torch.Generator().manual_seed(seed)
    bulk = torch.randn(rows, columns, generator=draw) / columns**0.5
    rank = min(rows, columns) // 4
    u, _ = torch.linalg.qr(torch.randn(rows, rank, generator=draw))
    v, _ = torch.linalg.qr(torch.randn(columns, rank, generator=draw))
    return bulk + (u * (strength * torch.arange(1, rank + 1) ** -0.7)) @ v.T


def check(matrix, count, found):
    u, s, vh = (t.double() for t in found)
    exact_u, exact_s, exact_vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(s, exact_s[:count], rtol=1e-4, atol=0)
    assert float((matrix.double() @ vh.T - u * s).norm(dim=0).div(s).max()) < 1e-4
    assert float(torch.linalg.svdvals(u.T @ exact_u[:, :count]).min()) > 1 - 1e-5
    assert float(torch.linalg.svdvals(vh @ exact_vh[:count].T).min()) > 1 - 1e-5
    assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())


@pytest.mark.parametrize("shape", [(300, 420), (420, 300)])
@pytest.mark.parametrize("route", ["direct", "krylov", "gram"])
def test_every_route_finds_the_leading_directions(shape, route, monkeypatch):
    taken = []
    for name in ("_krylov", "_gram"):
        original = getattr(linalg, name)
        monkeypatch.setattr(linalg, name, lambda m, k, f=original, n=name: taken.append(n) or f(m, k))
    if route != "direct":
        monkeypatch.setattr(linalg, "EXACT_UP_TO", 100)
    flat = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    matrix = flat if route == "gram" else heavy_tailed(*shape, strength=60)
    check(matrix, 8, linalg.top_singular(matrix, 8))
    assert taken == {"direct": [], "krylov": ["_krylov"], "gram": ["_krylov", "_gram"]}[route]


def test_the_iteration_gives_the_same_directions_every_time(monkeypatch):
    monkeypatch.setattr(linalg, "EXACT_UP_TO", 100)
    first, second = (linalg.top_singular(heavy_tailed(300, 420, strength=60), 8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("shape", [(2560, 9728), (2560, 2560)])
def test_modules_of_a_4b_model_are_decomposed_as_exactly(shape):
    matrix = heavy_tailed(*shape)
    u, s, vh = linalg.top_singular(matrix, 64)
    exact_u, exact_s, exact_vh = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(s, exact_s[:64], rtol=1e-5, atol=0)
    assert float(torch.linalg.svdvals(u.T @ exact_u[:, :64]).min()) > 0.9999
    assert float(torch.linalg.svdvals(vh @ exact_vh[:64].T).min()) > 0.9999
