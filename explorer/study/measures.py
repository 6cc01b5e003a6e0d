"""Measures: ways to say how much a network's results have suffered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from explorer.study.evaluate import Scores, output_sqnr
from explorer.study.metrics import Interval, mean_interval, paired, ratio_db_interval, skewed_interval

Estimate = tuple[float, Interval]


@dataclass(frozen=True)
class Measure:
    """The mean of one number for each image.

    Args:
        help: what it is, with its unit.
        each: that number, from the scores of all images, float64 ``(images,)``.
        labels: whether it needs to know what is right.
        worse: +1 where a larger value is worse, -1 where it is better.
        interval: of the mean, from the numbers.
        unreadable: its value where class scores are infinite or NaN.
    """

    help: str
    each: Callable[[Scores], np.ndarray]
    labels: bool = False
    worse: int = 1
    interval: Callable[[np.ndarray], Interval] = mean_interval
    unreadable: float = math.inf

    def estimate(self, scores: Scores) -> Estimate:
        """The value and its 95% interval."""
        return self.weighted(scores, np.ones(len(scores.kl)))

    def weighted(self, scores: Scores, weights: np.ndarray) -> Estimate:
        """The same from a sample in which image i stands for ``weights[i]`` images."""
        each = self.each(scores) * weights
        return float(each.mean()), self.interval(each)

    def difference(self, one: Scores, other: Scores) -> Estimate:
        """The value of ``one`` minus the value of ``other`` on the same images, and its 95% interval."""
        each = self.each(one) - self.each(other)
        return float(each.mean()), mean_interval(each)

    def total(self, values: np.ndarray) -> float:
        """What the whole would suffer if its parts did not influence each other."""
        return float(values.sum())


@dataclass(frozen=True)
class Drop(Measure):
    """The drop of a share, whose interval is that of paired proportions."""

    def estimate(self, scores: Scores) -> Estimate:
        low, high = paired(scores.won, scores.lost, len(scores.right))
        return float(self.each(scores).mean()), (-high, -low)

    def difference(self, one: Scores, other: Scores) -> Estimate:
        gained = int(((one.right == 1) & (other.right == 0)).sum())
        missed = int(((one.right == 0) & (other.right == 1)).sum())
        low, high = paired(gained, missed, len(one.right))
        return float((other.right - one.right).mean()), (-high, -low)


@dataclass(frozen=True)
class OutputSqnr(Measure):
    """A ratio of energies in decibels: of sums over images, not a mean over them."""

    def weighted(self, scores: Scores, weights: np.ndarray) -> Estimate:
        signal, noise = scores.signal * weights, scores.noise * weights
        return energy_ratio_db(signal, noise)

    def difference(self, one: Scores, other: Scores) -> Estimate:
        return output_sqnr(one) - output_sqnr(other), ratio_db_interval(other.noise, one.noise)

    def total(self, values: np.ndarray) -> float:
        return float(-10 * np.log10(np.sum(10.0 ** (-values / 10))))


def energy_ratio_db(signal: np.ndarray, noise: np.ndarray) -> Estimate:
    """The SQNR of a sample from each image's energies, dB, and its 95% interval."""
    with np.errstate(divide="ignore"):
        value = float(10 * np.log10(np.divide(signal.sum(), noise.sum()))) if signal.sum() else np.nan
    return value, ratio_db_interval(signal, noise)


MEASURES: dict[str, Measure] = {
    "kl": Measure(
        "mean divergence of the class distribution from the float network's, nats",
        lambda s: s.kl,
        interval=skewed_interval,
    ),
    "loss": Measure(
        "mean cross-entropy minus the float network's, nats", lambda s: s.loss - s.loss_float, labels=True
    ),
    "top1": Drop(
        "drop of the share of images classified rightly (without labels: as the float network does)",
        lambda s: s.right_float - s.right,
        unreadable=math.nan,
    ),
    "sqnr": OutputSqnr(
        "signal to quantization noise of the network's result, dB (more is better)",
        lambda s: s.noise,
        worse=-1,
        unreadable=-math.inf,
    ),
}
