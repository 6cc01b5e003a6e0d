"""The number line of a tensor: its levels, what goes to each, and where the error comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explorer.errors import SchemeError
from explorer.formats import FloatFormat
from explorer.study.grouped import Grouped, common_levels, in_own_units, level_places, level_values
from explorer.study.metrics import ErrorSums
from explorer.study.shown import Drawn

# What lies beyond the last level by no more than this share of it is rounding of float32, not clipping.
SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class NumberLine(Drawn):
    """The levels of a tensor over its distribution, with the squared error of each.

    Positions are real values; of several groups at once they are in units of each group's own scale (codes of
    integers or of fitted levels, levels before scaling), where all groups have the same levels.  Squared errors are
    in real units squared everywhere, so they add up to the tensor's.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        scheme: what it is quantized by, in words.
        group: which group, counted from 0; None for all of them.
        groups: how many there are.
        widest: the group with the widest range.
        unit: what positions are: ``value``, ``code`` or ``level``.
        levels: float64 ``(levels,)``, increasing.
        mass: elements that go to each level, ``(levels,)``.
        squared_error: the sum of the squared errors of those elements, ``(levels,)``.
        edges: of even bins over all positions, ``(bins + 1,)``.
        counts: elements in each bin, ``(bins,)``.
        rounding: squared error between the outermost levels by bins, ``(bins,)``.
        clipping: squared error of what lies beyond them by bins, ``(bins,)``.
        elements: how many elements were looked at.
        clipped: how many of them lie beyond the outermost levels.
        signal: the sum of their squares.
        exact: every element was looked at; otherwise bins or one batch of calibration images stand for them.
    """

    layer: str
    tensor: str
    scheme: str
    group: int | None
    groups: int
    widest: int
    unit: str
    levels: np.ndarray
    mass: np.ndarray
    squared_error: np.ndarray
    edges: np.ndarray
    counts: np.ndarray
    rounding: np.ndarray
    clipping: np.ndarray
    elements: float
    clipped: float
    signal: float
    exact: bool

    @property
    def error(self) -> float:
        """The sum of all squared errors."""
        return float(self.squared_error.sum())

    @property
    def error_share(self) -> np.ndarray:
        """The share of all squared error that each level has, ``(levels,)``; zero where there is no error."""
        return self.squared_error / (self.error or 1.0)

    @property
    def used(self) -> int:
        """How many levels some element goes to."""
        return int((self.mass > 0).sum())

    @property
    def unused(self) -> int:
        """How many levels no element goes to."""
        return len(self.levels) - self.used

    @property
    def clipped_fraction(self) -> float:
        """The share of the elements beyond the outermost levels of their own group."""
        return self.clipped / self.elements if self.elements else 0.0

    @property
    def clipping_share(self) -> float:
        """The share of the squared error from clipping, the rest being from rounding; NaN without an error."""
        return float(self.clipping.sum()) / self.error if self.error else math.nan

    @property
    def sqnr_db(self) -> float:
        """Of what was looked at."""
        return ErrorSums(1, self.signal, self.error).sqnr_db


def number_line(found: Grouped, group: int | None = None, bins: int = 256) -> NumberLine:
    """The number line of a tensor.

    Args:
        found: the tensor under a scheme.
        group: one group, positions being real values; None for all of them at once.
        bins: how many bins the distribution has.

    Raises:
        SchemeError: for float32, which has no levels to be listed.
        LayerError: for a group that does not exist.
    """
    groups, widest = found.sample.groups, found.widest
    if groups == 1 and group is None:
        group = 0
    part = found if group is None else found.part(group)
    values, weights = part.sample.values, part.sample.weights
    rounded = part.rounded()
    weight = np.ones(values.numel()) if weights is None else weights.double().numpy().ravel()
    error = weight * (values.double() - rounded.double()).square_().numpy().ravel()
    unit, levels, place, position = _levels(part, rounded, group)
    beyond = outside(part).numpy().ravel()
    low, high = _span(position[weight > 0])
    cell = ((position - low) * (bins / (high - low))).astype(np.int64).clip(0, bins - 1)

    def binned(amount: np.ndarray) -> np.ndarray:
        return np.bincount(cell, amount, minlength=bins)

    clipping = binned(np.where(beyond, error, 0.0))
    return NumberLine(
        found.layer,
        found.tensor,
        found.scheme.describe(),
        group,
        groups,
        widest,
        unit,
        levels,
        np.bincount(place, weight, minlength=len(levels)),
        np.bincount(place, error, minlength=len(levels)),
        np.linspace(low, high, bins + 1),
        binned(weight),
        binned(np.where(beyond, 0.0, error)),
        clipping,
        float(weight.sum()),
        float((weight * beyond).sum()),
        float((weight * values.double().square().numpy().ravel()).sum()),
        found.exact,
    )


def _levels(
    part: Grouped, rounded: Tensor, group: int | None
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """The unit, the levels, the place of each value among them, and its position, the latter two flat."""
    number, values = part.scheme.number, part.sample.values
    if part.params is None:
        assert isinstance(number, FloatFormat)
        if number.exact:
            raise SchemeError(
                f"The {part.tensor} of {part.layer!r} stays in float32, so there are no levels to be drawn; "
                "choose a format such as int8."
            )
        taken = rounded.double().numpy().ravel()
        levels = number.values
        levels = levels[(levels >= taken.min()) & (levels <= taken.max())]
        return "value", levels, np.searchsorted(levels, taken), values.double().numpy().ravel()
    place = level_places(values, part.params).numpy().ravel()
    if group is not None:
        levels = level_values(part.params, 0)
        if part.params.book is not None:
            place = np.searchsorted(levels, rounded.double().numpy().ravel())
        return "value", levels, place, values.double().numpy().ravel()
    levels = common_levels(part.params)
    position = in_own_units(values, part.params).double().numpy().ravel()
    return "level" if part.params.levels is not None else "code", levels, place, position


def outside(part: Grouped) -> Tensor:
    """Which values lie beyond the outermost levels of their own group, bool ``(groups, points)``."""
    values = part.sample.values
    if part.params is None:
        assert isinstance(part.scheme.number, FloatFormat)
        return values.abs() > part.scheme.number.highest
    low, high = (bound[:, None] for bound in part.params.clip)
    slack = SLACK * torch.maximum(-low, high)
    return (values < low - slack) | (values > high + slack)


def _span(position: np.ndarray) -> tuple[float, float]:
    low, high = float(position.min()), float(position.max())
    room = max(0.5, abs(low) / 2) if low == high else 0.0
    return low - room, high + room
