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

from explorer.calibrate.loops import look, settled, stand_ins, survey, tally_all, tally_some, widen
from explorer.errors import TensorError
from explorer.formats import Granularity

BINS = 1 << 14
FEWEST_BINS = 1 << 11
# The largest matrix (groups, bins) that a histogram of activations may have.
MOST_COUNTS = 1 << 20
# Below 2**-100 the width of a bin has no float32 reciprocal; such values share the two middle bins.
LEAST_EXPONENT = -100
# Of more than twice as many values of a group in one batch about so many go into the histogram, besides those at
# its ends.
MOST_READ = 1 << 15
# The extremes of a batch are found block by block, some elements at a time; every value that is beyond those of the
# other blocks than one in so many is counted, and than so many.
_BLOCK, _FURTHEST, _MOST_FAR, _SHOWN = 1 << 8, 32, 64, 1 << 12
# Of groups of a tensor with more than twice as many values searches may look at some.
FEWEST_SAMPLED = 1 << 17
# Over so many bins to each side the counts of a sample are averaged, unless their dispersion is more than this.
_REACH, _DISPERSION = 16, 1.1
# The least and the largest value of each block of a group, float32.
Ends = tuple[np.ndarray, np.ndarray]


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
        noise: the variance of a bin's count, in counts: 1 where all values were counted, more where some
            were, 0 where those were made smooth.
        blocks: where one group has very many values, the extremes of each block of them.
    """

    values: Tensor
    weights: Tensor | None
    minimum: Tensor
    maximum: Tensor
    ranges: Tensor
    bins: Bins | None = None
    share: float = 1.0
    noise: float = 1.0
    blocks: Ends | None = None

    @classmethod
    def of(cls, tensor: Tensor, granularity: Granularity, axis: int) -> Sample:
        """The sample of one tensor, seen as a matrix by ``granularity``.

        >>> from explorer.formats import granularity
        >>> Sample.of(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), granularity("channel"), 0).maximum.tolist()
        [1.0, 4.0]
        """
        values, weights = granularity.matrix(tensor.detach().float(), axis)
        blocks = None
        if len(values) > 1:
            # aminmax along an axis takes 20 times as long as these two.
            low, high = values.amin(1), values.amax(1)
        elif values.shape[1] <= 2 * FEWEST_SAMPLED or weights is not None:
            low, high = (end[None] for end in torch.aminmax(values))
        else:
            # What a search of so many looks at them for takes little longer than the extremes alone.
            blocks, ends = surveyed(values[0])
            low, high = torch.from_numpy(ends).split(1)
        return cls(values, weights, low, high, torch.stack([low, high])[None], blocks=blocks)

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
            blocks=None,
        )

    def binned(self, bins: int, most: int) -> Sample:
        """The same values in at most ``bins`` bins a group and a point for zero.

        Each is counted, but of more than twice ``most`` values a group about so many, or a 64th where that is more.
        """
        if self.values.shape[1] <= bins or self.bins is not None:
            return self
        tally = GrowingHistogram(self.groups, bins, most)
        if self.weights is None:
            tally.add(self.values, self.blocks)
        else:
            tally.count_all(self.values, self.weights)
        return tally.sample()


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


def surveyed(values: Tensor) -> tuple[Ends, np.ndarray]:
    """The extremes of each block of some values ``(size,)``, and those of all; the last block may be shorter.

    >>> blocks, ends = surveyed(torch.arange(600.0))
    >>> [end.tolist() for end in blocks], ends.tolist()
    ([[0.0, 256.0, 512.0], [255.0, 511.0, 599.0]], [0.0, 599.0])
    """
    count = -(-len(values) // _BLOCK)
    low, high, ends, none = (np.empty(size, np.int32) for size in (count, count, 2, 0))
    survey(values.numpy().view(np.int32), _BLOCK, 1, low, high, ends, none)
    return (low.view(np.float32), high.view(np.float32)), ends.view(np.float32)


class _Run:
    """Batches of one size of one group, of which some values are looked at.

    Their counts are made those of all values together: the more of them, the better chance is told from shape.

    Args:
        size: how many values a batch has.
        most: about how many of them to look at.
        bins: of the histogram.
    """

    def __init__(self, size: int, most: int, bins: int) -> None:
        self.size, self.seen, self.step = size, 0, stride(size // 2, max(most, size >> 6) // 2)
        # Neighbours cost no more than one value.
        self.wanted = -(-(size // 2) // self.step)
        blocks = size // _BLOCK
        # Of very many blocks some show where the ends begin.
        shown = max(1, blocks // _SHOWN)
        self.shown, self.few = shown, min(blocks // _FURTHEST, _MOST_FAR) // shown
        self.middle = np.full(2, np.nan, np.float32)
        self.state = np.array([LEAST_EXPONENT, 0, 0, 0])
        self.found = np.zeros((2, bins + 8), np.int64)

    def add(self, values: np.ndarray, ends: np.ndarray, blocks: Ends | None = None) -> int:
        """Look at a batch ``(size,)``; how many values that is.

        ``ends`` is where its least and its largest value are put; ``blocks`` are those of :func:`surveyed`, where they
        are known.
        """
        self.seen += self.size
        held = self.middle, self.state, self.found
        if blocks is None:
            return look(
                values, _BLOCK, self.step, self.wanted, self.shown, self.few, LEAST_EXPONENT, *held, ends
            )
        ends[:] = blocks[0].min(), blocks[1].max()
        some = values[: self.size // 2 * 2].view(np.complex64)[:: self.step].copy().view(np.float32)
        low, high = blocks
        return tally_some(some, values, _BLOCK, low, high, self.shown, self.few, LEAST_EXPONENT, *held)

    def settle(self, counts: np.ndarray, exponent: int) -> tuple[float, bool]:
        """Add to the ``counts`` of bins, of a range of that exponent, the sample's as often as they stand for others.

        Gives the number of zeros, which are not among the counts, and whether the counts were made smooth.
        Chance is told from shape by the index of dispersion (Fisher, Thornton, Mackenzie 1922).
        """
        return settled(self.found, self.state, self.middle, self.seen, exponent, _REACH, _DISPERSION, counts)


class GrowingHistogram:
    """Counts of a stream of values, group by group, in bins whose range doubles when it must.

    The bins of a group divide ``-2**k .. 2**k`` evenly, with the smallest k that holds every value seen.
    Exact zeros, of which a ReLU makes many, are counted apart.  Extremes are exact.

    Of a batch with more than twice ``most`` values a group not every value is counted: every k-th pair of
    neighbours is, from the first on, where k has no factor in common with the number of pairs, and the counts are
    scaled so that they add up to the number of all values, and averaged over neighbouring bins where they differ
    by no more than chance.  The values at both ends are counted one by one all the same, for what is clipped
    depends on them.

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
        self._exponents = np.full(groups, LEAST_EXPONENT, np.int32)
        self._counts, self._zeros = np.zeros((groups, bins)), np.zeros(groups)
        self._runs: list[_Run] = []
        self._smooth = True
        self._ranges: list[np.ndarray] = []
        self.values_seen = self.values_read = 0

    @property
    def minimum(self) -> Tensor:
        """The least value of each group so far, float32 ``(groups,)``."""
        return torch.from_numpy(np.min([low for low, _ in self._ranges], 0))

    @property
    def maximum(self) -> Tensor:
        """The largest value of each group so far, float32 ``(groups,)``."""
        return torch.from_numpy(np.max([high for _, high in self._ranges], 0))

    @property
    def counts(self) -> Tensor:
        """How many values each bin holds, zeros left out, float64 ``(groups, bins)``."""
        self._settle()
        return torch.from_numpy(self._counts)

    @property
    def zeros(self) -> Tensor:
        """How many zeros each group holds, float64 ``(groups,)``."""
        self._settle()
        return torch.from_numpy(self._zeros)

    @property
    def count(self) -> Tensor:
        """How many values each group holds, float64 ``(groups,)``."""
        return self.counts.sum(1) + self.zeros

    @property
    def share(self) -> float:
        """The share of the values seen that were looked at for more than the extremes."""
        return self.values_read / max(self.values_seen, 1)

    @property
    def exponent(self) -> Tensor:
        """The power of two up to which the bins of each group reach, int32 ``(groups,)``."""
        self._settle()
        return torch.from_numpy(self._exponents.copy())

    @property
    def width(self) -> Tensor:
        """The width of a bin of each group, real units, float64 ``(groups,)``."""
        self._settle()
        return torch.from_numpy(self._widths())

    def _widths(self) -> np.ndarray:
        return np.ldexp(1.0, self._exponents + 1) / self.bins

    def _grow(self, exponents: np.ndarray) -> None:
        """Double the range of each group until it reaches the power of two of that exponent."""
        steps = exponents - self._exponents
        for group in np.flatnonzero(steps > 0):
            widen(self._counts[group : group + 1], self.bins, steps[group])
        np.maximum(self._exponents, exponents, out=self._exponents)

    def add(self, values: Tensor, blocks: Ends | None = None) -> None:
        """Count one batch, float32 ``(groups, elements)``, or a sample of it.

        ``blocks`` are those of :func:`surveyed`, where they are known of a batch of one group.
        """
        if values.shape[1] == 0:
            return
        if values.shape[1] <= max(2 * self.most, 32 * _BLOCK):
            self.count_all(values)
        else:
            self._count_some(values, blocks)

    def count_all(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count each value of a batch, ``weights`` times where they are given; both ``(groups, elements)``."""
        heavy = None if weights is None else weights.float().contiguous().numpy()
        ends = torch.empty(len(values), 2).numpy()
        rows = values.float().contiguous().numpy()
        tally_all(rows, heavy, LEAST_EXPONENT, self._exponents, self._counts, self._zeros, ends)
        self._ranges.append(ends.T)
        self.values_seen += values.numel()
        self.values_read += values.numel()

    def _count_some(self, values: Tensor, blocks: Ends | None) -> None:
        """Look at every k-th pair of values, and at each of those at the ends."""
        if self._runs and self._runs[0].size != values.shape[1]:
            self._settle()
        if not self._runs:
            self._runs = [_Run(values.shape[1], int(self.most), self.bins) for _ in values]
        ends = torch.empty(len(values), 2).numpy()
        rows = zip(self._runs, values.float().contiguous().numpy(), ends, strict=True)
        self.values_read += sum([run.add(row, end, blocks) for run, row, end in rows])
        self.values_seen += values.numel()
        self._ranges.append(ends.T)

    def _settle(self) -> None:
        """Make what was looked at counts of all values."""
        if not self._runs:
            return
        runs, self._runs = self._runs, []
        self._grow(np.array([run.state[0] for run in runs], np.int32))
        for group, (run, exponent) in enumerate(zip(runs, self._exponents.tolist(), strict=True)):
            zeros, smooth = run.settle(self._counts[group], exponent)
            self._zeros[group] += zeros
            self._smooth &= smooth

    def merge(self, other: GrowingHistogram) -> None:
        """Add what another histogram counted; its batches come after these.

        Raises:
            TensorError: when groups or bins differ.
        """
        if self.counts.shape != other.counts.shape:
            raise TensorError("Histograms of different groups or bins cannot be merged.")
        grown = GrowingHistogram(len(other.counts), other.bins)
        grown._exponents, grown._counts = other._exponents.copy(), other._counts.copy()
        top = np.maximum(self._exponents, other._exponents)
        self._grow(top)
        grown._grow(top)
        self._counts += grown._counts
        self._zeros += other._zeros
        self._ranges += other._ranges
        self.values_seen += other.values_seen
        self._smooth &= other._smooth
        self.values_read += other.values_read

    def sample(self) -> Sample:
        """The counts as weighted values at the middle of each bin, and zero itself.

        Raises:
            TensorError: when nothing was counted.
        """
        if not self._ranges:
            raise TensorError("No value has been observed; calibration needs at least one image.")
        self._settle()
        widths, ranges = self._widths(), np.stack(self._ranges)
        start, points, extremes = stand_ins(self._counts, self._zeros, widths, ranges)
        values, weights, low, high = map(torch.from_numpy, (*points, *extremes))
        noise = 0.0 if self._smooth and self.share < 1 else 1 / self.share
        return Sample(
            values,
            weights,
            low,
            high,
            torch.from_numpy(ranges),
            Bins(torch.from_numpy(widths), start - self.bins // 2),
            self.share,
            noise,
        )
