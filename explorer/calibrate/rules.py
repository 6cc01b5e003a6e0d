"""Rules that read a clipping range off a sample: extremes, averages, percentiles, and shares typed in.

An objective is a frozen value; calling it with a :class:`Sample` and a :class:`Grid` gives the lowest and
highest real number of each group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.calibrate.codebook import fit_codebook
from explorer.calibrate.sample import Sample
from explorer.formats import CodebookFormat, Grid, Parameter, QParams, spelled

Range = tuple[Tensor, Tensor]
# What an objective has to know besides the tensor's own values.
ELEMENTS, LAYER, NETWORK = "the tensor", "the layer", "the network"


@dataclass(frozen=True)
class Objective(ABC):
    """A rule that picks the clipping range of each group."""

    needs: ClassVar[str] = ELEMENTS

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in recipes."""

    @abstractmethod
    def __call__(self, sample: Sample, grid: Grid) -> Range:
        """The lowest and highest real value of each group, float32 ``(groups,)`` each."""

    def levels(self, sample: Sample, number: CodebookFormat) -> QParams:
        """The levels of each group of a format that fits them: those of least squared error."""
        return fit_codebook(sample, number)

    def centred(self) -> Objective:
        """This objective for a range that is centred on zero and so has a single bound."""
        return self


@dataclass(frozen=True)
class MinMax(Objective):
    """The smallest and largest value seen: nothing is clipped."""

    @property
    def name(self) -> str:
        return "minmax"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        return sample.minimum, sample.maximum


@dataclass(frozen=True)
class MovingAverage(Objective):
    """An exponential average of each batch's extremes, ``new = old + c * (batch - old)`` with c = 0.01.

    Source: torch.ao.quantization.MovingAverageMinMaxObserver.
    """

    constant: float = 0.01

    @property
    def name(self) -> str:
        return "moving_average"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        low, high = sample.ranges[0]
        for batch_low, batch_high in sample.ranges[1:]:
            low = low + self.constant * (batch_low - low)
            high = high + self.constant * (batch_high - high)
        return low, high


@dataclass(frozen=True)
class Percentile(Objective):
    """The central share of the values.

    A symmetric range ends at the percentile of the magnitudes, an asymmetric one at ``percent`` and at
    ``100 - percent``; linear interpolation between neighbouring values, as in NumPy's default.
    """

    percent: float
    PARAMETER: ClassVar[Parameter] = Parameter(99.9, above=50, most=100, step=0.1)

    def __post_init__(self) -> None:
        self.PARAMETER.check("A percentile", self.percent)

    @property
    def name(self) -> str:
        return f"percentile:{spelled(self.percent)}"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        share = self.percent / 100
        if grid.symmetric:
            bound = quantile(sample.values.abs(), sample.weights, share)
            return -bound, bound
        low = quantile(sample.values, sample.weights, 1 - share)
        return low, quantile(sample.values, sample.weights, share)


@dataclass(frozen=True)
class Clip(Objective):
    """A share of each group's full range, zero being in it: ``low`` of its lowest end, ``high`` of its highest.

    Args:
        low: 1 leaves the end where it is, less clips, more leaves room.
        high: None for the same as ``low``.

    >>> from explorer.formats import FORMATS, granularity
    >>> sample = Sample.of(torch.tensor([[-2.0, 4.0]]), granularity("layer"), 0)
    >>> [end.item() for end in Clip(0.5, 0.75)(sample, Grid(FORMATS["int8"], symmetric=False))]
    [-1.0, 3.0]
    """

    low: float
    high: float | None = None
    PARAMETER: ClassVar[Parameter] = Parameter(0.9, above=0, most=4, step=0.01, count=2)

    def __post_init__(self) -> None:
        # One spelling for one meaning.
        object.__setattr__(self, "high", None if self.high == self.low else self.high)
        self.PARAMETER.check("A share of the full range", *self.shares)

    @property
    def shares(self) -> tuple[float, float]:
        """Of the lowest and of the highest end."""
        return self.low, self.low if self.high is None else self.high

    @property
    def name(self) -> str:
        return ":".join(["clip", *map(spelled, self.shares[: 1 if self.high is None else 2])])

    def centred(self) -> Clip:
        return Clip(max(self.shares))

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        low, high = self.shares
        return -_share(-sample.minimum, low), _share(sample.maximum, high)


def _share(end: Tensor, share: float) -> Tensor:
    """``share`` of the ends above zero: a float32 number, and not zero, which would be no range at all."""
    kind = torch.finfo(torch.float32)
    return torch.where(end > 0, (end * share).clamp(kind.tiny, kind.max), 0.0)


def quantile(values: Tensor, weights: Tensor | None, share: float) -> Tensor:
    """The weighted quantile of each row; for equal weights that of ``numpy.quantile``.

    A point of weight w stands for w equal values.

    >>> quantile(torch.tensor([[3.0, 1.0, 2.0]]), None, 0.25).tolist()
    [1.5]
    """
    ordered, order = values.sort(1)
    rows, points = values.shape
    if weights is None:
        position = torch.full((rows, 1), share * (points - 1), dtype=torch.float64)
        left = position.long().clamp(max=points - 1)
        right = (left + 1).clamp(max=points - 1)
    else:
        ends = (
            weights.double().gather(1, order).cumsum(1)
        )  # values ordered[i] have the ranks up to ends[i] - 1
        position = share * (ends[:, -1:] - 1).clamp(min=0)
        left = torch.searchsorted(ends, position.floor(), right=True).clamp(max=points - 1)
        right = torch.searchsorted(ends, position.floor() + 1, right=True).clamp(max=points - 1)
    lower, upper = ordered.gather(1, left).double(), ordered.gather(1, right).double()
    return (lower + (upper - lower) * (position - position.floor()))[:, 0].float()
