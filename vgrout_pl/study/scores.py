"""Scores of many directions at once: what :func:`~vgrout_pl.directions.scores.row_scores` gives one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vgrout_pl.directions.scores import Aggregation, check_finite, module_dots, module_norms
from vgrout_pl.study.metrics import quantile_place

CHUNK_NUMBERS = 1 << 25
"""Products of rows, modules and directions that are held at once: 128 MiB in float32."""


def scores_along(
    features: Tensor, directions: Tensor, widths: Sequence[int], aggregations: Sequence[Aggregation]
) -> dict[Aggregation, Tensor]:
    """Scores [n, k] of every row along every direction, for each way of putting the modules together.

    Equal to ``row_scores`` of each direction alone, with rows of equal weight; one matrix product a module serves all
    aggregations.

    Args:
        features: [n, F].
        directions: [k, F], unit norm (or 0) per module.
        widths: of the M modules.
        aggregations: dot, cosine, vote, or some of them.

    Raises:
        ValueError: a score is not finite.
    """
    size = max(1, CHUNK_NUMBERS // (len(features) * len(widths)))
    norms = module_norms(features, widths).unsqueeze(2) if "cosine" in aggregations else None
    parts: dict[Aggregation, list[Tensor]] = {name: [] for name in aggregations}
    for chunk in directions.split(size):
        dots = module_dots(features, chunk, widths)
        check_finite(dots.sum(1).flatten())
        heard = torch.stack([part.any(1) for part in chunk.split(list(widths), 1)])
        count = heard.sum(0).clamp_min(1)
        for name, found in parts.items():
            if name == "dot":
                found.append(dots.sum(1))
            elif name == "cosine":
                assert norms is not None
                found.append(torch.where(norms == 0, 0.0, dots / norms).sum(1) / count)
            else:
                middle = dots.kthvalue(quantile_place(0.5, len(dots)) + 1, dim=0).values
                found.append(((dots > middle) & heard).sum(1).float() / count)
    return {name: torch.cat(found, 1) for name, found in parts.items()}
