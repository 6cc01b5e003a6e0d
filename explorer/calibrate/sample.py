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
# Of more than twice as many values of a group in one batch about so many go into the histogram, besides those at
# its ends.
MOST_READ = 1 << 15
# The extremes of a batch are found block by block, some elements at a time; every value that is beyond those of the
# other blocks than one in so many is counted, and than so many.
_BLOCK, _LOOKED, _FURTHEST, _MOST_FAR, _SHOWN = 1 << 8, 1 << 20, 32, 256, 1 << 12
# Of groups of a tensor with more than twice as many values searches may look at some.
FEWEST_SAMPLED = 1 << 17
# So many values that were looked at wait to be counted.
_HELD = 1 << 18
# Over so many bins to each side the counts of a sample are averaged, unless their dispersion is more than this.
_REACH, _DISPERSION = 16, 1.1
# Elements that go through the passes of counting at a time: with their copies they fit the cache.
_CACHED = 1 << 17
# Groups whose bins have places below 2**24 are counted together: such numbers are exact in float32.
_MOST_PLACES = 1 << 24
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
            blocks = block_ends(values[0])
            low, high = torch.tensor([blocks[0].min()]), torch.tensor([blocks[1].max()])
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


def block_ends(values: Tensor) -> Ends:
    """The extremes of each block of some values ``(size,)``, those of what is left over last.

    >>> [end.tolist() for end in block_ends(torch.arange(600.0))]
    [[0.0, 256.0, 512.0], [255.0, 511.0, 599.0]]
    """
    whole = len(values) // _BLOCK * _BLOCK
    parts = [part.view(-1, _BLOCK) for part in values[:whole].split(_LOOKED)]
    parts += [values[whole:][None]] if whole < len(values) else []
    lows, highs = [part.amin(1).numpy() for part in parts], [part.amax(1).numpy() for part in parts]
    return np.concatenate(lows), np.concatenate(highs)


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

    def add(self, values: Tensor, ends: Ends | None = None) -> tuple[float, float]:
        """Look at a batch ``(size,)``; its least and its largest value.

        ``ends`` are those of :func:`block_ends`, where they are known.
        """
        row, blocks = values.numpy(), self.size // _BLOCK
        low, high = block_ends(values) if ends is None else ends
        if self._middle is None:
            # Of very many blocks some show where the ends begin.
            step = max(1, blocks // _SHOWN)
            few = min(blocks // _FURTHEST, _MOST_FAR) // step
            some_low, some_high = low[:blocks:step], high[:blocks:step]
            self._middle = np.partition(some_low, few)[few], np.partition(some_high, -1 - few)[-1 - few]
        least, largest = self._middle
        far = np.flatnonzero((low[:blocks] < least) | (high[:blocks] > largest))
        whole = blocks * _BLOCK
        beyond = [self._beyond(row[:whole].reshape(-1, _BLOCK).take(far, axis=0).reshape(-1))]
        if whole < self.size:
            beyond.append(self._beyond(row[whole:]))
        # Neighbours cost no more than one value.
        self._some.append(row[: self.size // 2 * 2].view(np.complex64)[:: self.step].copy())
        self._ends += beyond
        self.seen += self.size
        self.read += 2 * len(self._some[-1]) + sum(map(len, beyond))
        return low.min(), high.max()

    def _beyond(self, values: np.ndarray) -> np.ndarray:
        """Those values that lie at the ends."""
        assert self._middle is not None
        least, largest = self._middle
        return values[np.flatnonzero((values < least) | (values > largest))]

    def count(self, counts: np.ndarray, width: float) -> tuple[float, bool]:
        """Add to the ``counts`` of bins some values as if they were all but those at the ends, and those one by one.

        Gives the number of zeros, which are not among the counts, and whether the counts were made smooth.
        """
        half, some = len(counts) // 2, np.concatenate(self._some).view(np.float32)
        ends, bins_of_one = np.concatenate(self._ends), float(np.float32(1 / width))

        def places(values: np.ndarray) -> Tensor:
            # Rounded in float32: an edge may be off by less than a thousandth of a bin.
            return torch.from_numpy(values).mul(bins_of_one).add_(half).to(torch.int32)

        assert self._middle is not None
        least, largest = self._middle
        first, last = (int(end * np.float32(bins_of_one) + np.float32(half)) for end in self._middle)
        found = torch.bincount(places(some), minlength=len(counts)).numpy()
        # Of what was looked at those at the ends are counted below; of the outermost bins some lie there.
        below, above = np.count_nonzero(some < least), np.count_nonzero(some > largest)
        found[first] -= below - found[:first].sum()
        found[last] -= above - found[last + 1 :].sum()
        scale = (self.seen - len(ends)) / (len(some) - below - above)
        zeros = np.count_nonzero(some == 0) if least <= 0 <= largest else 0
        found[half] -= zeros
        middle = found[first : last + 1]
        even = smoothed(middle)
        counts[first : last + 1] += (middle if even is None else even) * scale
        np.add.at(counts, places(ends).numpy(), 1.0)
        rest = np.count_nonzero(ends == 0)
        counts[half] -= rest
        return float(zeros * scale + rest), even is not None


def smoothed(counts: np.ndarray) -> np.ndarray | None:
    """Counts of a sample ``(bins,)`` averaged over neighbours; None where they differ by more than chance.

    The steps of a quantizer resolve what chance did to a bin, and a search would find the steps that suit it.
    Chance is told from shape by the index of dispersion (Fisher, Thornton, Mackenzie 1922).

    >>> smoothed(np.array([0, 90, 0, 0, 90, 0])) is None
    True
    """
    bins, reach = len(counts), min(_REACH, len(counts) - 1)
    below = np.zeros(bins + 2 * reach + 1)
    # torch takes a third of the time of NumPy.
    inner = torch.from_numpy(below[reach + 1 : reach + bins + 1])
    torch.cumsum(torch.from_numpy(counts), 0, dtype=torch.float64, out=inner)
    below[reach + bins + 1 :] = below[reach + bins]
    size = np.full(bins, 2.0 * reach + 1)
    size[:reach] -= np.arange(reach, 0, -1)
    size[bins - reach :] -= np.arange(1, reach + 1)
    mean: np.ndarray = (below[2 * reach + 1 :] - below[:bins]) / size
    deviation = counts - mean
    deviation *= deviation
    deviation /= np.maximum(mean, 1e-9)
    if deviation.sum() > _DISPERSION * np.count_nonzero(mean):
        return None
    mean *= below[-1] / max(mean.sum(), 1e-9)
    return mean


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
        self.minimum = torch.full((groups,), torch.inf)
        self.maximum = torch.full((groups,), -torch.inf)
        self.ranges: list[Tensor] = []
        self.values_seen = self.values_read = 0

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
        return torch.exp2((self.exponent + 1).double()) / self.bins

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

    def _reach(self, ends: Tensor) -> None:
        """Take note of a batch's minimum and maximum, ``(2, groups)``, and make room for what lies between them."""
        self.ranges.append(ends)
        low, high = ends.numpy()
        least, largest = self.minimum.numpy(), self.maximum.numpy()
        if not ((low < least) | (high > largest)).any():
            return  # No range has grown.
        self.minimum = torch.from_numpy(np.minimum(least, low))
        self.maximum = torch.from_numpy(np.maximum(largest, high))
        absmax = np.maximum(-low, high)
        if (absmax < np.ldexp(1.0, self.exponent.numpy())).all():
            return
        # frexp gives |x| = mantissa * 2**exponent with mantissa in [0.5, 1): 2**exponent lies above |x|.
        wanted = np.frexp(absmax)[1].clip(LEAST_EXPONENT, 128)
        # Zero has the exponent 0 there, but asks for no range at all.
        wanted = np.where(absmax > 0, wanted, LEAST_EXPONENT)
        self._grow(torch.from_numpy(wanted))

    def _counted(self, values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Counts of each bin and of the zeros, which are not in them, float64 each."""
        rows = max(1, min(_CACHED // values.shape[1], _MOST_PLACES // self.bins))
        counts, zeros = torch.empty_like(self._counts), torch.empty_like(self._zeros)
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

    def add(self, values: Tensor, ends: Ends | None = None) -> None:
        """Count one batch, float32 ``(groups, elements)``, or a sample of it.

        ``ends`` are those of :func:`block_ends`, where they are known of a batch of one group.
        """
        if values.shape[1] == 0:
            return
        if values.shape[1] <= max(2 * self.most, 32 * _BLOCK):
            self.count_all(values)
        else:
            self._count_some(values, ends)

    def count_all(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count each value of a batch, ``weights`` times where they are given; both ``(groups, elements)``."""
        self._reach(torch.stack([values.amin(1), values.amax(1)]))
        counts, zeros = self._counted(values, weights)
        self._counts += counts
        self._zeros += zeros
        self.values_seen += values.numel()
        self.values_read += values.numel()

    def _count_some(self, values: Tensor, ends: Ends | None) -> None:
        """Look at every k-th pair of values, and at each of those at the ends."""
        if self._runs and self._runs[0].size != values.shape[1]:
            self._settle()
        if not self._runs:
            self._runs = [_Run(values.shape[1], int(self.most)) for _ in values]
        before = sum(run.read for run in self._runs)
        extremes = [run.add(row, ends) for run, row in zip(self._runs, values.contiguous(), strict=True)]
        self._reach(torch.from_numpy(np.array(extremes, dtype=np.float32).T))
        read = sum(run.read for run in self._runs)
        self.values_seen += values.numel()
        self.values_read += read - before
        if read > _HELD:
            self._settle()

    def _settle(self) -> None:
        """Count what was looked at."""
        rows = zip(self._runs, self._counts.numpy(), self.width.tolist(), strict=False)
        found = [run.count(counts, width) for run, counts, width in rows]
        if found:
            zeros, smooth = zip(*found, strict=True)
            self._zeros += torch.tensor(zeros, dtype=torch.float64)
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
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.ranges += other.ranges
        self.values_seen += other.values_seen
        self._smooth &= other._smooth
        self.values_read += other.values_read

    def sample(self) -> Sample:
        """The counts as weighted values at the middle of each bin, and zero itself.

        Raises:
            TensorError: when nothing was counted.
        """
        if not self.ranges:
            raise TensorError("No value has been observed; calibration needs at least one image.")
        half, counts = self.bins // 2, self.counts.numpy()
        used = np.flatnonzero((counts != 0).any(0))
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (half, half + 1)
        first, (values, weights) = start - half, np.zeros((2, len(counts), stop - start + 1), np.float32)
        values[:, :-1] = np.arange(first + 0.5, stop - half) * self.width.numpy()[:, None]
        # No stand-in may lie beyond the extremes, or a range fitted to it would.
        np.clip(values, *(end.numpy()[:, None] for end in (self.minimum, self.maximum)), out=values)
        weights[:, :-1], weights[:, -1] = counts[:, start:stop], self.zeros.numpy()
        points = torch.from_numpy(values), torch.from_numpy(weights)
        ranges = torch.stack(self.ranges)
        bins = Bins(self.width, first)
        noise = 0.0 if self._smooth and self.share < 1 else 1 / self.share
        return Sample(*points, self.minimum, self.maximum, ranges, bins, self.share, noise)
