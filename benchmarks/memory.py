"""Memory: what an edit needs beyond the weights, a batch's live activations and the store, in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import explorer as qx
from benchmarks.table import Line
from explorer.graph import Batch, Engine, Graph, Plan, Store, capture, plan
from explorer.recipe import Recipe, TensorScheme

MIB = 1 << 20
IMAGES = 64
CHANNELS = 8
# What the allocator may keep of freed pages, in holes between what lives and at its end.
PAGES = 64 * MIB


def network(layers: int, width: int) -> nn.Module:
    """Linear layers with ReLU between: 4 * layers * width^2 bytes of weights."""
    torch.manual_seed(0)
    parts = (part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU()))
    return nn.Sequential(*parts, nn.Linear(width, 10)).eval()


def planned(graph: Graph, recipe: Recipe) -> Plan:
    """The recipe worked out; it asks for no ranges of activations."""
    return plan(graph, recipe, lambda *_: None)  # type: ignore[arg-type, return-value]


def resident(field: str = "VmHWM") -> int:
    """The most that this process has held, or what it holds now (``VmRSS``), bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def edit(layers: int, width: int, budget: int) -> Graph:
    """Capture a network, evaluate it, and again after every fourth layer was edited."""
    graph = capture(network(layers, width), torch.zeros(2, width))
    engine, batch = Engine(graph, Store(budget)), Batch.of(torch.randn(IMAGES, width))
    recipe = Recipe.preset("fp32").with_default(weight=TensorScheme("int8", "channel"))
    engine.run(planned(graph, recipe), batch)
    for layer in graph.layers[::4]:
        recipe = recipe.with_layer(layer.name, weight={"format": "int4"})
        engine.run(planned(graph, recipe), batch)
    return graph


def study(layers: int, budget: int, mode: str) -> tuple[Graph, int]:
    """Evaluate and sweep a network on images of 224 x 224; the graph, and the bytes of a batch's largest value."""
    recipe = Recipe.preset("w8a8").with_default(input=TensorScheme("int8", "layer", mode=mode))
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, CHANNELS, 3, padding=1), *_convolutions(layers - 2)]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)).eval()
    images = torch.randn(8, 3, 224, 224)
    session = qx.Session(net, data=images, recipe=recipe, store_bytes=budget)
    session.evaluate()
    session.sensitivity(["int4"], layers=session.layer_names[:: max(1, layers // 10)])
    return session.graph, CHANNELS * images[:, 0].nbytes


def _convolutions(count: int) -> Iterator[nn.Module]:
    for _ in range(count):
        yield nn.ReLU()
        yield nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


def measure(what: str, *numbers: Any) -> dict[str, int]:
    """In this process: the peak of ``edit`` or ``study``, above what Python and torch take."""
    # Loads torch.export and what operators need.
    if what == "edit":
        edit(2, 4, MIB)
        plain = resident("VmRSS")
        graph, value = edit(*numbers), 0
    else:
        study(3, 64 * MIB, "static")
        plain = resident("VmRSS")
        graph, value = study(*numbers)
    weights = sum(tensor.nbytes for tensor in graph.constants.values())
    return {"weights": weights, "peak": resident() - plain, "value": value}


def measured(what: str, *numbers: Any) -> dict[str, int]:
    """:func:`measure` in a process of its own."""
    code = (
        f"import json; from benchmarks import memory; print(json.dumps(memory.measure({what!r}, *{numbers})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """Peaks as multiples of the sum that they should not exceed by more than freed pages."""
    if not Path("/proc/self/status").exists():
        return
    for layers, width, budget in ((76, 1024, 64 * MIB), (76, 1024, 256 * MIB), (4, 4352, 64 * MIB)):
        found = measured("edit", layers, width, budget)
        # The working space for one layer's weight.
        work = 6 * 4 * width * width
        yield _line(f"memory: capture and edits of {layers} layers", found, budget, work)
    for budget, mode in ((128 * MIB, "dynamic"), (512 * MIB, "dynamic"), (512 * MIB, "static")):
        found = measured("study", 100, budget, mode)
        # A node's input and result, the quantized input and what quantizing takes, and the images.
        yield _line(f"memory: sweep at 224, 100 layers, {mode} ranges", found, budget, 6 * found["value"])


def _line(what: str, found: dict[str, int], budget: int, work: int) -> Line:
    expected = found["weights"] + budget + work
    over = found["peak"] - found["weights"] - budget
    note = (
        f"of weights {found['weights'] / MIB:.0f} + store {budget / MIB:.0f} + working space {work / MIB:.0f} MiB; "
        f"beyond weights and store {over / MIB:.0f} MiB; bound: + {PAGES / MIB:.0f} MiB of freed pages"
    )
    return Line(what, found["peak"] / expected, (expected + PAGES) / expected, note)
