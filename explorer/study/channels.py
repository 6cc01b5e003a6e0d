"""The channels of a tensor: the range that each needs, the range that its scale gives it, and what is left of it.

A scale that many channels share is set by the widest of them.  A channel whose values span a hundredth of that
range gets a hundredth of the codes: of 256 codes, two or three.  That is why depthwise layers, whose channels never
meet in a sum, break under one scale for all (Nagel et al., 2019, section 3.1, https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from explorer.calibrate import Sample, quantile
from explorer.formats import Channel, FloatFormat, QParams, encode, fake_quantize_
from explorer.graph.fakequant import quantize_activation
from explorer.graph.ir import Along
from explorer.recipe import TensorScheme
from explorer.study.shown import Drawn
from explorer.tensor import apply

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True, eq=False)
class Channels(Drawn):
    """A tensor channel by channel; the output channels of a weight, the channels of an activation.

    Arrays are float64 ``(channels,)`` in real units unless said otherwise.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        scheme: what it is quantized by, in words.
        minimum: smallest value.
        maximum: largest value.
        quantiles: those of ``QUANTILES``, ``(channels, 5)``.
        clip_low: lowest real value that the channel can represent; NaN where it has no fixed range.
        clip_high: the highest.  Of a channel with several scales both are those of its widest block.
        scale: of several the largest; NaN where there is none.
        least: the smallest magnitude above zero that it can represent: a step, of integers; NaN where unknown.
        codes: how many codes some value of the channel takes; NaN where ranges come with each example.
        available: how many codes the channel's scale has; NaN where there is no scale.
        sqnr_db: of the channel; infinite where nothing differs.
        clipped: the share of its values outside of the range; NaN as for ``codes``.
        shared: how many channels share a scale at most; 0 where there is no scale of fixed range.
        exact: every value was looked at; otherwise bins of a calibration histogram stand for them.
    """

    layer: str
    tensor: str
    scheme: str
    minimum: np.ndarray
    maximum: np.ndarray
    quantiles: np.ndarray
    clip_low: np.ndarray
    clip_high: np.ndarray
    scale: np.ndarray
    least: np.ndarray
    codes: np.ndarray
    available: np.ndarray
    sqnr_db: np.ndarray
    clipped: np.ndarray
    shared: int
    exact: bool

    def __len__(self) -> int:
        return len(self.minimum)

    @property
    def reach(self) -> np.ndarray:
        """How far each channel lies from zero, ``(channels,)``."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    @property
    def ratio(self) -> float:
        """How many times the widest channel reaches as far as the narrowest; channels of zeros are left out."""
        return spread_of(self.reach)

    @property
    def bits(self) -> np.ndarray:
        """Effective bits of each channel: the logarithm of the number of codes that it takes; NaN as for ``codes``."""
        return np.log2(np.maximum(self.codes, 1))

    @property
    def starved(self) -> int:
        """How many channels have only the values -1, 0 and 1 step: they reach less than a step and a half.

        Channels of zeros are not counted, nor those of formats that have no more than these.
        """
        with np.errstate(invalid="ignore"):
            few = (self.reach > 0) & (self.reach < 1.5 * self.least) & (self.available > 4)
        return int(few.sum())

    def table(self) -> pd.DataFrame:
        """One row for each channel: channel, minimum, q1 ... q99, maximum, clip_low, clip_high, scale, codes, bits,
        clipped, sqnr_db."""
        names = [f"q{100 * share:.0f}" for share in QUANTILES]
        return pd.DataFrame(
            {
                "channel": np.arange(len(self)),
                "minimum": self.minimum,
                **dict(zip(names, self.quantiles.T, strict=True)),
                "maximum": self.maximum,
                "clip_low": self.clip_low,
                "clip_high": self.clip_high,
                "scale": self.scale,
                "codes": self.codes,
                "bits": self.bits,
                "clipped": self.clipped,
                "sqnr_db": self.sqnr_db,
            }
        )


def spread_of(reach: np.ndarray) -> float:
    """The largest number over the smallest that is not zero; 1 where there are fewer than two.

    >>> spread_of(np.array([0.0, 0.5, 4.0]))
    8.0
    """
    some = reach[reach > 0]
    return float(some.max() / some.min()) if len(some) > 1 else 1.0


def least_of(params: QParams) -> Tensor:
    """The smallest magnitude above zero that each group can represent, float32 ``(groups,)``.

    >>> from explorer.formats import FORMATS, Grid
    >>> least_of(Grid(FORMATS["int4"]).params(torch.tensor([-3.5]), torch.tensor([1.0]))).tolist()
    [0.5]
    """
    if params.book is not None:
        levels = params.book.levels.abs()
        return levels.masked_fill(levels == 0, torch.inf).amin(1)
    if params.levels is not None:
        values = params.levels.values
        return params.scale * float(values[values > 0].min())
    return params.scale


def _distinct(values: Tensor, weights: Tensor | None) -> np.ndarray:
    """How many different numbers each row holds among those that count, float64 ``(rows,)``."""
    if weights is not None:
        # What does not count becomes a copy of something that does.
        first = (weights > 0).int().argmax(1, keepdim=True)
        values = torch.where(weights > 0, values, values.gather(1, first))
    ordered = values.sort(1).values
    return (1 + (ordered.diff(dim=1) != 0).sum(1)).double().numpy()


def _decibels(signal: Tensor, noise: Tensor) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 10 * np.log10(signal.numpy() / noise.numpy())
    return np.where(noise.numpy() == 0, np.inf, found)


@dataclass(frozen=True, eq=False)
class _Rows:
    """A tensor's channels as rows, before and after, ``(channels, points)``, with what each is quantized by.

    The numbers of groups broadcast against the rows; None without a fixed range.  ``spread`` is what
    :meth:`QParams.spread` gives.
    """

    before: Tensor
    after: Tensor
    weights: Tensor | None
    params: QParams | None
    spread: tuple[Tensor, Tensor] | None = None
    scale: Tensor | None = None
    least: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def under(
        cls,
        before: Tensor,
        after: Tensor,
        weights: Tensor | None,
        params: QParams,
        expand: Callable[[Tensor], Tensor],
    ) -> _Rows:
        """Rows under fixed ranges; ``expand`` takes one number a group to what broadcasts against the rows."""
        low, high = (expand(end) for end in params.clip)
        return cls(
            before, after, weights, params, params.spread(expand), expand(params.scale), expand(least_of(params)),
            low, high,
        )  # fmt: skip


def _summary(
    layer: str, tensor: str, scheme: TensorScheme, rows: _Rows, shared: int, exact: bool, ends: Sample
) -> Channels:
    x, weights, params = rows.before, rows.weights, rows.params
    count, total = len(x), ends.total.double()
    each = torch.ones_like(x) if weights is None else weights
    signal = (each * x.double().square()).sum(1)
    noise = (each * (x.double() - rows.after.double()).square()).sum(1)
    nothing = np.full(count, np.nan)
    low = high = scale = least = available = nothing
    clipped = np.zeros(count)
    codes = _distinct(rows.after, weights)
    if params is not None:
        assert rows.spread is not None and rows.low is not None and rows.high is not None
        assert rows.scale is not None and rows.least is not None
        if params.book is None:
            scale = rows.scale.expand(x.shape).amax(1).double().numpy()
        least = rows.least.expand(x.shape).amax(1).double().numpy()
        low = rows.low.expand(x.shape).amin(1).double().numpy()
        high = rows.high.expand(x.shape).amax(1).double().numpy()
        # Half a unit in the last place of float32 is not clipping.
        slack = 1e-6 * torch.maximum(-rows.low, rows.high)
        outside = (x < rows.low - slack) | (x > rows.high + slack)
        clipped = ((each * outside).sum(1).double() / total).numpy()
        codes = _distinct(encode(x, *rows.spread, params), weights)
        available = np.full(count, float(params.qmax - params.qmin + 1))
    shares = [quantile(x, weights, share).double().numpy() for share in QUANTILES]
    return Channels(
        layer, tensor, scheme.describe(),
        ends.minimum.double().numpy(), ends.maximum.double().numpy(), np.stack(shares, 1),
        low, high, scale, least, codes, available, _decibels(signal, noise), clipped, shared, exact,
    )  # fmt: skip


def _shared(scheme: TensorScheme, channels: int) -> int:
    """How many channels share a scale at most."""
    if not scheme.scaled:
        return 0
    groups = scheme.grain.groups((channels, 1), 0)
    return -(-channels // groups) if groups < channels else 1


def weight_channels(
    layer: str, scheme: TensorScheme, weight: Tensor, params: QParams | None, axis: int
) -> Channels:
    """The output channels of a weight.

    Args:
        layer: the layer's name.
        scheme: how it is quantized.
        weight: float32 of any shape.
        params: its scales and zero points; None for formats without.
        axis: the output-channel axis.
    """
    cut = Channel()

    def rows(values: Tensor) -> Tensor:
        return cut.matrix(values, axis)[0].contiguous()

    def spread(number: Tensor) -> Tensor:
        return rows(scheme.grain.expand(number, weight.shape, axis).expand(weight.shape))

    after = rows(apply(weight, scheme, params, axis))
    before = rows(weight)
    found = _Rows(before, after, None, None)
    if params is not None:
        found = _Rows.under(before, after, None, params, spread)
    count = len(before)
    return _summary(
        layer, "weight", scheme, found, _shared(scheme, count), True, Sample.of(weight, cut, axis)
    )


def input_channels(layer: str, scheme: TensorScheme, sample: Sample, params: QParams | None) -> Channels:
    """The channels of an activation under fixed ranges, or in a format without a scale.

    Args:
        layer: the layer's name.
        scheme: how it is quantized.
        sample: of calibration images, one group for each channel.
        params: its fixed scales and zero points; None for formats without.
    """
    x, number = sample.values, scheme.number
    if params is None:
        after = number.snap(x) if isinstance(number, FloatFormat) else x
        return _summary(layer, "input", scheme, _Rows(x, after, sample.weights, None), 0, False, sample)

    def spread(each: Tensor) -> Tensor:
        return scheme.grain.expand(each, (sample.groups, 1), 0).expand(sample.groups, 1)

    after = fake_quantize_(x, *params.spread(spread), params)
    rows = _Rows.under(x, after, sample.weights, params, spread)
    return _summary(layer, "input", scheme, rows, _shared(scheme, sample.groups), False, sample)


def dynamic_channels(
    layer: str, scheme: TensorScheme, sample: Sample, values: Tensor, channel: int, along: Along
) -> Channels:
    """The channels of an activation whose ranges come with each example: no codes and no clip are its own.

    Args:
        layer: the layer's name.
        scheme: how it is quantized.
        sample: of calibration images, one group for each channel.
        values: the activation on some images, which tell its SQNR.
        channel: its channel axis.
        along: where the images lie in it.
    """
    whole = input_channels(layer, TensorScheme("fp32"), sample, None)
    after = quantize_activation(values, scheme, None, channel, along)
    x, y = (Channel().matrix(part.double(), channel % values.dim())[0] for part in (values, after))
    unknown = np.full(len(whole), np.nan)
    return replace(
        whole,
        scheme=scheme.describe(),
        codes=unknown,
        clipped=unknown,
        sqnr_db=_decibels(x.square().sum(1), (x - y).square().sum(1)),
    )
