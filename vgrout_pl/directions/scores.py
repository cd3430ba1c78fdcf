"""From pooled features and a direction to one score a rollout. M modules, F = sum of their widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from vgrout_pl.functional.quantiles import weighted_quantiles

Aggregation = Literal["dot", "cosine", "vote"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


def unit_modules(values: Tensor, widths: Sequence[int]) -> Tensor:
    """Scale each module's part of ``values`` [.., F] to norm 1; a part that is 0 stays 0 (the module has no say)."""
    parts = values.float().split(list(widths), -1)
    norms = [part.norm(dim=-1, keepdim=True) for part in parts]
    return torch.cat([torch.where(n == 0, 0.0, p / n) for p, n in zip(parts, norms, strict=True)], -1)


def module_dots(features: Tensor, direction: Tensor, widths: Sequence[int]) -> Tensor:
    """<f_m, v_m> of every row and module, float32 [n, M].

    Args:
        features: [n, F] in any floating dtype; widened one module at a time.
        direction: [F], or [k, F] for k directions at once (result [n, M, k]).
        widths: of the M modules.
    """
    parts = zip(features.split(list(widths), -1), direction.float().split(list(widths), -1), strict=True)
    return torch.stack([part.float() @ v.movedim(0, -1) for part, v in parts], 1)


def module_norms(features: Tensor, widths: Sequence[int]) -> Tensor:
    """|f_m| of every row and module, float32 [n, M]."""
    return torch.stack([part.float().norm(dim=-1) for part in features.split(list(widths), -1)], 1)


def row_scores(
    features: Tensor,
    direction: Tensor,
    widths: Sequence[int],
    aggregation: Aggregation = "dot",
    weights: Tensor | None = None,
) -> Tensor:
    """Score of each row along a direction.

    - dot: ``sum_m <f_m, v_m>``, v_m of unit norm;
    - cosine: ``mean_m <f_m, v_m> / |f_m|`` over the modules with a direction: each module counts the same;
    - vote: the share of those modules whose ``<f_m, v_m>`` lies above its (weighted) median over the rows.

    Args:
        features: [n, F].
        direction: [F], unit norm (or 0) per module.
        widths: of the M modules.
        aggregation: how modules are put together.
        weights: [n] of the rows, for the medians of ``vote``; None: equal.

    Returns:
        float32 [n].

    Raises:
        ValueError: a score is not finite: the features hold an infinity or a NaN.
    """
    dots = module_dots(features, direction, widths)
    heard = torch.stack([part.any() for part in direction.split(list(widths))])
    count = int(heard.sum().clamp_min(1))
    if aggregation == "dot":
        scores = dots.sum(1)
    elif aggregation == "cosine":
        norms = module_norms(features, widths)
        scores = torch.where(norms == 0, 0.0, dots / norms).sum(1) / count
    elif aggregation == "vote":
        weights = torch.ones(len(dots), device=dots.device) if weights is None else weights
        check_finite(dots.sum(1))
        medians = torch.stack([weighted_quantiles(column, weights, (0.5,))[0] for column in dots.T])
        scores = ((dots > medians) & heard).sum(1).float() / count
    else:
        raise ValueError(f"aggregation: expected {' | '.join(AGGREGATIONS)}; got {aggregation!r}")
    check_finite(scores)
    return scores


def check_finite(scores: Tensor) -> None:
    """Raise ValueError unless every score [n] is finite: one NaN among thresholds would silently keep every row."""
    bad = ~scores.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"router scores: expected finite numbers; got {scores[bad][0].item()} in {int(bad.sum())} of {len(scores)} "
            "rows; the model has diverged, or router.bands.storage is too narrow for these features"
        )
