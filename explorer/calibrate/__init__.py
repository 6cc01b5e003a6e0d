"""Calibration: samples of values, and objectives that choose a clipping range from them."""

from __future__ import annotations

from explorer.calibrate.analytic import ACIQ
from explorer.calibrate.codebook import CODEBOOKS, fit_codebook
from explorer.calibrate.fit import fit
from explorer.calibrate.objectives import OBJECTIVES, objective
from explorer.calibrate.output import Moments, OutputOfWeight
from explorer.calibrate.rules import (
    ELEMENTS,
    LAYER,
    NETWORK,
    Clip,
    MinMax,
    MovingAverage,
    Objective,
    Percentile,
    quantile,
)
from explorer.calibrate.sample import GrowingHistogram, Sample
from explorer.calibrate.search import KL, MSE, SQNR, Lp

__all__ = [
    "ACIQ",
    "CODEBOOKS",
    "ELEMENTS",
    "KL",
    "LAYER",
    "MSE",
    "NETWORK",
    "OBJECTIVES",
    "SQNR",
    "Clip",
    "GrowingHistogram",
    "Lp",
    "MinMax",
    "Moments",
    "MovingAverage",
    "Objective",
    "OutputOfWeight",
    "Percentile",
    "Sample",
    "fit",
    "fit_codebook",
    "objective",
    "quantile",
]
