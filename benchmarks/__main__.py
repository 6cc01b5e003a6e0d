"""Print the figures: ``python -m benchmarks [--images N] [--models a,b]``.

Every figure is a ratio of two things done in the same run on the same machine; nothing here passes or fails
by a time, only by a result that differs.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import explorer as qx
from explorer.formats import QParams, fake_quantize_
from explorer.graph import Batch, Engine, Graph, Store
from explorer.graph.ir import fill
from explorer.recipe import TensorScheme
from explorer.sources import ZOO
from explorer.study.evaluate import Scores
from explorer.subject import make_subject
from explorer.tensor import fake_quantize

FORMATS = ("int8", "int4", "int2")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


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


def sweep(model: str, images: int) -> None:
    subject = make_subject(model, store_bytes=4 << 30)
    session = qx.Session(subject=subject)
    list(session.sensitivity_steps(["int8"], images=100))  # warm up allocator and kernels
    subject.engine.store.clear()
    naive_seconds, naive = timed(lambda: naive_sweep(session, images))
    subject.engine.store.clear()
    engine_seconds, table = timed(lambda: session.sensitivity(FORMATS, images=images))
    ours = {(row.layer, row.format): row.value for row in table.itertuples()}
    same = naive == ours
    print(
        f"{model:<18} exact sweep, {len(ours)} rows, {images:,} images: engine {engine_seconds:6.2f} s, "
        f"naive {naive_seconds:6.2f} s, ratio {engine_seconds / naive_seconds:.3f} "
        f"(suffix bound {suffix_bound(session, images):.3f}), same numbers: {same}"
    )
    if not same:
        worst = max(abs(naive[key] - ours[key]) for key in naive)
        print(f"{'':<18} largest difference {worst:.3g}")


def edits(model: str, images: int) -> None:
    subject = make_subject(model, store_bytes=4 << 30)
    session = qx.Session(subject=subject, recipe="w8a8")
    session.evaluate(images=100)
    subject.engine.store.clear()
    cold, _ = timed(lambda: session.evaluate(images=images))
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
    mean, worst = statistics.mean(warm) / cold, max(warm) / cold
    print(
        f"{model:<18} one layer edited, {images:,} images: cold {cold:.2f} s, edit mean {mean:.3f} worst {worst:.3f} "
        f"of it; first estimate {statistics.mean(first) / cold:.3f}; back {back / cold:.3f}"
    )


def fake_quantization() -> None:
    torch.manual_seed(0)
    for count in (1 << 16, 1 << 22):
        x = torch.randn(64, count // 64)
        scale = x.abs().amax(1) / 127
        zero = torch.zeros(64, dtype=torch.int32)
        params = QParams(scale, zero, -127, 127)
        out = torch.empty_like(x)
        one = QParams(scale[:1], zero[:1], -127, 127)
        pairs = {
            "by layer": (
                lambda x=x, one=one, out=out: fake_quantize_(
                    x, one.scale.reshape(()), one.zero_point.reshape(()), one, out
                ),
                lambda x=x, scale=scale: torch.fake_quantize_per_tensor_affine(
                    x, float(scale[0]), 0, -127, 127
                ),
            ),
            "by channel": (
                lambda x=x, p=params, out=out: fake_quantize_(
                    x, p.scale[:, None], p.zero_point[:, None], p, out
                ),
                lambda x=x, scale=scale, zero=zero: torch.fake_quantize_per_channel_affine(
                    x, scale, zero, 0, -127, 127
                ),
            ),
        }
        for name, (ours, theirs) in pairs.items():
            times = []
            for work in (ours, theirs):
                work()
                times.append(min(timed(work)[0] for _ in range(20)))
            ns = [seconds / count * 1e9 for seconds in times]
            print(
                f"fake quantization {name:<11} {count:>9,} elements: {ns[0]:.2f} ns an element, torch {ns[1]:.2f}, "
                f"{ns[1] / ns[0]:.1f} times as fast"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--models", default=",".join(ZOO))
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    fake_quantization()
    for model in options.models.split(","):
        edits(model, options.images)
        sweep(model, options.images)


if __name__ == "__main__":
    main()
