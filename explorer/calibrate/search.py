"""Objectives with a cost: what the clipping range of a group minimises, and the search for the least.

Searches are vectorised over groups and candidates, in chunks, so that memory stays within a bound whatever
the sample.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate.prepared import Counted, Even, Plain, Plan, Prepared, Spread, Stage
from explorer.calibrate.rules import Objective, Range
from explorer.calibrate.sample import FEWEST_SAMPLED, Sample
from explorer.formats import SCALES, Grid, LevelFormat, Parameter, QParams, ScaleRule, spelled

# How many numbers a step of a search may hold at a time: 2 MiB of float32, some ten arrays of that size.
_CHUNK = 1 << 19
# A group of more values than this is binned before it is searched.
_MOST_POINTS = 1 << 16
# With fewer bins for each code it is faster to go through them than through the edges between codes.
_POINTS_A_CODE = 8
# The divergence of a few values is taken between histograms of so many bins.
_FEWEST_BINS = 128
# Powers of a share, then the neighbourhood of the best: of both ends alike, and of all pairs.
_SHARES = Plan((Stage.times(0.9 ** np.arange(40)), Stage.times(1 + 0.0025 * np.arange(-24, 25))))
_PAIRS = Plan(
    tuple(
        Stage.times(np.repeat(f, len(f)), np.tile(f, len(f)))
        for f in (
            0.7 ** np.arange(8),
            *(1 + step * np.arange(-reach, reach + 1) for step, reach in ((0.08, 2), (0.02, 2), (0.005, 4))),
        )
    )
)


@lru_cache(maxsize=64)
def _evenly(rule: ScaleRule, count: int, two_sided: bool) -> Plan:
    """Shares in ``count`` steps, then each end by itself, twice, then tenths of a step about the best."""
    # Of powers of two the next larger one is a share of 2.
    first = Stage.times(rule.shares(count).numpy(), least=0, most=2)
    if first.factors.shape[1] < count:
        return Plan((first,))
    fine, coarse = np.arange(-9, 10) / (10 * count), np.arange(-8, 9) / 20
    each = Stage.plus(coarse, 0, 0.01), Stage.plus(0, coarse, 0.01)
    alone = (*each, *each, Stage.plus(fine, 0), Stage.plus(0, fine)) if two_sided else ()
    return Plan((first, *alone, Stage.plus(fine, fine)))


@dataclass(frozen=True)
class Search(Objective):
    """An objective with a cost: the range of least cost among candidates that shrink the full one.

    First both ends shrink together through ``count`` evenly spaced shares of the full range; then, where
    the range has two free ends, each end moves by itself; last, the neighbourhood of the best is searched
    more finely, each end by itself and both together.  The full range is the first candidate and wins ties.
    The bins of a stream have a smooth cost, for which powers of a share and the neighbourhood of the best do.
    Where only some numbers may be a scale, those around the full range's are tried too, the next larger one among
    them; of powers of two there are so few that each is tried.
    """

    count: int = field(default=100, kw_only=True)
    # Of more than twice as many values of a group of a tensor about so many are looked at.
    looked: ClassVar[int] = FEWEST_SAMPLED

    def condensed(self, sample: Sample, grid: Grid) -> Sample:
        """The sample itself, or bins where a group has very many values."""
        if sample.values.shape[1] <= _MOST_POINTS:
            return sample
        return sample.binned(max(1 << 14, 16 << grid.format.bits), self.looked)

    @abstractmethod
    def prepare(self, sample: Sample, grid: Grid) -> Prepared:
        """The sample in the form in which costs are computed."""

    @abstractmethod
    def size(self, sample: Sample) -> int:
        """How many numbers one prepared group of the sample takes."""

    @abstractmethod
    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        """The cost of candidates, float64 ``(groups, candidates)``; so are the parameters' scales.

        Infinity may stand for the cost of a candidate that is worse than an earlier one of its group.
        """

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        # Some groups after the other: what a search holds does not grow with the tensor.
        grid = grid.spanning(sample.minimum, sample.maximum)
        rows = max(1, _CHUNK // self.size(sample))
        found = [self._search(self.condensed(part, grid), grid) for part in sample.split(rows)]
        if len(found) == 1:
            return found[0]
        low, high = (torch.cat(ends) for ends in zip(*found, strict=True))
        return low, high

    def _search(self, sample: Sample, grid: Grid) -> Range:
        prepared = self.prepare(sample, grid)
        # NumPy makes so few numbers in a third of torch's time.
        full = np.stack([np.minimum(sample.minimum.numpy(), 0), np.maximum(sample.maximum.numpy(), 0)])
        two_sided = not grid.symmetric and bool(((full[0] < 0) & (full[1] > 0)).any())
        rule = grid.scale if grid.symmetric else SCALES["float"]
        if sample.bins is not None and rule.free:
            # So many values have a smooth cost.
            plan = _PAIRS if two_sided else _SHARES
        else:
            plan = _evenly(rule, self.count, two_sided)
        if grid.affine is not None and not isinstance(prepared, Plain):
            shares = prepared.descend(full, grid.affine, plan)
        else:
            shares = self._tried(prepared, grid, full, plan)
        low, high = map(torch.from_numpy, full * shares)
        return low, high

    def _tried(self, prepared: Prepared, grid: Grid, full: np.ndarray, plan: Plan) -> np.ndarray:
        """The shares of the ranges ``full`` that cost least, float32 ``(2, groups)`` both, all groups together."""
        groups, rows = full.shape[1], np.arange(full.shape[1])
        best, shares = np.full(groups, np.inf), np.ones((2, groups), np.float32)
        step = max(1, _CHUNK // groups)
        for stage in plan.stages:
            pairs = stage.about(shares)
            for start in range(0, pairs.shape[2], step):
                tried = pairs[..., start : start + step]
                params = grid.params(*map(torch.from_numpy, full[..., None] * tried))
                cost = self.cost(prepared, params).numpy()
                place = cost.argmin(1)
                cost = cost[rows, place]
                better = cost < best
                best[better] = cost[better]
                shares[:, better] = tried[:, rows, place][:, better]
        return shares


@dataclass(frozen=True)
class PowerSum(Search):
    """A search for the least sum, over a group, of a power of the differences to the quantized values."""

    @property
    @abstractmethod
    def exponent(self) -> float:
        """Which power."""

    def prepare(self, sample: Sample, grid: Grid) -> Prepared:
        lowest, highest = grid.codes
        few = sample.values.shape[1] < _POINTS_A_CODE * (highest - lowest)
        # Loops know of even steps only.
        if isinstance(grid.format, LevelFormat) or self.exponent != 2:
            return Plain.of(sample, grid.format.bits, self.exponent)
        return Even.of(sample, grid.format.bits) if sample.bins is None or few else Spread.of(sample)

    def size(self, sample: Sample) -> int:
        return 4 * sample.values.shape[1]

    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        if isinstance(sample, Plain):
            return self._direct(sample, params)
        assert isinstance(sample, (Even, Spread))
        return sample.squared_error(params)

    @staticmethod
    def _direct(sample: Plain, params: QParams) -> Tensor:
        """Some candidates after the others; not those that clip more than an earlier one errs altogether."""
        scales, zero_points = params.scale.T.contiguous(), params.zero_point.T.contiguous()
        cost = torch.full(scales.shape, torch.inf, dtype=torch.float64)
        best = cost[0]
        lows, highs = (end.T for end in params.clip)
        for start in range(0, len(cost), sample.together):
            part = slice(start, start + sample.together)
            if start and bool((sample.least(lows[part], highs[part]) > 1.001 * best).all()):
                continue
            cost[part] = sample.error(scales[part], zero_points[part], params)
            best = torch.minimum(best, cost[part].amin(0))
        return cost.T


@dataclass(frozen=True)
class MSE(PowerSum):
    """The mean squared difference between values and quantized values."""

    @property
    def name(self) -> str:
        return "mse"

    @property
    def exponent(self) -> float:
        return 2.0


@dataclass(frozen=True)
class SQNR(PowerSum):
    """The largest ratio of signal to quantization noise, ``10 log10(sum x**2 / sum (x - q(x))**2)`` decibels.

    The values of a group are what they are, so the noise alone decides: the range is that of :class:`MSE`.
    """

    @property
    def name(self) -> str:
        return "sqnr"

    @property
    def exponent(self) -> float:
        return 2.0


@dataclass(frozen=True)
class Lp(PowerSum):
    """The mean of a power of the absolute differences between values and quantized values.

    The higher the power, the more a clipped value counts beside a rounded one; 2 is :class:`MSE`.
    Source: Nahshan et al., "Loss aware post-training quantization", 2019, arXiv:1911.07190; 2.4 is the
    usual norm of the clip searches for language models.
    """

    power: float = 2.4
    PARAMETER: ClassVar[Parameter] = Parameter(2.4, above=0, most=6, step=0.1)

    def __post_init__(self) -> None:
        self.PARAMETER.check("A power of the error", self.power)

    @property
    def name(self) -> str:
        return f"lp:{spelled(self.power)}"

    @property
    def exponent(self) -> float:
        return self.power


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
    # What chance does to a bin, a divergence sees and a squared error does not.
    looked: ClassVar[int] = 1 << 20

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
        grid = grid.spanning(sample.minimum, sample.maximum)
        low, high = torch.empty_like(sample.minimum), torch.empty_like(sample.maximum)
        for bins in finest.unique():
            rows = finest == bins
            low[rows], high[rows] = super().__call__(sample.part(rows), grid)
        return low, high

    def prepare(self, sample: Sample, grid: Grid) -> Counted:
        bins = self._bins(sample)
        absmax = torch.maximum(-sample.minimum, sample.maximum).clamp(min=torch.finfo(torch.float32).tiny)
        if sample.bins is not None:
            return Counted.of_bins(sample, absmax, bins, self.least(bins))
        index = (sample.values / absmax[:, None]).add_(1).mul_(bins / 2).to(torch.int32).clamp_(0, bins - 1)
        index += torch.arange(sample.groups, dtype=torch.int32)[:, None] * bins
        weights = None if sample.weights is None else sample.weights.double().reshape(-1)
        counts = torch.bincount(index.reshape(-1), weights, minlength=sample.groups * bins)
        return Counted.of(counts.reshape(-1, bins).double().numpy(), absmax, self.least(bins))

    def _bins(self, sample: Sample) -> int:
        """How many bins the histograms of a sample have."""
        points = sample.values.shape[1]
        if sample.bins is not None:
            return self.bins
        return self.resolution(points if sample.weights is None else int((sample.weights > 0).sum(1).max()))

    def size(self, sample: Sample) -> int:
        return 4 * max(self._bins(sample), sample.values.shape[1])

    def cost(self, sample: Prepared, params: QParams) -> Tensor:
        assert isinstance(sample, Counted)
        return sample.divergence(params)
