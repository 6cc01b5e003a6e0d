"""The engine: what an edit costs, and the exact sweep against a plain loop and against its bound."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

import explorer as qx
from benchmarks.table import Line, fastest, timed
from explorer.formats import QParams, fake_quantize_
from explorer.graph import Batch, Engine, Graph, Store
from explorer.graph.ir import fill
from explorer.recipe import TensorScheme
from explorer.study.evaluate import Scores
from explorer.subject import make_subject
from explorer.tensor import fake_quantize

FORMATS = ("int8", "int4", "int2")


def plainly(graph: Graph, weights: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """The network's result computed node by node with some constants replaced: no keys, no store."""
    values: dict[str, Any] = {graph.input: batch.images}
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    uses[graph.output] += 1
    constants = {**graph.constants, **weights}
    with torch.inference_mode():
        for node in graph.nodes:
            inputs = {name: constants[name] if name in constants else values[name] for name in node.inputs}
            values[node.name] = node.target(*fill(node.args, inputs), **fill(dict(node.kwargs), inputs))
            for name in node.inputs:
                uses[name] -= 1
                if not uses[name]:
                    values.pop(name, None)
    return values[graph.output]


def naive_sweep(session: qx.Session, images: int) -> dict[tuple[str, str], float]:
    """The loop that one would write by hand: quantize one weight, evaluate everything, compare."""
    graph = session.graph
    batches = list(session.subject.evaluation.batches(images))
    floats = [plainly(graph, {}, b.batch) for b in batches]
    found = {}
    for layer in graph.layer_at.values():
        if layer.weight is None:
            continue
        scheme = session.recipe.config(layer.name).weight
        for name in FORMATS:
            changed = TensorScheme(name, scheme.granularity, scheme.symmetric, scheme.objective)
            weight = fake_quantize(graph.constants[layer.weight], changed, layer.axis)
            parts = [
                Scores.of(plainly(graph, {layer.weight: weight}, b.batch), reference, b.labels)
                for b, reference in zip(batches, floats, strict=True)
            ]
            found[layer.name, name] = float(Scores.join(parts).kl.mean())
    return found


def suffix_bound(session: qx.Session, images: int) -> float:
    """The share of a full evaluation that lies downstream of a layer, averaged over layers, by measured time."""
    graph = session.graph
    engine = Engine(graph, Store(1))
    spent: Counter[str] = Counter()
    compute = engine._compute

    def clocked(plan: Any, name: str, values: dict[str, Any]) -> Any:
        seconds, value = timed(lambda: compute(plan, name, values))
        spent[name] += seconds
        return value

    engine._compute = clocked  # type: ignore[method-assign]
    for examples in session.subject.evaluation.batches(images):
        engine.run(session.subject.floats, examples.batch, keep=False)
    total = sum(spent.values())
    layers = [layer for layer in graph.layer_at.values() if layer.weight is not None]
    return statistics.mean(sum(spent[n] for n in graph.descendants(layer.name)) / total for layer in layers)


def sweep(model: str, images: int) -> Iterator[Line]:
    """The exact sweep against the naive loop, whose numbers it must give."""
    subject = make_subject(model, store_bytes=4 << 30)
    session = qx.Session(subject=subject)
    list(session.sensitivity_steps(["int8"], images=100))  # warm up allocator and kernels
    subject.engine.store.clear()
    naive_seconds, naive = timed(lambda: naive_sweep(session, images))
    subject.engine.store.clear()
    engine_seconds, table = timed(lambda: session.sensitivity(FORMATS, images=images))
    ours = {(row.layer, row.format): row.value for row in table.itertuples()}
    worst = max(abs(naive[key] - ours[key]) for key in naive)
    same = "same numbers" if naive == ours else f"DIFFERENT by {worst:.3g}"
    yield Line(
        f"{model}: exact sweep / naive loop",
        engine_seconds / naive_seconds,
        suffix_bound(session, images),
        f"{len(ours)} rows, {images:,} images, {same}",
    )


def edits(model: str, images: int) -> Iterator[Line]:
    """An edit of each layer, as a share of an evaluation from nothing."""
    subject = make_subject(model, store_bytes=4 << 30)
    session = qx.Session(subject=subject, recipe="w8a8")
    session.evaluate(images=100)
    subject.engine.store.clear()
    timed(lambda: session.evaluate(images=images))
    subject.engine.store.clear()
    cold, _ = timed(lambda: session.evaluate(images=images))
    warm, first = [], []
    base = session.recipe
    for layer in session.layer_names:
        tensor = "weight" if session.graph.by_layer[layer].weight is not None else "input"
        session.edit([layer], **{tensor: {"format": "int6"}})
        begun = time.perf_counter()
        steps = session.evaluate_steps(images=images)
        next(steps)
        first.append(time.perf_counter() - begun)
        for _ in steps:
            pass
        warm.append(time.perf_counter() - begun)
        session.recipe = base
    back, _ = timed(lambda: session.evaluate(images=images))
    note = f"{images:,} images"
    yield Line(f"{model}: edit of one layer / cold, mean", statistics.mean(warm) / cold, None, note)
    yield Line(f"{model}: edit of one layer / cold, worst", max(warm) / cold, None, note)
    yield Line(f"{model}: first estimate after an edit / cold", statistics.mean(first) / cold, None, note)
    yield Line(f"{model}: change back / cold", back / cold, 0.0, note)


def fake_quantization(count: int) -> Iterator[Line]:
    """Our fake quantization of ``count`` elements against torch's operators for it."""
    x = torch.randn(64, count // 64, generator=torch.Generator().manual_seed(0))
    scale, zero, out = x.abs().amax(1) / 127, torch.zeros(64, dtype=torch.int32), torch.empty_like(x)
    whole, params = float(scale[0]), QParams(scale, zero, -127, 127)
    ours = fastest(lambda: fake_quantize_(x, scale[0], zero[0], params, out), 20)
    theirs = fastest(lambda: torch.fake_quantize_per_tensor_affine(x, whole, 0, -127, 127), 20)
    yield Line("fake quantization by layer / torch", ours / theirs, 1.0, f"{count:,} elements")
    ours = fastest(lambda: fake_quantize_(x, scale[:, None], zero[:, None], params, out), 20)
    theirs = fastest(lambda: torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -127, 127), 20)
    yield Line("fake quantization by channel / torch", ours / theirs, 1.0, f"{count:,} elements")


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """All figures of the engine."""
    for count in (1 << 16, 1 << 22):
        yield from fake_quantization(count)
    for model in options.models:
        yield from edits(model, options.images)
        yield from sweep(model, options.images)
