"""Metrics say what happened in one step, not finite numbers excepted."""

import math

import pytest
import torch

from vgrout_pl.metrics import WindowMetrics


def test_means_are_weighted_and_start_anew_each_step():
    metrics = WindowMetrics()
    metrics.update("kl", 1.0, 1)
    metrics.update("kl", torch.tensor(4.0), torch.tensor(2))
    metrics.update("num_tokens", 5)
    metrics.update("num_tokens", 6)
    values = metrics.compute()
    assert values["kl"] == pytest.approx(3.0)
    assert values["num_tokens"] == 11
    assert math.isnan(metrics.compute()["kl"])
    assert metrics.compute()["num_tokens"] == 0


def test_a_nan_is_not_hidden_behind_finite_values():
    metrics = WindowMetrics()
    metrics.update("loss", 0.25)
    metrics.update("loss", float("nan"))
    metrics.update("kl", float("inf"), 3)
    values = metrics.compute()
    assert math.isnan(values["loss"])
    assert values["kl"] == math.inf


def test_weight_zero_adds_nothing():
    metrics = WindowMetrics()
    metrics.update("entropy", float("nan"), 0)
    metrics.update("entropy", 2.0, 1)
    assert metrics.compute()["entropy"] == 2.0
