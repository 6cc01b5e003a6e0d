"""Rules of diagnosis: signs that a tensor's scheme does not suit it, and what to try instead.

A rule looks at numbers that are known without running the network again, says when they are suspicious, and
proposes changes of the scheme.  It never claims that a change helps: that is measured
(:mod:`explorer.study.diagnosis`).  The thresholds are where, in round numbers, a bit or more is lost.

Sources of the remedies: Nagel et al., 2021, "A White Paper on Neural Network Quantization",
https://arxiv.org/abs/2106.08295 (ranges of channels, ranges by mean squared error, bias); Krishnamoorthi, 2018,
https://arxiv.org/abs/1806.08342 (asymmetric ranges, one scale a channel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate import quantile
from explorer.formats import IntegerFormat, LevelFormat, QParams, encode
from explorer.recipe import TensorScheme
from explorer.study.grouped import params_of

Fields = dict[str, Any]
# The share of values of which the widest are an outlying tail.
BULK = 0.999
# So many values for each code are needed before unused codes mean anything.
VALUES_A_CODE = 4
# Of larger tensors every k-th group is looked at, or every k-th value of each.
MOST_LOOKED = 1 << 22


@dataclass(frozen=True, eq=False)
class Facts:
    """What rules look at, of one quantized tensor of one layer; NaN where a number has no meaning.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        scheme: its scheme.
        reach: how far each channel lies from zero, real units, float64 ``(channels,)``.
        group: which scale each channel has, whole numbers ``(channels,)``.
        step: the smallest magnitude above zero in each channel, ``(channels,)``; NaN where it comes with each example.
        tail: the range kept as a multiple of the magnitude that ``BULK`` of the values stay below.
        kurtosis: the fourth moment over the square of the second, of each group's values by their own size: 3 for
            a normal distribution.
        width: the width of the range kept over that of the values inside; the middle one of all groups.
        used: the share of the codes that some value takes.
        clipped: the share of values further outside of the range than rounding could take them.
        image_reach: how far each image's values lie from zero, ``(images,)``; none for a weight.
        shift: the mean error of each output channel over its standard deviation, root mean square, from quantizing
            the weight alone; NaN for an input.
        constant: the share of that output error's energy that is the same for all images and positions.
    """

    layer: str
    tensor: str
    scheme: TensorScheme
    reach: np.ndarray
    group: np.ndarray
    step: np.ndarray
    tail: float
    kurtosis: float
    width: float
    used: float
    clipped: float
    image_reach: np.ndarray
    shift: float = float("nan")
    constant: float = float("nan")

    @property
    def apart(self) -> float:
        """How many times the widest channel reaches as far as the narrowest with which it shares a scale."""
        found = 1.0
        for group in np.unique(self.group):
            reach = self.reach[(self.group == group) & (self.reach > 0)]
            if len(reach) > 1:
                found = max(found, float(reach.max() / reach.min()))
        return found

    @property
    def starved(self) -> int:
        """How many channels, zeros left out, have no more than the values -1, 0 and 1 step."""
        with np.errstate(invalid="ignore"):
            few = (self.reach > 0) & (self.reach < 1.5 * self.step)
        return int(few.sum()) if self.scheme.bits > 2 else 0

    @property
    def unsteady(self) -> float:
        """How many times all images together reach as far as the middle one of them."""
        some = self.image_reach
        middle = float(np.median(some)) if len(some) else 0.0
        return float(some.max()) / middle if middle > 0 else float("nan")


def groups_of(scheme: TensorScheme, channels: int) -> np.ndarray:
    """Which channels share a scale: a number for each, ``(channels,)``.

    >>> groups_of(TensorScheme("int8", "group:2"), 5).tolist()
    [0, 0, 1, 1, 2]
    """
    grain = scheme.grain
    if grain.name.startswith("subchannel") or grain.name == "token":
        return np.arange(channels)
    count = grain.groups((channels, 1), 0)
    each = grain.expand(torch.arange(count), (channels, 1), 0)
    return each.expand(channels, 1)[:, 0].numpy().astype(int)


@dataclass(frozen=True)
class Shape:
    """What the values of a tensor say about the range that is kept of them; see :class:`Facts`."""

    tail: float
    kurtosis: float
    width: float
    used: float
    clipped: float


def shape_of(
    values: Tensor, weights: Tensor | None, params: QParams, minimum: Tensor, maximum: Tensor
) -> Shape:
    """The shape of weighted values under their parameters.

    Args:
        values: float32 ``(groups, points)``.
        weights: how often each counts, the same shape; None for once.
        params: scale and zero point of each group.
        minimum: of each group, ``(groups,)``.
        maximum: the same.
    """
    step = -(-values.numel() // MOST_LOOKED)
    if step > 1 and len(values) > values.shape[1]:
        params = params_of(params, slice(None, None, step))
        minimum, maximum = minimum[::step], maximum[::step]
        values, weights = values[::step], None if weights is None else weights[::step]
    elif step > 1:
        values, weights = values[:, ::step], None if weights is None else weights[:, ::step]
    each = torch.ones_like(values) if weights is None else weights
    low, high = (end[:, None] for end in params.clip)
    gap = (high - low) / max(params.qmax - params.qmin, 1)
    # Groups by their own size, so that wide ones do not look like outliers of narrow ones.
    reach = torch.maximum(-low, high).clamp(min=torch.finfo(torch.float32).tiny)
    unit = (values / reach).reshape(1, -1)
    flat = each.reshape(1, -1)
    bulk = float(quantile(unit.abs(), flat, BULK))
    total = flat.double().sum()
    size = (each * values.double().square()).sum(1, keepdim=True) / each.double().sum(1, keepdim=True)
    normal = values.double() / size.sqrt().clamp(min=1e-300)
    fourth = float((each * normal**4).sum() / total)
    inside = torch.minimum(maximum.clamp(min=0), params.clip[1]) - torch.maximum(
        minimum.clamp(max=0), params.clip[0]
    )
    width = (params.clip[1] - params.clip[0])[inside > 0] / inside[inside > 0]
    beyond = (values < low - gap / 2) | (values > high + gap / 2)
    codes = encode(values, *params.spread(lambda number: number[:, None]), params)[each > 0]
    available = params.qmax - params.qmin + 1
    enough = float(total) >= VALUES_A_CODE * available
    return Shape(
        tail=1 / bulk if bulk > 0 else float("nan"),
        kurtosis=fourth,
        width=float(width.median()) if len(width) else float("nan"),
        used=int((torch.bincount(codes - params.qmin) > 0).sum()) / available if enough else float("nan"),
        clipped=float((each * beyond).sum() / total),
    )


def _full(scheme: TensorScheme) -> bool:
    """Whether the range is fixed and holds all values."""
    return scheme.mode == "static" and scheme.objective in ("minmax", "moving_average")


def _by_channel(f: Facts) -> Iterator[Fields]:
    if f.scheme.mode == "static" and len(np.unique(f.group)) < len(f.group):
        yield {"granularity": "channel"}


def _tighter(f: Facts) -> Iterator[Fields]:
    # Levels that are fitted have no range to narrow.
    if _full(f.scheme) and isinstance(f.scheme.number, IntegerFormat | LevelFormat):
        yield {"objective": "mse"}
        yield {"objective": "percentile:99.9"}


def _wider(f: Facts) -> Iterator[Fields]:
    ranged = isinstance(f.scheme.number, IntegerFormat | LevelFormat)
    if f.scheme.mode == "static" and not _full(f.scheme) and ranged:
        yield {"objective": "minmax"}


def _asymmetric(f: Facts) -> Iterator[Fields]:
    if f.scheme.symmetric and isinstance(f.scheme.number, IntegerFormat):
        yield {"symmetric": False, "narrow": None} if f.scheme.narrow is not None else {"symmetric": False}


def _more_bits(f: Facts) -> Iterator[Fields]:
    number = f.scheme.number
    if isinstance(number, IntegerFormat) and number.bits < 8:
        yield {"format": f"{number.name.rstrip('0123456789')}{min(8, 2 * number.bits)}"}


def _each_its_own(f: Facts) -> Iterator[Fields]:
    if f.scheme.mode == "static":
        yield {"mode": "dynamic", "objective": "minmax", "granularity": "layer"}


@dataclass(frozen=True)
class Rule:
    """A line of the table.

    Args:
        help: what it looks at and why.
        tensors: which tensors it is for.
        value: the number that it looks at.
        limit: from which value on it is suspicious, under a scheme.
        says: the evidence in words.
        remedies: what to try, each changed fields of the scheme; none where the scheme has them already.
    """

    help: str
    tensors: tuple[str, ...]
    value: Callable[[Facts], float]
    limit: Callable[[TensorScheme], float]
    says: Callable[[Facts], str]
    remedies: tuple[Callable[[Facts], Iterable[Fields]], ...]

    def speaks(self, f: Facts) -> bool:
        """Whether the rule finds something suspicious; NaN never is."""
        return f.tensor in self.tensors and self.value(f) >= self.limit(f.scheme)

    def fields(self, f: Facts) -> Iterator[Fields]:
        """What to try."""
        for remedy in self.remedies:
            yield from remedy(f)


def _few_bits_left(scheme: TensorScheme) -> float:
    """From which ratio of ranges on the narrowest channel keeps 2 bits of an integer, or 100."""
    return (
        min(100.0, max(4.0, 2.0 ** (scheme.bits - 2))) if isinstance(scheme.number, IntegerFormat) else 100.0
    )


def _always(limit: float) -> Callable[[TensorScheme], float]:
    return lambda scheme: limit


BOTH = ("weight", "input")
RULES: dict[str, Rule] = {
    "channel_ranges": Rule(
        "channels that share a scale differ so much in range that the narrowest keep 2 bits, or differ 100-fold",
        BOTH,
        lambda f: f.apart,
        _few_bits_left,
        lambda f: (
            f"channels that share a scale reach {f.apart:,.0f} times as far as one another; "
            f"{f.starved:,} of {len(f.reach):,} have only the values -1, 0 and 1 step"
        ),
        (_by_channel,),
    ),
    "heavy_tail": Rule(
        "a few values set the range and all others share few codes",
        BOTH,
        lambda f: f.tail,
        _always(4.0),
        lambda f: (
            f"the range is {f.tail:.1f} times what 99.9% of the values need (kurtosis {f.kurtosis:.0f})"
        ),
        (_tighter,),
    ),
    "one_sided": Rule(
        "a symmetric range is spent on a side where the values do not go",
        BOTH,
        lambda f: f.width,
        _always(1.5),
        lambda f: f"the range is {f.width:.2f} times as wide as the values in it",
        (_asymmetric,),
    ),
    "mean_shift": Rule(
        "rounding the weight moves the mean of the layer's output, which images do not average out",
        ("weight",),
        lambda f: f.shift,
        _always(0.05),
        lambda f: (
            f"the output's mean moves by {100 * f.shift:.0f}% of its standard deviation; {100 * f.constant:.0f}% of "
            "the output's error is the same for all images"
        ),
        (_by_channel, _asymmetric, _more_bits),
    ),
    "unused_codes": Rule(
        "most codes stand for no value",
        BOTH,
        lambda f: 1 - f.used,
        _always(0.75),
        lambda f: f"only {100 * f.used:.0f}% of the codes are used",
        (_tighter, _asymmetric),
    ),
    "saturating": Rule(
        "many values lie further outside of the range than rounding could take them",
        BOTH,
        lambda f: f.clipped,
        _always(0.05),
        lambda f: f"{100 * f.clipped:.1f}% of the values are clipped",
        (_wider,),
    ),
    "unsteady_range": Rule(
        "the values' range jumps from image to image; more calibration images would tell more, too",
        ("input",),
        lambda f: f.unsteady,
        _always(3.0),
        lambda f: f"all images together reach {f.unsteady:.1f} times as far as the middle one",
        (_each_its_own,),
    ),
}
