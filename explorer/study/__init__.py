"""Studies: questions asked of a (graph, recipe) pair, answered in better and better steps."""

from __future__ import annotations

from explorer.study.compare import Comparison, compare_steps
from explorer.study.evaluate import Evaluation, Examples, Flip, LayerReport, evaluate_steps, layer_reports
from explorer.study.histogram import Histogram, histogram_of
from explorer.study.metrics import ErrorSums, mean_interval, paired, skewed_interval, wilson
from explorer.study.sensitivity import MEASURES, METHODS, TENSOR_CHOICES, rows_for, sensitivity_steps

__all__ = [
    "MEASURES",
    "METHODS",
    "TENSOR_CHOICES",
    "Comparison",
    "ErrorSums",
    "Evaluation",
    "Examples",
    "Flip",
    "Histogram",
    "LayerReport",
    "compare_steps",
    "evaluate_steps",
    "histogram_of",
    "layer_reports",
    "mean_interval",
    "paired",
    "rows_for",
    "sensitivity_steps",
    "skewed_interval",
    "wilson",
]
