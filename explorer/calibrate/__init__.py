"""Calibration: samples of values, and objectives that choose a clipping range from them."""

from __future__ import annotations

from explorer.calibrate.fit import fit
from explorer.calibrate.objectives import (
    KL,
    MSE,
    OBJECTIVES,
    MinMax,
    MovingAverage,
    Objective,
    Percentile,
    objective,
    quantile,
)
from explorer.calibrate.sample import GrowingHistogram, Sample

__all__ = [
    "KL",
    "MSE",
    "OBJECTIVES",
    "GrowingHistogram",
    "MinMax",
    "MovingAverage",
    "Objective",
    "Percentile",
    "Sample",
    "fit",
    "objective",
    "quantile",
]
