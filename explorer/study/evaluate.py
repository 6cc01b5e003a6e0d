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
    ErrorSums,
    Interval,
    mean_interval,
    paired,
    ratio_db_interval,
    skewed_interval,
    wilson,
)
from explorer.study.shown import Told
from explorer.study.tasks import Answer, Elsewhere, Task, answers, counted
from explorer.study.tasks import Examples as Examples  # those who evaluate read it from here
from explorer.tensor import bits_per_value

# An evaluation does not stop before so many images, however wide the interval may be.
MINIMUM_IMAGES = 200
NARROW, ALL = "narrow enough", "all images"


@dataclass(frozen=True)
class LayerReport:
    """One layer under a recipe; the SQNR of what is not quantized is None.

    ``weight_bits_per_value`` counts scales and zero points, too.
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


@dataclass(frozen=True)
class Flip:
    """An image that is classified rightly on one side only.

    Args:
        index: its number in the data set.
        label: what is right; None where there are no labels and the float network's class counts as right.
        before: the class without the change (in float, or under the other recipe).
        after: the class with it.
        confidence_before: the probability that the network gives to ``before``.
        confidence_after: the same for ``after``.
    """

    index: int
    label: int | None
    before: int
    after: int
    confidence_before: float
    confidence_after: float


@dataclass(frozen=True)
class Evaluation(Told):
    """What a recipe does to the network, on the images so far.

    Args:
        images: how many images it is from.
        total_images: how many it will be from when complete.
        top1: share of images classified rightly (0 to 1); where there are no labels, as the float network does.
        top1_interval: its 95% interval (Wilson).
        top1_float: the float network's on the same images.
        delta: ``top1 - top1_float``.
        delta_interval: its 95% interval from the same images, paired (Tango).
        won: images that went from wrong to right.
        lost: images that went from right to wrong.
        loss: mean cross-entropy; None without labels.
        kl: mean Kullback-Leibler divergence of the class distribution from the float network's, nats.
        kl_interval: its 95% interval.
        output_sqnr_db: of the network's result; infinite where nothing differs.
        size_bytes: of the stored network.
        bops: bit operations for one image.
        layers: in the order of execution.
        agreement: no labels were known, so that top-1 is the agreement with the float network.
        calibration: which images have set the fixed ranges of activations.
        stopped: why it ended, ``narrow enough`` or ``all images``; empty while it runs.
        interval_target: the width of ``delta_interval`` at which it ends before all images are seen.
        won_images: the images that ``won`` counts.
        lost_images: the images that ``lost`` counts.
        loss_delta: ``loss - loss_float``; None without labels.
        loss_interval: its 95% interval from the same images, paired.
        output_sqnr_interval: 95%, dB.
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
    kl: float
    kl_interval: Interval
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which infinite numbers are null."""
        return finite(asdict(self))


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


def right_classes(reference: Tensor, labels: Tensor | None) -> Tensor:
    """The labels; where there are none, the classes of the float network's results (images, classes)."""
    return reference.argmax(1) if labels is None else labels


@dataclass(frozen=True, eq=False)
class Scores:
    """Of each image, float64 ``(images,)``: was it right, its loss, its divergence, its output's energies."""

    right: np.ndarray
    right_float: np.ndarray
    loss: np.ndarray
    loss_float: np.ndarray
    kl: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    @staticmethod
    def of(result: Tensor, reference: Tensor, labels: Tensor | None) -> Scores:
        """Scores of a batch from the network's results (images, classes) and the float network's."""
        return Reference(reference, labels).scores(result)

    @property
    def won(self) -> int:
        """How many images went from wrong to right."""
        return int(((self.right == 1) & (self.right_float == 0)).sum())

    @property
    def lost(self) -> int:
        """How many images went from right to wrong."""
        return int(((self.right == 0) & (self.right_float == 1)).sum())

    @staticmethod
    def join(parts: list[Scores]) -> Scores:
        """The scores of several batches, in order."""
        names = Scores.__dataclass_fields__
        return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def readable(result: Tensor) -> bool:
    """Whether classes can be read from class scores (images, classes): all are numbers.

    >>> readable(torch.tensor([[0.5, 1.0]])), readable(torch.tensor([[0.5, torch.inf]]))
    (True, False)
    """
    return bool(torch.isfinite(result).all())


def check_scores(result: Tensor) -> None:
    """Refuse class scores (images, classes) that no class can be read from.

    Raises:
        TensorError: with how many images have such scores.
    """
    if not readable(result):
        bad = int((~torch.isfinite(result)).any(1).sum())
        raise TensorError(
            f"The class scores of {bad:,} of {len(result):,} images are infinite or NaN, since values beyond a "
            "format's range become infinity; set overflow: saturate, or give the layers whose SQNR is minus "
            "infinity a wider range or format."
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels (images,) beyond the classes.

    Raises:
        DataError: with the largest label and the number of classes.
    """
    if len(labels) and int(labels.max()) >= classes:
        raise DataError(
            f"The labels reach {int(labels.max())} but the network tells {classes} classes apart "
            f"(0 to {classes - 1})."
        )


class Reference:
    """What a batch is scored against, worked out once for any number of results.

    Args:
        result: the float network's, (images, classes).
        labels: what is right; None where the float network's classes count as right.

    Raises:
        DataError: for labels beyond the classes.
        TensorError: from :meth:`scores`, for class scores that are infinite or NaN.
    """

    def __init__(self, result: Tensor, labels: Tensor | None) -> None:
        if labels is not None:
            check_labels(labels, result.shape[1])
        self._result = result.double()
        self._log_p = F.log_softmax(self._result, 1)
        self._p = self._log_p.exp()
        self._target = right_classes(self._result, labels)
        self._right = (self._result.argmax(1) == self._target).double().numpy()
        self._loss = F.nll_loss(self._log_p, self._target, reduction="none").numpy()
        self._signal = self._result.square().sum(1).numpy()

    def scores(self, result: Tensor) -> Scores:
        """The scores of the same batch from a network's results (images, classes)."""
        result = result.double()
        check_scores(result)
        log_q = F.log_softmax(result, 1)
        return Scores(
            right=(result.argmax(1) == self._target).double().numpy(),
            right_float=self._right,
            loss=F.nll_loss(log_q, self._target, reduction="none").numpy(),
            loss_float=self._loss,
            kl=(self._p * (self._log_p - log_q)).sum(1).clamp(min=0).numpy(),
            signal=self._signal,
            noise=(self._result - result).square().sum(1).numpy(),
        )


class ScoreList:
    """Scores that grow batch by batch, without copying at each batch what was there before.

    >>> one = Scores(*np.ones((7, 2)))
    >>> scores = ScoreList()
    >>> scores.append(one), scores.append(one), len(scores.all.right)
    (None, None, 4)
    """

    def __init__(self) -> None:
        self._rows = np.empty((len(Scores.__dataclass_fields__), 256))
        self._count = 0

    def append(self, more: Scores) -> None:
        """Add the scores of the next batch."""
        end = self._count + len(more.right)
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
    """The images won and lost so far, in the order in which they were seen."""

    won: list[Flip] = field(default_factory=list)
    lost: list[Flip] = field(default_factory=list)

    def add(self, examples: Examples, before: Tensor, after: Tensor, target: Tensor) -> None:
        """Look for them in a batch.

        Args:
            examples: the batch.
            before: results (images, classes) without the change.
            after: with it.
            target: the classes that count as right.
        """
        first, second = before.argmax(1), after.argmax(1)
        changed = (first == target) != (second == target)
        for at in changed.nonzero().flatten().tolist():
            flip = Flip(
                examples.indices[at],
                None if examples.labels is None else int(examples.labels[at]),
                int(first[at]),
                int(second[at]),
                float(before[at].softmax(0).max()),
                float(after[at].softmax(0).max()),
            )
            (self.won if second[at] == target[at] else self.lost).append(flip)

    def extend(self, more: Flips) -> None:
        """Add those of the next batch."""
        self.won += more.won
        self.lost += more.lost


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
    scheme = plan.configs[layer.name].input
    return ErrorSums.of(value, quantize_activation(value, scheme, params[index], layer.channel))


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


def check_interval(width: float | None) -> None:
    """Refuse a width that no interval of a difference of shares can be asked to have.

    Raises:
        DataError: for what is no number above 0 and up to 2.
    """
    if width is None:
        return
    number = isinstance(width, int | float) and not isinstance(width, bool)
    if not (number and 0 < width <= 2):
        raise DataError(
            f"The interval asked for is a width above 0 and up to 2, as a share, not {width!r}; "
            "0.02 (two points) is a sensible one."
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
    """

    plan: Plan
    floats: Plan

    @cached_property
    def _names(self) -> dict[str, str]:
        return _input_names(self.plan, self.floats)

    def answer(self, engine: Engine, examples: Examples) -> Evaluated:
        sums, reference = _input_sums(engine, self.plan, self.floats, examples.batch, self._names)
        result = engine.run(self.plan, examples.batch)[engine.graph.output]
        scores = Scores.of(result, reference, examples.labels)
        flips = Flips()
        flips.add(examples, reference, result, right_classes(reference, examples.labels))
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

    Raises:
        DataError: for images that cannot be read, labels beyond the classes, or when there is no image.
    """
    check_interval(interval)
    graph = engine.graph
    costs, float_costs = cost(graph, recipe), cost(graph, Recipe.preset("fp32"))
    reports = layer_reports(engine, plan, costs)
    seen, flips = ScoreList(), Flips()
    inputs: dict[str, ErrorSums] = {}
    agreement = False
    found = answers(engine, batches, Evaluate(plan, floats), total, elsewhere)
    for answer in counted(found, total):
        agreement = agreement or not answer.labelled
        seen.append(answer.scores)
        flips.extend(answer.flips)
        for name, more in answer.inputs.items():
            inputs[name] = inputs.get(name, ErrorSums()) + more
        scores = seen.all
        images = len(scores.right)
        right, right_float = int(scores.right.sum()), int(scores.right_float.sum())
        won, lost = len(flips.won), len(flips.lost)
        difference = paired(won, lost, images)
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
            top1=right / images,
            top1_interval=wilson(right, images),
            top1_float=right_float / images,
            delta=(right - right_float) / images,
            delta_interval=difference,
            won=won,
            lost=lost,
            loss=None if agreement else loss,
            loss_float=None if agreement else loss_float,
            kl=float(scores.kl.mean()),
            kl_interval=skewed_interval(scores.kl),
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
            loss_delta=None if agreement else loss - loss_float,
            loss_interval=None if agreement else mean_interval(scores.loss - scores.loss_float),
            output_sqnr_interval=ratio_db_interval(scores.signal, scores.noise),
        )
        if stopped:
            return
