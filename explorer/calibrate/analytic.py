"""Clipping ranges worked out from a distribution that is fitted to the values, with no search over them.

Source: Banner, Nahshan, Hoffer, Soudry, "Post training 4-bit quantization of convolutional networks for
rapid-deployment", 2019, arXiv:1810.05723 (ACIQ).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

from explorer.calibrate.rules import Objective, Range
from explorer.calibrate.sample import Sample
from explorer.formats import Grid, LevelFormat

# How many values the moments are taken of at a time.
_CHUNK = 1 << 18
# A Gaussian is likelier than a Laplace distribution exactly where the root of the mean square is less than
# so many times the mean magnitude: sigma * sqrt(2 pi e) < 2 e b.
_LIKELIER = math.sqrt(2 * math.e / math.pi)


@dataclass(frozen=True)
class Law(ABC):
    """A distribution about zero, in units of its one parameter."""

    @property
    @abstractmethod
    def square(self) -> float:
        """The mean square."""

    @abstractmethod
    def below(self, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability below each edge, and the mean over it: the integrals of ``p(x)`` and of ``x p(x)``."""

    @abstractmethod
    def bound(self, bits: float) -> float:
        """The bound of least expected squared error, for ``2**bits`` even steps from minus to plus the bound."""

    def error(self, levels: np.ndarray) -> float:
        """The expected squared error of taking the nearest of ``levels``, increasing.

        >>> Gaussian().error(np.array([0.0]))
        1.0
        """
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        mass, mean = (np.diff(part) for part in self.below(edges))
        return float(self.square + levels**2 @ mass - 2 * levels @ mean)


@dataclass(frozen=True)
class Gaussian(Law):
    """The normal distribution, in units of its standard deviation."""

    @property
    def square(self) -> float:
        return 1.0

    def below(self, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return special.ndtr(edge), -np.exp(-(edge**2) / 2) / math.sqrt(2 * math.pi)

    def bound(self, bits: float) -> float:
        def slope(bound: float) -> float:
            """Half the derivative of the expected error by the bound (equation 8 of the paper)."""
            clipped = bound * special.erfc(bound / math.sqrt(2))
            return clipped - math.sqrt(2 / math.pi) * math.exp(-(bound**2) / 2) + bound / (3 * 4**bits)

        return float(optimize.brentq(slope, 1e-3, 30))


@dataclass(frozen=True)
class Laplace(Law):
    """The two-sided exponential distribution, in units of its mean magnitude."""

    @property
    def square(self) -> float:
        return 2.0

    def below(self, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        far = np.minimum(np.abs(edge), 700)
        tail = np.exp(-far) / 2
        return np.where(edge < 0, tail, 1 - tail), -(far + 1) * tail

    def bound(self, bits: float) -> float:
        # The derivative -2 exp(-a) + 2 a / (3 * 4**bits) is zero where a exp(a) = 3 * 4**bits.
        return float(special.lambertw(3 * 4.0**bits).real)


@lru_cache(maxsize=256)
def best_bound(law: Law, steps: int | LevelFormat) -> float:
    """The bound of least expected squared error, in units of the law's parameter.

    Args:
        law: what is quantized.
        steps: bits, for ``2**bits`` even steps between the bounds; or levels, the largest of which is the bound.

    >>> round(best_bound(Gaussian(), 4), 3), round(best_bound(Laplace(), 4), 3)
    (2.559, 5.029)
    """
    if not isinstance(steps, LevelFormat):
        return law.bound(steps)
    levels = np.unique(steps.values) / steps.highest
    tried = np.geomspace(0.1, 60, 300)
    best = int(np.argmin([law.error(levels * bound) for bound in tried]))
    ends = tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)]
    return float(optimize.minimize_scalar(lambda bound: law.error(levels * bound), bounds=ends).x)


@dataclass(frozen=True)
class ACIQ(Objective):
    """The least expected squared error for a Gaussian or a Laplace distribution, whichever fits better.

    Each group's distribution has its centre at zero for a symmetric range and at the mean of the values for
    an asymmetric one; its parameter and the choice between the two are those of maximum likelihood.  A group
    that is never negative (or never positive), as behind a ReLU, is one half of a distribution about zero;
    exact zeros stand for its other half and are left out, and where all codes lie on the one side, they count
    as those of one bit more over both.  No range is wider than the values' own.

    Source: arXiv:1810.05723, which takes ``2**bits`` even steps; formats that are lists of levels have their
    own expected error minimised in the same way.
    """

    @property
    def name(self) -> str:
        return "aciq"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        half = (sample.minimum >= 0) | (sample.maximum <= 0)
        centre = torch.zeros_like(sample.minimum, dtype=torch.float64)
        if not grid.symmetric:
            centre = torch.where(half, centre, _moments(sample, centre, half)[0])
        _, magnitude, square = _moments(sample, centre, half)
        root = square.sqrt()
        gaussian, laplace = (_bounds(law, grid, half) for law in (Gaussian(), Laplace()))
        bound = torch.where(root < _LIKELIER * magnitude, gaussian * root, laplace * magnitude)
        bound = torch.where(bound > 0, bound, torch.inf)
        low = torch.maximum(sample.minimum.double(), centre - bound)
        return low.float(), torch.minimum(sample.maximum.double(), centre + bound).float()


def _bounds(law: Law, grid: Grid, half: Tensor) -> Tensor:
    """The best bound for each group, float64 ``(groups,)``, in units of the law's parameter."""
    if isinstance(grid.format, LevelFormat):
        return torch.full(half.shape, best_bound(law, grid.format), dtype=torch.float64)
    bits = grid.format.bits
    both, one = (torch.tensor(best_bound(law, count), dtype=torch.float64) for count in (bits, bits + 1))
    return torch.where(half & (grid.positive or not grid.symmetric), one, both)


def _moments(sample: Sample, centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, mean magnitude and mean square about ``centre`` (groups,), float64 ``(groups,)`` each.

    Zeros of groups that are one ``half`` (groups,) are left out.
    """
    sums = torch.zeros(4, sample.groups, dtype=torch.float64)
    columns = max(1, _CHUNK // sample.groups)
    for start in range(0, sample.values.shape[1], columns):
        part = sample.values[:, start : start + columns].double()
        weights = torch.ones_like(part)
        if sample.weights is not None:
            weights = sample.weights[:, start : start + columns].double()
        weights = weights * ~(half[:, None] & (part == 0))
        part = part - centre[:, None]
        for place, power in enumerate((torch.ones_like(part), part, part.abs(), part.square())):
            sums[place] += (weights * power).sum(1)
    mean, magnitude, square = sums[1:] / sums[0].clamp(min=torch.finfo(torch.float64).tiny)
    return mean, magnitude, square
