"""A sample made ready for a search: values as they are, or bins with running sums.

What is in bins has running sums, with which the cost of a candidate is a sum over codes and not over values;
the bin of an edge is computed, not searched for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate.sample import Sample
from explorer.formats import QParams, fake_quantize_

# Elements of a group of which one extreme stands for all in a bound on what is clipped.
_BLOCK = 16
# Candidates of few values are tried together, so many numbers at a time: each pass has a cost of its own.
_TOGETHER = 1 << 19


@dataclass(frozen=True, eq=False)
class Plain:
    """Values as they are, laid out so that neighbours in memory lie along the longer axis.

    They are in units of about a step of the full range, a power of two: no power of an error overflows or
    vanishes, and nothing is rounded on the way.

    Args:
        values: float32 ``(groups, points)``, or ``(points, groups)`` where ``axis`` is 0.
        axis: the axis of the points.
        unit: how many units a real one is, float32 ``(groups,)``.
        exponent: to which power errors are raised.
        lows: the least value of each block of points, ``(groups, blocks)``.
        highs: the largest value of each block.
        buffer: where errors are worked out, like ``values``, for one candidate or more of them.
        weights: float32 like ``values``, or None where each value counts once.
    """

    values: Tensor
    axis: int
    unit: Tensor
    exponent: float
    lows: Tensor
    highs: Tensor
    buffer: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, sample: Sample, bits: int, exponent: float) -> Plain:
        """The values of a sample, to be quantized to ``bits`` bits."""
        axis = int(sample.values.shape[1] > sample.groups)
        extent = torch.frexp(torch.maximum(-sample.minimum, sample.maximum))[1]
        unit = torch.exp2((bits - extent).clamp(max=126).float())
        scaled = sample.values * unit[:, None]
        lows, highs = sample.minimum[:, None] * unit[:, None], sample.maximum[:, None] * unit[:, None]
        groups, points = scaled.shape
        if sample.weights is None and points >= 4 * _BLOCK:
            whole = scaled[:, : points // _BLOCK * _BLOCK].reshape(groups, -1, _BLOCK)
            lows, highs = whole.amin(2), whole.amax(2)

        def laid(matrix: Tensor) -> Tensor:
            return matrix.contiguous() if axis else matrix.T.contiguous()

        values = laid(scaled)
        weights = None if sample.weights is None else laid(sample.weights)
        buffer = torch.empty(max(1, _TOGETHER // values.numel()), *values.shape)
        return cls(values, axis, unit, exponent, lows, highs, buffer, weights)

    @property
    def together(self) -> int:
        """How many candidates are worked out in one pass."""
        return len(self.buffer)

    @property
    def points(self) -> int:
        """How many values a group has."""
        return self.values.shape[self.axis]

    def _raised(self, error: Tensor) -> Tensor:
        """Errors, in place, to the power that counts."""
        return error.square_() if self.exponent == 2 else error.abs_().pow_(self.exponent)

    def least(self, low: Tensor, high: Tensor) -> Tensor:
        """Lower bounds on the costs of clipping to ``low``..``high``, real units; all ``(candidates, groups)``."""
        below = (low * self.unit)[..., None] - self.lows
        above = self.highs - (high * self.unit)[..., None]
        return self._raised(below.clamp_(min=0)).sum(-1).add_(self._raised(above.clamp_(min=0)).sum(-1))

    def error(self, scale: Tensor, zero_point: Tensor, params: QParams) -> Tensor:
        """The costs of at most ``together`` candidates, float64 ``(candidates, groups)`` as their parameters are."""
        # A least scale may be beyond all that the group holds, in its units beyond all numbers.
        scale = (scale * self.unit).clamp_(max=torch.finfo(torch.float32).max)
        axis = self.axis - 2
        buffer = self.buffer[: len(scale)]
        error = self._raised(
            fake_quantize_(
                self.values.expand_as(buffer),
                scale.unsqueeze(axis),
                zero_point.unsqueeze(axis),
                params,
                buffer,
            ).sub_(self.values)
        )
        if self.weights is not None:
            error.mul_(self.weights)
        # What becomes NaN is as bad as what becomes infinity.
        return error.sum(axis).double().nan_to_num_(nan=torch.inf, posinf=torch.inf)


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

    width: np.ndarray
    first: int
    mass: np.ndarray
    below: np.ndarray
    hinge: np.ndarray
    value: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, sample: Sample) -> Spread:
        """The bins of a sample that consists of them."""
        assert sample.bins is not None and sample.weights is not None
        counts = sample.weights[:, :-1].double().numpy()
        first, (groups, points) = sample.bins.first, counts.shape
        mass, below, hinge = np.zeros((3, groups, points + 1))
        mass[:, :-1] = counts
        _sums(counts, below[:, 1:])
        # From one end to the next all that is below comes nearer by a bin, and the bin's own by half of one.
        _sums(below[:, :-1] + counts / 2, hinge[:, 1:])
        value = (first + points) * below[:, -1:] - hinge[:, -1:]
        middle = np.arange(points) + (first + 0.5)
        # Not a product of matrices: its threads would spin on for a while.
        square = (counts * (middle**2 + 1 / 12)).sum(1, keepdims=True)
        return cls(sample.bins.width.numpy()[:, None], first, mass, below, hinge, value, square)

    @property
    def points(self) -> int:
        """How many bins a group has."""
        return self.mass.shape[1] - 1

    def _hinges(self, edge: np.ndarray) -> np.ndarray:
        """The sum of the distances from each edge ``(groups, edges)``, in bins, to the values below it."""
        edge -= self.first
        np.maximum(edge, 0, out=edge)
        # A place far behind the last would be no whole number of 64 bits.
        index = np.minimum(edge, self.points).astype(np.int64)
        edge -= index
        index += np.arange(len(index))[:, None] * (self.points + 1)
        found = self.mass.take(index)
        found *= edge
        found *= 0.5
        found += self.below.take(index)
        found *= edge
        found += self.hinge.take(index)
        return found

    def squared_error(self, params: QParams) -> Tensor:
        """The sum of squared errors of each candidate, float64 ``(groups, candidates)``.

        Between neighbouring codes the squared error changes by ``2 * scale * (edge - value)``; summed over
        the edges below a value, that takes the error of the highest code to its own.
        """
        code, zero = np.arange(params.qmin + 0.5, params.qmax), params.zero_point.numpy()
        scale = params.scale.numpy() / self.width
        edge = (code - zero[..., None]) * scale[..., None]
        top = (params.qmax - zero) * scale
        hinges = self._hinges(edge.reshape(len(edge), -1)).reshape(edge.shape).sum(2)
        error = self.square + top * (top * self.below[:, -1:] - 2 * self.value) - 2 * scale * hinges
        return torch.from_numpy(np.maximum(error, 0) * self.width**2)


@dataclass(frozen=True, eq=False)
class Counted:
    """Bins that reach from ``-absmax`` to ``absmax``, with running sums.

    Args:
        absmax: float32 ``(groups,)``.
        counts: float64 ``(groups, bins)``.
        sums: of counts, of bins that are not empty, and of :meth:`entropy`; float64 ``(3, groups, bins + 1)``.
        each: how many values one that was looked at stands for; 1 where all were.
        noise: the variance of a count, in counts.
    """

    absmax: Tensor
    counts: np.ndarray
    sums: np.ndarray
    each: float = 1.0
    noise: float = 1.0

    @classmethod
    def of(cls, counts: np.ndarray, absmax: Tensor, each: float = 1.0, noise: float = 1.0) -> Counted:
        """The running sums of some counts."""
        sums = np.zeros((3, len(counts), counts.shape[1] + 1))
        parts = counts, counts > 0, _entropy(counts, each, noise)
        for part, total in zip(parts, sums, strict=True):
            _sums(part, total[:, 1:])
        return cls(absmax, counts, sums, each, noise)

    def entropy(self, counts: np.ndarray, spread: np.ndarray | float = 1.0) -> np.ndarray:
        """``count * log(count / spread)``, as it would be on average if every value had been counted.

        Half the variance of a count over the count is what it is too much.
        Source: Miller, "Note on the bias of information estimates" (1955).
        """
        return _entropy(counts, self.each, self.noise, spread)

    @property
    def points(self) -> int:
        """How many bins a group has."""
        return self.counts.shape[1]


def _sums(numbers: np.ndarray, out: np.ndarray) -> None:
    """Running sums along the last axis; torch's take a third of the time of NumPy's."""
    torch.cumsum(torch.from_numpy(numbers), -1, dtype=torch.float64, out=torch.from_numpy(out))


def _entropy(counts: np.ndarray, each: float, noise: float, spread: np.ndarray | float = 1.0) -> np.ndarray:
    found = xlogy(counts, counts / spread)
    # Fewer than one stands for were counted one by one.
    return found if noise == 1 else found - (noise - 1) / 2 * (counts >= each)


def xlogy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x * log(y)``, and 0 where x is; neither is negative.  NumPy's logarithm is several times as fast as torch's."""
    product: np.ndarray = x * np.log(np.maximum(y, 1e-300))
    return product


Prepared = Plain | Spread | Counted


def edges(params: QParams) -> Tensor:
    """Between which real numbers each code lies, ``(groups, candidates, codes + 1)``; ties fall either way."""
    if params.levels is not None:
        return params.levels.edges * params.scale[..., None]
    code = torch.arange(params.qmin, params.qmax + 2)
    return (code - params.zero_point[..., None] - 0.5) * params.scale[..., None]


def outermost(params: QParams) -> Tensor:
    """The first and the last of :func:`edges`, ``(groups, candidates, 2)``."""
    if params.levels is not None:
        return edges(params)[..., [0, -1]]
    ends = torch.tensor([params.qmin, params.qmax + 1])
    return (ends - params.zero_point[..., None] - 0.5) * params.scale[..., None]
