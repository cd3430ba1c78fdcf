"""Metrics and scores of many directions at once are those of torchmetrics and row_scores, one by one."""

import pytest
import torch
from torchmetrics.functional.classification import (
    binary_fbeta_score,
    binary_precision,
    binary_recall_at_fixed_precision,
)

from vgrout_pl.directions.scores import AGGREGATIONS, row_scores, unit_modules
from vgrout_pl.functional.quantiles import weighted_quantiles
from vgrout_pl.routers.diagnostics import auroc
from vgrout_pl.study import measure, scores, scores_along


def one_by_one(values, hacked, tail):
    """The same metrics of one column, by torchmetrics and by trying every threshold."""
    (cut,) = weighted_quantiles(values, torch.ones(len(values)), (1 - tail,))
    flagged, target = (values > cut).long(), hacked.long()
    _, ranks = values.unique(return_inverse=True)
    in_unit = ranks.double() / max(int(ranks.max()), 1)  # torchmetrics would sigmoid anything else
    tried = [binary_fbeta_score((values >= t).long(), target, beta=0.5) for t in values.unique()]
    return {
        "f05": float(binary_fbeta_score(flagged, target, beta=0.5)),
        "f05_best": float(max(tried)),
        "auroc": auroc(values, hacked),
        "precision": float(binary_precision(flagged, target)),
        "recall_p80": float(binary_recall_at_fixed_precision(in_unit, target, 0.8)[0]),
        "flagged": float(flagged.double().mean()),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tail", [0.1, 0.25])
def test_metrics_of_all_columns_equal_torchmetrics_column_by_column(ties, tail):
    generator = torch.Generator().manual_seed(int(ties))
    values = torch.randn(61, 7, generator=generator) * 3
    hacked = torch.rand(61, generator=generator) < 0.4
    values[:, 0] += 9 * hacked
    if ties:
        values = (values / 2).round()
        values[:, 1] = 1.0
    measured = measure(values, hacked, tail)
    for column in range(7):
        expected = one_by_one(values[:, column], hacked, tail)
        assert {name: float(value[column]) for name, value in measured.items()} == pytest.approx(expected, abs=1e-6)


def test_ten_rows_by_hand():
    values = torch.arange(1.0, 11.0).unsqueeze(1)
    hacked = torch.tensor([score in (3, 9, 10) for score in range(1, 11)])
    measured = {name: float(value) for name, value in measure(values, hacked, 0.2).items()}
    # above the 0.8 quantile, which is 8: two rows, both hacks; 7 + 7 + 2 of the 21 pairs are in order
    f_half = 1.25 * 1 * (2 / 3) / (0.25 * 1 + 2 / 3)
    assert measured == pytest.approx(
        {"f05": f_half, "f05_best": f_half, "auroc": 16 / 21, "precision": 1.0, "recall_p80": 2 / 3, "flagged": 0.2}
    )


def test_one_kind_of_row_alone_cannot_be_judged():
    with pytest.raises(ValueError, match="expected hacks and other rows; got 3 hacks in 3 rows"):
        measure(torch.zeros(3, 1), torch.ones(3, dtype=torch.bool), 0.1)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_scores_along_many_directions_equal_those_of_each(chunk, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_NUMBERS", chunk)
    widths, generator = (3, 5, 2), torch.Generator().manual_seed(0)
    features, directions = (torch.randn(n, 10, generator=generator) for n in (14, 6))
    features[2, :3] = 0
    directions[1, 3:8] = 0  # a module without a say
    directions = unit_modules(directions, widths)
    found = scores_along(features, directions, widths, AGGREGATIONS)
    for name in AGGREGATIONS:
        expected = torch.stack([row_scores(features, v, widths, name) for v in directions], 1)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)


def test_a_score_that_is_not_finite_is_an_error():
    features = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match="expected finite numbers"):
        scores_along(features, torch.eye(2), (2,), ("dot",))
