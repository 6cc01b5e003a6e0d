"""Samples: weighted values, group by group, from which a clipping range is chosen.

A weight tensor is its own sample.  Activations arrive batch by batch and are kept as a
:class:`GrowingHistogram`, whose range grows by powers of two, so that two of them merge without moving a
count across a bin edge: the result does not depend on how the data were cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explorer.errors import TensorError
from explorer.formats import Granularity

BINS = 1 << 14
FEWEST_BINS = 1 << 11
# The largest matrix (groups, bins) that a histogram of activations may have.
MOST_COUNTS = 1 << 22
# Below 2**-100 the width of a bin has no float32 reciprocal; such values share the two middle bins.
LEAST_EXPONENT = -100
# Elements that are binned at a time.
_PART = 1 << 18
# Elements of a batch that go through the passes of counting at a time: with their copies they fit the cache.
_CACHED = 1 << 18


@dataclass(frozen=True, eq=False)
class Sample:
    """Weighted values of each group.

    Args:
        values: float32 ``(groups, points)``.
        weights: float32 ``(groups, points)``, or None where each point counts once.
        minimum: float32 ``(groups,)``, exact even where the points are bins.
        maximum: float32 ``(groups,)``.
        ranges: minimum and maximum of each batch in order, float32 ``(batches, 2, groups)``.
    """

    values: Tensor
    weights: Tensor | None
    minimum: Tensor
    maximum: Tensor
    ranges: Tensor

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
            rows = slice(start, start + groups)
            weights = None if self.weights is None else self.weights[rows]
            yield Sample(
                self.values[rows], weights, self.minimum[rows], self.maximum[rows], self.ranges[..., rows]
            )

    def binned(self, bins: int) -> Sample:
        """The same values in at most ``bins`` bins a group, each bin standing at the mean of what it holds.

        Means keep the rounding error of a bin small even where a step is only a few bins wide.
        """
        if self.values.shape[1] <= bins:
            return self
        width = (self.maximum - self.minimum).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        counts, sums = (torch.zeros(self.groups, bins, dtype=torch.float64) for _ in range(2))
        columns = max(1, _PART // self.groups)
        none = (None,) * -(-self.values.shape[1] // columns)
        parts = none if self.weights is None else self.weights.split(columns, 1)
        for values, counted in zip(self.values.split(columns, 1), parts, strict=True):
            index = ((values - self.minimum[:, None]) * (bins / width)).long().clamp_(0, bins - 1)
            weight = torch.ones_like(values) if counted is None else counted
            counts.scatter_add_(1, index, weight.double())
            sums.scatter_add_(1, index, (values * weight).double())
        means = (sums / counts.clamp(min=1e-30)).float()
        return Sample(means, counts.float(), self.minimum, self.maximum, self.ranges)


def _zeros(values: Tensor) -> Tensor:
    """How many values of each row are zero, int64 ``(rows,)``; NumPy counts truths 8 times as fast as torch."""
    found = np.equal(values.numpy(), 0)
    if len(values) > 1:
        return torch.from_numpy(np.count_nonzero(found, axis=1))
    return torch.tensor([np.count_nonzero(found)])


class GrowingHistogram:
    """Counts of a stream of values, group by group, in bins whose range doubles when it must.

    The bins of a group divide ``-2**k .. 2**k`` evenly, with the smallest k that holds every value seen.
    Exact zeros, of which a ReLU makes many, are counted apart.  Extremes are exact.

    Args:
        groups: how many groups.
        bins: how many bins a group, a multiple of 4; None takes as many as memory allows.

    >>> tally = GrowingHistogram(1)
    >>> tally.add(torch.tensor([[0.0, 0.4, 3.0]]))
    >>> int(tally.count[0]), float(tally.maximum[0])
    (3, 3.0)
    """

    def __init__(self, groups: int, bins: int | None = None) -> None:
        if bins is None:
            bins = max(FEWEST_BINS, min(BINS, MOST_COUNTS // max(groups, 1) // 4 * 4))
        if bins % 4:
            raise TensorError(f"A growing histogram needs a multiple of 4 bins, not {bins}.")
        self.bins = bins
        self.exponent = torch.full((groups,), LEAST_EXPONENT, dtype=torch.int32)
        self.counts = torch.zeros(groups, bins, dtype=torch.int64)
        self.zeros = torch.zeros(groups, dtype=torch.int64)
        self.minimum = torch.full((groups,), torch.inf)
        self.maximum = torch.full((groups,), -torch.inf)
        self.ranges: list[Tensor] = []

    @property
    def count(self) -> Tensor:
        """How many values each group holds, int64 ``(groups,)``."""
        return self.counts.sum(1) + self.zeros

    @property
    def width(self) -> Tensor:
        """The width of a bin of each group, real units, float64 ``(groups,)``."""
        return torch.exp2((self.exponent + 1).double()) / self.bins

    def _grow(self, exponent: Tensor) -> None:
        """Double the range of each group until it reaches ``2**exponent``."""
        quarter = self.bins // 4
        steps = (exponent - self.exponent).clamp(min=0)
        empty = self.counts.sum(1) == 0
        while bool(((steps > 0) & ~empty).any()):
            rows = (steps > 0) & ~empty
            halved = self.counts[rows].reshape(-1, self.bins // 2, 2).sum(2)
            self.counts[rows] = torch.nn.functional.pad(halved, (quarter, quarter))
            steps = steps - rows.int()
        self.exponent = torch.maximum(self.exponent, exponent)

    def add(self, values: Tensor) -> None:
        """Count one batch, float32 ``(groups, elements)``."""
        if values.shape[1] == 0:
            return
        # aminmax along an axis takes 20 times as long as these two.
        low, high = values.amin(1), values.amax(1)
        self.minimum = torch.minimum(self.minimum, low)
        self.maximum = torch.maximum(self.maximum, high)
        self.ranges.append(torch.stack([low, high]))
        # frexp gives |x| = mantissa * 2**exponent with mantissa in [0.5, 1): 2**exponent lies above |x|.
        absmax = torch.maximum(-low, high)
        wanted = torch.frexp(absmax)[1].to(torch.int32).clamp(LEAST_EXPONENT, 128)
        # Zero has the exponent 0 there, but asks for no range at all.
        self._grow(torch.where(absmax > 0, wanted, LEAST_EXPONENT))
        groups = values.shape[0]
        places = (1.0 / self.width).float()[:, None]
        # Whole numbers below 2**24 add up exactly in float32.
        first = (torch.arange(groups, dtype=torch.float32)[:, None] * self.bins) + self.bins // 2
        columns = max(1, _CACHED // groups)
        index = torch.empty(values.shape, dtype=torch.int32)
        buffer = torch.empty(groups, min(columns, values.shape[1]))
        zeros = torch.zeros(groups, dtype=torch.int64)
        for part, place in zip(values.split(columns, 1), index.split(columns, 1), strict=True):
            scaled = torch.mul(part, places, out=buffer[:, : part.shape[1]])
            place.copy_(scaled.floor_().add_(first))
            zeros += _zeros(part)
        counts = torch.bincount(index.view(-1), minlength=groups * self.bins)
        self.counts += counts.view(groups, -1)
        self.counts[:, self.bins // 2] -= zeros
        self.zeros += zeros

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

    def sample(self) -> Sample:
        """The counts as weighted values at the middle of each bin, and zero itself.

        Raises:
            TensorError: when nothing was counted.
        """
        if not self.ranges:
            raise TensorError("No value has been observed; calibration needs at least one image.")
        middle = (torch.arange(self.bins, dtype=torch.float64) - self.bins // 2 + 0.5) * self.width[:, None]
        values = torch.cat([middle.float(), torch.zeros(len(middle), 1)], 1)
        # No stand-in may lie beyond the extremes, or a range fitted to it would.
        values = values.clamp(self.minimum[:, None], self.maximum[:, None])
        counts = torch.cat([self.counts, self.zeros[:, None]], 1).float()
        used = (counts > 0).any(0)
        return Sample(values[:, used], counts[:, used], self.minimum, self.maximum, torch.stack(self.ranges))
