"""Calibration: samples of values, and objectives that choose a clipping range from them."""

from __future__ import annotations

from explorer.calibrate.fit import fit
from explorer.calibrate.objectives import OBJECTIVES, objective
from explorer.calibrate.rules import Clip, MinMax, MovingAverage, Objective, Percentile, quantile
from explorer.calibrate.sample import GrowingHistogram, Sample
from explorer.calibrate.search import KL, MSE

__all__ = [
    "KL",
    "MSE",
    "OBJECTIVES",
    "Clip",
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
