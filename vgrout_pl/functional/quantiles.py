"""Quantiles of weighted values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_quantiles(values: Tensor, weights: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the inverse of the weighted distribution function at each share.

    ``Q(p) = min {v_i : sum_{j: v_j <= v_i} w_j >= p sum_j w_j}``: always one of the values, whatever their order and
    however ties are broken. Scaling all weights changes nothing, and a value of weight 0 is never returned for p > 0.

    Args:
        values: [n], n >= 1, finite.
        weights: [n], at least 0, their sum above 0.
        shares: k shares in [0, 1].

    Returns:
        [k] in the dtype of ``values``.

    Raises:
        ValueError: no values, lengths differ, a value is not finite, or a weight or a share is outside its range.
    """
    if values.dim() != 1 or not len(values) or values.shape != weights.shape:
        raise ValueError(
            f"weighted_quantiles: expected values and weights of one length of at least 1; got {list(values.shape)} "
            f"and {list(weights.shape)}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(f"weighted_quantiles: expected finite values; got {values[~values.isfinite()][0].item()}")
    if not bool((weights.isfinite() & (weights >= 0)).all()) or not float(weights.sum()) > 0:
        raise ValueError("weighted_quantiles: expected finite weights of at least 0 with a sum above 0")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"weighted_quantiles: expected shares in [0, 1]; got {list(shares)}")
    carried = weights > 0
    order = values[carried].argsort(stable=True)
    ordered, below = values[carried][order], weights[carried][order].double().cumsum(0)
    wanted = torch.tensor(shares, dtype=torch.float64, device=values.device) * below[-1]
    places = torch.searchsorted(below * (1 + 1e-12), wanted)
    return ordered[places.clamp_max(len(ordered) - 1)]
