"""Measures of difference, and how sure one may be of them.

Errors are kept as sums, which add up over batches; every measure in use in the field is read off them.
Intervals are for the population that the images were drawn from, at 95% unless said otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

Interval = tuple[float, float]
CONFIDENCE = 0.95


def _z(confidence: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2))


def _energy(x: Tensor) -> float:
    """The sum of squares, accumulated in float64 without a copy in that type."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64)) ** 2


@dataclass(frozen=True)
class ErrorSums:
    """Sums over the elements of a signal x and its quantized version y; ``a + b`` joins two sets.

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
        error = x.detach() - y.detach()
        signal, noise, image = _energy(x), _energy(error), _energy(y)
        # (x - y)^2 = x^2 + y^2 - 2 x y, so the product needs no pass of its own.
        cross = (signal + image - noise) / 2
        return cls(x.numel(), signal, noise, cross, image, float(torch.linalg.vector_norm(error, math.inf)))

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
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf

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
        """The cosine of the angle between the two."""
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


def paired(won: int, lost: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a difference of two proportions on the same examples: ``(won - lost) / count``.

    ``won`` examples went from wrong to right and ``lost`` from right to wrong.  The adjusted Wald interval
    of Bonett and Price (2012), doi:10.3102/1076998611411915.

    >>> tuple(round(x, 4) for x in paired(0, 0, 100))
    (-0.0272, 0.0272)
    """
    if not count:
        return -1.0, 1.0
    up, down = (won + 1) / (count + 2), (lost + 1) / (count + 2)
    half = _z(confidence) * math.sqrt(max(up + down - (up - down) ** 2, 0.0) / (count + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a mean from independent values (Student's t); infinite for fewer than two."""
    count = len(values)
    if count < 2:
        return -math.inf, math.inf
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def ratio_db_interval(signal: np.ndarray, noise: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of ``10 log10(sum signal / sum noise)`` from one pair for each example (delta method)."""
    count = len(signal)
    total_signal, total_noise = float(signal.sum()), float(noise.sum())
    if count < 2 or total_signal <= 0:
        return -math.inf, math.inf
    if total_noise <= 0:
        return math.inf, math.inf
    ratio = total_noise / total_signal
    residual = noise - ratio * signal
    half = _z(confidence) * math.sqrt(float(residual.var(ddof=1)) * count) / total_noise
    centre = -10 * math.log10(ratio)
    spread = 10 / math.log(10) * half
    return centre - spread, centre + spread
