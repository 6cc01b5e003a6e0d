"""Intervals against independent calculations and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from explorer.study.metrics import (
    ErrorSums,
    mean_interval,
    paired,
    ratio_db_interval,
    sample_size,
    skewed_interval,
    wilson,
)


@pytest.mark.parametrize("count", [1, 10, 200])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_wilson_solves_its_defining_equation(count, share):
    right = round(share * count)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("won", "lost", "count"), [(3, 9, 50), (0, 4, 200), (12, 11, 1000), (40, 0, 90)])
def test_paired_ends_where_tangos_test_refuses(won, lost, count):
    """The likelihood under each end is maximized by search, without the formula."""
    for end in paired(won, lost, count):

        def against(share, end=end):
            """Minus the log-likelihood when ``share`` are lost and ``share + end`` won."""
            return -special.xlogy(
                [won, lost, count - won - lost], [share + end, share, 1 - 2 * share - end]
            ).sum()

        bounds = (max(0.0, -end), (1 - end) / 2)
        share = optimize.minimize_scalar(against, bounds=bounds, options={"xatol": 1e-12}).x
        deviation = math.sqrt(count * (2 * share + end - end**2))
        assert abs(won - lost - count * end) / deviation == pytest.approx(1.959964, rel=1e-3)


def test_paired_is_antisymmetric_and_bounded():
    low, high = paired(3, 9, 50)
    assert paired(9, 3, 50) == pytest.approx((-high, -low))
    assert paired(50, 0, 50)[1] <= 1.0


def test_mean_interval_is_students():
    values = np.random.default_rng(1).normal(size=30)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:1]) == (-math.inf, math.inf)


def test_skewed_interval_is_hall_s_and_students_without_skewness():
    values = np.random.default_rng(2).lognormal(size=50)
    count, mean, spread = 50, values.mean(), values.std(ddof=1)
    skew = np.mean(((values - mean) / spread) ** 3) * (1 + 6 / math.sqrt(count))

    def transformed(truth):
        t = (mean - truth) / spread
        whole = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / (6 * count)
        return math.sqrt(count) * whole

    low, high = skewed_interval(values)
    quantile = stats.t.ppf(0.975, count - 1)
    assert (transformed(low), transformed(high)) == pytest.approx((quantile, -quantile))
    assert high - mean > mean - low > 0
    even = np.concatenate([values, 2 * values.max() - values])
    assert skewed_interval(even) == pytest.approx(mean_interval(even))


def test_intervals_of_next_to_nothing():
    assert skewed_interval(np.array([3.0])) == (0.0, math.inf)
    assert skewed_interval(np.zeros(9)) == (0.0, 0.0)
    assert skewed_interval(np.eye(1, 200)[0])[0] >= 0
    ones, none = np.ones(9), np.zeros(9)
    assert ratio_db_interval(ones, none) == (math.inf, math.inf)
    assert ratio_db_interval(none, ones) == ratio_db_interval(ones[:1], ones[:1]) == (-math.inf, math.inf)
    assert ratio_db_interval(ones, 0.01 * ones) == pytest.approx((20, 20))
    low, high = ratio_db_interval(np.ones(200), np.eye(1, 200)[0])
    assert low < 10 * math.log10(200) < high


def test_sample_size_is_connors():
    z, power = stats.norm.ppf(0.975), stats.norm.ppf(0.9)
    expected = (z * math.sqrt(0.05) + power * math.sqrt(0.05 - 0.0009)) ** 2 / 0.0009
    assert sample_size(0.03, 0.05, power=0.9) == math.ceil(expected)
    assert sample_size(0.0, 0.05) == math.inf and sample_size(1.0, 0.0) < 10


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
