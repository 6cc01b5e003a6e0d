"""Metrics by name, as functions, or from the user's own Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from explorer.errors import MetricError
from explorer.sources.factory import is_factory, load_object
from explorer.study import METRICS, Metric, as_metric


def load_metric(spec: Any) -> Metric:
    """A metric from a name in ``METRICS``, a function of (outputs, targets), or ``file.py:function``.

    The last may also name a :class:`~explorer.study.Metric`; the file is run, so it must be one that you trust.

    Raises:
        MetricError: for what does not exist or is no metric.

    >>> load_metric("top5").title, load_metric(lambda outputs, targets: outputs.sum(1)).name
    ('top-5', 'metric')
    """
    if isinstance(spec, str) and spec not in METRICS and is_factory(spec):
        found = load_object(spec, MetricError)
        if not isinstance(found, Metric) and not callable(found):
            raise MetricError(
                f"{spec} is a {type(found).__name__}; a metric is a function of (outputs, targets)."
            )
        left, _, name = spec.rpartition(":")
        whole = f"{Path(left).expanduser().resolve()}:{name}" if left.endswith(".py") else spec
        return replace(as_metric(found), made=(load_metric, whole))
    return as_metric(spec)
