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

from explorer.calibrate.loops import averaged, beyond, reached, stand_ins, survey, tally_all, tally_some
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
# So many values that were looked at wait to be counted.
_HELD = 1 << 18
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
            blocks, ends, _ = surveyed(values[0])
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


def surveyed(values: Tensor, step: int = 1, wanted: int = 0) -> tuple[Ends, np.ndarray, np.ndarray]:
    """The extremes of each block of some values ``(size,)``, those of all, and a sample.

    The last block may be shorter.  The sample are ``wanted`` pairs of neighbours, one of each ``step``.

    >>> blocks, ends, some = surveyed(torch.arange(600.0), step=7, wanted=2)
    >>> [end.tolist() for end in blocks], ends.tolist(), some.tolist()
    ([[0.0, 256.0, 512.0], [255.0, 511.0, 599.0]], [0.0, 599.0], [0.0, 1.0, 14.0, 15.0])
    """
    count = -(-len(values) // _BLOCK)
    low, high, ends, some = found = [np.empty(size, np.float32) for size in (count, count, 2, 2 * wanted)]
    survey(values.numpy().view(np.int32), _BLOCK, step, *[each.view(np.int32) for each in found])
    return (low, high), ends, some


class _Run:
    """Batches of one size of one group, of which some values are looked at.

    They are kept as they are and counted together: each step of counting has a cost of its own.

    Args:
        size: how many values a batch has.
        most: about how many of them to look at.
    """

    def __init__(self, size: int, most: int) -> None:
        self.size, self.step = size, stride(size // 2, max(most, size >> 6) // 2)
        self.seen = self.read = 0
        self._some: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        self._middle: tuple[float, float] | None = None

    def add(self, values: Tensor, blocks: Ends | None = None) -> np.ndarray:
        """Look at a batch ``(size,)``; its least and its largest value.

        ``blocks`` are those of :func:`surveyed`, where they are known.
        """
        row = values.numpy()
        if blocks is None:
            # Neighbours cost no more than one value.
            blocks, ends, some = surveyed(values, self.step, -(-(self.size // 2) // self.step))
        else:
            some = row[: self.size // 2 * 2].view(np.complex64)[:: self.step].copy().view(np.float32)
            ends = np.array([blocks[0].min(), blocks[1].max()])
        if self._middle is None:
            self._middle = self._borders(*blocks)
        far = beyond(row, _BLOCK, *blocks, *self._middle)
        self._some.append(some)
        self._ends.append(far)
        self.seen += self.size
        self.read += len(some) + len(far)
        return ends

    def _borders(self, low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
        """Where the ends begin; of very many blocks some show it."""
        blocks = self.size // _BLOCK
        step = max(1, blocks // _SHOWN)
        few = min(blocks // _FURTHEST, _MOST_FAR) // step
        low, high = low[:blocks:step], high[:blocks:step]
        return float(np.partition(low, few)[few]), float(np.partition(high, -1 - few)[-1 - few])

    def count(self, counts: np.ndarray, width: float) -> tuple[float, bool]:
        """Add to the ``counts`` of bins some values as if they were all but those at the ends, and those one by one.

        Gives the number of zeros, which are not among the counts, and whether the counts were made smooth.
        """
        assert self._middle is not None
        some, ends = np.concatenate(self._some), np.concatenate(self._ends)
        found, inverse = np.empty((2, len(counts)), np.int64), np.float32(1 / width)
        zeros, rest = tally_some(some, ends, float(inverse), *self._middle, found)
        first, last = (int(np.float32(end) * inverse + np.float32(len(counts) // 2)) for end in self._middle)
        middle = found[0, first : last + 1]
        scale = (self.seen - len(ends)) / (int(middle.sum()) + zeros)
        even = smoothed(middle)
        counts[first : last + 1] += (middle if even is None else even) * scale
        counts += found[1]
        return zeros * scale + rest, even is not None


def smoothed(counts: np.ndarray) -> np.ndarray | None:
    """Counts of a sample ``(bins,)`` averaged over neighbours; None where they differ by more than chance.

    The steps of a quantizer resolve what chance did to a bin, and a search would find the steps that suit it.
    Chance is told from shape by the index of dispersion (Fisher, Thornton, Mackenzie 1922).

    >>> smoothed(np.array([0, 90, 0, 0, 90, 0])) is None
    True
    """
    mean = np.empty(len(counts))
    return mean if averaged(counts, min(_REACH, len(counts) - 1), _DISPERSION, mean) else None


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
        self.exponent = torch.full((groups,), LEAST_EXPONENT, dtype=torch.int32)
        self._counts = torch.zeros(groups, bins, dtype=torch.float64)
        self._zeros = torch.zeros(groups, dtype=torch.float64)
        self._runs: list[_Run] = []
        self._smooth = True
        self._ranges: list[np.ndarray] = []
        self.values_seen = self.values_read = 0

    @property
    def minimum(self) -> Tensor:
        """The least value of each group so far, float32 ``(groups,)``."""
        return torch.from_numpy(self._extremes()[0])

    @property
    def maximum(self) -> Tensor:
        """The largest value of each group so far, float32 ``(groups,)``."""
        return torch.from_numpy(self._extremes()[1])

    @property
    def counts(self) -> Tensor:
        """How many values each bin holds, zeros left out, float64 ``(groups, bins)``."""
        self._settle()
        return self._counts

    @property
    def zeros(self) -> Tensor:
        """How many zeros each group holds, float64 ``(groups,)``."""
        self._settle()
        return self._zeros

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
        return torch.from_numpy(np.ldexp(1.0, self.exponent.numpy() + 1) / self.bins)

    def _grow(self, exponent: Tensor) -> None:
        """Double the range of each group until it reaches ``2**exponent``."""
        if self._counts.numpy().any():
            self._widen((exponent - self.exponent).clamp(min=0))
        self.exponent = torch.maximum(self.exponent, exponent)

    def _widen(self, steps: Tensor) -> None:
        """Join neighbouring bins of each group, as often as it has ``steps``."""
        quarter = self.bins // 4
        steps = torch.where(self._counts.any(1), steps, 0)
        while bool((steps > 0).any()):
            rows = steps > 0
            halved = self._counts[rows].reshape(-1, self.bins // 2, 2).sum(2)
            self._counts[rows] = torch.nn.functional.pad(halved, (quarter, quarter))
            steps = steps - rows.int()

    def _extremes(self) -> np.ndarray:
        """The least and the largest value of each group so far, float32 ``(2, groups)``."""
        return self._reached(self._ranges)[0]

    def _reached(self, ranges: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The extremes of some batches, and the exponents that they ask for."""
        groups = len(self._counts)
        extremes, exponents = np.empty((2, groups), np.float32), np.empty(groups, np.int32)
        reached(
            np.stack(ranges) if ranges else np.empty((0, 2, groups), np.float32),
            LEAST_EXPONENT,
            extremes,
            exponents,
        )
        return extremes, exponents

    def _reach(self, ranges: list[np.ndarray]) -> None:
        """Make room for the values of some batches."""
        _, exponents = self._reached(ranges)
        if (exponents > self.exponent.numpy()).any():
            self._grow(torch.from_numpy(exponents))

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
        self._ranges.append(torch.stack([values.amin(1), values.amax(1)]).numpy())
        self._reach(self._ranges[-1:])
        heavy = None if weights is None else weights.contiguous().numpy()
        inverses = (1 / self.width).float().numpy()
        tally_all(values.contiguous().numpy(), heavy, inverses, self._counts.numpy(), self._zeros.numpy())
        self.values_seen += values.numel()
        self.values_read += values.numel()

    def _count_some(self, values: Tensor, blocks: Ends | None) -> None:
        """Look at every k-th pair of values, and at each of those at the ends."""
        if self._runs and self._runs[0].size != values.shape[1]:
            self._settle()
        if not self._runs:
            self._runs = [_Run(values.shape[1], int(self.most)) for _ in values]
        before = sum(run.read for run in self._runs)
        found = [run.add(row, blocks) for run, row in zip(self._runs, values.contiguous(), strict=True)]
        self._ranges.append(np.stack(found, 1))
        read = sum(run.read for run in self._runs)
        self.values_seen += values.numel()
        self.values_read += read - before
        if read > _HELD:
            self._settle()

    def _settle(self) -> None:
        """Count what was looked at."""
        if not self._runs:
            return
        self._reach(self._ranges)
        rows = zip(self._runs, self._counts.numpy(), self.width.tolist(), strict=True)
        zeros, smooth = zip(*[run.count(counts, width) for run, counts, width in rows], strict=True)
        self._zeros.numpy()[:] += zeros
        self._smooth &= all(smooth)
        self._runs = []

    def merge(self, other: GrowingHistogram) -> None:
        """Add what another histogram counted; its batches come after these.

        Raises:
            TensorError: when groups or bins differ.
        """
        if self.counts.shape != other.counts.shape:
            raise TensorError("Histograms of different groups or bins cannot be merged.")
        grown = GrowingHistogram(len(other.exponent), other.bins)
        grown.exponent, grown._counts = other.exponent.clone(), other.counts.clone()
        top = torch.maximum(self.exponent, other.exponent)
        self._grow(top)
        grown._grow(top)
        self._counts += grown._counts
        self._zeros += other.zeros
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
        half, counts, extremes = self.bins // 2, self.counts.numpy(), self._extremes()
        used = np.flatnonzero(counts.any(0))
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (half, half + 1)
        points, width = np.empty((2, len(counts), stop - start + 1), np.float32), self.width
        stand_ins(counts, self._zeros.numpy(), width.numpy(), extremes, start, points)
        noise = 0.0 if self._smooth and self.share < 1 else 1 / self.share
        return Sample(
            torch.from_numpy(points[0]),
            torch.from_numpy(points[1]),
            torch.from_numpy(extremes[0]),
            torch.from_numpy(extremes[1]),
            torch.from_numpy(np.stack(self._ranges)),
            Bins(width, start - half),
            self.share,
            noise,
        )
