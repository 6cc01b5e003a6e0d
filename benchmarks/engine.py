"""The engine: what an edit costs, and the exact sweep against a plain loop and against its bound."""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

import explorer as qx
from benchmarks.table import Line, fastest, timed
from explorer.formats import QParams, fake_quantize_
from explorer.graph import Batch, Engine, Graph, Store
from explorer.graph.ir import Node, fill
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


def naive_sweep(
    session: qx.Session, images: int, formats: Sequence[str] = FORMATS
) -> dict[tuple[str, str], float]:
    """The loop that one would write by hand: quantize one weight, evaluate everything, compare."""
    graph = session.graph
    batches = list(session.subject.evaluation.batches(images))
    floats = [plainly(graph, {}, b.batch) for b in batches]
    found = {}
    for layer in graph.layer_at.values():
        if layer.weight is None:
            continue
        scheme = session.recipe.config(layer.name).weight
        for name in formats:
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

    def clocked(plan: Any, node: Node, values: Any) -> Any:
        seconds, value = compute(plan, node, values)
        spent[node.name] += seconds
        return seconds, value

    engine._compute = clocked  # type: ignore[method-assign]
    for examples in session.subject.evaluation.batches(images):
        engine.run(session.subject.floats, examples.batch, keep=False)
    total = sum(spent.values())
    layers = [layer for layer in graph.layer_at.values() if layer.weight is not None]
    return statistics.mean(sum(spent[n] for n in graph.descendants(layer.name)) / total for layer in layers)


def besides(session: qx.Session, images: int) -> float:
    """Seconds of a naive loop besides the network itself: images read, weights quantized, results scored."""
    graph, total = session.graph, 0.0
    read, batches = timed(lambda: list(session.subject.evaluation.batches(images)))
    floats = [plainly(graph, {}, b.batch) for b in batches]
    for layer in graph.layer_at.values():
        if layer.weight is not None:
            weight, scheme = graph.constants[layer.weight], TensorScheme(FORMATS[0], "channel")
            total += timed(lambda w=weight, s=scheme, a=layer.axis: fake_quantize(w, s, a))[0]  # type: ignore[misc]
            total += sum(
                timed(lambda r=result, b=batch: Scores.of(r, r, b.labels))[0]  # type: ignore[misc]
                for result, batch in zip(floats, batches, strict=True)
            )
    return read + total * len(FORMATS)


def sweep(model: str, images: int) -> Iterator[Line]:
    """The exact sweep against the naive loop, whose numbers it must give."""
    subject = make_subject(model, store_bytes=4 << 30)
    session = qx.Session(subject=subject)
    list(session.sensitivity_steps(["int8"], images=100))  # warm up allocator and kernels
    spent = []
    while not spent or (spent[0][0] < 1 and len(spent) < 9):
        subject.engine.store.clear()
        seconds, naive = timed(lambda: naive_sweep(session, images))
        subject.engine.store.clear()
        own, table = timed(lambda: session.sensitivity(FORMATS, images=images))
        spent.append((seconds, own))
    naive_seconds, engine_seconds = map(statistics.median, zip(*spent, strict=True))
    ours = {(row.layer, row.format): row.value for row in table.itertuples()}
    worst = max(abs(naive[key] - ours[key]) for key in naive)
    same = "same numbers" if naive == ours else f"DIFFERENT by {worst:.3g}"
    # Both need the float network's results, for which nothing is there to start from.
    share = statistics.median([suffix_bound(session, images) for _ in spent])
    suffix = (1 + len(ours) * share) / (1 + len(ours))
    other = statistics.median([besides(session, images) for _ in spent]) / naive_seconds
    yield Line(
        f"{model}: exact sweep / naive loop",
        engine_seconds / naive_seconds,
        suffix,
        f"{len(ours)} rows, {images:,} images, {same}; "
        f"{suffix * (1 - other) + other:.3g} with the images, weights and scores that both work out",
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


def budgets(model: str, images: int) -> Iterator[Line]:
    """An edit when the store holds a part of what is worth keeping, as a share of an evaluation from nothing."""
    whole = qx.Session(subject=make_subject(model, store_bytes=8 << 30))
    whole.evaluate(images=images)
    need = whole.engine.store.facts.bytes
    for share in (0.25, 0.5, 1.2):
        session = qx.Session(model, store_bytes=int(need * share))
        session.evaluate(images=100)
        session.engine.store.clear()
        cold, _ = timed(lambda s=session: s.evaluate(images=images))  # type: ignore[misc]
        base, warm = session.recipe, []
        for layer in session.layer_names[1::4] * 2:
            session.edit([layer], input={"format": f"int{5 + len(warm) % 3}"})
            warm.append(timed(lambda s=session: s.evaluate(images=images))[0])  # type: ignore[misc]
            session.recipe = base
        yield Line(
            f"{model}: edit / cold, store of {share:.0%} of the need",
            statistics.mean(warm) / cold, 1.0, f"{images:,} images, need {need / 2**20:.0f} MiB",
        )  # fmt: skip


def restart(model: str, images: int) -> Iterator[Line]:
    """Sessions one after another with one folder, each with memory of its own, against one without a folder."""
    seconds, read = {}, 0
    qx.Session(model, store_bytes=1 << 30).evaluate(images=images)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "writing", "again"):
            where = None if name == "plain" else folder
            session = qx.Session(model, store_bytes=1 << 30, store_folder=where)
            session.plan(session.recipe)  # the ranges of activations, which are gathered anew
            seconds[name], _ = timed(lambda s=session: s.evaluate(images=images))  # type: ignore[misc]
            if session.engine.store.disk is not None:
                session.engine.store.disk.flush()
            read = session.engine.store.facts.read
    note = f"{images:,} images"
    yield Line(
        f"{model}: evaluation that writes / without a folder",
        seconds["writing"] / seconds["plain"],
        1.0,
        note,
    )
    yield Line(
        f"{model}: after a restart / cold", seconds["again"] / seconds["plain"], 0.0, f"{note}, {read} read"
    )


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power with which a cost grows: the slope of a line through the logarithms."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(s) for s in seconds]).slope


def growth() -> Iterator[Line]:
    """How costs grow; a power of one is what a plain pass over everything would have."""
    layers = (16, 32, 64, 128)
    found: dict[str, list[float]] = {"capture": [], "cold": [], "edit of the last layer": []}
    for count in layers:
        net = nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16) for _ in range(count))).eval()
        seconds, session = timed(
            lambda n=net: qx.Session(n, data=torch.randn(64, 1, 4, 4), store_bytes=1 << 30)
        )  # type: ignore[misc]
        found["capture"].append(seconds)
        session.evaluate()
        session.engine.store.clear()
        found["cold"].append(timed(session.evaluate)[0])
        session.edit([session.layer_names[-1]], weight={"format": "int4"})
        found["edit of the last layer"].append(timed(session.evaluate)[0])
    for name, seconds_of in found.items():
        yield Line(f"growth of {name} with layers, power", exponent(layers, seconds_of), 1.0, f"{layers}")
    images = (200, 400, 800, 1600)
    session = qx.Session("fashion-lenet5", store_bytes=4 << 30)
    session.evaluate(images=200)
    times = []
    for number in images:
        session.engine.store.clear()
        times.append(timed(lambda n=number: session.evaluate(images=n))[0])  # type: ignore[misc]
    yield Line("growth of cold with images, power", exponent(images, times), 1.0, f"{images}")
    widths, times = (256, 512, 1024, 2048), []
    for width in widths:
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(16, width), nn.Linear(width, width), nn.Linear(width, 5)
        ).eval()
        session = qx.Session(net, data=torch.randn(64, 1, 4, 4), store_bytes=1 << 30)
        session.evaluate()
        session.edit([session.layer_names[1]], weight={"format": "int4"})
        times.append(timed(session.evaluate)[0])
    sizes = [width * width for width in widths]
    yield Line("growth of an edit with parameters, power", exponent(sizes, times), 1.0, f"{sizes}")


def large(name: str) -> Iterator[Line]:
    """A network of torchvision with random weights on random images of 224 x 224."""
    torch.manual_seed(0)
    from explorer.sources.vision import torchvision  # takes seconds

    net, images = torchvision.models.get_model(name, weights=None).eval(), torch.randn(8, 3, 224, 224)
    capture_seconds, session = timed(
        lambda: qx.Session(net, data=images, store_bytes=4 << 30, calibration_images=8)
    )
    session.plan(session.recipe)  # the ranges of activations
    plain = fastest(lambda: _plain(net, images), 2)
    cold, _ = timed(session.evaluate)
    base, warm = session.recipe, []
    for layer in session.layer_names[:: max(1, len(session.layer_names) // 6)]:
        session.edit([layer], weight={"format": "int6"})
        warm.append(timed(session.evaluate)[0])
        session.recipe = base
    back, _ = timed(session.evaluate)
    note = f"{len(session.graph.layers)} layers, 8 images"
    yield Line(f"{name} at 224: capture / float network", capture_seconds / plain, None, note)
    yield Line(
        f"{name} at 224: cold / float network", cold / plain, None, f"{note}; both networks, all weights"
    )
    yield Line(f"{name} at 224: edit of one layer / cold, mean", statistics.mean(warm) / cold, None, note)
    yield Line(f"{name} at 224: change back / cold", back / cold, 0.0, note)


def _plain(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = net(images)
    return result


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
        yield from budgets(model, options.images)
        yield from restart(model, options.images)
        yield from sweep(model, options.images)
    yield from growth()
    for name in ("resnet18", "mobilenet_v2", "vit_b_16") if options.large else ():
        yield from large(name)
