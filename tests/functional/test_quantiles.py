"""Weighted quantiles are the inverse of the weighted distribution function."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vgrout_pl.functional.quantiles import weighted_quantiles

SHARES = (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)


def test_quantiles_by_hand():
    values, weights = torch.tensor([3.0, 1.0, 2.0, 10.0]), torch.tensor([1.0, 1.0, 2.0, 4.0])
    # sorted 1 2 3 10, cumulated weights 1 3 4 8
    got = weighted_quantiles(values, weights, (0.0, 0.125, 0.126, 0.375, 0.5, 0.51, 1.0))
    assert got.tolist() == [1, 1, 2, 2, 3, 10, 10]


def by_definition(values, weights, share):
    total = sum(weights)
    for candidate in sorted(values):
        below = sum(w for v, w in zip(values, weights, strict=True) if v <= candidate)
        if below >= share * total - 1e-9 and below > 0:
            return candidate
    raise AssertionError


ROWS = st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4)), min_size=1, max_size=12)


@given(ROWS.filter(lambda rows: any(weight for _, weight in rows)), st.randoms())
def test_they_follow_the_definition_whatever_the_order(rows, rng):
    expected = [by_definition(*zip(*rows, strict=True), share) for share in SHARES]
    rng.shuffle(rows)
    values, weights = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))
    assert weighted_quantiles(values, weights, SHARES).tolist() == expected
    assert weighted_quantiles(values, weights * 0.3, SHARES).tolist() == expected


@pytest.mark.parametrize(
    ("values", "weights", "shares", "message"),
    [
        ([1.0, float("nan")], [1.0, 1.0], (0.5,), "finite values"),
        ([], [], (0.5,), "at least 1"),
        ([1.0], [0.0], (0.5,), "sum above 0"),
        ([1.0], [1.0], (1.5,), "shares in"),
        ([1.0, 2.0], [1.0], (0.5,), "one length"),
    ],
)
def test_what_has_no_quantile_is_refused(values, weights, shares, message):
    with pytest.raises(ValueError, match=message):
        weighted_quantiles(torch.tensor(values), torch.tensor(weights), shares)
