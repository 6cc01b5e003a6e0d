"""Measures of difference, and how sure one may be of them.

Errors are kept as sums, which add up over batches; every measure in use in the field is read off them.
Intervals are for the population that the images were drawn from, at 95% unless said otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from explorer.compiled import alone
from explorer.study.loops import error_sums

Interval = tuple[float, float]
CONFIDENCE = 0.95
# Halvings of an interval of length 2: what is left is below 1e-9.
_BISECTIONS = 32


def _z(confidence: float) -> float:
    return float(special.ndtri((1 + confidence) / 2))


def _t(count: int, confidence: float) -> float:
    return float(special.stdtrit(count - 1, (1 + confidence) / 2))


def _energy(x: Tensor) -> float:
    """The sum of squares, accumulated in float64 without a copy in that type; infinite with NaN among them."""
    norm = float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))
    return math.inf if math.isnan(norm) else norm**2


@dataclass(frozen=True)
class ErrorSums:
    """Sums over the elements of a signal x and its quantized version y; ``a + b`` joins two sets.

    Where y holds infinity or NaN (``overflow: infinity``) the noise is infinite and the SQNR minus infinity.

    >>> import torch
    >>> round(ErrorSums.of(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])).sqnr_db, 2)
    20.0
    """

    count: int = 0
    signal: float = 0.0  # sum of x^2
    noise: float = 0.0  # sum of (x - y)^2
    cross: float = 0.0  # sum of x y
    image: float = 0.0  # sum of y^2
    peak: float = 0.0  # largest |x - y|

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> ErrorSums:
        """The sums for two tensors of one shape, accumulated in float64."""
        if x.numel() == 0:
            return cls()
        if alone(x, y):
            signal, noise, cross, image, peak = error_sums(
                *(each.detach().numpy().reshape(-1) for each in (x, y))
            )
            if math.isfinite(noise):
                return cls(x.numel(), signal, noise, cross, image, peak)
        error = x.detach() - y.detach()
        signal, noise, image = _energy(x), _energy(error), _energy(y)
        if math.isinf(noise):
            return cls(x.numel(), signal, noise, math.nan, image, math.inf)
        # (x - y)^2 = x^2 + y^2 - 2 x y, so the product needs no pass of its own.
        cross = (signal + image - noise) / 2
        # The extremes take a tenth of the time of a norm.
        low, high = torch.aminmax(error)
        return cls(x.numel(), signal, noise, cross, image, max(-float(low), float(high)))

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            self.count + other.count,
            self.signal + other.signal,
            self.noise + other.noise,
            self.cross + other.cross,
            self.image + other.image,
            max(self.peak, other.peak),
        )

    @property
    def sqnr_db(self) -> float:
        """``10 log10(sum x^2 / sum (x - y)^2)``; infinite where nothing differs."""
        if self.noise == 0:
            return math.inf
        if self.signal == 0 or math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise)

    @property
    def mse(self) -> float:
        """The mean squared error."""
        return self.noise / self.count if self.count else 0.0

    @property
    def nmse(self) -> float:
        """The squared error as a share of the signal (NNCF's NMSE; 1 / linear SQNR)."""
        return self.noise / self.signal if self.signal else (0.0 if self.noise == 0 else math.inf)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two; NaN where there is none to an infinite y."""
        norm = math.sqrt(self.signal * self.image)
        return self.cross / norm if norm else 1.0


def wilson(right: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval of a proportion (Wilson, 1927).

    >>> tuple(round(x, 4) for x in wilson(90, 100))
    (0.8256, 0.9448)
    """
    if not count:
        return 0.0, 1.0
    z2 = _z(confidence) ** 2
    centre = (right + z2 / 2) / (count + z2)
    half = math.sqrt(z2 * (right * (count - right) / count + z2 / 4)) / (count + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _lower_bounds(won: np.ndarray, lost: np.ndarray, count: np.ndarray | int, z: float) -> np.ndarray:
    """The least difference that Tango's score test does not refuse, by bisection."""
    estimate = (won - lost) / count
    low, high = np.full_like(estimate, -1.0), estimate
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # The likeliest share of losses if the difference were ``middle``: the root of a quadratic.
        linear = (2 * count - won + lost) * middle - won - lost
        root = np.sqrt(np.maximum(linear**2 + 8 * count * lost * middle * (1 - middle), 0.0))
        share = (root - linear) / (4 * count)
        variance = count * (2 * share + middle * (1 - middle))
        refused = won - lost - count * middle > z * np.sqrt(np.maximum(variance, 0.0))
        low, high = np.where(refused, middle, low), np.where(refused, high, middle)
    return low


def paired_bounds(
    won: np.ndarray, lost: np.ndarray, count: np.ndarray | int, confidence: float = CONFIDENCE
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`paired` of many counts at once; ``count`` is at least 1.

    >>> low, high = paired_bounds(np.array([0, 3]), np.array([9, 3]), 100)
    >>> low.round(4).tolist(), high.round(4).tolist()
    ([-0.1623, -0.0592], [-0.0481, 0.0592])
    """
    # Winning and losing change places with the sign, so one search finds both ends.
    won, lost = np.asarray(won, dtype=float), np.asarray(lost, dtype=float)
    low, negated = _lower_bounds(np.stack([won, lost]), np.stack([lost, won]), count, _z(confidence))
    return low, -negated


def paired(won: int, lost: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a difference of two proportions on the same examples: ``(won - lost) / count``.

    ``won`` examples went from wrong to right and ``lost`` from right to wrong.  The score interval of Tango
    (1998), doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B.  Where fewer than about
    three flips are to be expected no interval can keep its level exactly; this one then errs on the safe side.

    >>> tuple(round(x, 4) for x in paired(0, 0, 100))
    (-0.037, 0.037)
    """
    if not count:
        return -1.0, 1.0
    low, high = paired_bounds(np.array([won]), np.array([lost]), count, confidence)
    return float(low[0]), float(high[0])


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a mean from independent values of either sign (Student's t).

    Infinite for fewer than two.  For values that are never negative :func:`skewed_interval` is the better.
    """
    count = len(values)
    if count < 2:
        return -math.inf, math.inf
    half = _t(count, confidence) * float(values.std(ddof=1)) / math.sqrt(count)
    mean = float(values.mean())
    return mean - half, mean + half


def skewed_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of values that are never negative and of which few are large.

    Divergences are like that: Student's t misses their mean on the low side.  Hall's (1992) transformation
    of the t statistic removes the skewness, doi:10.1111/j.2517-6161.1992.tb01876.x.  The sample's own
    skewness is too small where tails are heavy, so it is taken ``1 + 6 / sqrt(count)`` times.

    >>> low, high = skewed_interval(np.array([0.0, 0.1, 0.1, 0.2, 0.2, 3.0]))
    >>> round(low, 2), round(high, 2)
    (0.04, 2.61)
    """
    if len(values) < 2:
        return 0.0, math.inf
    low, high = _hall(values, confidence)
    return max(0.0, low), high


def score_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a mean from independent scores, or from differences of scores.

    Of values of one sign skewness is removed, as in :func:`skewed_interval`; of values of both signs Student's t holds
    better (docs/statistics.md has the simulation).  Infinite for fewer than two.

    >>> low, high = score_interval(np.array([-3.0, -0.2, -0.2, -0.1, -0.1, 0.0]))
    >>> round(low, 2), round(high, 2)
    (-2.61, -0.04)
    """
    if len(values) < 2:
        return -math.inf, math.inf
    if values.min() >= 0 or values.max() <= 0:
        return _hall(values, confidence)
    return mean_interval(values, confidence)


def _hall(values: np.ndarray, confidence: float) -> Interval:
    count, mean = len(values), float(values.mean())
    if not math.isfinite(mean):
        return mean, mean
    spread = float(values.std(ddof=1))
    # What is left of equal values after rounding is no spread.
    if spread <= 1e-12 * abs(mean):
        return mean, mean
    normed = (values - mean) / spread
    # A product takes a tenth of the time of a power.
    skew = float((normed * normed * normed).mean()) * (1 + 6 / math.sqrt(count))
    x = _t(count, confidence) / math.sqrt(count)

    def statistic(normal: float) -> float:
        """The t statistic (without its root of ``count``) whose transformed value is ``normal``."""
        if abs(skew) < 1e-6:
            return normal
        return 3 / skew * (float(np.cbrt(1 + skew * (normal - skew / (6 * count)))) - 1)

    return mean - spread * statistic(x), mean - spread * statistic(-x)


def ratio_db_interval(signal: np.ndarray, noise: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of ``10 log10(sum signal / sum noise)`` from one pair for each example.

    The delta method on the ratio: the interval of the mean of ``noise - ratio * signal``, whose skewness is
    removed as in :func:`skewed_interval`.  It does not hold where one example in thousands has most of the
    noise, for no sample tells of an example that is not in it.
    """
    count = len(signal)
    total_signal, total_noise = float(signal.sum()), float(noise.sum())
    if count < 2 or total_signal <= 0:
        return -math.inf, math.inf
    if total_noise <= 0:
        return math.inf, math.inf
    if math.isinf(total_noise):
        return -math.inf, -math.inf
    ratio = total_noise / total_signal
    low, high = _hall(noise - ratio * signal, confidence)
    mean = total_signal / count
    return _decibels(ratio + high / mean), _decibels(ratio + low / mean)


def _decibels(noise_to_signal: float) -> float:
    return -10 * math.log10(noise_to_signal) if noise_to_signal > 0 else math.inf


def sample_size(difference: float, flips: float, power: float = 0.8, confidence: float = CONFIDENCE) -> float:
    """How many examples show a paired difference of proportions with probability ``power``.

    Args:
        difference: of the two proportions.
        flips: the share of examples on which the two disagree, at least ``abs(difference)``.
        power: probability that the interval leaves zero out.
        confidence: of the interval.

    McNemar's test (Connor, 1987, doi:10.2307/2531961); infinite for no difference.

    >>> sample_size(-0.02, 0.04)
    783.0
    """
    if not difference:
        return math.inf
    flips = max(flips, abs(difference))
    alone = _z(confidence) * math.sqrt(flips)
    with_difference = float(special.ndtri(power)) * math.sqrt(flips - difference**2)
    return float(math.ceil(((alone + with_difference) / difference) ** 2))


def mean_sample_size(
    difference: float, spread: float, power: float = 0.8, confidence: float = CONFIDENCE
) -> float:
    """How many examples show a difference of means with probability ``power``.

    Args:
        difference: of the two means on the same examples.
        spread: standard deviation of the examples' differences.
        power: probability that the interval leaves zero out.
        confidence: of the interval.

    By the normal approximation; infinite for no difference.

    >>> mean_sample_size(0.1, 1.0)
    785.0
    """
    if not difference:
        return math.inf
    return float(math.ceil(((_z(confidence) + float(special.ndtri(power))) * spread / difference) ** 2))
