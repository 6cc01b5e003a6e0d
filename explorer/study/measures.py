"""Measures: ways to say how much a network's results have suffered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from explorer.errors import SchemeError
from explorer.study.evaluate import Scores, output_sqnr, score_change
from explorer.study.metrics import Interval, mean_interval, ratio_db_interval, skewed_interval
from explorer.study.scoring import Metric

Estimate = tuple[float, Interval]


@dataclass(frozen=True)
class Measure:
    """The mean of one number for each image.

    Args:
        help: what it is, with its unit.
        each: that number, from the scores of all images, float64 ``(images,)``.
        labels: whether it needs to know what is right.
        classes: whether results must be scores of classes.
        worse: +1 where a larger value is worse, -1 where it is better.
        interval: of the mean, from the numbers.
        unreadable: its value where results are infinite or NaN.
    """

    help: str
    each: Callable[[Scores], np.ndarray]
    labels: bool = False
    classes: bool = False
    worse: int = 1
    interval: Callable[[np.ndarray], Interval] = mean_interval
    unreadable: float = math.inf

    def estimate(self, scores: Scores) -> Estimate:
        """The value and its 95% interval."""
        return self.weighted(scores, np.ones(len(scores)))

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
    """The drop of the mean score, whose interval is paired (of shares that of paired proportions)."""

    def estimate(self, scores: Scores) -> Estimate:
        low, high = score_change(scores.score, scores.score_float)[1]
        return float(self.each(scores).mean()), (-high, -low)

    def difference(self, one: Scores, other: Scores) -> Estimate:
        low, high = score_change(one.score, other.score)[1]
        return float((other.score - one.score).mean()), (-high, -low)


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


@dataclass(frozen=True)
class OutputError(Measure):
    """A ratio of energies: of sums over images, not a mean over them; 1 over the SQNR."""

    def weighted(self, scores: Scores, weights: np.ndarray) -> Estimate:
        value, (low, high) = energy_ratio_db(scores.signal * weights, scores.noise * weights)
        return _linear(value), (_linear(high), _linear(low))

    def difference(self, one: Scores, other: Scores) -> Estimate:
        # Both are shares of one signal, which the same images have.
        signal = float(one.signal.mean()) or math.nan
        each = (one.noise - other.noise) / signal
        return float(each.mean()), mean_interval(each)


def _linear(decibels: float) -> float:
    """Noise as a share of the signal.

    >>> _linear(20.0), _linear(math.inf)
    (0.01, 0.0)
    """
    return math.inf if decibels == -math.inf else float(10 ** (-decibels / 10))


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
        classes=True,
    ),
    "loss": Measure(
        "mean cross-entropy minus the float network's, nats",
        lambda s: s.loss - s.loss_float,
        labels=True,
        classes=True,
    ),
    "top1": Drop(
        "drop of the share of images classified rightly (without labels: as the float network does)",
        lambda s: s.score_float - s.score,
        unreadable=math.nan,
        classes=True,
    ),
    "sqnr": OutputSqnr(
        "signal to quantization noise of the network's result, dB (more is better)",
        lambda s: s.noise,
        worse=-1,
        unreadable=-math.inf,
    ),
    "error": OutputError(
        "squared error of the network's result as a share of its signal: 1 over the SQNR", lambda s: s.noise
    ),
    "score": Drop(
        "drop of the mean score that the metric gives", lambda s: s.score_float - s.score, unreadable=math.nan
    ),
}


def why_not(name: str, metric: Metric) -> str:
    """Why a measure cannot be taken of a network with this metric, with what can; nothing where it can."""
    if name == "top1" and not metric.is_top1:
        return f"The measure 'top1' is of the metric top1 and this network is measured by {metric.name!r}; use score."
    if MEASURES[name].classes and not metric.classes:
        return (
            f"The measure {name!r} needs scores of classes, which {metric.name!r} does not take the network's results "
            "for; use error or sqnr (of the network's result), or score (of the metric)."
        )
    return ""


def check_measure(name: str, metric: Metric) -> None:
    """Refuse a measure that cannot be taken of a network with this metric.

    Raises:
        SchemeError: with what can be.
    """
    reason = why_not(name, metric)
    if reason:
        raise SchemeError(reason)


def measures_for(metric: Metric) -> list[str]:
    """The measures that are offered for a metric; score is left out where it says what top1 does.

    >>> from explorer.study.scoring import METRICS
    >>> measures_for(METRICS["top1"]), measures_for(METRICS["cosine"])
    (['kl', 'loss', 'top1', 'sqnr'], ['error', 'sqnr', 'score'])
    """
    if metric.is_top1:
        return ["kl", "loss", "top1", "sqnr"]
    return [name for name in ("kl", "loss", "error", "sqnr", "score") if not why_not(name, metric)]


def harm(metric: Metric) -> str:
    """The measure that says how far a network is from float, for want of another: ``kl``, or ``error``."""
    return "kl" if metric.classes else "error"
