"""A sweep: rows of layers and formats, what is asked of each, and the table that fills."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from torch import Tensor

from explorer.errors import SchemeError, unknown
from explorer.formats import FORMATS
from explorer.graph import Batch, Calibration, Engine, Layer, Plan, plan
from explorer.recipe import Recipe, TensorScheme
from explorer.study.evaluate import Reference, Scores, readable
from explorer.study.measures import MEASURES, Estimate, Measure, check_measure
from explorer.study.ranges import Resolver
from explorer.study.scoring import METRICS, Metric
from explorer.study.tasks import Divisible, Elsewhere, Examples, Pieces, Task, divided

TENSOR_CHOICES: dict[str, str] = {
    "weight": "the layer's weight",
    "input": "the layer's input activation",
    "both": "weight and input together",
}
# In the place of a format: each layer as the present recipe has it.
OWN = "recipe"
# The method whose values are the network's own, not estimates.
EXACT = "exact"
# Why a row has no number.
UNREADABLE = "class scores are infinite or NaN: values beyond the format's range became infinity"
UNREADABLE_RESULT = UNREADABLE.replace("class scores", "results")
# A table is shown after so many times the time that making it took.
_SELDOM = 20
T = TypeVar("T")
DEFAULT_FORMATS = ("int8", "int4", "int2")


@dataclass(frozen=True)
class Row:
    """What is asked: one layer, one format, and the recipe that quantizes nothing else (or all but it)."""

    layer: str
    format: str
    recipe: Recipe


def rows_for(layers: Iterable[Layer], formats: Sequence[str], tensor: str, recipe: Recipe) -> list[Row]:
    """The rows of a sweep in which one layer at a time is quantized.

    Args:
        layers: the quantizable ones.
        formats: names of formats, each tried at every layer; ``recipe`` stands for the layer's own.
        tensor: ``weight``, ``input`` or ``both``.
        recipe: gives the schemes, of which the format is replaced.

    Raises:
        SchemeError: for a format or tensor that does not exist, or when there is none.
    """
    if not formats:
        raise SchemeError("A sensitivity sweep needs at least one format, for example int4.")
    for name in formats:
        if name not in (OWN, *FORMATS):
            raise SchemeError(unknown("format", name, [*FORMATS, OWN]))
    rows = []
    for layer in layers:
        schemes = _schemes(layer, tensor, recipe)
        for name in formats:
            changed = {
                key: scheme if name == OWN else scheme.with_format(name) for key, scheme in schemes.items()
            }
            if any(not scheme.off for scheme in changed.values()) or (changed and name != OWN):
                rows.append(Row(layer.name, name, Recipe.preset("fp32").with_layer(layer.name, **changed)))
    return rows


def rows_without(layers: Iterable[Layer], tensor: str, recipe: Recipe) -> list[Row]:
    """The rows of a sweep in which one layer at a time goes back to float in a quantized network."""
    rows = []
    for layer in layers:
        schemes = {key: s for key, s in _schemes(layer, tensor, recipe).items() if not s.off}
        if schemes:
            off = {key: TensorScheme("fp32") for key in schemes}
            formats = "/".join(dict.fromkeys(scheme.format for scheme in schemes.values()))
            rows.append(Row(layer.name, formats, recipe.with_layer(layer.name, **off)))
    return rows


def _schemes(layer: Layer, tensor: str, recipe: Recipe) -> dict[str, TensorScheme]:
    if tensor not in TENSOR_CHOICES:
        raise SchemeError(unknown("tensor", tensor, TENSOR_CHOICES))
    config, found = recipe.config(layer.name), {}
    if tensor in ("weight", "both") and layer.weight is not None:
        found["weight"] = config.weight
    if tensor in ("input", "both") and layer.inputs:
        found["input"] = config.input
    return found


def starts(engine: Engine, plan: Plan, batch: Batch, keep: bool = True) -> Tensor:
    """The network's result; all that rows may start from is computed on the way, into the store only.

    Args:
        engine: of the graph.
        plan: what the rows differ from by one layer.
        batch: the images.
        keep: False asks for the result alone.
    """
    output = engine.graph.output
    wanted = engine.graph.made_of if keep else (output,)
    found = [value for name, value in engine.values(plan, batch, wanted) if name == output]
    return found[0]


@dataclass(frozen=True, eq=False)
class Tries(Task[Pieces]):
    """The scores of many networks that differ from one by a layer; None for class scores that are not readable.

    Args:
        floats: the float network worked out.
        base: what each is compared with; None: the float network, which costs nothing.
        plans: the networks by number, in the order in which they are run; worked out when their turn comes.
        strict: refuse results that are not readable.
        metric: what is measured.
    """

    floats: Plan
    base: Plan | None
    plans: Iterable[tuple[int, Plan]]
    strict: bool = False
    metric: Metric = METRICS["top1"]

    def settled(self) -> Tries:
        return replace(self, plans=tuple(self.plans))

    def answer(self, engine: Engine, examples: Examples) -> Pieces:
        batch = examples.batch
        # What every row starts from: kept, while this batch lasts.
        result = starts(engine, self.floats, batch, self.base is None)
        reference, base = Reference(result, examples.labels, self.metric, examples.where), None
        if self.base is not None:
            base = reference.scores(starts(engine, self.base, batch))
        pieces = self._pieces(engine, batch, reference)
        return Pieces(examples.indices, examples.labels is not None, base, pieces)

    def _pieces(
        self, engine: Engine, batch: Batch, reference: Reference
    ) -> Iterator[tuple[int, Scores | None]]:
        output = engine.graph.output
        for number, each in self.plans:
            result = engine.run(each, batch, keep=False)[output]
            fine = self.strict or readable(result)
            yield number, reference.scores(result) if fine else None


@dataclass(frozen=True, eq=False)
class Sweep:
    """A question about many rows.

    Args:
        engine: of the graph.
        floats: the float network worked out.
        calibration: sets the static ranges of inputs, and those of weights that take images.
        resolver: sets the ranges that take the whole network.
        batches: the first so many evaluation images, batch by batch, in the fixed order.
        total: how many images the whole question is about.
        rows: what is asked.
        measure: a name in ``MEASURES``.
        tensor: what of each layer is quantized.
        recipe: the present recipe.
        elsewhere: who computes exact rows; None: this process.
        metric: what the network is measured by.
        shown: somebody looks at tables before the last; if not, none of those is made.
    """

    engine: Engine
    floats: Plan
    calibration: Calibration
    resolver: Resolver
    batches: Callable[[int], Iterator[Examples]]
    total: int
    rows: Sequence[Row]
    measure: str
    tensor: str
    recipe: Recipe
    elsewhere: Elsewhere | None = None
    metric: Metric = METRICS["top1"]
    shown: bool = True

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise SchemeError(unknown("measure", self.measure, MEASURES))
        check_measure(self.measure, self.metric)

    @property
    def goal(self) -> Measure:
        """The measure itself."""
        return MEASURES[self.measure]

    @property
    def expandable(self) -> bool:
        """Whether small steps tell the measure: of a score other than top-1's they do not."""
        return self.measure != "score" or self.metric.is_top1

    def reference(self, result: Tensor, examples: Examples) -> Reference:
        """What results are scored against, from the float network's."""
        return Reference(result, examples.labels, self.metric, examples.where)

    def plan(self, recipe: Recipe) -> Plan:
        """A recipe worked out, its static ranges fitted."""
        recipe = self.resolver.resolve(recipe)
        self.calibration.prepare(recipe)
        return plan(self.engine.graph, recipe, self.calibration.params, self.calibration.weight_params)

    def prepare(self) -> None:
        """Gather what the rows' static ranges are made of, in as few passes as possible."""
        for row in self.rows:
            self.calibration.prepare(self.resolver.resolve(row.recipe))

    def tries(self, base: Plan | None, open: Callable[[], Sequence[int]]) -> Iterator[Pieces]:
        """The scores of the rows that are ``open``, batch by batch, compared with ``base`` (None: float)."""

        @cache
        def worked_out(index: int) -> Plan:
            return self.plan(self.rows[index].recipe)

        def task(rows: Sequence[int]) -> Tries:
            return Tries(
                self.floats, base, ((index, worked_out(index)) for index in rows), metric=self.metric
            )

        return divided(
            self.engine, self.batches(self.total), Divisible(open, task), self.total, self.elsewhere
        )

    def local_plan(self, row: Row) -> Plan:
        """What acts at the row's own layer; it has no keys, so it is good for that one node only."""
        layer = self.engine.graph.by_layer[row.layer]
        config = self.resolver.resolve(row.recipe).config(row.layer)
        params = {}
        if layer.inputs and config.input.scaled and config.input.mode == "static":
            params[row.layer] = tuple(
                self.calibration.params(layer, index, config.input) for index in range(len(layer.inputs))
            )
        given = self.calibration.weight_params(layer, config.weight) if layer.weight is not None else None
        weights = {} if given is None else {row.layer: given}
        return Plan(self.engine.graph, {row.layer: config}, params, {}, weights)

    def resolve_steps(self, method: str) -> Iterator[pd.DataFrame]:
        """Find the ranges that take the whole network, all rows'; the empty table now and then."""
        board, pace = Board(self, method), Pace(self.shown)
        for row in self.rows:
            if self.resolver.coordinates(row.recipe):
                for _ in self.resolver.steps(row.recipe):
                    if pace.due():
                        yield pace.clocked(board.table)

    def checked(self, examples: Examples) -> Examples:
        """The examples, if the measure can be taken on them; see :meth:`check`."""
        self.check(examples.labels is not None)
        return examples

    def check(self, labelled: bool) -> None:
        """Refuse images without labels where the measure needs them.

        Raises:
            SchemeError: with the measures that do not.
        """
        if self.goal.labels and not labelled:
            raise SchemeError(
                f"The measure {self.measure!r} needs labels and these images have none; use kl, sqnr, "
                "or top1, which is then the agreement with the float network."
            )


class Board:
    """The values known so far, one for each row; every table has all rows.

    Args:
        sweep: the question.
        method: a name for those values that are not known yet.
    """

    def __init__(self, sweep: Sweep, method: str) -> None:
        count = len(sweep.rows)
        self.sweep = sweep
        self.method: list[str] = [method] * count
        self.value, self.low, self.high = (np.full(count, math.nan) for _ in range(3))
        self.images = np.zeros(count, dtype=int)
        self.weight_sqnr, self.output_sqnr = np.full(count, math.nan), np.full(count, math.nan)
        self.decided = np.zeros(count, dtype=bool)
        self.reason = [""] * count

    def put(self, index: int, method: str, estimate: Estimate, images: int) -> None:
        """Set the value of a row."""
        self.value[index], (self.low[index], self.high[index]) = estimate
        self.method[index], self.images[index] = method, images

    def spoil(self, index: int, images: int) -> None:
        """Give up a row whose results are infinite or NaN; the others go on."""
        value = self.sweep.goal.unreadable
        self.put(index, EXACT, (value, (value, value)), images)
        reason = UNREADABLE if self.sweep.metric.classes else UNREADABLE_RESULT
        self.decided[index], self.reason[index] = True, reason

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        """The columns that stay, ready for a table."""
        rows, sweep = self.sweep.rows, self.sweep
        texts = {
            "layer": [row.layer for row in rows],
            "format": [row.format for row in rows],
            "tensor": [sweep.tensor] * len(rows),
            "measure": [sweep.measure] * len(rows),
        }
        return {name: pd.Series(values, dtype="str").array for name, values in texts.items()}

    @property
    def complete(self) -> np.ndarray:
        """Which rows will not change any more: all their images seen, or decided before."""
        return self.decided | (self.images >= self.sweep.total)

    def table(self) -> pd.DataFrame:
        """The rows as they stand."""
        fixed = self._fixed
        return pd.DataFrame(
            {
                "layer": fixed["layer"],
                "format": fixed["format"],
                "tensor": fixed["tensor"],
                "method": pd.Series(self.method, dtype="str").array,
                "measure": fixed["measure"],
                "value": self.value,
                "low": self.low,
                "high": self.high,
                "images": self.images,
                "complete": self.complete,
                "weight_sqnr_db": self.weight_sqnr,
                "output_sqnr_db": self.output_sqnr,
                "reason": pd.Series(self.reason, dtype="str").array,
            }
        )


class Pace:
    """When to show a table: so seldom that making tables takes a small share of the time, or never.

    >>> pace = Pace()
    >>> pace.due(), pace.clocked(lambda: "table")
    (True, 'table')
    >>> Pace(shown=False).due()
    False
    """

    def __init__(self, shown: bool = True) -> None:
        self._next = -math.inf if shown else math.inf

    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.perf_counter() >= self._next

    def clocked(self, make: Callable[[], T]) -> T:
        """What ``make`` gives; the time that it takes puts the next one off."""
        begun = time.perf_counter()
        made = make()
        end = time.perf_counter()
        self._next = end + _SELDOM * (end - begun)
        return made
