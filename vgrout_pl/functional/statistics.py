"""Intervals of rates and of their differences, and mean and spread over seeds (plain numbers in, plain numbers out)."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959964


def wilson_interval(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of a rate of ``successes`` in ``n`` independent trials.

    ``centre = (p + z^2 / 2n) / (1 + z^2 / n)``, ``half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)``,
    ``p = successes / n``. It stays inside [0, 1], holds ``p``, and has a width at ``p = 0`` and ``p = 1`` too.

    Raises:
        ValueError: ``n`` is not positive, ``successes`` is outside [0, n], or ``z`` is not positive.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if n < 1:
        raise ValueError(f"expected at least one trial for an interval; got n = {n}; leave the cell out instead")
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n = {n}; got {successes}")
    if not z > 0:
        raise ValueError(f"expected a positive normal quantile z (1.96 for 95 %); got {z}")
    p = successes / n
    shrink = 1.0 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1.0 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else min(p, max(0.0, centre - half))
    high = 1.0 if successes == n else max(p, min(1.0, centre + half))
    return low, high


def effective_trials(successes: int, n: int, squares: int, clusters: int) -> float:
    """Return the number of independent trials that a rate over correlated ones is worth (several samples a problem).

    With x_c successes in cluster c: ``var = (sum x_c^2 - s^2 / C) C / ((C - 1) n^2)``, ``n_eff = p (1 - p) / var``, at
    most ``n``; where the rate is 0 or 1, or one cluster, which say nothing about the spread, it is the number of
    clusters.

    Args:
        successes: s, over all clusters.
        n: trials over all clusters, about equally many in each.
        squares: sum of x_c^2.
        clusters: C >= 1.
    """
    p = successes / n
    if clusters == 1 or p in (0.0, 1.0):
        return float(clusters)
    variance = (squares - successes**2 / clusters) * clusters / ((clusters - 1) * n**2)
    return float(n) if variance <= p * (1 - p) / n else p * (1 - p) / variance


def newcombe_interval(successes_a: int, n_a: int, successes_b: int, n_b: int, z: float = Z95) -> tuple[float, float]:
    """Return the interval (low, high) of the difference ``p_a - p_b`` of two independent rates.

    With Wilson limits (l, u) of each rate: ``low = d - sqrt((p_a - l_a)^2 + (u_b - p_b)^2)`` and
    ``high = d + sqrt((u_a - p_a)^2 + (p_b - l_b)^2)``, ``d = p_a - p_b``. For the same prompts on both sides, whose
    outcomes agree more often than not, it is wider than a paired interval would be.

    Raises:
        ValueError: as :func:`wilson_interval`.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of
    eleven methods", Statistics in Medicine 17 (1998), method 10.
    """
    low_a, high_a = wilson_interval(successes_a, n_a, z)
    low_b, high_b = wilson_interval(successes_b, n_b, z)
    p_a, p_b = successes_a / n_a, successes_b / n_b
    difference = p_a - p_b
    low = difference - math.hypot(p_a - low_a, high_b - p_b)
    high = difference + math.hypot(high_a - p_a, p_b - low_b)
    return low, high


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation (n - 1) of ``values``; the latter is None for one value.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    if not values:
        raise ValueError("expected at least one value for a mean; got none")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected finite values for a mean; got {list(values)}")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
