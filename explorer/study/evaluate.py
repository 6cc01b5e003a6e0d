"""Evaluation: what a recipe does to the network's results, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from explorer.cost import Cost, cost
from explorer.errors import DataError
from explorer.graph import Batch, Engine, Layer, Plan
from explorer.graph.engine import params_key, weight_key
from explorer.graph.fakequant import quantize_activation
from explorer.graph.ir import digest
from explorer.recipe import Recipe
from explorer.study.metrics import ErrorSums, Interval, mean_interval, paired, wilson


@dataclass(frozen=True, eq=False)
class Examples:
    """One batch and what is known to be right: int64 ``(images,)``, or None where nobody knows."""

    batch: Batch
    labels: Tensor | None


@dataclass(frozen=True)
class LayerReport:
    """One layer under a recipe; the SQNR of what is not quantized is None."""

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


@dataclass(frozen=True)
class Evaluation:
    """What a recipe does to the network, on the images so far.

    Args:
        images: how many images it is from.
        total_images: how many it will be from when complete.
        top1: share of images classified rightly (0 to 1); where there are no labels, as the float network does.
        top1_interval: its 95% interval (Wilson).
        top1_float: the float network's on the same images.
        delta: ``top1 - top1_float``.
        delta_interval: its 95% interval from the same images, paired (Bonett and Price).
        won: images that went from wrong to right.
        lost: images that went from right to wrong.
        loss: mean cross-entropy; None without labels.
        kl: mean Kullback-Leibler divergence of the class distribution from the float network's, nats.
        kl_interval: its 95% interval.
        output_sqnr_db: of the network's result; infinite where nothing differs.
        size_bytes: of the stored network.
        bops: bit operations for one image.
        layers: in the order of execution.
        agreement: no labels were known.
        calibration: which images have set the fixed ranges of activations.
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
        result, reference = result.double(), reference.double()
        log_p, log_q = F.log_softmax(reference, 1), F.log_softmax(result, 1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0)
        target = reference.argmax(1) if labels is None else labels
        if labels is not None and len(labels) and int(labels.max()) >= result.shape[1]:
            raise DataError(
                f"The labels reach {int(labels.max())} but the network tells {result.shape[1]} classes apart "
                f"(0 to {result.shape[1] - 1})."
            )
        noise = (reference - result).square().sum(1)
        parts = (
            (result.argmax(1) == target).double(),
            (reference.argmax(1) == target).double(),
            F.nll_loss(log_q, target, reduction="none"),
            F.nll_loss(log_p, target, reduction="none"),
            divergence,
            reference.square().sum(1),
            noise,
        )
        return Scores(*(part.numpy() for part in parts))

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


def output_sqnr(scores: Scores) -> float:
    """The SQNR of the network's result over all images, dB."""
    return ErrorSums(1, float(scores.signal.sum()), float(scores.noise.sum())).sqnr_db


def weight_sums(engine: Engine, plan: Plan, layer: Layer) -> ErrorSums:
    """What quantization does to the weight of ``layer``; kept in the store."""
    assert layer.weight is not None
    scheme = plan.configs[layer.name].weight
    key = f"weight-sums:{weight_key(engine.graph, layer, scheme)}"
    sums = engine.store.get(key)
    if sums is None:
        sums = ErrorSums.of(engine.graph.constants[layer.weight], engine.weight(layer, scheme))
        engine.store.put(key, sums)
    return sums


def _input_key(layer: Layer, plan: Plan, floats: Plan, batch: Batch) -> str:
    scheme = plan.configs[layer.name].input
    numbers = params_key(plan.params.get(layer.name, ()))
    values = [floats.keys[name] for name in layer.inputs]
    return digest("input-sums", scheme.key, str(layer.channel), numbers, *values, batch.key)


def _input_sums(
    engine: Engine, plan: Plan, floats: Plan, batch: Batch
) -> tuple[dict[str, ErrorSums], Tensor]:
    """What quantization does to each layer's own input in the float network, and the float network's result."""
    graph = engine.graph
    asked = {
        layer.name: _input_key(layer, plan, floats, batch)
        for layer in graph.layer_at.values()
        if layer.inputs and not plan.configs[layer.name].input.off
    }
    found = {name: engine.store.get(key) for name, key in asked.items()}
    missing = [graph.by_layer[name] for name, sums in found.items() if sums is None]
    wanted = {graph.output, *(source for layer in missing for source in layer.inputs)}
    values = engine.run(floats, batch, wanted)
    for layer in missing:
        scheme = plan.configs[layer.name].input
        params = plan.params.get(layer.name, (None,) * len(layer.inputs))
        sums = ErrorSums()
        for source, fixed in zip(layer.inputs, params, strict=True):
            value = values[source]
            if value.is_floating_point():
                sums = sums + ErrorSums.of(value, quantize_activation(value, scheme, fixed, layer.channel))
        engine.store.put(asked[layer.name], sums)
        found[layer.name] = sums
    return {name: sums for name, sums in found.items() if sums is not None}, values[graph.output]


def layer_reports(
    engine: Engine, plan: Plan, costs: Cost, inputs: dict[str, ErrorSums] | None = None
) -> tuple[LayerReport, ...]:
    """The layers of a plan; the SQNR of inputs only where their sums are given."""
    reports = []
    for layer in engine.graph.layers:
        config = plan.configs.get(layer.name)
        weight = config.weight if config is not None and layer.weight is not None else None
        incoming = config.input if config is not None and layer.inputs else None
        sums = (inputs or {}).get(layer.name)
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
                sums.sqnr_db if sums is not None else None,
                costs.layers[layer.name].size,
                layer.quantizable,
                layer.reason,
            )
        )
    return tuple(reports)


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

    Raises:
        DataError: for labels beyond the classes, or when there is no image.
    """
    graph = engine.graph
    costs, float_costs = cost(graph, recipe), cost(graph, Recipe.preset("fp32"))
    parts: list[Scores] = []
    inputs: dict[str, ErrorSums] = {}
    agreement = False
    for examples in batches:
        agreement = agreement or examples.labels is None
        sums, reference = _input_sums(engine, plan, floats, examples.batch)
        result = engine.run(plan, examples.batch)[graph.output]
        parts.append(Scores.of(result, reference, examples.labels))
        for name, more in sums.items():
            inputs[name] = inputs.get(name, ErrorSums()) + more
        scores = Scores.join(parts)
        images = len(scores.right)
        right, right_float = int(scores.right.sum()), int(scores.right_float.sum())
        won, lost = scores.won, scores.lost
        low, high = mean_interval(scores.kl)
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
            delta_interval=paired(won, lost, images),
            won=won,
            lost=lost,
            loss=None if agreement else float(scores.loss.mean()),
            loss_float=None if agreement else float(scores.loss_float.mean()),
            kl=float(scores.kl.mean()),
            kl_interval=(max(0.0, low), high),
            output_sqnr_db=output_sqnr(scores),
            size_bytes=costs.size,
            size_bytes_float=float_costs.size,
            bops=costs.bops,
            bops_float=float_costs.bops,
            layers=layer_reports(engine, plan, costs, inputs),
            calibration=calibration,
        )
    if not parts:
        raise DataError("There is no image to evaluate on.")
