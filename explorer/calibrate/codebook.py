"""Fitting the levels of a group by least squares: codebooks, sums of scaled binary vectors, binary, ternary.

All take weighted values, so a tensor, a histogram of activations and values of unequal importance are fitted
alike.  Values are sorted once; a group of levels then cuts them into runs, and the error of any run follows from
two running sums.  Groups are worked on together, in parts, so that memory stays within a bound.

A codebook is found by dynamic programming over the cuts, which is exact, for groups of up to so many different
values as :func:`exact_points` says.  Of more values cuts are first sought among some of all places, spread as
densely as the cube root of the values' density asks (Panter and Dite, 1951), and then moved: by dynamic
programming again, over windows around the cuts that get finer and finer, until nothing is gained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate.sample import Sample
from explorer.formats import CodebookFormat, QParams

# Numbers of a sample that are worked on at a time.
_CHUNK = 1 << 19
# Numbers that one step of dynamic programming goes through at a time: 4 MiB of float64, which the cache holds.
_STEP = 1 << 19
# Pairs of cuts, times levels, that an exact search may go through for one group.
_WORK = 1 << 22
# With more levels than this a search among some places only is no better start than the places themselves.
_MOST_SOUGHT = 32
# How far a cut may move in one turn, in strides, and how many turns of one stride there are.
_REACH, _TURNS = 6, 24
# Turns of alternating least squares; a dozen are usual.
_ALTERNATIONS = 60
# Even steps to start from reach so far, as shares of the largest magnitude.
_SHARES = (1.0, 0.7, 0.5, 0.3)


def fit_codebook(sample: Sample, number: CodebookFormat) -> QParams:
    """The levels of each group with the least weighted sum of squared errors that is found.

    >>> from explorer.formats import FORMATS, granularity
    >>> sample = Sample.of(torch.tensor([1.0, 1.2, 5.0, 9.0, 9.2]), granularity("layer"), 0)
    >>> fit_codebook(sample, FORMATS["ternary"]).book.levels.tolist()
    [[-7.733333110809326, 0.0, 7.733333110809326]]
    """
    rows = max(1, _CHUNK // sample.values.shape[1])
    solve = CODEBOOKS[number.family]
    levels = torch.cat(
        [solve(part.values.contiguous(), _masses(part.weights), number.count) for part in sample.split(rows)]
    )
    # + 0.0 turns -0.0 into 0.0.
    return QParams.of_levels(levels + 0.0)


def _masses(weights: Tensor | None) -> Tensor | None:
    """The weights as float64; each value counts once in a group where none does."""
    if weights is None:
        return None
    none = (weights.amax(1, keepdim=True) <= 0).double()
    return weights.double() + none


def _ordered(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The values of each group in order, with their weights."""
    if weights is None:
        # NumPy's sort makes no list of places, which for a large layer is as large as three layers.
        return torch.from_numpy(np.sort(values.numpy(), axis=1)), None
    ordered, order = values.sort(1)
    return ordered, weights.gather(1, order)


# --- binary and ternary -------------------------------------------------------------------------------------


def binary(values: Tensor, weights: Tensor | None, count: int = 2) -> Tensor:
    """Levels ``-a, a`` with a the mean magnitude, which is the least-squares answer; float32 ``(groups, 2)``."""
    magnitude = values.abs().double()
    if weights is None:
        mean = magnitude.cumsum(1)[:, -1] / values.shape[1]
    else:
        mean = magnitude.mul_(weights).cumsum(1)[:, -1] / weights.cumsum(1)[:, -1]
    return mean[:, None].float() * torch.tensor([-1.0, 1.0])


def ternary(values: Tensor, weights: Tensor | None, count: int = 3) -> Tensor:
    """Levels ``-a, 0, a`` of least squared error, float32 ``(groups, 3)``.

    If the k largest magnitudes, of sum S and mass W, get the level a, the best a is S / W and the squared error
    falls by S**2 / W; so the best k is the place of the largest such number.
    """
    magnitude, order = values.abs().sort(dim=1, descending=True)
    if weights is None:
        mass = torch.arange(1, values.shape[1] + 1, dtype=torch.float64).expand(len(values), -1)
        total = magnitude.cumsum(1, dtype=torch.float64)
    else:
        mass = weights.gather(1, order)
        total = (magnitude * mass).cumsum(1)
        mass = mass.cumsum(1)
    del order, magnitude
    gain = total.square().div_(mass)
    best = gain.nan_to_num_(nan=0.0).argmax(1, keepdim=True)
    mean = total.gather(1, best) / mass.gather(1, best)
    return mean.nan_to_num_(nan=0.0).float() * torch.tensor([-1.0, 0.0, 1.0])


# --- what cuts know of the values between them --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Points:
    """Values in order, with running sums.

    Args:
        values: float32 ``(groups, points)``, none smaller than the one before it.
        centre: from which sums are taken, so that little is lost to cancellation, float64 ``(groups, 1)``.
        mass: of the values before each place, float64 ``(groups, points + 1)``.
        total: the sum of mass times distance from ``centre``, likewise.
        weighted: whether masses differ.
    """

    values: Tensor
    centre: Tensor
    mass: Tensor
    total: Tensor
    weighted: bool = True

    @classmethod
    def of(cls, values: Tensor, weights: Tensor | None) -> Points:
        """From values in order and their weights, float64, or None where each counts once."""
        groups, points = values.shape
        exact = values.double()
        centre = (exact[:, :1] + exact[:, -1:]) / 2
        exact -= centre
        total = torch.zeros(groups, points + 1, dtype=torch.float64)
        if weights is None:
            mass = torch.arange(points + 1, dtype=torch.float64).expand(groups, -1)
        else:
            exact *= weights
            mass = torch.zeros_like(total)
            torch.cumsum(weights, 1, out=mass[:, 1:])
        np.cumsum(exact.numpy(), axis=1, out=total[:, 1:].numpy())
        return cls(values, centre, mass, total, weights is not None)

    @property
    def count(self) -> int:
        """How many values a group has."""
        return self.values.shape[1]

    def part(self, rows: slice) -> Points:
        """Some of the groups."""
        return Points(self.values[rows], self.centre[rows], self.mass[rows], self.total[rows], self.weighted)

    def means(self, cuts: Tensor) -> Tensor:
        """The mean of each run between neighbouring cuts ``(groups, levels + 1)``, float32 ``(groups, levels)``.

        A run without values, or of values without weight, has the value at its place for a mean.
        """
        mass, total = (part.gather(1, cuts).diff(dim=1) for part in (self.mass, self.total))
        first = self.values.gather(1, cuts[:, :-1].clamp(max=self.count - 1))
        last = self.values.gather(1, (cuts[:, 1:] - 1).clamp(min=0))
        last = torch.maximum(first, last)
        mean = (total / mass + self.centre).float()
        # Equal values have themselves for a mean, whatever is lost to rounding.
        return torch.where(mass > 0, torch.minimum(torch.maximum(mean, first), last), first)


def _gain(mass: Tensor, total: Tensor) -> Tensor:
    """By how much a level of its own lowers the squared error of a run, against one at the centre."""
    return total.square().div_(mass).masked_fill_(mass <= 0, 0.0)


# --- codebooks ----------------------------------------------------------------------------------------------


def exact_points(levels: int) -> int:
    """Of how many different values a group may have for its codebook of ``levels`` to be surely the best.

    >>> exact_points(16)
    512
    """
    return math.isqrt(_WORK // levels)


def kmeans(values: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """The ``count`` levels of least squared error, float32 ``(groups, count)``; exact up to :func:`exact_points`.

    A group of no more different values than levels has these values for levels.
    """
    if weights is not None:
        # Values without weight must not count as values: they become another one.
        some = values.gather(1, (weights > 0).int().argmax(1, keepdim=True))
        values = torch.where(weights > 0, values, some)
    ordered, weights = _ordered(values, weights)
    new = torch.ones(ordered.shape, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    different = new.sum(1)
    few = different <= max(exact_points(count), count)
    levels = torch.empty(len(ordered), count)
    for chosen, solve in ((few, _few), (~few, _many)):
        if bool(chosen.all()):
            return solve(ordered, weights, new, count)
        if bool(chosen.any()):
            parts = ordered[chosen], None if weights is None else weights[chosen], new[chosen]
            levels[chosen] = solve(*parts, count)
    return levels


def _few(ordered: Tensor, weights: Tensor | None, new: Tensor, count: int) -> Tensor:
    """The best levels of groups of few different values."""
    different = new.sum(1, keepdim=True)
    width = max(int(different.max()), 1)
    place = new.cumsum(1).sub_(1)
    groups = len(ordered)
    mass = torch.ones((), dtype=torch.float64).expand(ordered.shape) if weights is None else weights
    values = ordered[:, -1:].repeat(1, width).scatter_(1, place, ordered)
    heavy = torch.zeros(groups, width, dtype=torch.float64).scatter_add_(1, place, mass)
    if width <= count:
        return torch.cat([values, values[:, -1:].expand(-1, count - width)], 1)
    points = Points.of(values, heavy)
    everywhere = torch.arange(width + 1).expand(groups, -1)
    levels = points.means(_best_cuts(points, everywhere, count))
    own = torch.arange(count).clamp(max=width - 1).minimum(different - 1)
    return torch.where(different <= count, values.gather(1, own), levels)


def _many(ordered: Tensor, weights: Tensor | None, new: Tensor, count: int) -> Tensor:
    """Good levels of groups of many different values."""
    points = Points.of(ordered, weights)
    sought = exact_points(count) if count <= _MOST_SOUGHT else count
    places = _spread_places(points, sought)
    cuts = _best_cuts(points, places, count) if sought > count else places
    for halvings in range(1, points.count.bit_length()):
        cuts = _moved(points, cuts, 0.5**halvings)
    return points.means(cuts)


def _spread_places(points: Points, count: int) -> Tensor:
    """``count + 1`` places from the first to the last, as dense as the cube root of the values' density."""
    # Between two values the density is their mass over their distance.  In float32, and of a tensor of which each
    # value counts once without masses: with as many values as a large layer has, every copy is felt.
    largest = torch.maximum(-points.values[:, :1], points.values[:, -1:])
    # A gap wider than the largest float is as wide as that.
    gap = points.values.diff(dim=1).clamp_(max=3e38).div_(largest).pow_(2 / 3)
    if points.weighted:
        gap.mul_(points.mass.diff(dim=1)[:, 1:].pow_(1 / 3))
    run = torch.from_numpy(np.cumsum(gap.numpy(), axis=1, dtype=np.float64))
    del gap
    wanted = torch.arange(1, count, dtype=torch.float64) / count * run[:, -1:]
    inner = torch.searchsorted(run, wanted) + 1
    ends = torch.tensor([0, points.count]).expand(len(inner), -1)
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)


def _best_cuts(points: Points, places: Tensor, count: int) -> Tensor:
    """The best of all ways to make ``count`` runs with cuts at ``places`` (groups, places), first and last among them.

    Returns:
        Cuts, int64 ``(groups, count + 1)``.
    """
    rows = max(1, _STEP // places.shape[1] ** 2)
    parts = [
        _best_of(points.part(slice(start, start + rows)), places[start : start + rows], count)
        for start in range(0, len(places), rows)
    ]
    return torch.cat(parts)


def _best_of(points: Points, places: Tensor, count: int) -> Tensor:
    mass, total = points.mass.gather(1, places), points.total.gather(1, places)
    # What a run from place m (axis 1) to place i (axis 2) gains.
    gain = _gain(mass[:, None] - mass[:, :, None], total[:, None] - total[:, :, None])
    gain.masked_fill_(torch.ones(gain.shape[1:], dtype=torch.bool).tril_(-1), -math.inf)
    best = [gain[:, 0]]
    buffer = torch.empty_like(gain)
    for _ in range(count - 2):
        best.append(torch.add(gain, best[-1][:, :, None], out=buffer).amax(1))
    at = torch.full((len(places), 1, 1), places.shape[1] - 1)
    found = [at]
    for before in reversed(best):
        into = gain.gather(2, at.expand(-1, gain.shape[1], 1))[..., 0]
        at = (before + into).argmax(1)[:, None, None]
        found.append(at)
    found.append(torch.zeros_like(at))
    return places.gather(1, torch.cat(found[::-1], 1)[..., 0])


def _moved(points: Points, cuts: Tensor, share: float) -> Tensor:
    """Cuts moved for as long as that gains, in strides of a ``share`` of the distance between their neighbours."""
    rows = max(1, _STEP // (cuts.shape[1] * (2 * _REACH + 1) ** 2))
    moved = []
    for start in range(0, len(cuts), rows):
        part, own = points.part(slice(start, start + rows)), cuts[start : start + rows]
        for _ in range(_TURNS):
            before = own
            own = _moved_once(part, own, share)
            if torch.equal(own, before):
                break
        moved.append(own)
    return torch.cat(moved)


def _moved_once(points: Points, cuts: Tensor, share: float) -> Tensor:
    """The best cuts at most ``_REACH`` strides from the given ones; the given ones where none is better."""
    stride = ((cuts[:, 2:] - cuts[:, :-2]) * share).long().clamp_(min=1)
    offset = torch.arange(-_REACH, _REACH + 1) * stride[:, :, None]
    places = offset.add_(cuts[:, 1:-1, None]).clamp_(0, points.count)
    flat = places.flatten(1)
    mass, total = (part.gather(1, flat).view(places.shape) for part in (points.mass, points.total))
    # From each place of a window (axis 2) to each of the next (axis 3).
    gain = _gain(mass[:, 1:, None] - mass[:, :-1, :, None], total[:, 1:, None] - total[:, :-1, :, None])
    gain.masked_fill_(places[:, 1:, None] < places[:, :-1, :, None], -math.inf)
    best = _gain(mass[:, 0], total[:, 0])
    ways = []
    for step in gain.unbind(1):
        best, way = (best[:, :, None] + step).max(1)
        ways.append(way)
    best = best + _gain(points.mass[:, -1:] - mass[:, -1], points.total[:, -1:] - total[:, -1])
    known = _gain(*(part.gather(1, cuts).diff(dim=1) for part in (points.mass, points.total))).sum(1)
    top, at = best.max(1, keepdim=True)
    chosen = [at]
    for way in reversed(ways):
        at = way.gather(1, at)
        chosen.append(at)
    found = places.gather(2, torch.cat(chosen[::-1], 1)[..., None])[..., 0]
    # A gain in the last digits is none: sums in another order would turn in circles.
    better = top > known[:, None] * (1 + 1e-13)
    return torch.cat([cuts[:, :1], torch.where(better, found, cuts[:, 1:-1]), cuts[:, -1:]], 1)


# --- sums of scaled binary vectors --------------------------------------------------------------------------


def basis(values: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """All sums ``+-a1 +- a2 ...`` of log2(``count``) coefficients, increasing, float32 ``(groups, count)``.

    Coefficients start as the mean magnitudes of what is left over, one after the other (network sketching), and
    as even steps of several widths; from each start signs and coefficients are fitted in turn, each the best for
    the other (Xu et al.), and the best end is taken.  None is sure to be the best of all.
    """
    ordered, weights = _ordered(values, weights)
    terms = count.bit_length() - 1
    starts = [sketched(ordered, weights, terms)]
    absmax = torch.maximum(-ordered[:, :1], ordered[:, -1:]).double()
    steps = torch.exp2(torch.arange(terms, dtype=torch.float64)) / (count - 1)
    starts += [absmax * share * steps for share in (_SHARES if terms > 1 else ())]
    points = Points.of(ordered, weights)
    ends = [_alternated(points, start) for start in starts]
    losses = torch.stack([loss for loss, _ in ends])
    chosen = losses.argmin(0)
    found = torch.stack([end for _, end in ends])[chosen, torch.arange(len(chosen))]
    # One value is reproduced by the first coefficient alone.
    constant = ordered[:, :1] == ordered[:, -1:]
    return _sums(torch.where(constant, starts[0], found)).sort(1).values.float()


def sketched(values: Tensor, weights: Tensor | None, terms: int) -> Tensor:
    """Coefficients found one after the other, float64 ``(groups, terms)``: the mean magnitude of what is left over."""
    rest = values.double()
    magnitude = torch.empty_like(rest)
    found = []
    for _ in range(terms):
        torch.abs(rest, out=magnitude)
        if weights is None:
            mean = magnitude.cumsum_(1)[:, -1:] / values.shape[1]
        else:
            mean = magnitude.mul_(weights).cumsum_(1)[:, -1:] / weights.cumsum(1)[:, -1:]
        rest -= torch.copysign(mean, rest, out=magnitude)
        found.append(mean)
    return torch.cat(found, 1)


def _signs(terms: int) -> Tensor:
    """All patterns of signs, float64 ``(2**terms, terms)``."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * terms).view(-1, terms)


def _sums(coefficients: Tensor) -> Tensor:
    """The sums for all patterns of signs, ``(groups, 2**terms)``."""
    # Not a product of matrices, whose last bits may depend on how many groups there are.
    return (coefficients[:, None] * _signs(coefficients.shape[1])).sum(2)


def _alternated(points: Points, start: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients ``(groups, terms)`` fitted to their signs, signs to their coefficients, until nothing is gained.

    Returns:
        The squared error but for a constant, ``(groups,)``, and the coefficients.
    """
    loss, following = _fitted(points, start)
    best = start
    for _ in range(_ALTERNATIONS):
        next_loss, after = _fitted(points, following)
        better = next_loss < loss - 1e-13 * loss.abs()
        if not bool(better.any()):
            break
        loss = torch.where(better, next_loss, loss)
        best = torch.where(better[:, None], following, best)
        following = torch.where(better[:, None], after, following)
    return loss, best


def _fitted(points: Points, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error of coefficients but for a constant, and the best ones for the signs that these choose."""
    terms = coefficients.shape[1]
    levels, order = _sums(coefficients).sort(1)
    signs = _signs(terms)[order]
    middle = ((levels[:, 1:] + levels[:, :-1]) / 2).float()
    inner = torch.searchsorted(points.values, middle, right=True)
    ends = torch.tensor([0, points.count]).expand(len(inner), -1)
    cuts = torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)
    mass, total = (part.gather(1, cuts).diff(dim=1) for part in (points.mass, points.total))
    total = total + points.centre * mass
    loss = (levels * (levels * mass - 2 * total)).sum(1)
    whole = points.mass[:, -1:]
    ones = (signs[..., None] * signs[..., None, :] * (mass / whole)[..., None, None]).sum(1)
    wanted = (signs * (total / whole)[..., None]).sum(1)
    # Where two vectors are alike any split between them is as good; far below float32's precision, this halves.
    solved = torch.linalg.solve(ones + 1e-10 * torch.eye(terms, dtype=torch.float64), wanted)
    return loss, solved.abs()


CODEBOOKS: dict[str, Callable[[Tensor, Tensor | None, int], Tensor]] = {
    "kmeans": kmeans,
    "basis": basis,
    "binary": binary,
    "ternary": ternary,
}
