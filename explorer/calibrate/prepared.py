"""A sample made ready for a search: values as they are, or bins with running sums.

What is in bins has running sums, with which the cost of a candidate is a sum over codes and not over values;
the bin of an edge is computed, not searched for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from explorer.calibrate.loops import (
    descend,
    divergences,
    recount,
    rounding_errors,
    running_entropies,
    running_sums,
    squared_errors,
)
from explorer.calibrate.sample import Sample
from explorer.formats import QParams, fake_quantize_

# What the parameters of a range follow from, as a grid says it.
Rule = tuple[bool, float, int, int, int, float, float]
# What one of the costs has and another has not.
_NONE, _NO_ENDS, _NO_SUMS = np.empty(0, np.float32), np.empty((2, 0), np.float32), np.empty((0, 0, 3))
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
        unit = _unit(sample, bits)
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
class Stage:
    """Some candidates of a search, made of the best shares of the full range so far.

    Args:
        factors: of the shares of both ends, float64 ``(2, candidates)``.
        offsets: what is then added, likewise.
        least: the smallest share.
        most: the largest.
    """

    factors: np.ndarray
    offsets: np.ndarray
    least: float = 1e-3
    most: float = 1.0

    @classmethod
    def times(
        cls, low: ArrayLike, high: ArrayLike | None = None, least: float = 1e-3, most: float = 1.0
    ) -> Stage:
        """The best times some factors, those of both ends alike unless ``high`` is given."""
        factors = np.array(np.broadcast_arrays(low, low if high is None else high), float)
        return cls(factors, np.zeros_like(factors), least, most)

    @classmethod
    def plus(cls, low: ArrayLike, high: ArrayLike, least: float = 1e-3) -> Stage:
        """The best and some numbers."""
        offsets = np.array(np.broadcast_arrays(low, high), float)
        return cls(np.ones_like(offsets), offsets, least)

    def about(self, shares: np.ndarray) -> np.ndarray:
        """The candidates, float32 ``(2, groups, candidates)``, for the best of each group so far, ``(2, groups)``.

        >>> Stage.plus([-0.5, 0.0, 0.5], 0).about(np.full((2, 1), 0.75, np.float32)).tolist()
        [[[0.25, 0.75, 1.0]], [[0.75, 0.75, 0.75]]]
        """
        found = shares[..., None] * self.factors[:, None] + self.offsets[:, None]
        return found.clip(self.least, self.most).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Plan:
    """The candidates of a search, one stage after the other."""

    stages: tuple[Stage, ...]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Factors and offsets of all, ``(2, candidates)``, least and largest shares, likewise, and where stages begin.

        >>> Plan((Stage.times([1.0, 0.5]), Stage.plus([-0.1, 0.0, 0.1], 0))).arrays[-1]
        array([0, 2, 5])
        """
        counts = [stage.factors.shape[1] for stage in self.stages]
        return (
            np.concatenate([stage.factors for stage in self.stages], 1),
            np.concatenate([stage.offsets for stage in self.stages], 1),
            np.repeat(
                [[stage.least for stage in self.stages], [stage.most for stage in self.stages]], counts, 1
            ),
            np.cumsum([0, *counts]),
        )


@dataclass(frozen=True, eq=False)
class Even:
    """Values as they are, of which squared errors of even steps are asked, in units as those of :class:`Plain`.

    Args:
        values: float32 ``(groups, points)``.
        weights: float32 like ``values``, or None where each value counts once.
        unit: how many units a real one is, float32 ``(groups,)``.
        ends: the least and the largest of the values, each of which counts at least once; zeros where that is unknown.
    """

    values: np.ndarray
    weights: np.ndarray | None
    unit: Tensor
    ends: np.ndarray
    exponent: ClassVar[float] = 2.0

    @classmethod
    def of(cls, sample: Sample, bits: int) -> Even:
        """The values of a sample, to be quantized to ``bits`` bits."""
        unit = _unit(sample, bits)
        weights = None if sample.weights is None else _rows(sample.weights)
        ends = torch.stack([sample.minimum, sample.maximum]) * (unit if sample.bins is None else 0)
        return cls(_rows(sample.values * unit[:, None]), weights, unit, ends.numpy())

    def squared_error(self, params: QParams) -> Tensor:
        """That of each candidate, float64 ``(groups, candidates)``; infinity may stand for that of a worse one."""
        scale = (params.scale * self.unit[:, None]).clamp_(max=torch.finfo(torch.float32).max)
        found = np.empty(scale.shape)
        rounding_errors(
            self.values, self.weights, _rows(scale), _rows(params.zero_point), params.qmin, params.qmax, found
        )
        return torch.from_numpy(found)

    def descend(self, full: np.ndarray, rule: Rule, plan: Plan) -> np.ndarray:
        """The shares of the ranges ``full`` of least error, float32 ``(2, groups)`` both; ``rule`` is a grid's."""
        return _descend(full, rule, plan, self.values, self.weights, self.unit.numpy(), self.ends)


@dataclass(frozen=True, eq=False)
class Spread:
    """Bins of even width, with their values spread evenly over each, and running sums of them.

    Exact zeros are left out: every range has zero among its levels.  Sums are in units of the bins.

    Args:
        width: of the bins, float64 ``(groups,)``.
        first: the left end of the first bin, in bins.
        sums: of the bins, as :func:`running_sums` makes them.
        moments: the sums of all values and of their squares.
    """

    width: np.ndarray
    first: int
    sums: np.ndarray
    moments: np.ndarray

    @classmethod
    def of(cls, sample: Sample) -> Spread:
        """The bins of a sample that consists of them."""
        assert sample.bins is not None and sample.weights is not None
        counts = np.ascontiguousarray(sample.weights.numpy()[:, :-1])
        sums, moments = np.empty((len(counts), counts.shape[1] + 1, 3)), np.empty((len(counts), 2))
        running_sums(counts, sample.bins.first, sums, moments)
        return cls(sample.bins.width.numpy(), sample.bins.first, sums, moments)

    def squared_error(self, params: QParams) -> Tensor:
        """The sum of squared errors of each candidate, float64 ``(groups, candidates)``."""
        scale, zero = _rows(params.scale), _rows(params.zero_point)
        found = np.empty(scale.shape)
        squared_errors(
            self.sums, self.moments, self.first, self.width, scale, zero, params.qmin, params.qmax, found
        )
        return torch.from_numpy(found)

    def descend(self, full: np.ndarray, rule: Rule, plan: Plan) -> np.ndarray:
        """The shares of the ranges ``full`` of least error, float32 ``(2, groups)`` both; ``rule`` is a grid's."""
        return _descend(
            full, rule, plan, sums=self.sums, width=self.width, moments=self.moments, first=self.first
        )


@dataclass(frozen=True, eq=False)
class Counted:
    """Bins that reach from ``-absmax`` to ``absmax``, with running sums.

    Args:
        absmax: float32 ``(groups,)``.
        counts: float64 ``(groups, bins)``.
        sums: of the bins, as :func:`running_entropies` makes them.
        least: how many bins a range keeps, or its divergence is infinite.
        each: how many values one that was looked at stands for; 1 where all were.
        noise: the variance of a count, in counts.
    """

    absmax: Tensor
    counts: np.ndarray
    sums: np.ndarray
    least: int
    each: float = 1.0
    noise: float = 1.0

    @classmethod
    def of(
        cls, counts: np.ndarray, absmax: Tensor, least: int, each: float = 1.0, noise: float = 1.0
    ) -> Counted:
        """The running sums of some counts."""
        sums = np.empty((len(counts), counts.shape[1] + 1, 3))
        running_entropies(counts, each, noise, sums)
        return cls(absmax, counts, sums, least, each, noise)

    @classmethod
    def of_bins(cls, sample: Sample, absmax: Tensor, bins: int, least: int) -> Counted:
        """The bins of a sample that consists of them, as so many."""
        assert sample.weights is not None and sample.bins is not None
        weights, found = sample.weights.numpy(), np.empty((sample.groups, bins))
        own, zeros = np.ascontiguousarray(weights[:, :-1]), np.ascontiguousarray(weights[:, -1])
        recount(own, sample.bins.first, sample.bins.width.numpy(), absmax.numpy(), zeros, found)
        return cls.of(found, absmax, least, 1 / sample.share, sample.noise)

    def divergence(self, params: QParams) -> Tensor:
        """That of each candidate, float64 ``(groups, candidates)``."""
        edges = _edges(params.qmin, params.qmax) if params.levels is None else params.levels.edges.numpy()
        scale, zero = _rows(params.scale), _rows(params.zero_point)
        found = np.empty(scale.shape)
        divergences(
            self.counts, self.sums, self.absmax.numpy(), float(self.each), float(self.noise), edges,
            params.levels is None, scale, zero, self.least, found,
        )  # fmt: skip
        return torch.from_numpy(found)

    def descend(self, full: np.ndarray, rule: Rule, plan: Plan) -> np.ndarray:
        """The shares of the ranges ``full`` of least divergence, float32 ``(2, groups)`` both; ``rule`` is a grid's."""
        _, _, lowest, highest, *_ = rule
        return _descend(
            full, rule, plan, sums=self.sums, width=self.absmax.numpy(), counts=self.counts, each=float(self.each),
            noise=float(self.noise), edges=_edges(lowest, highest), least=self.least,
        )  # fmt: skip


def _descend(
    full: np.ndarray,
    rule: Rule,
    plan: Plan,
    values: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    unit: np.ndarray = _NONE,
    ends: np.ndarray = _NO_ENDS,
    sums: np.ndarray = _NO_SUMS,
    width: np.ndarray = _NONE,
    moments: np.ndarray | None = None,
    first: int = 0,
    counts: np.ndarray | None = None,
    each: float = 1.0,
    noise: float = 1.0,
    edges: np.ndarray = _NONE,
    least: int = 0,
) -> np.ndarray:
    """:func:`descend` with what one of the costs needs."""
    shares = np.empty_like(full)
    factors, offsets, bounds, starts = plan.arrays
    symmetric, steps, lowest, highest, centre, floor, least_range = rule
    descend(
        full, factors, offsets, bounds, starts, symmetric, steps, lowest, highest, centre, floor, least_range, values,
        weights, unit, ends, sums, width, moments, first, counts, each, noise, edges, least, shares,
    )  # fmt: skip
    return shares


def _edges(lowest: int, highest: int) -> np.ndarray:
    """Those between whole numbers."""
    return np.arange(lowest - 0.5, highest + 1, dtype=np.float32)


def _unit(sample: Sample, bits: int) -> Tensor:
    """How many units of about a step of the full range a real one is, a power of two, float32 ``(groups,)``."""
    extent = torch.frexp(torch.maximum(-sample.minimum, sample.maximum))[1]
    return torch.exp2((bits - extent).clamp(max=126).float())


def _rows(tensor: Tensor) -> np.ndarray:
    """A matrix with its rows one after the other in memory."""
    return np.ascontiguousarray(tensor.numpy())


Prepared = Plain | Even | Spread | Counted
