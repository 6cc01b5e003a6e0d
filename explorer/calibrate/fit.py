"""From a sample to quantization parameters."""

from __future__ import annotations

from torch import Tensor

from explorer.calibrate.rules import Objective
from explorer.calibrate.sample import Sample
from explorer.formats import CodebookFormat, Grid, QParams, fake_quantize_


def params_of(minimum: Tensor, maximum: Tensor, grid: Grid, low: Tensor, high: Tensor) -> QParams:
    """The parameters of the ranges ``low``..``high`` for groups of known extremes, all float32 ``(groups,)``.

    A group whose values are all equal is reproduced exactly, where the scale rule allows its value as a scale.
    """
    params = grid.params(low, high)
    constant = minimum == maximum
    if not bool(constant.any()):
        return params
    alone = grid.constant(minimum)
    if not grid.scale.free:
        kept = fake_quantize_(minimum, alone.scale, alone.zero_point, alone)
        constant &= kept == minimum
    return alone.where(constant, params)


def fit(sample: Sample, grid: Grid, objective: Objective) -> QParams:
    """The parameters of each group: its range by ``objective``, its scale and zero point by ``grid``.

    A format whose levels are fitted has no range; its levels are those of least squared error, weighted where
    ``objective`` knows what a value is worth.

    A group whose values are all equal is reproduced exactly whatever the objective, where the scale rule
    allows its value as a scale.

    >>> import torch
    >>> from explorer.calibrate import MinMax
    >>> from explorer.formats import FORMATS, granularity
    >>> sample = Sample.of(torch.tensor([[-254.0, 100.0]]), granularity("layer"), 0)
    >>> fit(sample, Grid(FORMATS["int8"]), MinMax()).scale.item()
    2.0
    """
    if isinstance(grid.format, CodebookFormat):
        return objective.levels(sample, grid.format)
    grid = grid.settle(sample.minimum, sample.maximum)
    return params_of(sample.minimum, sample.maximum, grid, *objective(sample, grid))
