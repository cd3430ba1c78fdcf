"""Intervals against figures worked by hand and against the published examples of their authors."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgrout_pl.functional.statistics import Z95, mean_sd, newcombe_interval, wilson_interval


def test_wilson_of_half_in_ten_is_the_hand_computed_interval():
    # z = 2: shrink = 1.4, centre = (0.5 + 0.2) / 1.4 = 0.5, half = 2 / 1.4 * sqrt(0.025 + 0.01) = 0.267261
    low, high = wilson_interval(5, 10, z=2.0)
    assert low == pytest.approx(0.5 - 0.2672612419, abs=1e-9)
    assert high == pytest.approx(0.5 + 0.2672612419, abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_examples(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_no_success_ends_at_the_closed_form_bound():
    assert wilson_interval(0, 87) == (0.0, pytest.approx(Z95**2 / (87 + Z95**2)))
    assert wilson_interval(87, 87) == (pytest.approx(87 / (87 + Z95**2)), 1.0)


@settings(deadline=None)
@given(n=st.integers(1, 5000), data=st.data())
def test_wilson_holds_the_rate_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    assert low < high
    assert wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("k", "n", "z", "message"),
    [(0, 0, Z95, "at least one trial"), (3, 2, Z95, "0 <= successes"), (-1, 2, Z95, "0 <= successes"), (1, 2, 0, "z")],
)
def test_wilson_refuses_impossible_counts(k, n, z, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(k, n, z)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((5, 56), (0, 29), -0.0381, 0.1926)],
)
def test_newcombe_gives_the_published_examples(a, b, low, high):
    assert newcombe_interval(*a, *b) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 60))
def test_newcombe_changes_its_sign_with_the_order(a, b):
    low, high = newcombe_interval(a, 40, b, 60)
    assert low <= a / 40 - b / 60 <= high
    assert newcombe_interval(b, 60, a, 40) == pytest.approx((-high, -low), abs=1e-12)


def test_mean_and_sd_use_n_minus_one():
    # deviations -2, 0, 2: 8 / 2 = 4, sd 2
    assert mean_sd([1.0, 3.0, 5.0]) == (3.0, 2.0)


def test_one_value_has_a_mean_and_no_sd():
    assert mean_sd([0.7]) == (0.7, None)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_mean_refuses_nothing_and_what_is_not_finite(values):
    with pytest.raises(ValueError, match="expected"):
        mean_sd(values)
