"""Studies: questions asked of a (graph, recipe) pair, answered in better and better steps."""

from __future__ import annotations

from explorer.study.channels import Channels, dynamic_channels, input_channels, weight_channels
from explorer.study.check import ESTABLISHED, EXCLUDED, UNDECIDED, Check, check_steps
from explorer.study.compare import Comparison, compare_steps
from explorer.study.curve import Curves, Effect, curve_steps, effect
from explorer.study.depth import Depth, depth_steps
from explorer.study.diagnosis import Diagnosis, Finding, Patient, diagnosis_steps
from explorer.study.evaluate import Evaluation, Examples, Flip, LayerReport, evaluate_steps, layer_reports
from explorer.study.foreign import Against, ForeignParameters, ForeignTensor, Ours, against_of
from explorer.study.histogram import Histogram, histogram_of
from explorer.study.jackknife import Influence, Jackknife, Source, jackknife_steps
from explorer.study.lens import Lens, lens_of
from explorer.study.measures import MEASURES, harm, measures_for
from explorer.study.metrics import ErrorSums, mean_interval, paired, skewed_interval, wilson
from explorer.study.numberline import NumberLine, number_line
from explorer.study.ranges import Resolver, Resolving, by_loss
from explorer.study.rivals import Rival, rivals
from explorer.study.rules import RULES
from explorer.study.scoring import METRICS, Metric, as_metric, check_fit, usual_metric
from explorer.study.sensitivity import METHODS, Additivity, additivity
from explorer.study.shown import Drawn, Told, styled
from explorer.study.sweep import DEFAULT_FORMATS, OWN, TENSOR_CHOICES, Sweep, rows_for, rows_without
from explorer.study.trials import COSTS, Differences, Outcome, Trial, Trials

__all__ = [
    "COSTS",
    "DEFAULT_FORMATS",
    "ESTABLISHED",
    "EXCLUDED",
    "MEASURES",
    "METHODS",
    "METRICS",
    "OWN",
    "RULES",
    "TENSOR_CHOICES",
    "UNDECIDED",
    "Additivity",
    "Against",
    "Channels",
    "Check",
    "Comparison",
    "Curves",
    "Depth",
    "Diagnosis",
    "Differences",
    "Drawn",
    "Effect",
    "ErrorSums",
    "Evaluation",
    "Examples",
    "Finding",
    "Flip",
    "ForeignParameters",
    "ForeignTensor",
    "Histogram",
    "Influence",
    "Jackknife",
    "LayerReport",
    "Lens",
    "Metric",
    "NumberLine",
    "Ours",
    "Outcome",
    "Patient",
    "Resolver",
    "Resolving",
    "Rival",
    "Source",
    "Sweep",
    "Told",
    "Trial",
    "Trials",
    "additivity",
    "against_of",
    "as_metric",
    "by_loss",
    "check_fit",
    "check_steps",
    "compare_steps",
    "curve_steps",
    "depth_steps",
    "diagnosis_steps",
    "dynamic_channels",
    "effect",
    "evaluate_steps",
    "harm",
    "histogram_of",
    "input_channels",
    "jackknife_steps",
    "layer_reports",
    "lens_of",
    "mean_interval",
    "measures_for",
    "number_line",
    "paired",
    "rivals",
    "rows_for",
    "rows_without",
    "skewed_interval",
    "styled",
    "usual_metric",
    "weight_channels",
    "wilson",
]
