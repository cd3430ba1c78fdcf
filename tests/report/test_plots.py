"""The arithmetic under the plots, by hand."""

import math

import pytest

from vgrout_pl.report import Results
from vgrout_pl.report.metrics import Metrics
from vgrout_pl.report.plots import moving_mean, plot_cells, plot_steps, spread


def test_the_moving_mean_is_centred_and_shorter_at_the_ends():
    assert moving_mean([0.0, 3.0, 6.0, 0.0], 3) == [1.5, 3.0, 3.0, 3.0]


def test_the_moving_mean_leaves_nan_out_unless_nothing_else_is_there():
    means = moving_mean([1.0, math.nan, math.nan, math.nan], 3)
    assert means[:2] == [1.0, 1.0]
    assert all(map(math.isnan, means[2:]))


def test_labels_that_do_not_collide_stay_where_they_are():
    assert spread([0.8, 0.1], gap=0.2, low=0.0, high=1.0) == [0.8, 0.1]


def test_labels_are_pushed_apart_in_order_and_kept_inside():
    assert spread([0.5, 0.5, 0.45], gap=0.1, low=0.0, high=1.0) == pytest.approx([0.55, 0.65, 0.45])
    assert spread([1.0, 1.0, 0.0], gap=0.1, low=0.0, high=1.0) == pytest.approx([0.9, 1.0, 0.0])


def test_a_run_without_hinted_rows_is_drawn_by_all_its_rows(tmp_path):
    steps = range(3)
    hint_free = Metrics({"hack/hinted_rate": dict.fromkeys(steps, math.nan), "hack/rate": dict.fromkeys(steps, 0.5)})
    plain = Metrics({"hack/rate": dict.fromkeys(steps, 0.5)})
    assert plot_steps(hint_free, tmp_path / "a.png")
    assert plot_steps(plain, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_is_drawn_where_there_is_nothing_to_draw(tmp_path):
    assert plot_steps(Metrics({"kl": {0: 1.0}, "hack/rate": {0: math.nan}}), tmp_path / "a.png") is False
    assert plot_cells(Results([]), tmp_path / "b.png") is False
    assert list(tmp_path.iterdir()) == []
