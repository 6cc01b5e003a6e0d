"""Calibration: samples of values, and objectives that choose a clipping range from them."""

from __future__ import annotations

from explorer.calibrate.analytic import ACIQ
from explorer.calibrate.codebook import CODEBOOKS, fit_codebook
from explorer.calibrate.fit import fit
from explorer.calibrate.objectives import OBJECTIVES, objective
from explorer.calibrate.rules import Clip, MinMax, MovingAverage, Objective, Percentile, quantile
from explorer.calibrate.sample import GrowingHistogram, Sample
from explorer.calibrate.search import KL, MSE, SQNR, Lp

__all__ = [
    "ACIQ",
    "CODEBOOKS",
    "KL",
    "MSE",
    "OBJECTIVES",
    "SQNR",
    "Clip",
    "GrowingHistogram",
    "Lp",
    "MinMax",
    "MovingAverage",
    "Objective",
    "Percentile",
    "Sample",
    "fit",
    "fit_codebook",
    "objective",
    "quantile",
]
