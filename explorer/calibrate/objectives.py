"""Objectives: what the clipping range of a group minimises.

An objective is a frozen value; calling it with a :class:`Sample` and a :class:`Grid` gives the lowest and
highest real number of each group.  Searches are vectorised over groups and candidates, in chunks, so that
memory stays at a small multiple of the sample: with running sums over sorted values the cost of a candidate
is a sum over codes and not over values.
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


# How many numbers a step of a search may hold at a time: 32 MiB of float64.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Search(Objective):
    """An objective with a cost: the range of least cost among candidates that shrink the full one.

    First both ends shrink together through ``count`` evenly spaced shares of the full range; then, where
    the range has two free ends, each end moves by itself; last, the neighbourhood of the best is searched
    more finely.  The full range is the first candidate and wins ties.
    """

    count: int = 100

    @abstractmethod
    def prepare(self, sample: Sample, grid: Grid) -> Cumulated:
        """The sample in the form in which costs are computed."""

    @abstractmethod
    def width(self, edges: int, points: int) -> int:
        """How many numbers one candidate of one group takes, for ``edges`` of codes and ``points`` of the sample."""

    @abstractmethod
    def cost(self, sample: Cumulated, params: QParams) -> Tensor:
        """The cost of candidates, float64 ``(groups, candidates)``; so are the parameters' scales."""

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        full = sample.minimum.clamp(max=0.0)[:, None], sample.maximum.clamp(min=0.0)[:, None]
        prepared = self.prepare(sample, grid)
        lowest, highest = grid.codes
        step = max(1, _CHUNK // (sample.groups * self.width(highest - lowest + 2, prepared.values.shape[1])))
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

    @staticmethod
    def of(values: Tensor, weights: Tensor, parts: tuple[Tensor, ...], scale: Tensor) -> Cumulated:
        sums = tuple(torch.nn.functional.pad(part.cumsum(1), (1, 0)) for part in parts)
        return Cumulated(values, weights, sums, scale)


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

    def prepare(self, sample: Sample, grid: Grid) -> Cumulated:
        # A group of more than a million is binned; means of bins keep the error far below a thousandth.
        sample = (
            sample.binned(max(1 << 16, 16 << grid.format.bits))
            if sample.values.shape[1] > 1 << 20
            else sample
        )
        # By token the groups are columns; searches want each group in one piece.
        values, order = sample.values.contiguous().sort(1)
        weights = torch.ones_like(values) if sample.weights is None else sample.weights.gather(1, order)
        weights, exact = weights.double(), values.double()
        return Cumulated.of(values, weights, (weights, weights * exact, weights * exact**2), sample.maximum)

    def width(self, edges: int, points: int) -> int:
        return min(edges, points)

    def cost(self, sample: Cumulated, params: QParams) -> Tensor:
        groups, points = sample.values.shape
        if params.qmax - params.qmin + 1 >= points:
            values = sample.values[:, None].expand(-1, params.scale.shape[1], -1)
            error = fake_quantize_(values, params.scale[..., None], params.zero_point[..., None], params)
            return (error.sub_(values).double().square_() * sample.weights[:, None]).sum(2)
        edge = torch.searchsorted(sample.values, _edges(params).reshape(groups, -1))
        edge = edge.reshape(groups, -1, params.qmax - params.qmin + 2)
        edge[..., 0], edge[..., -1] = 0, points
        count, first, second = (
            part.gather(1, edge.reshape(groups, -1)).reshape(edge.shape).diff(dim=2) for part in sample.sums
        )
        code = torch.arange(params.qmin, params.qmax + 1)
        level = ((code - params.zero_point[..., None]) * params.scale[..., None]).double()
        return (second - 2 * level * first + level**2 * count).sum(2).clamp(min=0)


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

    def cost(self, sample: Cumulated, params: QParams) -> Tensor:
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
