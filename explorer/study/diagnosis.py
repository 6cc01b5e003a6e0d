"""Diagnosis: what does not suit the tensors of a network under a recipe, what to try, and what that really does.

First one pass over some calibration images gathers the facts that the rules look at
(:data:`explorer.study.rules.RULES`).  Each change that a rule proposes is then tried: on the tensor and on the
layer's own output, the layer's input being the float network's; and on the network, as the recipe with the change
against the recipe without it, on the same evaluation images, batch by batch.  What does not help is kept and said.

Where many layers have the same trouble, mending one of them may not show.  A change that is proposed for several
layers is therefore also tried on all of them together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.cost import cost
from explorer.errors import RecipeError, SchemeError
from explorer.formats import Channel
from explorer.graph import Batch, Calibration, Engine, Layer, Plan, plan
from explorer.graph.fakequant import quantize_activation
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.study.channels import least_of
from explorer.study.evaluate import Examples, ScoreList, finite, weight_sums
from explorer.study.measures import MEASURES, harm
from explorer.study.metrics import ErrorSums, Interval
from explorer.study.rules import RULES, Facts, groups_of, shape_of
from explorer.study.scoring import METRICS, Metric
from explorer.study.shown import Told
from explorer.study.sweep import Tries
from explorer.study.tasks import Divisible, Elsewhere, divided
from explorer.tensor import fit_tensor

# Calibration images that are looked at, and evaluation images that changes are tried on unless said otherwise.
LOOKED, IMAGES = 128, 400
# A change whose interval leaves zero out is not tried on more images than these.
ENOUGH = 200
NOT_YET = (-math.inf, math.inf)


@dataclass(frozen=True)
class Finding:
    """Something that does not suit a tensor, a change of the recipe, and what the change does.

    Args:
        rules: which rules have proposed it.
        layers: where; several where the change is tried on all that have the trouble.
        tensor: ``weight`` or ``input``.
        evidence: in words, one for each rule.
        change: the fields of the scheme that change, in words.
        fields: the same to be applied.
        sqnr_before: of the tensor, dB; None for several layers.
        sqnr_after: with the change.
        output_before: SQNR of the layer's own output, its input being the float network's, dB; None for several.
        output_after: with the change.
        size_delta: bytes that the stored network grows by.
        kl_delta: divergence from float with the change minus without, nats; less is better; None before it is tried,
            and where results are no scores of classes.
        kl_interval: its 95% interval, paired.
        top1_delta: share of images classified rightly, or mean score, with the change minus without.
        top1_interval: its 95% interval, paired.
        images: how many evaluation images the last four are from.
        error_delta: where results are no scores of classes, their squared error as a share of the float network's
            result, with the change minus without; less is better.
        error_interval: its 95% interval, paired.
    """

    rules: tuple[str, ...]
    layers: tuple[str, ...]
    tensor: str
    evidence: tuple[str, ...]
    change: str
    fields: Mapping[str, Any]
    sqnr_before: float | None = None
    sqnr_after: float | None = None
    output_before: float | None = None
    output_after: float | None = None
    size_delta: int = 0
    kl_delta: float | None = None
    kl_interval: Interval = NOT_YET
    top1_delta: float | None = None
    top1_interval: Interval = NOT_YET
    images: int = 0
    error_delta: float | None = None
    error_interval: Interval = NOT_YET

    @property
    def harm_delta(self) -> float | None:
        """``kl_delta``, or ``error_delta`` where there is no divergence; None before the change is tried."""
        return self.error_delta if self.kl_delta is None else self.kl_delta

    @property
    def harm_interval(self) -> Interval:
        """The 95% interval of ``harm_delta``."""
        return self.error_interval if self.kl_delta is None else self.kl_interval

    @property
    def name(self) -> str:
        """A name of its own among the findings of a recipe."""
        fields = ",".join(f"{key}={value}" for key, value in self.fields.items())
        return f"{'+'.join(self.layers)}/{self.tensor}/{fields}"

    @property
    def verdict(self) -> str:
        """``helps``, ``hurts``, ``no difference seen`` or ``not tried``, by the interval of ``harm_delta``."""
        if self.harm_delta is None:
            return "not tried"
        low, high = self.harm_interval
        if high < 0:
            return "helps"
        return "hurts" if low > 0 else "no difference seen"

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with the change.

        Raises:
            RecipeError: when the change does not go with what the recipe says by now.
        """
        for name in self.layers:
            weight, inputs = (
                self.fields if self.tensor == tensor else None for tensor in ("weight", "input")
            )
            recipe = recipe.with_layer(name, weight=weight, input=inputs)
        return recipe

    def made(self, recipe: Recipe) -> bool:
        """Whether the recipe has the change already."""
        try:
            changed = self.apply(recipe)
        except RecipeError:
            return False
        return all(changed.config(name) == recipe.config(name) for name in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return finite({**vars(self), "fields": dict(self.fields), "verdict": self.verdict})


@dataclass(frozen=True)
class Diagnosis(Told):
    """What the rules have found under a recipe, the best change first.

    Args:
        findings: tried ones by their effect on the divergence, then those not tried yet by that on the layer's output.
        kl: mean divergence of the recipe from the float network, nats; None before the first batch.
        top1: share of images classified rightly, or mean score; without labels, as the float network does.
        top1_float: the float network's.
        tensors: how many quantized tensors the rules have looked at.
        looked: how many calibration images they have seen.
        images: how many evaluation images changes have been tried on.
        total_images: how many they will be tried on at most.
        tried: how many of the findings are done.
        complete: whether all are.
        agreement: the scores are against the float network's results, since no labels were known or by definition.
        error: where results are no scores of classes, their squared error as a share of the float network's result.
        score_name: what ``top1`` is called, for example ``top-1`` or ``agreement with float``.
    """

    findings: tuple[Finding, ...] = ()
    kl: float | None = None
    top1: float | None = None
    top1_float: float | None = None
    tensors: int = 0
    looked: int = 0
    images: int = 0
    total_images: int = 0
    tried: int = 0
    complete: bool = False
    agreement: bool = False
    error: float | None = None
    score_name: str = "top-1"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which infinite numbers are null."""
        return finite({**vars(self), "findings": [each.to_dict() for each in self.findings]})


@dataclass(frozen=True, eq=False)
class Patient:
    """What is diagnosed.

    Args:
        engine: of the graph.
        floats: the float network worked out.
        calibration: sets the static ranges of inputs.
        calibration_batches: gives its images anew at each call.
        batches: the first so many evaluation images, in the fixed order.
        total: how many evaluation images changes are tried on.
        recipe: the one that is diagnosed.
        elsewhere: who tries changes on the network; None: this process.
        metric: what the network is measured by.
    """

    engine: Engine
    floats: Plan
    calibration: Calibration
    calibration_batches: Callable[[], Iterator[Batch]]
    batches: Callable[[int], Iterator[Examples]]
    total: int
    recipe: Recipe
    elsewhere: Elsewhere | None = None
    metric: Metric = METRICS["top1"]

    @property
    def layers(self) -> list[Layer]:
        """Those that a recipe acts on, in the order of execution."""
        return list(self.engine.graph.layer_at.values())

    def looked(self) -> Iterator[Batch]:
        """The calibration images that are looked at, ``LOOKED`` of them."""
        seen = 0
        for batch in self.calibration_batches():
            images = batch.images[: LOOKED - seen]
            yield batch if len(images) == len(batch.images) else Batch.of(images)
            seen += len(images)
            if seen >= LOOKED:
                return

    def plan(self, recipe: Recipe) -> Plan:
        """A recipe worked out, its static ranges fitted."""
        self.calibration.prepare(recipe)
        return plan(self.engine.graph, recipe, self.calibration.params, self.calibration.weight_params)

    def local(self, layer: Layer, config: LayerConfig) -> Plan:
        """What acts at one layer alone; it has no keys, so it is good for that one node only."""
        params = {}
        if layer.inputs and config.input.scaled and config.input.mode == "static":
            params[layer.name] = tuple(
                self.calibration.params(layer, index, config.input) for index in range(len(layer.inputs))
            )
        given = self.calibration.weight_params(layer, config.weight) if layer.weight is not None else None
        return Plan(
            self.engine.graph, {layer.name: config}, params, {}, {} if given is None else {layer.name: given}
        )

    def values(self, layers: Sequence[Layer], batch: Batch) -> dict[str, Any]:
        """What ``layers`` read and give in the float network."""
        graph = self.engine.graph
        wanted = {layer.node for layer in layers}
        for layer in layers:
            wanted.update(layer.inputs)
            wanted.update(name for name in graph.by_name[layer.node].inputs if name not in graph.constants)
        return self.engine.run(self.floats, batch, wanted, keep=False)


@dataclass(eq=False)
class _Error:
    """Sums over a layer's output, channel by channel, float64 ``(channels,)``: of its values and of its error."""

    count: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros((4, 1)))

    def add(self, plain: Tensor, after: Tensor, channel: int) -> None:
        x = Channel().matrix(plain.double(), channel % plain.dim())[0]
        error = Channel().matrix(after.double(), channel % plain.dim())[0] - x
        self.count += x.shape[1]
        parts = [x.sum(1), x.square().sum(1), error.sum(1), error.square().sum(1)]
        self.sums = self.sums + torch.stack(parts).numpy()

    @property
    def sqnr_db(self) -> float:
        """Of the whole output."""
        return ErrorSums(1, float(self.sums[1].sum()), float(self.sums[3].sum())).sqnr_db

    @property
    def shift(self) -> tuple[float, float]:
        """``Facts.shift`` and ``Facts.constant``."""
        mean, square, error, noise = self.sums / max(self.count, 1)
        variance = square - mean**2
        alive = variance > 1e-12 * max(float(square.max()), 1e-30)
        if not alive.any() or noise.sum() == 0:
            return 0.0, 0.0
        shift = float(np.sqrt((error[alive] ** 2 / variance[alive]).mean()))
        return shift, float((error**2).sum() / noise.sum())


@dataclass(eq=False)
class _Seen:
    """What the pass over calibration images has seen of a layer."""

    output: _Error = field(default_factory=_Error)
    weight_alone: _Error = field(default_factory=_Error)
    inputs: dict[int, ErrorSums] = field(default_factory=lambda: defaultdict(ErrorSums))
    # Of each input, the extremes of each image and channel, ``(images, channels)``.
    low: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    high: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


def _ends(value: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """The extremes of each image and channel, ``(images, channels)`` each."""
    rows = value.float().movedim(channel % value.dim(), 1).flatten(2) if value.dim() > 2 else value.float()
    return (rows.amin(2), rows.amax(2)) if rows.dim() > 2 else (rows, rows)


def _input_error(
    patient: Patient, layer: Layer, config: LayerConfig, values: Mapping[str, Any]
) -> Iterator[tuple[int, ErrorSums]]:
    """What quantization does to each input of a layer."""
    if config.input.off:
        return
    plan = patient.local(layer, config)
    params = plan.params.get(layer.name, (None,) * len(layer.inputs))
    for index, source in enumerate(layer.inputs):
        value, along = values[source], plan.graph.along(source)
        if value.is_floating_point():
            after = quantize_activation(value, config.input, params[index], layer.channel, along)
            yield index, ErrorSums.of(value, after)


def _look(patient: Patient) -> tuple[dict[str, _Seen], int]:
    """One pass over calibration images: what each layer reads, and what the recipe does to what it gives."""
    seen = {layer.name: _Seen() for layer in patient.layers}
    engine, images = patient.engine, 0
    off = TensorScheme("fp32")
    for batch in patient.looked():
        images += len(batch.images)
        values = patient.values(patient.layers, batch)
        with torch.inference_mode():
            for layer in patient.layers:
                mine, config = seen[layer.name], patient.recipe.config(layer.name)
                plain = values[layer.node]
                if not config.weight.off or not config.input.off:
                    after = engine.compute(patient.local(layer, config), layer.node, values)
                    mine.output.add(plain, after, layer.channel)
                if layer.weight is not None and not config.weight.off:
                    alone = patient.local(layer, LayerConfig(config.weight, off))
                    mine.weight_alone.add(plain, engine.compute(alone, layer.node, values), layer.channel)
                for index, source in enumerate(layer.inputs):
                    if values[source].is_floating_point():
                        low, high = _ends(values[source], layer.channel)
                        mine.low[index].append(low)
                        mine.high[index].append(high)
                for index, sums in _input_error(patient, layer, config, values):
                    mine.inputs[index] = mine.inputs[index] + sums
    return seen, images


def _weight_facts(patient: Patient, layer: Layer, scheme: TensorScheme, seen: _Seen) -> Facts:
    assert layer.weight is not None
    plain = patient.engine.graph.constants[layer.weight].float()
    given = patient.calibration.weight_params(layer, scheme)
    params = fit_tensor(plain, scheme, layer.axis) if given is None else given
    values, weights = scheme.grain.matrix(plain, layer.axis)
    shape = shape_of(values, weights, params, *torch.aminmax(values, dim=1))
    reach = Channel().matrix(plain.abs(), layer.axis)[0].amax(1).double().numpy()
    step = Channel().matrix(
        scheme.grain.expand(least_of(params), plain.shape, layer.axis).expand(plain.shape), layer.axis
    )
    shift, constant = seen.weight_alone.shift
    return Facts(
        layer.name, "weight", scheme, reach, groups_of(scheme, len(reach)), step[0].amax(1).double().numpy(),
        **vars(shape), image_reach=np.empty(0), shift=shift, constant=constant,
    )  # fmt: skip


def _input_facts(
    patient: Patient, layer: Layer, scheme: TensorScheme, index: int, seen: _Seen
) -> Facts | None:
    """The facts of an input; None for one that is not floating-point."""
    if not seen.low[index]:
        return None
    low, high = torch.cat(seen.low[index]), torch.cat(seen.high[index])
    reach = torch.maximum(-low, high).clamp(min=0)
    channels = reach.amax(0).double().numpy()
    unknown = float("nan")
    if scheme.mode == "dynamic":
        # Of ranges that come with each example only that they are symmetric can be wrong.
        ends = low.amin(1).clamp(max=0), high.amax(1).clamp(min=0)
        needed = ends[1] - ends[0]
        width = (2 * torch.maximum(-ends[0], ends[1]) / needed)[needed > 0]
        return Facts(
            layer.name, "input", scheme, channels, np.arange(len(channels)), np.full(len(channels), unknown),
            unknown, unknown, float(width.median()) if scheme.symmetric and len(width) else unknown, unknown, unknown,
            np.empty(0),
        )  # fmt: skip
    sample = patient.calibration.sample(layer, index, scheme)
    params = patient.calibration.params(layer, index, scheme)
    shape = shape_of(sample.values, sample.weights, params, sample.minimum, sample.maximum)
    group = groups_of(scheme, len(channels))
    step = least_of(params).double().numpy()[group]
    image_reach = reach.amax(1).double().numpy()
    return Facts(layer.name, "input", scheme, channels, group, step, **vars(shape), image_reach=image_reach)


def gather(patient: Patient) -> tuple[list[Facts], dict[str, _Seen], int]:
    """The facts of all tensors for which the recipe chooses a range, and how many images were looked at."""
    patient.calibration.prepare(patient.recipe)
    seen, images = _look(patient)
    found: list[Facts] = []
    for layer in patient.layers:
        config, mine = patient.recipe.config(layer.name), seen[layer.name]
        if layer.weight is not None and config.weight.ranged:
            found.append(_weight_facts(patient, layer, config.weight, mine))
        if config.input.ranged:
            facts = [
                _input_facts(patient, layer, config.input, index, mine) for index in range(len(layer.inputs))
            ]
            found += [each for each in facts if each is not None]
    return found, seen, images


def _words(scheme: TensorScheme, fields: Mapping[str, Any]) -> str:
    """A change in words."""

    def word(value: object) -> str:
        return {True: "yes", False: "no", None: "as usual"}.get(value, str(value))  # type: ignore[call-overload]

    changed = {key: value for key, value in fields.items() if getattr(scheme, key) != value}
    return ", ".join(f"{key}: {word(getattr(scheme, key))} → {word(value)}" for key, value in changed.items())


def proposals(facts: Sequence[Facts], recipe: Recipe) -> list[Finding]:
    """What the rules propose, one finding for each change, and one for each that several layers share."""
    found: dict[str, Finding] = {}
    for f in facts:
        for name, rule in RULES.items():
            if not rule.speaks(f):
                continue
            for fields in rule.fields(f):
                finding = Finding(
                    (name,), (f.layer,), f.tensor, (rule.says(f),), _words(f.scheme, fields), fields
                )
                known = found.get(finding.name)
                if known is not None and name not in known.rules:
                    finding = replace(
                        known, rules=(*known.rules, name), evidence=(*known.evidence, rule.says(f))
                    )
                elif known is not None:
                    continue  # another input of the same layer
                if _fits(finding, recipe):
                    found[finding.name] = finding
    return [*_together(list(found.values())), *found.values()]


def _fits(finding: Finding, recipe: Recipe) -> bool:
    """Whether the recipe takes the change."""
    try:
        finding.apply(recipe)
    except SchemeError:
        return False
    return True


def _together(single: list[Finding]) -> Iterator[Finding]:
    """A finding for each change that several layers share."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in single:
        groups[f"{finding.tensor}/{finding.change}"].append(finding)
    for group in groups.values():
        if len(group) < 2:
            continue
        rules = {name: sum(name in each.rules for each in group) for name in RULES}
        told = {name: count for name, count in rules.items() if count}
        evidence = tuple(
            f"{name.replace('_', ' ')} in {count} of {len(group)} layers" for name, count in told.items()
        )
        layers = tuple(each.layers[0] for each in group)
        yield replace(group[0], rules=tuple(told), layers=layers, evidence=evidence)


def _local_effects(patient: Patient, findings: Sequence[Finding], seen: Mapping[str, _Seen]) -> list[Finding]:
    """The findings with what the change does to the tensor and to the layer's own output."""
    graph, base = patient.engine.graph, cost(patient.engine.graph, patient.recipe).size
    done = [
        replace(each, size_delta=cost(graph, each.apply(patient.recipe)).size - base) for each in findings
    ]
    alone = [at for at, each in enumerate(done) if len(each.layers) == 1]
    configs = {at: done[at].apply(patient.recipe).config(done[at].layers[0]) for at in alone}
    for at in alone:
        patient.calibration.prepare(done[at].apply(patient.recipe))
    outputs, inputs = defaultdict(_Error), defaultdict(ErrorSums)  # type: ignore[var-annotated]
    layers = [graph.by_layer[name] for name in dict.fromkeys(done[at].layers[0] for at in alone)]
    for batch in patient.looked() if layers else ():
        values = patient.values(layers, batch)
        with torch.inference_mode():
            for at in alone:
                layer = graph.by_layer[done[at].layers[0]]
                after = patient.engine.compute(patient.local(layer, configs[at]), layer.node, values)
                outputs[at].add(values[layer.node], after, layer.channel)
                for _, sums in _input_error(patient, layer, configs[at], values):
                    inputs[at] = inputs[at] + sums
    for at in alone:
        layer, mine = graph.by_layer[done[at].layers[0]], seen[done[at].layers[0]]
        if done[at].tensor == "weight":
            both = [patient.local(layer, c) for c in (patient.recipe.config(layer.name), configs[at])]
            before, later = (weight_sums(patient.engine, each, layer).sqnr_db for each in both)
        else:
            before, later = sum(mine.inputs.values(), ErrorSums()).sqnr_db, inputs[at].sqnr_db
        done[at] = replace(
            done[at],
            sqnr_before=before,
            sqnr_after=later,
            output_before=mine.output.sqnr_db,
            output_after=outputs[at].sqnr_db,
        )
    return done


def _order(finding: Finding) -> tuple[float, float]:
    """Tried ones by their effect, the best first; the others by what the layer's own output gains, all layers first."""
    if finding.harm_delta is not None:
        return 0.0, finding.harm_delta
    if finding.output_after is None or finding.output_before is None:
        return 1.0, -math.inf
    return 1.0, finding.output_before - finding.output_after


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=_order))


def _tried(finding: Finding, base: ScoreList, scores: ScoreList, metric: Metric) -> Finding:
    """A finding with what its change does to the network."""
    before, after = base.all, scores.all
    delta, interval = MEASURES[harm(metric)].difference(after, before)
    drop, (low, high) = MEASURES["score"].difference(after, before)
    found = replace(finding, top1_delta=-drop + 0.0, top1_interval=(-high, -low), images=len(after))
    if metric.classes:
        return replace(found, kl_delta=delta, kl_interval=interval)
    return replace(found, error_delta=delta, error_interval=interval)


def diagnosis_steps(patient: Patient) -> Iterator[Diagnosis]:
    """Better and better diagnoses: what was found, then what each change does, batch by batch."""
    facts, seen, looked = gather(patient)
    found = Diagnosis(tensors=len(facts), looked=looked, total_images=patient.total)
    findings = proposals(facts, patient.recipe)
    yield replace(found, findings=_sorted(findings), complete=not findings)
    if not findings:
        return
    found = replace(found, findings=_sorted(_local_effects(patient, findings, seen)))
    yield found
    yield from _try(patient, found)


def _try(patient: Patient, found: Diagnosis) -> Iterator[Diagnosis]:
    """The network under the recipe with each change, against the recipe without it, on the same images."""
    current = list(found.findings)
    base, scores = ScoreList(), [ScoreList() for _ in current]
    plain, open_ones = patient.plan(patient.recipe), list(range(len(current)))
    metric = patient.metric

    @cache
    def worked_out(at: int) -> Plan:
        return patient.plan(current[at].apply(patient.recipe))

    def task(tried: Sequence[int]) -> Tries:
        plans = ((at, worked_out(at)) for at in tried)
        return Tries(patient.floats, plain, plans, strict=True, metric=metric)

    question = Divisible(lambda: open_ones, task)
    batches = patient.batches(patient.total)
    for answer in divided(patient.engine, batches, question, patient.total, patient.elsewhere):
        agreement = found.agreement or metric.compared(answer.labelled)
        found = replace(found, agreement=agreement, score_name=metric.called(agreement))
        base.append(answer.base)
        seen = base.all
        found = replace(
            found,
            kl=float(seen.kl.mean()) if metric.classes else None,
            error=None if metric.classes else MEASURES["error"].estimate(seen)[0],
            top1=float(seen.score.mean()),
            top1_float=float(seen.score_float.mean()),
            images=len(seen),
        )
        for at, more in answer.pieces:
            scores[at].append(more)
            current[at] = _tried(current[at], base, scores[at], metric)
            if found.images == len(scores[at].all) == len(answer.indices):
                yield replace(found, findings=_sorted(current))
        ended = found.images >= patient.total
        still = [] if ended else [at for at in open_ones if not _clear(current[at])]
        open_ones = still
        found = replace(found, tried=len(current) - len(still), complete=not still)
        yield replace(found, findings=_sorted(current))
        if not still:
            return


def _clear(finding: Finding) -> bool:
    """Whether more images would not change the verdict."""
    low, high = finding.harm_interval
    return finding.images >= ENOUGH and not low <= 0 <= high
