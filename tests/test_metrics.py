"""Intervals against independent calculations and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from explorer.study.metrics import ErrorSums, mean_interval, paired, ratio_db_interval, wilson


@pytest.mark.parametrize("count", [1, 10, 200])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_wilson_solves_its_defining_equation(count, share):
    right = round(share * count)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_paired_interval_holds_nineteen_times_in_twenty():
    """1,000 draws: the share of intervals that hold the truth is within 93% to 97.5%."""
    draw = np.random.default_rng(0)
    won_share, lost_share, count = 0.03, 0.08, 400
    truth = won_share - lost_share
    held = 0
    for _ in range(1000):
        won, lost, _ = draw.multinomial(count, [won_share, lost_share, 1 - won_share - lost_share])
        low, high = paired(int(won), int(lost), count)
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 0.975


def test_paired_is_antisymmetric_and_bounded():
    low, high = paired(3, 9, 50)
    assert paired(9, 3, 50) == pytest.approx((-high, -low))
    assert paired(50, 0, 50)[1] <= 1.0


def test_mean_interval_is_students():
    values = np.random.default_rng(1).normal(size=30)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:1]) == (-math.inf, math.inf)


def test_ratio_interval_holds():
    draw = np.random.default_rng(2)
    truth = -10 * math.log10(0.01 * 2 / 4)
    held = 0
    for _ in range(500):
        signal = draw.gamma(4, 1.0, 300)
        noise = 0.01 * draw.gamma(2, 1.0, 300)
        low, high = ratio_db_interval(signal, noise)
        held += low <= truth <= high
    assert 0.92 <= held / 500 <= 0.98


def test_error_sums_add_up_and_give_the_usual_measures():
    torch.manual_seed(0)
    x, y = torch.randn(7, 5), torch.randn(7, 5)
    whole = ErrorSums.of(x, y)
    parts = ErrorSums.of(x[:3], y[:3]) + ErrorSums.of(x[3:], y[3:])
    for name in ("signal", "noise", "cross", "image", "peak", "count"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))
    error = (x - y).double()
    assert whole.mse == pytest.approx(float(error.square().mean()))
    assert whole.nmse == pytest.approx(10 ** (-whole.sqnr_db / 10))
    assert whole.cosine == pytest.approx(
        float(torch.nn.functional.cosine_similarity(x.double().flatten(), y.double().flatten(), dim=0))
    )
    assert ErrorSums.of(x, x).sqnr_db == math.inf
    assert ErrorSums.of(torch.zeros(2), torch.ones(2)).sqnr_db == -math.inf
