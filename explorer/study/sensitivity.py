"""Sensitivity: which layer suffers under which format.

The exact method quantizes one tensor of one layer at a time and measures the network's result against the
float network's.  On the engine each row costs only what lies downstream of its layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from explorer.errors import SchemeError, unknown
from explorer.formats import format_named
from explorer.graph import Engine, Layer, Plan
from explorer.recipe import Recipe, TensorScheme
from explorer.study.evaluate import Examples, Scores, output_sqnr
from explorer.study.metrics import Interval, mean_interval, paired, ratio_db_interval

METHODS: dict[str, str] = {"exact": "one tensor of one layer at a time, the whole network evaluated"}
TENSOR_CHOICES: dict[str, str] = {
    "weight": "the layer's weight",
    "input": "the layer's input activation",
    "both": "weight and input together",
}


@dataclass(frozen=True)
class Measure:
    """A way to say how much a network's results have suffered.

    Args:
        help: what it is, with its unit.
        value: from the scores of all images.
        interval: its 95% interval.
        labels: whether it needs to know what is right.
        worse: +1 where a larger value is worse, -1 where it is better.
    """

    help: str
    value: Callable[[Scores], float]
    interval: Callable[[Scores], Interval]
    labels: bool = False
    worse: int = 1


def _drop_interval(scores: Scores) -> Interval:
    lost = int(((scores.right == 0) & (scores.right_float == 1)).sum())
    won = int(((scores.right == 1) & (scores.right_float == 0)).sum())
    low, high = paired(won, lost, len(scores.right))
    return -high, -low


MEASURES: dict[str, Measure] = {
    "kl": Measure(
        "mean divergence of the class distribution from the float network's, nats",
        lambda s: float(s.kl.mean()),
        lambda s: mean_interval(s.kl),
    ),
    "loss": Measure(
        "mean cross-entropy minus the float network's, nats",
        lambda s: float((s.loss - s.loss_float).mean()),
        lambda s: mean_interval(s.loss - s.loss_float),
        labels=True,
    ),
    "top1": Measure(
        "drop of the share of images classified rightly (without labels: as the float network does)",
        lambda s: float((s.right_float - s.right).mean()),
        _drop_interval,
    ),
    "sqnr": Measure(
        "signal to quantization noise of the network's result, dB (more is better)",
        output_sqnr,
        lambda s: ratio_db_interval(s.signal, s.noise),
        worse=-1,
    ),
}


@dataclass(frozen=True)
class Row:
    """What is asked: one layer, one format, the recipe that quantizes nothing else."""

    layer: str
    format: str
    recipe: Recipe


def rows_for(
    layers: Iterable[Layer],
    formats: Sequence[str],
    tensor: str,
    schemes: Callable[[str], tuple[TensorScheme, TensorScheme]],
) -> list[Row]:
    """The rows of a sweep.

    Args:
        layers: the quantizable ones.
        formats: names of formats, each tried at every layer.
        tensor: ``weight``, ``input`` or ``both``.
        schemes: gives the schemes of a layer's weight and input, of which the format is replaced.

    Raises:
        SchemeError: for a format or tensor that does not exist.
    """
    if tensor not in TENSOR_CHOICES:
        raise SchemeError(unknown("tensor", tensor, TENSOR_CHOICES))
    if not formats:
        raise SchemeError("A sensitivity sweep needs at least one format, for example int4.")
    for name in formats:
        format_named(name)
    rows = []
    for layer in layers:
        weight, incoming = schemes(layer.name)
        for name in formats:
            recipe = Recipe.preset("fp32")
            changed = {}
            if tensor in ("weight", "both") and layer.weight is not None:
                changed["weight"] = _with_format(weight, name)
            if tensor in ("input", "both") and layer.inputs:
                changed["input"] = _with_format(incoming, name)
            if changed:
                rows.append(Row(layer.name, name, recipe.with_layer(layer.name, **changed)))
    return rows


def _with_format(scheme: TensorScheme, name: str) -> TensorScheme:
    """The scheme with another format, switched on."""
    mode = "static" if scheme.mode == "off" else scheme.mode
    if not format_named(name).scaled:
        return TensorScheme(name)
    return replace(scheme, format=name, mode=mode)


def sensitivity_steps(
    engine: Engine,
    floats: Plan,
    rows: Sequence[Row],
    make_plan: Callable[[Recipe], Plan],
    batches: Iterable[Examples],
    total: int,
    measure: str = "kl",
    tensor: str = "weight",
) -> Iterator[pd.DataFrame]:
    """Sharper and sharper tables of the exact sensitivities; the first batch yields row by row.

    Every table has all rows; a value that is not there yet is NaN, ``images`` says how many images each is
    from, and ``complete`` whether those are all.

    Raises:
        SchemeError: for a measure that does not exist or needs labels where there are none.
    """
    if measure not in MEASURES:
        raise SchemeError(unknown("measure", measure, MEASURES))
    graph = engine.graph
    plans: list[Plan | None] = [None] * len(rows)
    parts: list[list[Scores]] = [[] for _ in rows]
    values = [(math.nan, (math.nan, math.nan))] * len(rows)
    images = [0] * len(rows)
    for step, examples in enumerate(batches):
        if MEASURES[measure].labels and examples.labels is None:
            raise SchemeError(
                f"The measure {measure!r} needs labels and these images have none; use kl, sqnr, "
                "or top1, which is then the agreement with the float network."
            )
        # The float network's activations are what every row starts from: kept, while this batch lasts.
        reference = engine.run(floats, examples.batch, [graph.output, *_starts(engine)])[graph.output]
        for index, row in enumerate(rows):
            plan = plans[index] = plans[index] or make_plan(row.recipe)
            result = engine.run(plan, examples.batch, keep=False)[graph.output]
            parts[index].append(Scores.of(result, reference, examples.labels))
            scores = Scores.join(parts[index])
            parts[index] = [scores]
            images[index] = len(scores.right)
            values[index] = MEASURES[measure].value(scores), MEASURES[measure].interval(scores)
            if step == 0 and index < len(rows) - 1:
                yield _table(rows, values, images, total, measure, tensor)
        yield _table(rows, values, images, total, measure, tensor)


def _starts(engine: Engine) -> list[str]:
    """What the rows start from, as far as the graph computes it."""
    graph = engine.graph
    return [name for name in graph.worth_keeping if name in graph.by_name]


def _table(
    rows: Sequence[Row],
    values: Sequence[tuple[float, Interval]],
    images: Sequence[int],
    total: int,
    measure: str,
    tensor: str,
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": [row.layer for row in rows],
            "format": [row.format for row in rows],
            "tensor": tensor,
            "method": "exact",
            "measure": measure,
            "value": np.array([value for value, _ in values], dtype=float),
            "low": np.array([interval[0] for _, interval in values], dtype=float),
            "high": np.array([interval[1] for _, interval in values], dtype=float),
            "images": np.array(images, dtype=int),
            "complete": [count >= total for count in images],
        }
    )
