"""One tensor of a layer, cut into the groups that share a scale, with the parameters that its scheme picks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate import Sample, fit
from explorer.errors import LayerError
from explorer.formats import Codebook, FloatFormat, QParams, encode, fake_quantize_, granularity
from explorer.graph import Calibration, Layer
from explorer.graph.fakequant import dynamic_params, dynamic_rows
from explorer.graph.images import images_first
from explorer.graph.ir import Along
from explorer.recipe import TensorScheme


@dataclass(frozen=True, eq=False)
class Grouped:
    """The values of a tensor, group by group.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        scheme: how it is quantized.
        sample: its values, ``(groups, points)``; bins stand for those of an input with fixed ranges.
        params: scale and zero point of each group; None for formats without a scale.
    """

    layer: str
    tensor: str
    scheme: TensorScheme
    sample: Sample
    params: QParams | None

    @property
    def exact(self) -> bool:
        """Whether every element is there, and no bin stands for some."""
        return self.sample.bins is None and self.tensor == "weight"

    @property
    def widest(self) -> int:
        """The group with the widest range."""
        if self.params is None:
            return 0
        low, high = self.params.clip
        return int((high - low).argmax())

    def rounded(self) -> Tensor:
        """The values after quantization, float32 ``(groups, points)``, in a new tensor."""
        number = self.scheme.number
        if isinstance(number, FloatFormat):
            return number.snap(self.sample.values)
        assert self.params is not None
        return fake_quantize_(self.sample.values, *_columns(self.params), self.params)

    def part(self, group: int) -> Grouped:
        """One group by itself.

        Raises:
            LayerError: when there is none of this number.
        """
        groups = self.sample.groups
        if isinstance(group, bool) or not isinstance(group, int) or not 0 <= group < groups:
            raise LayerError(
                f"The {self.tensor} of {self.layer!r} has {groups:,} groups under {self.scheme.granularity!r}, "
                f"numbered from 0; there is no group {group!r}."
            )
        rows = slice(group, group + 1)
        params = None if self.params is None else params_of(self.params, rows)
        return Grouped(self.layer, self.tensor, self.scheme, self.sample.part(rows), params)


def _columns(params: QParams) -> tuple[Tensor, Tensor]:
    """Scale and zero point as they broadcast against ``(groups, points)``."""
    return params.spread(lambda number: number[:, None])


def params_of(params: QParams, rows: slice) -> QParams:
    """The parameters of some of the groups."""
    book = None if params.book is None else Codebook(params.book.levels[rows])
    return replace(params, scale=params.scale[rows], zero_point=params.zero_point[rows], book=book)


def level_values(params: QParams, group: int) -> np.ndarray:
    """The real values of the levels of one group, float64 ``(levels,)``, increasing.

    >>> from explorer.formats import FORMATS, Grid
    >>> params = Grid(FORMATS["int2"]).params(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 3.0]))
    >>> level_values(params, 1).tolist()
    [-3.0, 0.0, 3.0]
    """
    if params.book is not None:
        # A group of few different values has some levels several times.
        return np.unique(params.book.levels[group].double().numpy())
    scale = float(params.scale[group])
    if params.levels is not None:
        return params.levels.values * scale
    return (np.arange(params.qmin, params.qmax + 1) - int(params.zero_point[group])) * scale


def common_levels(params: QParams) -> np.ndarray:
    """The levels that all groups share in units of their own scales: codes, or levels before scaling.

    Of levels that are fitted to each group they are the codes, too, and the groups have that in common alone.
    """
    if params.levels is not None:
        return params.levels.values
    return np.arange(params.qmin, params.qmax + 1, dtype=np.float64)


def level_places(values: Tensor, params: QParams) -> Tensor:
    """Which level each value goes to, counted from the least, int64 ``(groups, points)`` like ``values``."""
    scale, zero_point = _columns(params)
    if params.levels is not None:
        return params.levels.index(values / scale)
    return encode(values, scale, zero_point, params).long() - params.qmin


def in_own_units(values: Tensor, params: QParams) -> Tensor:
    """Values on the axis of :func:`common_levels`, float32 ``(groups, points)``.

    Between two levels of its book a value lies as far along as between their codes.
    """
    if params.book is not None:
        levels = params.book.levels
        below = (
            torch.searchsorted(levels, values.contiguous(), right=True).sub_(1).clamp_(0, levels.shape[1] - 2)
        )
        first, gap = levels.gather(1, below), levels.diff(dim=1).gather(1, below)
        return torch.where(gap > 0, (values - first) / gap, 0.0) + below
    scale, zero_point = _columns(params)
    unit = values / scale
    return unit if params.levels is not None else unit + zero_point


def grouped_weight(
    layer: str, plain: Tensor, axis: int, scheme: TensorScheme, params: QParams | None = None
) -> Grouped:
    """The weight of a layer, whose output channels lie along ``axis``, under a scheme.

    ``params`` are those that it is quantized by; None fits them to its own values.
    """
    if not scheme.scaled:
        return Grouped(layer, "weight", scheme, Sample.of(plain, granularity("layer"), 0), None)
    sample = Sample.of(plain, scheme.grain, axis)
    params = fit(sample, scheme.grid, scheme.goal) if params is None else params
    return Grouped(layer, "weight", scheme, sample, params)


def grouped_input(
    calibration: Calibration,
    first: Callable[[], Tensor],
    layer: Layer,
    scheme: TensorScheme,
    index: int,
    along: Along,
) -> Grouped:
    """An input under a scheme.

    Args:
        calibration: has the statistics of all calibration images.
        first: gives the input for the first batch of them, which is looked at where ranges are not fixed.
        layer: whose input it is.
        scheme: how it is quantized.
        index: which input, where a layer has several.
        along: where the images lie in it.
    """
    if not scheme.scaled:
        whole = TensorScheme("uint8", "layer", symmetric=False)
        return Grouped(layer.name, "input", scheme, calibration.sample(layer, index, whole), None)
    if scheme.mode == "static":
        sample = calibration.sample(layer, index, scheme)
        return Grouped(layer.name, "input", scheme, sample, calibration.params(layer, index, scheme))
    value = first()
    channel = layer.channel % value.dim() - value.dim()
    value = images_first(value, along)
    rows, cut = dynamic_rows(value, scheme, channel)
    sample = Sample.of(rows, cut, 0)
    return Grouped(layer.name, "input", scheme, sample, dynamic_params(value, sample, scheme))
