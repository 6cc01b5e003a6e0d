"""Evaluation: what a recipe does to the network's results, batch by batch."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.cost import Cost, cost
from explorer.errors import DataError, TensorError
from explorer.graph import Batch, Engine, Graph, Layer, Plan
from explorer.graph.engine import params_key, weight_key
from explorer.graph.fakequant import quantize_activation
from explorer.graph.ir import digest
from explorer.recipe import Recipe, TensorScheme
from explorer.study.metrics import (
    CONFIDENCE,
    ErrorSums,
    Interval,
    mean_interval,
    paired,
    ratio_db_interval,
    score_interval,
    skewed_interval,
    wilson,
)
from explorer.study.scoring import METRICS, Metric, check_classes, class_rows, cross_entropies, image_means
from explorer.study.shown import Told
from explorer.study.tasks import Answer, Elsewhere, Task, answers, counted
from explorer.study.tasks import Examples as Examples  # those who evaluate read it from here
from explorer.tensor import bits_per_value

# An evaluation does not stop before so many images, however wide the interval may be.
MINIMUM_IMAGES = 200
NARROW, ALL = "narrow enough", "all images"
# Of scores that are no 0 or 1 nearly every image has another one: so many of those that changed most are kept.
MOST_FLIPS = 24


@dataclass(frozen=True)
class LayerReport:
    """One layer under a recipe; the SQNR of what is not quantized is None.

    ``weight_bits_per_value`` counts scales and zero points, too.  ``shares`` names the layer before it that has the
    same weight; under the same scheme that takes no room of its own.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    weight: str | None
    input: str | None
    weight_bits: int | None
    input_bits: int | None
    weight_sqnr_db: float | None
    input_sqnr_db: float | None
    size_bytes: int
    quantizable: bool
    reason: str
    weight_bits_per_value: float | None = None
    shares: str = ""


@dataclass(frozen=True)
class Flip:
    """An image whose score is another one with the change than without.

    Args:
        index: its number in the data set.
        label: the class that is right; None where there are no labels and the float network's class counts as right,
            and where labels are no classes.
        before: the class without the change (in float, or under the other recipe); None where results are no scores
            of classes (images, classes).
        after: the class with it.
        confidence_before: the probability that the network gives to ``before``.
        confidence_after: the same for ``after``.
        score_before: what the metric says without the change.
        score_after: what it says with it.
    """

    index: int
    label: int | None
    before: int | None
    after: int | None
    confidence_before: float | None
    confidence_after: float | None
    score_before: float = 0.0
    score_after: float = 0.0


@dataclass(frozen=True)
class Evaluation(Told):
    """What a recipe does to the network, on the images so far.

    The fields ``top1...`` and ``delta...`` hold what the metric says, also where it is another one than top-1.

    Args:
        images: how many images it is from.
        total_images: how many it will be from when complete.
        top1: the mean score; share of images classified rightly (0 to 1), without labels as the float network does.
        top1_interval: its 95% interval (Wilson; of other scores than 0 and 1 see ``score_interval``).
        top1_float: the float network's on the same images.
        delta: ``top1 - top1_float``.
        delta_interval: its 95% interval from the same images, paired (Tango; of other scores
            than 0 and 1 see ``score_interval``).
        won: images that went from wrong to right, or whose score grew.
        lost: images that went from right to wrong, or whose score fell.
        loss: mean cross-entropy; None without labels, and where results are no scores of classes.
        kl: mean Kullback-Leibler divergence of the class distribution from the float network's, nats; None where
            results are no scores of classes.
        kl_interval: its 95% interval.
        output_sqnr_db: of the network's result; infinite where nothing differs.
        size_bytes: of the stored network.
        bops: bit operations for one image.
        layers: in the order of execution.
        agreement: the scores are against the float network's results, since no labels were known or by definition.
        calibration: which images have set the fixed ranges of activations.
        stopped: why it ended, ``narrow enough`` or ``all images``; empty while it runs.
        interval_target: the width of ``delta_interval`` at which it ends before all images are seen.
        won_images: the images that ``won`` counts; of other scores than 0 and 1 those that gained most.
        lost_images: the images that ``lost`` counts; of other scores than 0 and 1 those that lost most.
        loss_delta: ``loss - loss_float``; None without labels.
        loss_interval: its 95% interval from the same images, paired.
        output_sqnr_interval: 95%, dB.
        metric: what is measured, a name in ``METRICS`` or a function's.
        score_name: what that is called, for example ``top-1`` or ``agreement with float``.
        unit: ``%`` where the score is a share that is shown as a percentage, otherwise nothing.
        scores: of each image in the order of evaluation; empty where scores are 0 or 1 by definition.
        scores_float: the float network's.
    """

    model: str
    data: str
    recipe: str
    images: int
    total_images: int
    complete: bool
    agreement: bool
    top1: float
    top1_interval: Interval
    top1_float: float
    delta: float
    delta_interval: Interval
    won: int
    lost: int
    loss: float | None
    loss_float: float | None
    kl: float | None
    kl_interval: Interval | None
    output_sqnr_db: float
    size_bytes: int
    size_bytes_float: int
    bops: int
    bops_float: int
    layers: tuple[LayerReport, ...]
    calibration: str = ""
    stopped: str = ""
    interval_target: float | None = None
    won_images: tuple[Flip, ...] = ()
    lost_images: tuple[Flip, ...] = ()
    loss_delta: float | None = None
    loss_interval: Interval | None = None
    output_sqnr_interval: Interval = (-math.inf, math.inf)
    metric: str = "top1"
    score_name: str = "top-1"
    unit: str = "%"
    scores: tuple[float, ...] = ()
    scores_float: tuple[float, ...] = ()

    def delta_at(self, confidence: float) -> Interval:
        """The interval of ``delta`` at another confidence than 95%."""
        if not self.scores:
            return paired(self.won, self.lost, self.images, confidence)
        return score_change(np.array(self.scores), np.array(self.scores_float), confidence)[1]

    @property
    def score(self) -> float:
        """The mean score: another name of ``top1``, for any metric."""
        return self.top1

    @property
    def score_interval(self) -> Interval:
        """Another name of ``top1_interval``."""
        return self.top1_interval

    @property
    def score_float(self) -> float:
        """Another name of ``top1_float``."""
        return self.top1_float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which infinite numbers are null; ``scores`` are left out."""
        named = {name: getattr(self, name) for name in ("score", "score_interval", "score_float")}
        values = {**asdict(self), **named}
        for name in ("scores", "scores_float"):
            values.pop(name)
        return finite(values)


def finite(value: Any) -> Any:
    """The value with numbers that JSON cannot hold replaced by None, and tuples by lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True, eq=False)
class Scores:
    """Of each image, float64 ``(images,)``: its score, its loss, its divergence, its output's energies.

    The score is 1 or 0 for right or wrong with metrics such as top-1.  Loss and divergence are NaN where results are no
    scores of classes, the loss also where labels are something else.
    """

    score: np.ndarray
    score_float: np.ndarray
    loss: np.ndarray
    loss_float: np.ndarray
    kl: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    @staticmethod
    def of(
        result: Tensor, reference: Tensor, labels: Tensor | None, metric: Metric = METRICS["top1"]
    ) -> Scores:
        """Scores of a batch from the network's results (images, ...) and the float network's."""
        return Reference(reference, labels, metric).scores(result)

    @property
    def won(self) -> int:
        """How many images have a better score than in float: went from wrong to right."""
        return int((self.score > self.score_float).sum())

    @property
    def lost(self) -> int:
        """How many images have a worse score than in float: went from right to wrong."""
        return int((self.score < self.score_float).sum())

    @staticmethod
    def join(parts: list[Scores]) -> Scores:
        """The scores of several batches, in order."""
        names = Scores.__dataclass_fields__
        return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def binary(scores: np.ndarray) -> bool:
    """Whether all scores are 0 or 1.

    >>> binary(np.array([0.0, 1.0])), binary(np.array([0.5, 1.0]))
    (True, False)
    """
    return bool(((scores == 0) | (scores == 1)).all())


def mean_score(scores: np.ndarray) -> tuple[float, Interval]:
    """The mean and its 95% interval: Wilson's where all scores are 0 or 1.

    >>> mean_score(np.array([1.0, 1.0, 0.0]))[0].__round__(3)
    0.667
    """
    if binary(scores):
        right = int(scores.sum())
        return right / len(scores), wilson(right, len(scores))
    return float(scores.mean()), score_interval(scores)


def score_change(
    after: np.ndarray, before: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, Interval]:
    """The mean of ``after - before`` and its interval: Tango's where all scores are 0 or 1.

    >>> score_change(np.array([0.5, 0.75]), np.array([0.75, 1.0]))
    (-0.25, (-0.25, -0.25))
    """
    if binary(after) and binary(before):
        won, lost = int((after > before).sum()), int((after < before).sum())
        return (won - lost) / len(after), paired(won, lost, len(after), confidence)
    difference = after - before
    return float(difference.mean()), score_interval(difference, confidence)


def readable(result: Tensor) -> bool:
    """Whether a network's results (images, ...) can be read: all are numbers.

    >>> readable(torch.tensor([[0.5, 1.0]])), readable(torch.tensor([[0.5, torch.inf]]))
    (True, False)
    """
    # A sum is finite only if every number is, and takes a fifth of the time; one of finite numbers may overflow.
    return math.isfinite(float(result.sum())) or bool(torch.isfinite(result).all())


def check_scores(result: Tensor, classes: bool = True) -> None:
    """Refuse results (images, ...) that nothing can be read from.

    Raises:
        TensorError: with how many images have such results.
    """
    if not readable(result):
        bad = int((~torch.isfinite(result)).flatten(1).any(1).sum())
        what = "class scores" if classes else "results"
        raise TensorError(
            f"The {what} of {bad:,} of {len(result):,} images are infinite or NaN, since values beyond a "
            "format's range become infinity; set overflow: saturate, or give the layers whose SQNR is minus "
            "infinity a wider range or format."
        )


class Reference:
    """What a batch is scored against, worked out once for any number of results.

    Args:
        result: the float network's, (images, ...).
        labels: what is right, (images, ...); None where nobody knows.
        metric: what is measured.
        where: the examples, for messages.

    Raises:
        DataError: for labels that do not fit the results.
        MetricError: for a metric that fails on them.
        TensorError: from :meth:`scores`, for results that are infinite or NaN.
    """

    def __init__(
        self,
        result: Tensor,
        labels: Tensor | None,
        metric: Metric = METRICS["top1"],
        where: str = "",
    ) -> None:
        result = result.detach().cpu()
        if labels is not None and metric.classes:
            check_classes(labels, result)
        self.metric, self._where = metric, where
        self._plain = result
        self._targets = metric.targets(result, labels)
        scores = metric.scores(result, self._targets, where)
        metric.check(result, self._targets, scores, where)
        self._score = scores.numpy()
        self._result = result.double()
        self._signal = self._result.flatten(1).square().sum(1).numpy()
        self._loss = np.full(len(result), math.nan)
        self._classes: Tensor | None = None
        if metric.classes:
            log_p = F.log_softmax(self._result, 1)
            self._classes = result.argmax(1) if labels is None else labels
            self._loss = cross_entropies(log_p, self._classes).numpy()
            self._log_p = class_rows(log_p)
            self._p = self._log_p.exp()

    def __len__(self) -> int:
        return len(self._plain)

    def scores(self, result: Tensor) -> Scores:
        """The scores of the same batch from a network's results (images, ...)."""
        result = result.detach().cpu()
        check_scores(result, self.metric.classes)
        score = self.metric.scores(result, self._targets, self._where).numpy()
        result = result.double()
        loss, kl = self._loss, np.full(len(result), math.nan)
        if self._classes is not None:
            log_q = F.log_softmax(result, 1)
            loss = cross_entropies(log_q, self._classes).numpy()
            each = (self._p * (self._log_p - class_rows(log_q))).sum(1).clamp(min=0)
            kl = image_means(each, len(result)).numpy()
        return Scores(
            score=score,
            score_float=self._score,
            loss=loss,
            loss_float=self._loss,
            kl=kl,
            signal=self._signal,
            noise=(self._result - result).flatten(1).square().sum(1).numpy(),
        )


class ScoreList:
    """Scores that grow batch by batch, without copying at each batch what was there before.

    >>> one = Scores(*np.ones((7, 2)))
    >>> scores = ScoreList()
    >>> scores.append(one), scores.append(one), len(scores.all)
    (None, None, 4)
    """

    def __init__(self) -> None:
        self._rows = np.empty((len(Scores.__dataclass_fields__), 256))
        self._count = 0

    def append(self, more: Scores) -> None:
        """Add the scores of the next batch."""
        end = self._count + len(more)
        if end > self._rows.shape[1]:
            # Twice the room, so that each score is moved a few times at most; what was given out stays.
            grown = np.empty((len(self._rows), 2 * end))
            grown[:, : self._count] = self._rows[:, : self._count]
            self._rows = grown
        for row, name in zip(self._rows, Scores.__dataclass_fields__, strict=True):
            row[self._count : end] = getattr(more, name)
        self._count = end

    @property
    def all(self) -> Scores:
        """The scores so far."""
        return Scores(*self._rows[:, : self._count])


@dataclass(eq=False)
class Flips:
    """The images won and lost so far: in the order in which they were seen, or, of other scores than 0 and 1, those
    that gained and lost most, at most ``MOST_FLIPS`` of each.
    """

    won: list[Flip] = field(default_factory=list)
    lost: list[Flip] = field(default_factory=list)
    _graded: bool = False

    def add(
        self,
        examples: Examples,
        before: Tensor,
        after: Tensor,
        score_before: np.ndarray,
        score_after: np.ndarray,
        classes: bool = True,
    ) -> None:
        """Look for them in a batch.

        Args:
            examples: the batch.
            before: results (images, ...) without the change.
            after: with it.
            score_before: the scores (images,) without it.
            score_after: with it.
            classes: results are scores of classes.
        """
        self._graded = self._graded or not (binary(score_before) and binary(score_after))
        named = classes and before.ndim == 2
        gained = score_after - score_before
        places = np.flatnonzero(gained)
        if self._graded:
            # Only those that may be among the most.
            places = np.concatenate(
                [np.sort(np.argsort(sign * gained, kind="stable")[:MOST_FLIPS]) for sign in (-1, 1)]
            )
            places = np.array([at for at in dict.fromkeys(places.tolist()) if gained[at]], dtype=int)
        for at in places.tolist():
            label = examples.labels[at] if examples.labels is not None and named else None
            flip = Flip(
                examples.indices[at],
                None if label is None else int(label),
                int(before[at].argmax()) if named else None,
                int(after[at].argmax()) if named else None,
                float(before[at].softmax(0).max()) if named else None,
                float(after[at].softmax(0).max()) if named else None,
                float(score_before[at]),
                float(score_after[at]),
            )
            (self.won if gained[at] > 0 else self.lost).append(flip)
        self._trim()

    def extend(self, more: Flips) -> None:
        """Add those of the next batch."""
        self.won += more.won
        self.lost += more.lost
        self._graded = self._graded or more._graded
        self._trim()

    def _trim(self) -> None:
        if self._graded:
            for kept in (self.won, self.lost):
                kept.sort(key=lambda flip: -abs(flip.score_after - flip.score_before))
                del kept[MOST_FLIPS:]


def output_sqnr(scores: Scores) -> float:
    """The SQNR of the network's result over all images, dB."""
    return ErrorSums(1, float(scores.signal.sum()), float(scores.noise.sum())).sqnr_db


def weight_sums(engine: Engine, plan: Plan, layer: Layer) -> ErrorSums:
    """What quantization does to the weight of ``layer``; kept in the store."""
    assert layer.weight is not None
    scheme, given = plan.configs[layer.name].weight, plan.weights.get(layer.name)
    key = f"weight-sums:{weight_key(engine.graph, layer, scheme, given)}"
    sums = engine.store.get(key)
    if sums is None:
        quantized = engine.weight(layer, scheme, given)
        begun = time.perf_counter()
        sums = ErrorSums.of(engine.graph.constants[layer.weight], quantized)
        engine.store.put(key, sums, time.perf_counter() - begun)
    return sums


def _input_names(plan: Plan, floats: Plan) -> dict[str, str]:
    """A name for what quantization does to each layer's input, the images left out."""
    return {
        layer.name: digest(
            "input-sums",
            plan.configs[layer.name].input.key,
            str(layer.channel),
            params_key(plan.params.get(layer.name, ())),
            *(floats.keys[name] for name in layer.inputs),
        )
        for layer in plan.graph.layer_at.values()
        if layer.inputs and not plan.configs[layer.name].input.off
    }


def _input_sums(
    engine: Engine, plan: Plan, floats: Plan, batch: Batch, names: dict[str, str]
) -> tuple[dict[str, ErrorSums], Tensor]:
    """What quantization does to each layer's own input in the float network, and the float network's result."""
    graph = engine.graph
    asked = {name: f"{static}:{batch.key}" for name, static in names.items()}
    found = {name: engine.store.get(key) for name, key in asked.items()}
    missing = [graph.by_layer[name] for name, sums in found.items() if sums is None]
    readers: dict[str, list[tuple[Layer, int]]] = defaultdict(list)
    for layer in missing:
        for index, source in enumerate(layer.inputs):
            readers[source].append((layer, index))
    parts: dict[str, list[ErrorSums]] = {layer.name: [ErrorSums()] * len(layer.inputs) for layer in missing}
    seconds: dict[str, float] = defaultdict(float)
    reference = None
    for source, value in engine.values(floats, batch, {graph.output, *readers}):
        for layer, index in readers[source]:
            begun = time.perf_counter()
            parts[layer.name][index] = _error_of_input(plan, layer, index, value)
            seconds[layer.name] += time.perf_counter() - begun
        if source == graph.output:
            reference = value
    assert reference is not None
    for name, sums in parts.items():
        found[name] = sum(sums, ErrorSums())
        engine.store.put(asked[name], found[name], seconds[name])
    return {name: sums for name, sums in found.items() if sums is not None}, reference


def _error_of_input(plan: Plan, layer: Layer, index: int, value: Tensor) -> ErrorSums:
    """What quantization does to one input of a layer; nothing to what is not floating-point."""
    if not value.is_floating_point():
        return ErrorSums()
    params = plan.params.get(layer.name, (None,) * len(layer.inputs))
    scheme, along = plan.configs[layer.name].input, plan.graph.along(layer.inputs[index])
    return ErrorSums.of(value, quantize_activation(value, scheme, params[index], layer.channel, along))


def layer_reports(engine: Engine, plan: Plan, costs: Cost) -> tuple[LayerReport, ...]:
    """The layers of a plan; the SQNR of inputs, which takes images, is not among it."""
    reports = []
    for layer in engine.graph.layers:
        config = plan.configs.get(layer.name)
        weight = config.weight if config is not None and layer.weight is not None else None
        incoming = config.input if config is not None and layer.inputs else None
        reports.append(
            LayerReport(
                layer.name,
                layer.op,
                layer.shape,
                layer.parameters,
                layer.macs,
                weight.describe() if weight is not None else None,
                incoming.describe() if incoming is not None else None,
                weight.bits if weight is not None else None,
                incoming.bits if incoming is not None else None,
                weight_sums(engine, plan, layer).sqnr_db if weight is not None and not weight.off else None,
                None,
                costs.layers[layer.name].size,
                layer.quantizable,
                layer.reason,
                _bits_per_value(engine.graph, layer, weight) if weight is not None else None,
                layer.shares,
            )
        )
    return tuple(reports)


def _bits_per_value(graph: Graph, layer: Layer, scheme: TensorScheme) -> float:
    assert layer.weight is not None
    return bits_per_value(scheme, tuple(graph.constants[layer.weight].shape), layer.axis)


def _with_inputs(reports: tuple[LayerReport, ...], inputs: dict[str, ErrorSums]) -> tuple[LayerReport, ...]:
    return tuple(
        replace(report, input_sqnr_db=inputs[report.name].sqnr_db) if report.name in inputs else report
        for report in reports
    )


def check_interval(width: float | None, unit: str = "%") -> None:
    """Refuse a width that no interval of a difference of scores can be asked to have.

    Raises:
        DataError: for what is no number above 0, and up to 2 where scores are shares.
    """
    if width is None:
        return
    number = isinstance(width, int | float) and not isinstance(width, bool)
    if unit == "%" and not (number and 0 < width <= 2):
        raise DataError(
            f"The interval asked for is a width above 0 and up to 2, as a share, not {width!r}; "
            "0.02 (two points) is a sensible one."
        )
    if not (number and 0 < width < math.inf):
        raise DataError(
            f"The interval asked for is a width above 0, in the unit of the metric, not {width!r}."
        )


def stop_reason(interval: Interval, target: float | None, images: int, total: int) -> str:
    """Why to stop after so many images, or nothing; docs/statistics.md says why this keeps the coverage.

    >>> stop_reason((-0.01, 0.01), 0.02, 400, 1000), stop_reason((-0.01, 0.01), None, 400, 1000)
    ('narrow enough', '')
    """
    if images >= total:
        return ALL
    narrow = target is not None and interval[1] - interval[0] <= target
    return NARROW if narrow and images >= MINIMUM_IMAGES else ""


@dataclass(frozen=True, eq=False)
class Evaluated(Answer):
    """What a recipe does on one batch: each image's scores and flips, and the errors of each layer's input."""

    scores: Scores
    flips: Flips
    inputs: dict[str, ErrorSums]


@dataclass(frozen=True, eq=False)
class Evaluate(Task[Evaluated]):
    """What a recipe does on a batch.

    Args:
        plan: the recipe worked out.
        floats: the float network worked out.
        metric: what is measured.
    """

    plan: Plan
    floats: Plan
    metric: Metric = METRICS["top1"]

    @cached_property
    def _names(self) -> dict[str, str]:
        return _input_names(self.plan, self.floats)

    def answer(self, engine: Engine, examples: Examples) -> Evaluated:
        sums, reference = _input_sums(engine, self.plan, self.floats, examples.batch, self._names)
        result = engine.run(self.plan, examples.batch)[engine.graph.output]
        scores = Reference(reference, examples.labels, self.metric, examples.where).scores(result)
        flips = Flips()
        flips.add(examples, reference, result, scores.score_float, scores.score, self.metric.classes)
        return Evaluated(examples.indices, examples.labels is not None, scores, flips, sums)


def evaluate_steps(
    engine: Engine,
    plan: Plan,
    floats: Plan,
    recipe: Recipe,
    batches: Iterable[Examples],
    total: int,
    model: str = "",
    data: str = "",
    calibration: str = "",
    interval: float | None = None,
    elsewhere: Elsewhere | None = None,
    metric: Metric = METRICS["top1"],
) -> Iterator[Evaluation]:
    """Better and better evaluations of a recipe, one after each batch.

    Args:
        engine: of the graph.
        plan: the recipe worked out.
        floats: the float network worked out.
        recipe: what ``plan`` was made from, for sizes.
        batches: the examples, in the order in which they are to be seen.
        total: how many images the batches hold together.
        model: a name to report.
        data: a name to report.
        calibration: a text to report.
        interval: stop when the 95% interval of the paired difference is as narrow as this.
        elsewhere: who computes; None: this process.
        metric: what is measured.

    Raises:
        DataError: for images that cannot be read, labels that do not fit the results, or when there is no image.
        MetricError: for a metric that fails.
    """
    check_interval(interval, metric.unit)
    graph = engine.graph
    costs, float_costs = cost(graph, recipe), cost(graph, Recipe.preset("fp32"))
    reports = layer_reports(engine, plan, costs)
    seen, flips = ScoreList(), Flips()
    inputs: dict[str, ErrorSums] = {}
    agreement = False
    found = answers(engine, batches, Evaluate(plan, floats, metric), total, elsewhere)
    for answer in counted(found, total):
        agreement = agreement or metric.compared(answer.labelled)
        seen.append(answer.scores)
        flips.extend(answer.flips)
        for name, more in answer.inputs.items():
            inputs[name] = inputs.get(name, ErrorSums()) + more
        scores = seen.all
        images = len(scores)
        (score, score_interval), (score_float, _) = mean_score(scores.score), mean_score(scores.score_float)
        delta, difference = score_change(scores.score, scores.score_float)
        labelled = metric.classes and not agreement
        loss, loss_float = float(scores.loss.mean()), float(scores.loss_float.mean())
        stopped = stop_reason(difference, interval, images, total)
        yield Evaluation(
            model=model,
            data=data,
            recipe=recipe.digest,
            images=images,
            total_images=total,
            complete=images >= total,
            agreement=agreement,
            top1=score,
            top1_interval=score_interval,
            top1_float=score_float,
            delta=delta,
            delta_interval=difference,
            won=scores.won,
            lost=scores.lost,
            loss=loss if labelled else None,
            loss_float=loss_float if labelled else None,
            kl=float(scores.kl.mean()) if metric.classes else None,
            kl_interval=skewed_interval(scores.kl) if metric.classes else None,
            output_sqnr_db=output_sqnr(scores),
            size_bytes=costs.size,
            size_bytes_float=float_costs.size,
            bops=costs.bops,
            bops_float=float_costs.bops,
            layers=_with_inputs(reports, inputs),
            calibration=calibration,
            stopped=stopped,
            interval_target=interval,
            won_images=tuple(flips.won),
            lost_images=tuple(flips.lost),
            loss_delta=loss - loss_float if labelled else None,
            loss_interval=mean_interval(scores.loss - scores.loss_float) if labelled else None,
            output_sqnr_interval=ratio_db_interval(scores.signal, scores.noise),
            metric=metric.name,
            score_name=metric.called(agreement),
            unit=metric.unit,
            scores=() if metric.binary else tuple(scores.score.tolist()),
            scores_float=() if metric.binary else tuple(scores.score_float.tolist()),
        )
        if stopped:
            return
