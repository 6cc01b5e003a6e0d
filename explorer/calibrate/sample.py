"""Samples: weighted values, group by group, from which a clipping range is chosen.

A weight tensor is its own sample.  Activations arrive batch by batch and are kept as a
:class:`GrowingHistogram`, whose range grows by powers of two, so that two of them merge without moving a
count across a bin edge: as long as every value is counted, the result does not depend on how the data were
cut into batches.  Of batches with more than ``MOST_READ`` values a group the extremes are still those of all
values, and the shape between them is that of a systematic sample; ``Sample.share`` says how many were looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from explorer.errors import TensorError
from explorer.formats import Granularity

BINS = 1 << 14
FEWEST_BINS = 1 << 11
# The largest matrix (groups, bins) that a histogram of activations may have.
MOST_COUNTS = 1 << 20
# Below 2**-100 the width of a bin has no float32 reciprocal; such values share the two middle bins.
LEAST_EXPONENT = -100
# Of a group's values in one batch about so many go into the histogram, besides those at its ends.
MOST_READ = 1 << 15
# The extremes of a batch are found block by block, of so many blocks at a time; where the sample has fewer values
# than these beyond a bin, they are all counted.
_BLOCK, _LOOKED = 1 << 7, 1 << 18
_FEW = 6
# Elements that go through the passes of counting at a time: with their copies they fit the cache.
_CACHED = 1 << 17
# Groups whose bins have places below 2**24 are counted together: such numbers are exact in float32.
_MOST_PLACES = 1 << 24


@dataclass(frozen=True, eq=False)
class Bins:
    """That the points of a sample are bins of even width, but for the last, which is zero itself.

    Args:
        width: of the bins of each group, float64 ``(groups,)``.
        first: the left end of the first bin, in bins; so zero lies between the bins ``-first - 1`` and ``-first``.
    """

    width: Tensor
    first: int


@dataclass(frozen=True, eq=False)
class Sample:
    """Weighted values of each group.

    Args:
        values: float32 ``(groups, points)``.
        weights: float32 ``(groups, points)``, or None where each point counts once.
        minimum: float32 ``(groups,)``, exact even where the points are bins.
        maximum: float32 ``(groups,)``.
        ranges: minimum and maximum of each batch in order, float32 ``(batches, 2, groups)``.
        bins: where the points are bins of even width, which.
        share: the share of the values that were looked at for more than the extremes.
    """

    values: Tensor
    weights: Tensor | None
    minimum: Tensor
    maximum: Tensor
    ranges: Tensor
    bins: Bins | None = None
    share: float = 1.0

    @classmethod
    def of(cls, tensor: Tensor, granularity: Granularity, axis: int) -> Sample:
        """The sample of one tensor, seen as a matrix by ``granularity``.

        >>> from explorer.formats import granularity
        >>> Sample.of(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), granularity("channel"), 0).maximum.tolist()
        [1.0, 4.0]
        """
        values, weights = granularity.matrix(tensor.detach().float(), axis)
        low, high = torch.aminmax(values, dim=1)
        return cls(values, weights, low, high, torch.stack([low, high])[None])

    @property
    def groups(self) -> int:
        return self.values.shape[0]

    @property
    def total(self) -> Tensor:
        """The weight of each group, ``(groups,)``."""
        if self.weights is None:
            return torch.full((self.groups,), float(self.values.shape[1]))
        return self.weights.sum(1)

    def split(self, groups: int) -> Iterator[Sample]:
        """The sample in parts of at most ``groups`` groups each."""
        if groups >= self.groups:
            yield self
            return
        for start in range(0, self.groups, groups):
            yield self.part(slice(start, start + groups))

    def part(self, rows: slice | Tensor) -> Sample:
        """The sample of some of the groups, given as a slice or a mask ``(groups,)``."""
        return replace(
            self,
            values=self.values[rows],
            weights=None if self.weights is None else self.weights[rows],
            minimum=self.minimum[rows],
            maximum=self.maximum[rows],
            ranges=self.ranges[..., rows],
            bins=None if self.bins is None else replace(self.bins, width=self.bins.width[rows]),
        )

    def binned(self, bins: int) -> Sample:
        """The same values, each counted, in at most ``bins`` bins a group and a point for zero."""
        if self.values.shape[1] <= bins or self.bins is not None:
            return self
        tally = GrowingHistogram(self.groups, bins)
        tally.count_all(self.values, self.weights)
        return tally.sample()


def _zeros(values: Tensor, weights: Tensor | None) -> Tensor:
    """How many values of each row are zero, float64 ``(rows,)``; NumPy counts truths 8 times as fast as torch."""
    found = np.equal(values.numpy(), 0)
    if weights is not None:
        return torch.from_numpy(found).mul(weights).sum(1, dtype=torch.float64)
    if len(values) > 1:
        return torch.from_numpy(np.count_nonzero(found, axis=1)).double()
    return torch.tensor([float(np.count_nonzero(found))], dtype=torch.float64)


def stride(count: int, wanted: int) -> int:
    """The least step between values of which a sample of ``wanted`` of ``count`` values is taken.

    It has no factor in common with ``count``, so neither with any dimension of the tensor: no row, column or
    channel is favoured.

    >>> stride(64 * 56 * 56, 1 << 14)
    13
    """
    step = -(-count // wanted)
    while math.gcd(step, count) > 1:
        step += 1
    return step


@dataclass(frozen=True, eq=False)
class _Looked:
    """What was looked at of many values, in one pass over them.

    Args:
        row: all of them, float32 ``(elements,)``.
        some: every k-th pair of neighbours.
        lows: the least of each block of ``_BLOCK`` of them, of the last shorter one too.
        highs: the largest of each block.
    """

    row: np.ndarray
    some: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    @classmethod
    def at(cls, values: Tensor, most: int) -> _Looked:
        """Look at some ``most`` of ``values`` ``(elements,)``, and at the extremes of each block."""
        values = values.contiguous()
        row = values.numpy()
        whole = row.size // _BLOCK * _BLOCK
        pairs = row[: row.size // 2 * 2].view(np.complex64)
        step = stride(len(pairs), max(most, row.size >> 6) // 2)
        lows, highs, some = [], [], []
        for start in range(0, row.size, _LOOKED):
            end = start + _LOOKED
            if start < whole:
                blocks = values[start : min(end, whole)].view(-1, _BLOCK)
                lows.append(blocks.amin(1).numpy())
                highs.append(blocks.amax(1).numpy())
            # Taken while it is in the cache; neighbours cost no more than one value.
            first = start // 2
            some.append(pairs[first + -first % step : end // 2 : step].copy())
        if whole < row.size:
            lows.append(row[whole:].min(keepdims=True))
            highs.append(row[whole:].max(keepdims=True))
        taken, low, high = (np.concatenate(parts) for parts in (some, lows, highs))
        return cls(row, taken.view(np.float32), low, high)

    def beyond(self, lower: float, upper: float) -> np.ndarray:
        """Every value that is less than ``lower`` or not less than ``upper``, and their neighbours in blocks."""
        found = np.flatnonzero((self.lows < lower) | (self.highs >= upper))
        whole = self.row.size // _BLOCK
        inner = found[: np.searchsorted(found, whole)]
        ends = self.row[: whole * _BLOCK].reshape(-1, _BLOCK).take(inner, axis=0).reshape(-1)
        if len(inner) < len(found):
            ends = np.concatenate([ends, self.row[whole * _BLOCK :]])
        return ends[np.flatnonzero((ends < lower) | (ends >= upper))]


class GrowingHistogram:
    """Counts of a stream of values, group by group, in bins whose range doubles when it must.

    The bins of a group divide ``-2**k .. 2**k`` evenly, with the smallest k that holds every value seen.
    Exact zeros, of which a ReLU makes many, are counted apart.  Extremes are exact.

    Of a batch with more than ``most`` values a group not every value is counted: every k-th pair of neighbours
    is, from the first on, where k has no factor in common with the number of pairs, and the counts are scaled
    so that they add up to the number of all values.  The values at both ends, where the sample has a few, are
    counted one by one all the same, for what is clipped depends on them.

    Args:
        groups: how many groups.
        bins: how many bins a group, a multiple of 4; None takes as many as memory allows.
        most: how many values of a group to look at in one batch; infinity for all.

    >>> tally = GrowingHistogram(1)
    >>> tally.add(torch.tensor([[0.0, 0.4, 3.0]]))
    >>> int(tally.count[0]), float(tally.maximum[0])
    (3, 3.0)
    """

    def __init__(self, groups: int, bins: int | None = None, most: float = MOST_READ) -> None:
        if bins is None:
            bins = max(FEWEST_BINS, min(BINS, MOST_COUNTS // max(groups, 1) // 4 * 4))
        if bins % 4:
            raise TensorError(f"A growing histogram needs a multiple of 4 bins, not {bins}.")
        self.bins, self.most = bins, most
        self.exponent = torch.full((groups,), LEAST_EXPONENT, dtype=torch.int32)
        self.counts = torch.zeros(groups, bins, dtype=torch.float64)
        self.zeros = torch.zeros(groups, dtype=torch.float64)
        self.minimum = torch.full((groups,), torch.inf)
        self.maximum = torch.full((groups,), -torch.inf)
        self.ranges: list[Tensor] = []
        self.values_seen = self.values_read = 0

    @property
    def count(self) -> Tensor:
        """How many values each group holds, float64 ``(groups,)``."""
        return self.counts.sum(1) + self.zeros

    @property
    def share(self) -> float:
        """The share of the values seen that were looked at for more than the extremes."""
        return self.values_read / max(self.values_seen, 1)

    @property
    def width(self) -> Tensor:
        """The width of a bin of each group, real units, float64 ``(groups,)``."""
        return torch.exp2((self.exponent + 1).double()) / self.bins

    def _grow(self, exponent: Tensor) -> None:
        """Double the range of each group until it reaches ``2**exponent``."""
        quarter = self.bins // 4
        steps = (exponent - self.exponent).clamp(min=0)
        steps[self.counts.sum(1) == 0] = 0
        while bool((steps > 0).any()):
            rows = steps > 0
            halved = self.counts[rows].reshape(-1, self.bins // 2, 2).sum(2)
            self.counts[rows] = torch.nn.functional.pad(halved, (quarter, quarter))
            steps = steps - rows.int()
        self.exponent = torch.maximum(self.exponent, exponent)

    def _reach(self, ends: Tensor) -> None:
        """Take note of a batch's minimum and maximum, ``(2, groups)``, and make room for what lies between them."""
        self.ranges.append(ends)
        low, high = ends.numpy()
        least, largest = self.minimum.numpy(), self.maximum.numpy()
        if not ((low < least) | (high > largest)).any():
            return  # No range has grown.
        self.minimum, self.maximum = (
            torch.from_numpy(end) for end in (np.minimum(least, low), np.maximum(largest, high))
        )
        # frexp gives |x| = mantissa * 2**exponent with mantissa in [0.5, 1): 2**exponent lies above |x|.
        absmax = np.maximum(-low, high)
        wanted = np.frexp(absmax)[1].clip(LEAST_EXPONENT, 128)
        # Zero has the exponent 0 there, but asks for no range at all.
        self._grow(torch.from_numpy(np.where(absmax > 0, wanted, LEAST_EXPONENT)))

    def _counted(self, values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Counts of each bin and of the zeros, which are not in them, float64 each."""
        rows = max(1, min(_CACHED // values.shape[1], _MOST_PLACES // self.bins))
        counts, zeros = torch.empty_like(self.counts), torch.empty_like(self.zeros)
        for start in range(0, len(values), rows):
            part = slice(start, start + rows)
            weight = None if weights is None else weights[part]
            index = self._places(values[part], part)
            heavy = None if weight is None else weight.reshape(-1)
            size = len(index) * self.bins
            counts[part] = torch.bincount(index.view(-1), heavy, minlength=size).view(-1, self.bins)
            zeros[part] = _zeros(values[part], weight)
        counts[:, self.bins // 2] -= zeros
        return counts, zeros

    def _places(self, values: Tensor, rows: slice) -> Tensor:
        """The bin of each value of some groups, int32, counted through from the first of the groups."""
        groups = len(values)
        widths = (1.0 / self.width[rows]).float()[:, None]
        # Whole numbers below 2**24 add up exactly in float32.
        first = torch.arange(groups, dtype=torch.float32)[:, None] * self.bins + self.bins // 2
        columns = max(1, _CACHED // groups)
        index = torch.empty(values.shape, dtype=torch.int32)
        buffer = torch.empty(groups, min(columns, values.shape[1]))
        for part, place in zip(values.split(columns, 1), index.split(columns, 1), strict=True):
            scaled = torch.mul(part, widths, out=buffer[:, : part.shape[1]])
            place.copy_(scaled.floor_().add_(first))
        return index

    def add(self, values: Tensor) -> None:
        """Count one batch, float32 ``(groups, elements)``, or a sample of it."""
        if values.shape[1] == 0:
            return
        if values.shape[1] <= max(self.most, 32 * _BLOCK):
            self.count_all(values)
        else:
            self._count_some(values)

    def count_all(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count each value of a batch, ``weights`` times where they are given; both ``(groups, elements)``."""
        # aminmax along an axis takes 20 times as long as these two.
        self._reach(torch.stack([values.amin(1), values.amax(1)]))
        counts, zeros = self._counted(values, weights)
        self.counts += counts
        self.zeros += zeros
        self.values_seen += values.numel()
        self.values_read += values.numel()

    def _count_some(self, values: Tensor) -> None:
        """Count every k-th value, and each of those at the ends."""
        looked = [_Looked.at(row, int(self.most)) for row in values]
        ends = [[row.lows.min() for row in looked], [row.highs.max() for row in looked]]
        self._reach(torch.from_numpy(np.array(ends)))
        for group, row in enumerate(looked):
            self._count_row(group, row)
        self.values_seen += values.numel()

    def _count_row(self, group: int, looked: _Looked) -> None:
        """Count some values of a group as if they were all but those at the ends, which are counted one by one.

        At the ends are the bins that hold a few of some.
        """
        half, width = self.bins // 2, 2.0 ** (int(self.exponent[group]) + 1) / self.bins
        some, few = looked.some, max(_FEW, len(looked.some) * _FEW >> 15)

        def places(values: np.ndarray) -> np.ndarray:
            # Rounded in float32: an edge may be off by less than a thousandth of a bin.
            scaled = values * np.float32(1 / width)
            scaled += half
            return scaled.astype(np.int64)

        found = np.bincount(places(some), minlength=self.bins)
        below = found.cumsum()
        first = int(np.searchsorted(below, few, side="right"))
        last = int(np.searchsorted(below, len(some) - few))
        ends = looked.beyond((first - half) * width, (last + 1 - half) * width)
        between = slice(first, last + 1)
        scale = (looked.row.size - len(ends)) / float(below[last] - below[first] + found[first])
        counts = self.counts[group].numpy()
        counts[between] += found[between] * scale
        np.add.at(counts, places(ends), 1.0)
        zeros = np.count_nonzero(some == 0) * scale if first <= half <= last else np.count_nonzero(ends == 0)
        counts[half] -= zeros
        self.zeros[group] += float(zeros)
        self.values_read += len(some) + len(ends)

    def merge(self, other: GrowingHistogram) -> None:
        """Add what another histogram counted; its batches come after these.

        Raises:
            TensorError: when groups or bins differ.
        """
        if self.counts.shape != other.counts.shape:
            raise TensorError("Histograms of different groups or bins cannot be merged.")
        grown = GrowingHistogram(len(other.exponent), other.bins)
        grown.exponent, grown.counts = other.exponent.clone(), other.counts.clone()
        top = torch.maximum(self.exponent, other.exponent)
        self._grow(top)
        grown._grow(top)
        self.counts += grown.counts
        self.zeros += other.zeros
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.ranges += other.ranges
        self.values_seen += other.values_seen
        self.values_read += other.values_read

    def sample(self) -> Sample:
        """The counts as weighted values at the middle of each bin, and zero itself.

        Raises:
            TensorError: when nothing was counted.
        """
        if not self.ranges:
            raise TensorError("No value has been observed; calibration needs at least one image.")
        used = torch.nonzero((self.counts > 0).any(0))[:, 0]
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (self.bins // 2, self.bins // 2 + 1)
        first = start - self.bins // 2
        middle = (torch.arange(first, stop - self.bins // 2) + 0.5) * self.width[:, None]
        values = torch.nn.functional.pad(middle.float(), (0, 1))
        # No stand-in may lie beyond the extremes, or a range fitted to it would.
        values = values.clamp(self.minimum[:, None], self.maximum[:, None])
        counts = torch.cat([self.counts[:, start:stop], self.zeros[:, None]], 1).float()
        ranges = torch.stack(self.ranges)
        bins = Bins(self.width, first)
        return Sample(values, counts, self.minimum, self.maximum, ranges, bins, self.share)
