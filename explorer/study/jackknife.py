"""How much a fixed range of an activation owes to the very images that set it.

A static range is a statistic of the calibration images.  Leaving each of them out in turn and fitting the range again
tells how far it would move with other images (the jackknife: Tukey, 1958; Miller, 1974, "The jackknife - a review",
https://doi.org/10.1093/biomet/61.1.1)::

    standard error = sqrt((n - 1) / n * sum over i of (range without part i - mean of these) ** 2)

For smooth statistics (``mse``, ``kl``, a percentile inside of the data) this is a good estimate.  The extremes that
``minmax`` takes are not smooth: all but one or two images leave them where they are, so the error then tells the
distance to the runner-up, an indication and no more (Efron and Tibshirani, 1993, "An Introduction to the Bootstrap",
section 11.6).

Objectives that ask only for each batch's extremes are left out image by image.  The others need a histogram of all
other images for each fit; they are left out in blocks of consecutive images of the shuffled order, in as many as
``MOST_BLOCKS`` and ``BLOCK_BYTES`` allow, and then the images of the block that moves the range most one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate import ELEMENTS, GrowingHistogram, MinMax, MovingAverage, Sample, fit
from explorer.errors import DataError, SchemeError
from explorer.formats import CodebookFormat, QParams, check_finite
from explorer.graph import Batch, Engine, Layer, Plan
from explorer.graph.images import images_first
from explorer.recipe import TensorScheme
from explorer.study.evaluate import Examples, finite
from explorer.study.shown import Drawn

# Objectives whose range follows from the extremes of each batch.
FROM_EXTREMES = (MinMax, MovingAverage)
MOST_BLOCKS = 32
FEWEST_BLOCKS = 4
BLOCK_BYTES = 64 << 20
# A range has settled once it stays within this share of the full range's width.
SETTLED = 0.05
# Points of the curve of the range against the number of images, and shuffled orders that it is drawn for.
_POINTS, _ORDERS = 40, 40


@dataclass(frozen=True)
class Influence:
    """What one calibration image does to a range.

    Args:
        image: its number in the data set.
        moved: how far the further of both ends moves without it, as a share of the range's width.
        minimum: the smallest value that it brings to the group.
        maximum: the largest.
    """

    image: int
    moved: float
    minimum: float
    maximum: float


@dataclass(frozen=True, eq=False)
class Jackknife(Drawn):
    """How the fixed range of a layer's input hangs on the calibration images.

    Ranges are those that are kept (what the lowest and highest code stand for), float64, real units.

    Args:
        layer: the layer's name.
        index: which of its inputs.
        scheme: what sets the range, in words.
        images: how many calibration images there are.
        unit: ``image`` or ``block``: what is left out at a time.
        parts: the numbers of the images of each part that is left out.
        low: of each group ``(groups,)``, from all images.
        high: the same at the other end.
        low_without: without each part, ``(parts, groups)``.
        high_without: the same at the other end.
        counts: numbers of images, increasing, the last being all.
        low_with: the range from the first so many images in the order of calibration, ``(counts, groups)``.
        high_with: the same at the other end.
        away: how far the range of the group ``widest_error`` is from the order's last, as a share of its width, in
            shuffled orders, ``(orders, counts)``; no order where images are left out in blocks.
        influences: images by what they do to the range of that group, the first most; empty until it is known.
            Where blocks are left out these are the images of the block that moves the range most.
    """

    layer: str
    index: int
    scheme: str
    images: int
    unit: str
    parts: tuple[tuple[int, ...], ...]
    low: np.ndarray
    high: np.ndarray
    low_without: np.ndarray
    high_without: np.ndarray
    counts: np.ndarray
    low_with: np.ndarray
    high_with: np.ndarray
    away: np.ndarray
    influences: tuple[Influence, ...] = ()

    @property
    def width(self) -> np.ndarray:
        """Of the range of each group, ``(groups,)``."""
        return self.high - self.low

    @property
    def error(self) -> tuple[np.ndarray, np.ndarray]:
        """The jackknife's standard errors of the low and of the high end, ``(groups,)`` each."""
        return standard_error(self.low_without), standard_error(self.high_without)

    @property
    def relative_error(self) -> np.ndarray:
        """The larger of both ends' standard errors as a share of the width, ``(groups,)``."""
        return np.divide(
            np.maximum(*self.error), self.width, out=np.zeros_like(self.width), where=self.width > 0
        )

    @property
    def widest_error(self) -> int:
        """The group with the largest relative error."""
        return int(self.relative_error.argmax())

    def needed(self, share: float = SETTLED) -> int:
        """After how many images, in the order of calibration, both ends stay within ``share`` of the width.

        All groups have to.  The number of all images means that the last of them still moved the range so far.
        """
        ends = zip((self.low_with, self.high_with), (self.low, self.high), strict=True)
        away = np.max([np.abs(part - end) for part, end in ends], axis=0)
        return int(self.counts[settled(away / np.where(self.width > 0, self.width, 1), share)])

    def needed_in_other_orders(self, share: float = SETTLED) -> tuple[int, int, int] | None:
        """The same for shuffled orders: the 5%, 50% and 95% quantile; None where there are none."""
        if not len(self.away):
            return None
        found = [self.counts[settled(row[:, None], share)] for row in self.away]
        low, middle, high = np.quantile(found, [0.05, 0.5, 0.95], method="nearest")
        return int(low), int(middle), int(high)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        low, high = self.error
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
            if name not in ("influences", "away")
        }
        return finite(
            {
                **plain,
                "low_error": low.tolist(),
                "high_error": high.tolist(),
                "relative_error": self.relative_error.tolist(),
                "needed": self.needed(),
                "needed_in_other_orders": self.needed_in_other_orders(),
                "influences": [vars(each) for each in self.influences],
            }
        )


def standard_error(without: np.ndarray) -> np.ndarray:
    """The jackknife's standard error from the values without each of ``n`` parts, ``(n, groups)``.

    Of a mean it is the usual one:

    >>> x = np.array([1.0, 2.0, 4.0, 9.0])
    >>> without = np.array([np.delete(x, i).mean() for i in range(4)])[:, None]
    >>> round(float(standard_error(without)[0]), 6), round(float(x.std(ddof=1)) / 2, 6)
    (1.779513, 1.779513)
    """
    count = len(without)
    if count < 2:
        return np.full(without.shape[1:], math.nan)
    return np.sqrt((count - 1) / count * ((without - without.mean(0)) ** 2).sum(0))


def settled(away: np.ndarray, share: float) -> int:
    """The first place from which on no number of ``away``, ``(places, groups)``, is above ``share``.

    >>> settled(np.array([[0.9], [0.01], [0.3], [0.02], [0.0]]), 0.05)
    3
    """
    beyond = np.flatnonzero((away > share).any(axis=1))
    return int(beyond[-1]) + 1 if len(beyond) else 0


@dataclass(frozen=True, eq=False)
class Source:
    """An input of a layer in the float network on the calibration images.

    Args:
        engine: of the graph.
        floats: the float network worked out.
        batches: gives the calibration images anew at each call.
        layer: whose input it is.
        index: which of its inputs.
        scheme: static.
    """

    engine: Engine
    floats: Plan
    batches: Callable[[], Iterator[Examples]]
    layer: Layer
    index: int
    scheme: TensorScheme

    def fit(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The range that is kept, ``(groups,)`` each end."""
        params: QParams = fit(sample, self.scheme.grid, self.scheme.goal)
        low, high = params.clip
        return low.double().numpy(), high.double().numpy()

    def matrix(self, value: Tensor) -> Tensor:
        """Some images' activation as (groups, elements)."""
        return self.scheme.grain.matrix(value, self.layer.channel % value.dim())[0]

    def values(self, wanted: Callable[[int], bool] = lambda place: True) -> Iterator[tuple[int, int, Tensor]]:
        """The place in the order, the number in the data set and the activation of each wanted image."""
        name, start = self.layer.inputs[self.index], 0
        along = self.engine.graph.along(name)
        for examples in self.batches():
            places = range(start, start + len(examples.indices))
            start = places.stop
            if not any(map(wanted, places)):
                continue
            value = images_first(self._run(examples.batch, name), along)
            for at, place in enumerate(places):
                if wanted(place):
                    # What all images share is each one's.
                    yield place, examples.indices[at], value[at % len(value)]

    def _run(self, batch: Batch, name: str) -> Tensor:
        value: Tensor = self.engine.run(self.floats, batch, [name], keep=False)[name]
        value = value.float()
        check_finite(value, f"activation {name!r}")
        return value


@dataclass(frozen=True, eq=False)
class _Extremes:
    """The smallest and the largest value of each image, float32 ``(images, groups)``, and the size of a batch."""

    low: Tensor
    high: Tensor
    size: int

    def sample(self, order: Tensor, batch: Tensor) -> Sample:
        """What the images of ``order``, of which ``batch`` says where each stands, are for an objective of extremes."""
        cuts = torch.unique_consecutive(batch, return_counts=True)[1].tolist()
        low = torch.stack([part.amin(0) for part in self.low[order].split(cuts)])
        high = torch.stack([part.amax(0) for part in self.high[order].split(cuts)])
        ends = low.amin(0), high.amax(0)
        return Sample(torch.stack(ends, 1), None, *ends, torch.stack([low, high], 1))


def _counts(images: int) -> np.ndarray:
    """Up to ``_POINTS`` numbers of images from 1 to all, evenly spaced by their logarithm."""
    return np.unique(np.geomspace(1, images, _POINTS).round().astype(int))


def _from_extremes(source: Source, images: int, size: int) -> Iterator[Jackknife]:
    lows, highs, numbers = [], [], []
    for _, number, value in source.values():
        matrix = source.matrix(value)
        numbers.append(number)
        lows.append(matrix.amin(1))
        highs.append(matrix.amax(1))
    ends = _Extremes(torch.stack(lows), torch.stack(highs), size)
    count = len(numbers)
    everyone, batch = torch.arange(count), torch.arange(count) // size
    low, high = source.fit(ends.sample(everyone, batch))
    without = [
        source.fit(ends.sample(everyone[everyone != left], batch[everyone != left])) for left in range(count)
    ]
    counts = _counts(count)

    def curve(order: Tensor) -> tuple[np.ndarray, np.ndarray]:
        found = [source.fit(ends.sample(order[:some], batch[:some])) for some in counts]
        return np.stack([part[0] for part in found]), np.stack([part[1] for part in found])

    found = _jackknife(
        source, "image", tuple((n,) for n in numbers), low, high, without, counts, curve(everyone)
    )
    group = found.widest_error
    width = found.width[group] or 1.0
    away = []
    draw = torch.Generator().manual_seed(0)
    for _ in range(_ORDERS):
        some_low, some_high = curve(torch.randperm(count, generator=draw))
        # A running average ends elsewhere in another order: how far it is from its own end.
        ends_of = np.maximum(abs(some_low - some_low[-1]), abs(some_high - some_high[-1]))
        away.append(ends_of[:, group] / width)
    moved = _moved(found, group)
    ranked = sorted(range(count), key=lambda at: (-moved[at], at))
    influences = tuple(
        Influence(numbers[at], float(moved[at]), float(ends.low[at, group]), float(ends.high[at, group]))
        for at in ranked
    )
    yield replace(found, away=np.stack(away), influences=influences)


def _moved(found: Jackknife, group: int) -> np.ndarray:
    """How far the further of both ends of a group moves without each part, as a share of the width, ``(parts,)``."""
    ends = ((found.low_without, found.low), (found.high_without, found.high))
    away = np.max([abs(part[:, group] - end[group]) for part, end in ends], axis=0)
    return away / (found.width[group] or 1.0)


def _jackknife(
    source: Source,
    unit: str,
    parts: tuple[tuple[int, ...], ...],
    low: np.ndarray,
    high: np.ndarray,
    without: Sequence[tuple[np.ndarray, np.ndarray]],
    counts: np.ndarray,
    curve: tuple[np.ndarray, np.ndarray],
) -> Jackknife:
    low_without, high_without = (np.stack(ends) for ends in zip(*without, strict=True))
    return Jackknife(
        source.layer.name, source.index, source.scheme.describe(), sum(map(len, parts)), unit, parts,
        low, high, low_without, high_without, counts, *curve, np.empty((0, len(counts))),
    )  # fmt: skip


def _joined(parts: Sequence[GrowingHistogram]) -> GrowingHistogram:
    whole = GrowingHistogram(len(parts[0].exponent), parts[0].bins, parts[0].most)
    for part in parts:
        whole.merge(part)
    return whole


def block_count(images: int, groups: int) -> int:
    """In how many blocks images are left out whose histograms have so many groups.

    >>> block_count(512, 1), block_count(10, 1), block_count(512, 256)
    (32, 10, 8)
    """
    size = 8 * groups * GrowingHistogram(groups).bins
    return min(images, MOST_BLOCKS, max(FEWEST_BLOCKS, BLOCK_BYTES // size))


def _from_blocks(source: Source, images: int) -> Iterator[Jackknife]:
    tallies: list[GrowingHistogram] = []
    numbers: list[list[int]] = []
    edges: np.ndarray = np.empty(0)
    for place, number, value in source.values():
        matrix = source.matrix(value)
        if not tallies:
            blocks = block_count(images, len(matrix))
            edges = np.linspace(0, images, blocks + 1).round().astype(int)
            tallies = [GrowingHistogram(len(matrix)) for _ in range(blocks)]
            numbers = [[] for _ in range(blocks)]
        at = int(np.searchsorted(edges, place, side="right")) - 1
        tallies[at].add(matrix)
        numbers[at].append(number)
    whole = GrowingHistogram(len(tallies[0].exponent))
    found_with = []
    for tally in tallies:
        whole.merge(tally)
        found_with.append(source.fit(whole.sample()))
    low, high = found_with[-1]
    rest = [
        source.fit(_joined(tallies[:left] + tallies[left + 1 :]).sample()) for left in range(len(tallies))
    ]
    parts = tuple(tuple(part) for part in numbers)
    curve = np.stack([part[0] for part in found_with]), np.stack([part[1] for part in found_with])
    unit = "image" if len(parts) == images else "block"
    found = _jackknife(source, unit, parts, low, high, rest, edges[1:], curve)
    yield found
    group = found.widest_error
    block = int(_moved(found, group).argmax())
    others = _joined(tallies[:block] + tallies[block + 1 :])
    del tallies, whole
    yield replace(
        found, influences=_within(source, found, group, range(edges[block], edges[block + 1]), others)
    )


def _within(
    source: Source, found: Jackknife, group: int, places: range, others: GrowingHistogram
) -> tuple[Influence, ...]:
    """What each image of a block does to the range; ``others`` are all images that are not in it."""
    single: list[tuple[int, float, float, GrowingHistogram]] = []
    for _, number, value in source.values(lambda place: place in places):
        matrix = source.matrix(value)
        tally = GrowingHistogram(len(matrix))
        tally.add(matrix)
        single.append((number, float(matrix[group].min()), float(matrix[group].max()), tally))
    width = found.width[group] or 1.0
    influences = []
    for left, (number, least, most, _) in enumerate(single):
        kept = [others, *(entry[3] for at, entry in enumerate(single) if at != left)]
        low, high = source.fit(_joined(kept).sample())
        moved = max(abs(low[group] - found.low[group]), abs(high[group] - found.high[group])) / width
        influences.append(Influence(number, float(moved), least, most))
    return tuple(sorted(influences, key=lambda each: -each.moved))


def jackknife_steps(source: Source, images: int, size: int) -> Iterator[Jackknife]:
    """How the range of ``source`` hangs on its images; a second, better answer may follow the first.

    Args:
        source: an input of a layer.
        images: how many images its batches hold together.
        size: how many images a batch has.

    Raises:
        SchemeError: for a scheme without a fixed range.
        DataError: for fewer than two images.
    """
    scheme = source.scheme
    if not scheme.scaled:
        raise SchemeError(
            f"The format {scheme.number.name!r} has no range that images could set; take one such as uint8."
        )
    if scheme.mode == "dynamic":
        raise SchemeError(
            "Dynamic ranges are taken from each example as it comes, so no calibration image has a part in them; "
            "use mode: static."
        )
    if scheme.goal.needs != ELEMENTS:
        raise SchemeError(
            f"The objective {scheme.objective!r} looks at {scheme.goal.needs} and not at the values alone, so leaving "
            "images out of the values does not say how its range would move; ask with objective: mse."
        )
    if images < 2:
        raise DataError("Leaving images out takes at least two calibration images, and there is one.")
    # Levels that are fitted look at all values, whatever the objective.
    if isinstance(scheme.goal, FROM_EXTREMES) and not isinstance(scheme.number, CodebookFormat):
        yield from _from_extremes(source, images, size)
    else:
        yield from _from_blocks(source, images)
