"""Objectives: what the clipping range of a group minimises.

An objective is a frozen value; calling it with a :class:`Sample` and a :class:`Grid` gives the lowest and
highest real number of each group.  Searches are vectorised over groups and candidates, in chunks, so that
memory stays within a bound whatever the sample.  What is in bins has running sums, with which the cost of a
candidate is a sum over codes and not over values; the bin of an edge is computed, not searched for.
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
from explorer.formats import Grid, LevelFormat, QParams, entry_named, fake_quantize_

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
_MOST_POINTS = 1 << 16
# With fewer bins for each code it is faster to go through them than through the edges between codes.
_POINTS_A_CODE = 8
# The divergence of a few values is taken between histograms of so many bins.
_FEWEST_BINS = 128
# Elements of a group of which one extreme stands for all in a bound on what is clipped.
_BLOCK = 16


def _widest(sample: Sample) -> float:
    """How far the group that reaches furthest lies from zero."""
    return float(torch.maximum(sample.maximum, -sample.minimum).clamp(min=0).max())


@dataclass(frozen=True)
class Search(Objective):
    """An objective with a cost: the range of least cost among candidates that shrink the full one.

    First both ends shrink together through ``count`` evenly spaced shares of the full range; then, where
    the range has two free ends, each end moves by itself; last, the neighbourhood of the best is searched
    more finely, each end by itself and both together.  The full range is the first candidate and wins ties.
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
        if grid.widest is None:
            grid = replace(grid, widest=_widest(sample))
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
                before = shares
                moved = (shares[0][:, None] + coarse).clamp(0.01, 1)
                attempt(moved, shares[1][:, None].expand_as(moved))
                moved = (shares[1][:, None] + coarse).clamp(0.01, 1)
                attempt(shares[0][:, None].expand_as(moved), moved)
                if all(torch.equal(old, new) for old, new in zip(before, shares, strict=True)):
                    break
        fine = torch.arange(-9, 10) / (10 * self.count)
        if two_sided:
            moved = (shares[0][:, None] + fine).clamp(1e-3, 1)
            attempt(moved, shares[1][:, None].expand_as(moved))
            moved = (shares[1][:, None] + fine).clamp(1e-3, 1)
            attempt(shares[0][:, None].expand_as(moved), moved)
        moved = (shares[0][:, None] + fine).clamp(1e-3, 1)
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
class Spread:
    """Bins of even width, with their values spread evenly over each, and running sums of them.

    Exact zeros are left out: every range has zero among its levels.  Sums are in units of the bins.

    Args:
        width: of the bins, float64 ``(groups, 1)``.
        first: the left end of the first bin, in bins.
        mass: of each bin, and 0 behind the last, float64 ``(groups, bins + 1)``.
        below: the mass below the left end of each.
        hinge: the sum of the distances from the left end of each to the values below it.
        value: the sum of all values, ``(groups, 1)``.
        square: the sum of their squares.
    """

    width: Tensor
    first: int
    mass: Tensor
    below: Tensor
    hinge: Tensor
    value: Tensor
    square: Tensor

    @classmethod
    def of(cls, sample: Sample) -> Spread:
        """The bins of a sample that consists of them."""
        assert sample.bins is not None and sample.weights is not None
        counts = sample.weights[:, :-1].double()
        first, points = sample.bins.first, counts.shape[1]
        mass = torch.nn.functional.pad(counts, (0, 1))
        below = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
        # From one end to the next all that is below comes nearer by a bin, and the bin's own by half of one.
        hinge = torch.nn.functional.pad((below[:, :-1] + counts / 2).cumsum(1), (1, 0))
        middle = torch.arange(points, dtype=torch.float64) + (first + 0.5)
        moments = counts @ torch.stack([middle, middle**2 + 1 / 12], 1)
        width = sample.bins.width[:, None]
        return cls(width, first, mass, below, hinge, moments[:, :1], moments[:, 1:])

    @property
    def points(self) -> int:
        """How many bins a group has."""
        return self.mass.shape[1] - 1

    @property
    def total(self) -> Tensor:
        """The mass of each group, ``(groups, 1)``."""
        return self.below[:, -1:]

    def _place(self, edge: Tensor) -> tuple[Tensor, Tensor]:
        """The bin in which each edge ``(groups, edges)``, in bins, lies, and how far inside; ``edge`` is used up."""
        place = edge.sub_(self.first).clamp_(min=0)
        index = place.long().clamp_(max=self.points)
        return index, place.sub_(index)

    def mass_below(self, edge: Tensor) -> Tensor:
        """The mass below each edge ``(groups, edges)``, given in bins; ``edge`` is used up."""
        index, inside = self._place(edge)
        return self.below.gather(1, index).addcmul_(self.mass.gather(1, index), inside)

    def hinges(self, edge: Tensor) -> Tensor:
        """The sum of the distances from each edge ``(groups, edges)`` to the values below it; as above."""
        index, inside = self._place(edge)
        slope = self.below.gather(1, index).addcmul_(self.mass.gather(1, index), inside, value=0.5)
        return self.hinge.gather(1, index).addcmul_(slope, inside)

    def squared_error(self, params: QParams) -> Tensor:
        """The sum of squared errors of each candidate, ``(groups, candidates)``.

        Between neighbouring codes the squared error changes by ``2 * scale * (edge - value)``; summed over
        the edges below a value, that takes the error of the highest code to its own.
        """
        code = torch.arange(params.qmin + 0.5, params.qmax, dtype=torch.float64)
        scale = params.scale / self.width
        edge = (code - params.zero_point[..., None]).mul_(scale[..., None])
        top = (params.qmax - params.zero_point) * scale
        hinges = self.hinges(edge.view(len(edge), -1)).view(edge.shape).sum(2)
        error = self.square + top * (top * self.total - 2 * self.value) - 2 * scale * hinges
        return error.clamp_(min=0).mul_(self.width**2)


@dataclass(frozen=True, eq=False)
class Counted:
    """Bins that reach from ``-absmax`` to ``absmax``, with running sums.

    Args:
        absmax: float32 ``(groups,)``.
        counts: float64 ``(groups, bins)``.
        sums: of counts, of bins that are not empty, and of ``count * log(count)``; each ``(groups, bins + 1)``.
    """

    absmax: Tensor
    counts: Tensor
    sums: tuple[Tensor, ...]

    @classmethod
    def of(cls, counts: Tensor, absmax: Tensor) -> Counted:
        """The running sums of some counts."""
        parts = counts, (counts > 0).double(), torch.xlogy(counts, counts)
        return cls(absmax, counts, tuple(torch.nn.functional.pad(part.cumsum(1), (1, 0)) for part in parts))

    @property
    def points(self) -> int:
        """How many bins a group has."""
        return self.counts.shape[1]


Prepared = Plain | Spread | Counted


def _edges(params: QParams) -> Tensor:
    """Between which real numbers each code lies, ``(groups, candidates, codes + 1)``; ties fall either way."""
    if params.levels is not None:
        return params.levels.edges * params.scale[..., None]
    code = torch.arange(params.qmin, params.qmax + 2)
    return (code - params.zero_point[..., None] - 0.5) * params.scale[..., None]


def _outermost(params: QParams) -> Tensor:
    """The first and the last of :func:`_edges`, ``(groups, candidates, 2)``."""
    if params.levels is not None:
        return _edges(params)[..., [0, -1]]
    ends = torch.tensor([params.qmin, params.qmax + 1])
    return (ends - params.zero_point[..., None] - 0.5) * params.scale[..., None]


@dataclass(frozen=True)
class MSE(Search):
    """The mean squared difference between values and quantized values (as a sum over the group)."""

    @property
    def name(self) -> str:
        return "mse"

    def prepare(self, sample: Sample, grid: Grid) -> Prepared:
        if sample.values.shape[1] > _MOST_POINTS:
            sample = sample.binned(max(1 << 14, 16 << grid.format.bits))
        lowest, highest = grid.codes
        few = sample.values.shape[1] < _POINTS_A_CODE * (highest - lowest)
        # Running sums know of even steps only.
        plain = sample.bins is None or few or isinstance(grid.format, LevelFormat)
        return Plain.of(sample) if plain else Spread.of(sample)

    def size(self, sample: Sample) -> int:
        return 4 * sample.values.shape[1]

    def width(self, edges: int, points: int) -> int:
        return edges

    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        if isinstance(sample, Plain):
            return self._direct(sample, params)
        assert isinstance(sample, Spread)
        return sample.squared_error(params)

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


@dataclass(frozen=True)
class KL(Search):
    """The Kullback-Leibler divergence from the values' histogram to the quantized values' one.

    The reference gets what is clipped added to its outermost bins; the candidate spreads the mass of each
    code evenly over those of its bins that are not empty.  With as many codes as bins the divergence sees
    no rounding, only what is clipped.  A group of few values has a coarser histogram: finer bins would hold
    one value or none.  A range keeps at least three bins, and of a coarser histogram as many times more:
    one of two would have everything in its outermost bins, reference and candidate alike, and look perfect.
    Source: Migacz, "8-bit inference with TensorRT" (GTC 2017).
    """

    bins: int = 2048

    @property
    def name(self) -> str:
        return "kl"

    def resolution(self, points: int) -> int:
        """How many bins the histogram of a group of ``points`` values has: about four for each value."""
        return min(self.bins, max(_FEWEST_BINS, 1 << (4 * points - 1).bit_length()))

    def least(self, bins: int) -> int:
        """How many of ``bins`` bins a range must keep: the wider they are, the more."""
        return 3 * self.bins // bins

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        if sample.bins is not None or sample.weights is None:
            return super().__call__(sample, grid)
        # Padding gives a short block no finer histogram than it has by itself.
        points = (sample.weights > 0).sum(1)
        finest = torch.tensor([self.resolution(n) for n in range(sample.values.shape[1] + 1)])[points]
        if grid.widest is None:
            grid = replace(grid, widest=_widest(sample))
        low, high = torch.empty_like(sample.minimum), torch.empty_like(sample.maximum)
        for bins in finest.unique():
            rows = finest == bins
            low[rows], high[rows] = super().__call__(sample.part(rows), grid)
        return low, high

    def prepare(self, sample: Sample, grid: Grid) -> Counted:
        bins = self._bins(sample)
        absmax = torch.maximum(-sample.minimum, sample.maximum).clamp(min=torch.finfo(torch.float32).tiny)
        if sample.bins is not None:
            return Counted.of(self._recounted(sample, absmax, bins), absmax)
        index = ((sample.values / absmax[:, None] + 1) * (bins / 2)).long().clamp_(0, bins - 1)
        counts = torch.zeros(sample.groups, bins, dtype=torch.float64)
        weights = torch.ones_like(sample.values) if sample.weights is None else sample.weights
        return Counted.of(counts.scatter_add_(1, index, weights.double()), absmax)

    @staticmethod
    def _recounted(sample: Sample, absmax: Tensor, bins: int) -> Tensor:
        """Counts in other bins; whole ones moved over would leave some too full and some too empty."""
        assert sample.weights is not None
        spread = Spread.of(sample)
        ends = (torch.arange(1, bins, dtype=torch.float64) * (2 / bins) - 1) * absmax[:, None]
        inner = spread.mass_below(ends / spread.width)
        below = torch.cat([torch.zeros_like(spread.total), inner, spread.total], 1)
        counts = below.diff(dim=1).clamp_(min=0)
        counts[:, bins // 2] += sample.weights[:, -1]
        return counts

    def _bins(self, sample: Sample) -> int:
        """How many bins the histograms of a sample have."""
        points = sample.values.shape[1]
        if sample.bins is not None:
            return self.bins
        return self.resolution(points if sample.weights is None else int((sample.weights > 0).sum(1).max()))

    def size(self, sample: Sample) -> int:
        return 4 * max(self._bins(sample), sample.values.shape[1])

    def width(self, edges: int, points: int) -> int:
        # With more codes than bins the outermost edges are all that counts, with some numbers about each.
        return edges if edges <= points else min(points, 32)

    def _edges(self, params: QParams, bins: int) -> Tensor:
        """As :func:`_edges`; of more codes than bins those near zero, beyond which wide steps leave the histogram."""
        if params.qmax - params.qmin < bins or params.levels is not None:
            return _edges(params)
        zero = params.zero_point[..., None]
        code = torch.arange(-bins // 2 - 1, bins // 2 + 3)
        code = torch.maximum(torch.minimum(code, params.qmax + 1 - zero), params.qmin - zero)
        code[..., :1], code[..., -1:] = params.qmin - zero, params.qmax + 1 - zero
        return (code - 0.5) * params.scale[..., None]

    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        assert isinstance(sample, Counted)
        groups, bins = sample.counts.shape
        # Where no step is wider than a bin, each code holds one bin at most and only the outermost edges count.
        fine = (params.scale * bins <= 2 * sample.absmax[:, None])[..., None]
        if params.levels is not None:
            fine = torch.zeros_like(fine)
        edge = _outermost(params) if bool(fine.all()) else self._edges(params, bins)
        edge = edge / sample.absmax[:, None, None]
        # The first bin whose middle is not below the edge.
        edge = ((edge + 1) * (bins / 2) - 0.5).ceil_().clamp_(0, bins).long()

        def at(table: Tensor, place: Tensor) -> Tensor:
            return table.gather(1, place.reshape(groups, -1)).reshape(place.shape)

        ends = edge[..., [0, -1]]
        mass, entropy = at(sample.sums[0], ends), at(sample.sums[2], ends)
        total = sample.sums[0][:, -1, None, None]
        below, above = mass[..., :1], total - mass[..., -1:]
        inside = (mass[..., -1:] - mass[..., :1]).clamp(min=1e-30)
        reference = entropy[..., -1:] - entropy[..., :1]
        cross = reference - torch.xlogy(inside, inside)
        candidate = None
        if not bool(fine.all()):
            level, filled = (at(part, edge).diff(dim=2) for part in sample.sums[:2])
            candidate = level / filled.clamp_(min=1) / inside
            cross = torch.where(
                fine, cross, torch.xlogy(level, candidate.clamp(min=1e-300)).sum(2, keepdim=True)
            )
        for clipped, place in ((below, edge[..., :1]), (above, edge[..., -1:] - 1)):
            own_count = at(sample.counts, place.clamp(0, bins - 1))
            joined = own_count + clipped
            reference = reference + torch.xlogy(joined, joined) - torch.xlogy(own_count, own_count)
            held = own_count / inside
            if candidate is not None:
                own = torch.searchsorted(edge, place.contiguous(), right=True).sub_(1)
                spread = candidate.gather(2, own.clamp_(0, candidate.shape[2] - 1))
                held = torch.where(fine, held, spread)
            # An outermost bin that held nothing before has candidate mass 0; a floor keeps the divergence finite.
            share = torch.where(own_count > 0, held, 0.0).clamp(min=1e-6)
            cross = cross + torch.xlogy(clipped, share)
        cost = (reference - cross) / total - total.log()
        return torch.where(ends[..., -1:] - ends[..., :1] < self.least(bins), torch.inf, cost)[..., 0]


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
