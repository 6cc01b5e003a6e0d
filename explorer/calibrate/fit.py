"""From a sample to quantization parameters."""

from __future__ import annotations

from explorer.calibrate.rules import Objective
from explorer.calibrate.sample import Sample
from explorer.formats import Grid, QParams


def fit(sample: Sample, grid: Grid, objective: Objective) -> QParams:
    """The parameters of each group: its range by ``objective``, its scale and zero point by ``grid``.

    A group whose values are all equal is reproduced exactly whatever the objective, where the scale rule
    allows its value as a scale.

    >>> import torch
    >>> from explorer.calibrate import MinMax
    >>> from explorer.formats import FORMATS, granularity
    >>> sample = Sample.of(torch.tensor([[-254.0, 100.0]]), granularity("layer"), 0)
    >>> fit(sample, Grid(FORMATS["int8"]), MinMax()).scale.item()
    2.0
    """
    grid = grid.settle(sample.minimum)
    params = grid.params(*objective(sample, grid))
    value = sample.minimum.abs()
    constant = (sample.minimum == sample.maximum) & ((value == 0) | (grid.scale(value) == value))
    if not bool(constant.any()):
        return params
    return grid.constant(sample.minimum).where(constant, params)
