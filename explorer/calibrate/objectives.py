"""Objectives: what the clipping range of a group minimises.

An objective is a frozen value; calling it with a :class:`Sample` and a :class:`Grid` gives the lowest and
highest real number of each group.  Searches are vectorised over groups and candidates, in chunks, so that
memory stays within a bound whatever the sample.  What is in bins has running sums, with which the cost of a
candidate is a sum over codes and not over values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from explorer.calibrate.sample import Sample
from explorer.errors import SchemeError
from explorer.formats import Grid, QParams, entry_named, fake_quantize_

Range = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Objective(ABC):
    """A rule that picks the clipping range of each group."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in recipes."""

    @abstractmethod
    def __call__(self, sample: Sample, grid: Grid) -> Range:
        """The lowest and highest real value of each group, float32 ``(groups,)`` each."""


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

    def __post_init__(self) -> None:
        if not (50 < self.percent <= 100 and math.isfinite(self.percent)):
            raise SchemeError(
                f"A percentile lies above 50 and at most at 100, not at {self.percent:g}; "
                "'percentile:99.9' is a usual choice."
            )

    @property
    def name(self) -> str:
        return f"percentile:{self.percent:g}"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        share = self.percent / 100
        if grid.symmetric:
            bound = quantile(sample.values.abs(), sample.weights, share)
            return -bound, bound
        low = quantile(sample.values, sample.weights, 1 - share)
        return low, quantile(sample.values, sample.weights, share)


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


# How many numbers a step of a search may hold at a time: 2 MiB of float32, some ten arrays of that size.
_CHUNK = 1 << 19
# A group of more values than this is binned before it is searched.
_MOST_POINTS = 1 << 20
# With fewer weighted points for each code it is faster to go through them than to find the edges among them.
_POINTS_A_CODE = 8
# Elements of a group of which one extreme stands for all in a bound on what is clipped.
_BLOCK = 16


@dataclass(frozen=True)
class Search(Objective):
    """An objective with a cost: the range of least cost among candidates that shrink the full one.

    First both ends shrink together through ``count`` evenly spaced shares of the full range; then, where
    the range has two free ends, each end moves by itself; last, the neighbourhood of the best is searched
    more finely.  The full range is the first candidate and wins ties.
    """

    count: int = 100

    @abstractmethod
    def prepare(self, sample: Sample, grid: Grid) -> Prepared:
        """The sample in the form in which costs are computed."""

    @abstractmethod
    def size(self, sample: Sample) -> int:
        """How many numbers one prepared group of the sample takes."""

    @abstractmethod
    def width(self, edges: int, points: int) -> int:
        """How many numbers one candidate of one group takes, for ``edges`` of codes and ``points`` of the sample."""

    @abstractmethod
    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        """The cost of candidates, float64 ``(groups, candidates)``; so are the parameters' scales.

        Infinity may stand for the cost of a candidate that is worse than an earlier one of its group.
        """

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        # Some groups after the other: what a search holds does not grow with the tensor.
        width = torch.maximum(sample.maximum.clamp(min=0), -sample.minimum.clamp(max=0)).max()
        grid = replace(grid, widest=float(width))
        rows = max(1, _CHUNK // self.size(sample))
        found = [self._search(part, grid) for part in sample.split(rows)]
        low, high = (torch.cat(ends) for ends in zip(*found, strict=True))
        return low, high

    def _search(self, sample: Sample, grid: Grid) -> Range:
        full = sample.minimum.clamp(max=0.0)[:, None], sample.maximum.clamp(min=0.0)[:, None]
        prepared = self.prepare(sample, grid)
        lowest, highest = grid.codes
        step = max(1, _CHUNK // (sample.groups * self.width(highest - lowest + 2, prepared.points)))
        best = torch.full((sample.groups,), torch.inf, dtype=torch.float64)
        shares = torch.ones(sample.groups), torch.ones(sample.groups)

        def attempt(low_shares: Tensor, high_shares: Tensor) -> None:
            """Try candidates, ``(groups, candidates)`` shares of the full range at each end."""
            nonlocal best, shares
            for low, high in zip(low_shares.split(step, 1), high_shares.split(step, 1), strict=True):
                flat = grid.params((full[0] * low).reshape(-1), (full[1] * high).reshape(-1))
                shape = low.shape
                params = replace(
                    flat, scale=flat.scale.reshape(shape), zero_point=flat.zero_point.reshape(shape)
                )
                cost, place = self.cost(prepared, params).min(1)
                better = cost < best
                best = torch.where(better, cost, best)
                found = (ends.gather(1, place[:, None])[:, 0] for ends in (low, high))
                shares = tuple(torch.where(better, new, old) for new, old in zip(found, shares, strict=True))  # type: ignore[assignment]

        groups = sample.groups
        both = torch.arange(self.count, 0, -1) / self.count
        attempt(both.expand(groups, -1), both.expand(groups, -1))
        two_sided = not grid.symmetric and bool(((full[0] < 0) & (full[1] > 0)).any())
        if two_sided:
            coarse = torch.arange(-8, 9) / 20
            for _ in range(2):
                moved = (shares[0][:, None] + coarse).clamp(0.01, 1)
                attempt(moved, shares[1][:, None].expand_as(moved))
                moved = (shares[1][:, None] + coarse).clamp(0.01, 1)
                attempt(shares[0][:, None].expand_as(moved), moved)
        fine = torch.arange(-9, 10) / (10 * self.count)
        moved = (shares[0][:, None] + fine).clamp(1e-3, 1)
        if two_sided:
            attempt(moved, shares[1][:, None].expand_as(moved))
            moved = (shares[1][:, None] + fine).clamp(1e-3, 1)
            attempt(shares[0][:, None].expand_as(moved), moved)
        else:
            attempt(moved, (shares[1][:, None] + fine).clamp(1e-3, 1))
        return full[0][:, 0] * shares[0], full[1][:, 0] * shares[1]


@dataclass(frozen=True, eq=False)
class Plain:
    """Values as they are, laid out so that neighbours in memory lie along the longer axis.

    Args:
        values: float32 ``(groups, points)``, or ``(points, groups)`` where ``axis`` is 0.
        axis: the axis of the points.
        lows: the least value of each block of points, ``(groups, blocks)``.
        highs: the largest value of each block.
        buffer: where errors are worked out, like ``values``.
        weights: float32 like ``values``, or None where each value counts once.
    """

    values: Tensor
    axis: int
    lows: Tensor
    highs: Tensor
    buffer: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, sample: Sample) -> Plain:
        """The values of a sample as they are."""
        axis = int(sample.values.shape[1] > sample.groups)
        lows, highs = sample.minimum[:, None], sample.maximum[:, None]
        groups, points = sample.values.shape
        if sample.weights is None and points >= 4 * _BLOCK:
            whole = sample.values[:, : points // _BLOCK * _BLOCK].reshape(groups, -1, _BLOCK)
            lows, highs = whole.amin(2), whole.amax(2)

        def laid(matrix: Tensor) -> Tensor:
            return matrix.contiguous() if axis else matrix.T.contiguous()

        values = laid(sample.values)
        weights = None if sample.weights is None else laid(sample.weights)
        return cls(values, axis, lows, highs, torch.empty_like(values), weights)

    @property
    def points(self) -> int:
        """How many values a group has."""
        return self.values.shape[self.axis]

    def least(self, low: Tensor, high: Tensor) -> Tensor:
        """A lower bound on the squared error of clipping to ``low``..``high`` (groups,), float32 ``(groups,)``."""
        above = (self.highs - high[:, None]).clamp_(min=0).square_().sum(1)
        return (low[:, None] - self.lows).clamp_(min=0).square_().sum(1).add_(above)

    def error(self, scale: Tensor, zero_point: Tensor, params: QParams) -> Tensor:
        """The sum of squared errors of each group for one scale and zero point a group, float64 ``(groups,)``."""
        scale, zero_point = scale.unsqueeze(self.axis), zero_point.unsqueeze(self.axis)
        error = (
            fake_quantize_(self.values, scale, zero_point, params, self.buffer).sub_(self.values).square_()
        )
        if self.weights is not None:
            error.mul_(self.weights)
        return error.sum(self.axis).double()


@dataclass(frozen=True, eq=False)
class Cumulated:
    """Values in increasing order with running sums, so that what lies between two edges is a difference.

    Args:
        values: float32 ``(groups, points)``, increasing.
        weights: float64 ``(groups, points)``.
        sums: running sums of some functions of the points, float64 ``(groups, points + 1)`` each.
        scale: float32 ``(groups,)``: for evenly spaced values, half the width of them all; else unused.
    """

    values: Tensor
    weights: Tensor
    sums: tuple[Tensor, ...]
    scale: Tensor

    @property
    def points(self) -> int:
        """How many points a group has."""
        return self.values.shape[1]

    @staticmethod
    def of(values: Tensor, weights: Tensor, parts: tuple[Tensor, ...], scale: Tensor) -> Cumulated:
        sums = tuple(torch.nn.functional.pad(part.cumsum(1), (1, 0)) for part in parts)
        return Cumulated(values, weights, sums, scale)


Prepared = Plain | Cumulated


def _edges(params: QParams) -> Tensor:
    """Between which real numbers each code lies, ``(groups, candidates, codes + 1)``; ties fall either way."""
    code = torch.arange(params.qmin, params.qmax + 2)
    return (code - params.zero_point[..., None] - 0.5) * params.scale[..., None]


@dataclass(frozen=True)
class MSE(Search):
    """The mean squared difference between values and quantized values (as a sum over the group)."""

    @property
    def name(self) -> str:
        return "mse"

    def prepare(self, sample: Sample, grid: Grid) -> Prepared:
        # Means of bins keep the error far below a thousandth.
        if sample.values.shape[1] > _MOST_POINTS:
            sample = sample.binned(max(1 << 16, 16 << grid.format.bits))
        lowest, highest = grid.codes
        if sample.weights is None or sample.values.shape[1] < _POINTS_A_CODE * (highest - lowest):
            return Plain.of(sample)
        values, order = sample.values.contiguous().sort(1)
        weights, exact = sample.weights.gather(1, order).double(), values.double()
        return Cumulated.of(values, weights, (weights, weights * exact, weights * exact**2), sample.maximum)

    def size(self, sample: Sample) -> int:
        return 4 * sample.values.shape[1]

    def width(self, edges: int, points: int) -> int:
        return edges

    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        return self._direct(sample, params) if isinstance(sample, Plain) else self._summed(sample, params)

    @staticmethod
    def _direct(sample: Plain, params: QParams) -> Tensor:
        """One candidate after the other; not those that clip more than an earlier one errs altogether."""
        cost = torch.full(params.scale.shape, torch.inf, dtype=torch.float64)
        best = cost[:, 0]
        lows, highs = params.clip
        for index, (scale, zero_point) in enumerate(
            zip(params.scale.unbind(1), params.zero_point.unbind(1), strict=True)
        ):
            if index and bool((sample.least(lows[:, index], highs[:, index]) > 1.001 * best).all()):
                continue
            cost[:, index] = sample.error(scale, zero_point, params)
            best = torch.minimum(best, cost[:, index])
        return cost

    @staticmethod
    def _summed(sample: Cumulated, params: QParams) -> Tensor:
        """From running sums of the points' count, value and square.

        Between neighbouring codes the squared error changes by ``2 * scale * (edge - value)``; summed over
        the edges below a value, that takes the error of the highest code to its own.
        """
        groups = len(sample.values)
        code = torch.arange(params.qmin + 1, params.qmax + 1)
        # In float32 the edges would lie off the middle by enough to drown the difference of two candidates.
        edge = (code - params.zero_point[..., None] - 0.5) * params.scale[..., None].double()
        place = torch.searchsorted(sample.values, edge.float().reshape(groups, -1))
        count, first = (part.gather(1, place).reshape(edge.shape) for part in sample.sums[:2])
        total, value, square = (part[:, -1:] for part in sample.sums)
        scale = params.scale.double()
        top = (params.qmax - params.zero_point) * scale
        hinges = edge.mul_(count).sub_(first).sum(2)
        return (square - 2 * top * value + top**2 * total - 2 * scale * hinges).clamp(min=0)


@dataclass(frozen=True)
class KL(Search):
    """The Kullback-Leibler divergence from the values' histogram to the quantized values' one.

    The reference gets what is clipped added to its outermost bins; the candidate spreads the mass of each
    code evenly over those of its bins that are not empty.  With as many codes as bins the divergence sees
    no rounding, only what is clipped.  A range keeps at least three bins: one of two would have everything in
    its outermost bins, reference and candidate alike, and look perfect.
    Source: Migacz, "8-bit inference with TensorRT" (GTC 2017).
    """

    bins: int = 2048

    @property
    def name(self) -> str:
        return "kl"

    def prepare(self, sample: Sample, grid: Grid) -> Cumulated:
        absmax = torch.maximum(-sample.minimum, sample.maximum).clamp(min=torch.finfo(torch.float32).tiny)
        index = ((sample.values / absmax[:, None] + 1) * (self.bins / 2)).long().clamp_(0, self.bins - 1)
        counts = torch.zeros(sample.groups, self.bins, dtype=torch.float64)
        weights = torch.ones_like(sample.values) if sample.weights is None else sample.weights
        counts.scatter_add_(1, index, weights.double())
        middle = (torch.arange(self.bins) + 0.5) * (2 / self.bins) - 1
        parts = counts, (counts > 0).double(), torch.xlogy(counts, counts)
        return Cumulated.of(middle * absmax[:, None], counts, parts, absmax)

    def size(self, sample: Sample) -> int:
        return 4 * max(self.bins, sample.values.shape[1])

    def width(self, edges: int, points: int) -> int:
        return min(edges, self.bins + 4)

    def _edges(self, params: QParams) -> Tensor:
        """As :func:`_edges`; of more codes than bins those near zero, beyond which wide steps leave the histogram."""
        if params.qmax - params.qmin < self.bins:
            return _edges(params)
        zero = params.zero_point[..., None]
        code = torch.arange(-self.bins // 2 - 1, self.bins // 2 + 3)
        code = torch.maximum(torch.minimum(code, params.qmax + 1 - zero), params.qmin - zero)
        code[..., :1], code[..., -1:] = params.qmin - zero, params.qmax + 1 - zero
        return (code - 0.5) * params.scale[..., None]

    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        assert isinstance(sample, Cumulated)
        groups = len(sample.values)
        # Where no step is wider than a bin, each code holds one bin at most and only the outermost edges count.
        fine = (params.scale * self.bins <= 2 * sample.scale[:, None])[..., None]
        edge = self._edges(params) / sample.scale[:, None, None]
        # The first bin whose middle is not below the edge.
        edge = ((edge + 1) * (self.bins / 2) - 0.5).ceil_().clamp_(0, self.bins).long()

        def at(table: Tensor, place: Tensor) -> Tensor:
            return table.gather(1, place.reshape(groups, -1)).reshape(place.shape)

        mass, filled, entropy = (at(part, edge) for part in sample.sums)
        total = sample.sums[0][:, -1, None, None]
        below, above = mass[..., :1], total - mass[..., -1:]
        inside = (mass[..., -1:] - mass[..., :1]).clamp(min=1e-30)
        reference = entropy[..., -1:] - entropy[..., :1]
        level, bins = mass.diff(dim=2), filled.diff(dim=2)
        candidate = level / bins.clamp(min=1) / inside
        cross = torch.xlogy(level, candidate.clamp(min=1e-300)).sum(2, keepdim=True)
        cross = torch.where(fine, reference - torch.xlogy(inside, inside), cross)
        for clipped, place in ((below, edge[..., :1]), (above, edge[..., -1:] - 1)):
            own_count = at(sample.weights, place.clamp(0, self.bins - 1))
            joined = own_count + clipped
            reference = reference + torch.xlogy(joined, joined) - torch.xlogy(own_count, own_count)
            # An outermost bin that held nothing before has candidate mass 0; a floor keeps the divergence finite.
            own = torch.searchsorted(edge, place.contiguous(), right=True).sub(1).clamp(0, level.shape[2] - 1)
            held = torch.where(fine, own_count / inside, candidate.gather(2, own))
            share = torch.where(own_count > 0, held, 0.0).clamp(min=1e-6)
            cross = cross + torch.xlogy(clipped, share)
        cost = (reference - cross) / total - total.log()
        return torch.where(edge[..., -1:] - edge[..., :1] < 3, torch.inf, cost)[..., 0]


@dataclass(frozen=True)
class ObjectiveEntry:
    """A line of the table: how to build the objective from the number after the colon, if it has one."""

    help: str
    build: Callable[..., Objective]
    parameter: str = ""


OBJECTIVES: dict[str, ObjectiveEntry] = {
    "minmax": ObjectiveEntry("the full range: nothing is clipped", MinMax),
    "moving_average": ObjectiveEntry("running average of the batches' extremes", MovingAverage),
    "percentile:P": ObjectiveEntry("the central P percent of the values", Percentile, "99.9"),
    "mse": ObjectiveEntry("least mean squared error", MSE),
    "kl": ObjectiveEntry("least Kullback-Leibler divergence (entropy)", KL),
}


def objective(name: str) -> Objective:
    """The objective called ``name``, for example ``mse`` or ``percentile:99.9``.

    Raises:
        SchemeError: for an unknown name or a number that does not fit.

    >>> objective("percentile:99.9")
    Percentile(percent=99.9)
    """
    entry, word, number = entry_named(name, OBJECTIVES, "objective")
    if not entry.parameter:
        return entry.build()
    try:
        return entry.build(float(number))
    except ValueError as error:
        if isinstance(error, SchemeError):
            raise
        raise SchemeError(
            f"The objective {name!r} needs a number after the colon, for example '{word}:{entry.parameter}'."
        ) from None
