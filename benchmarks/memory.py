"""Memory: what an edit needs beyond the weights, a batch's live activations and the store, in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.table import Line
from explorer.graph import Batch, Engine, Graph, Plan, Store, capture, plan
from explorer.recipe import Recipe, TensorScheme

MIB = 1 << 20
IMAGES = 64


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


def measure(layers: int, width: int, budget: int) -> dict[str, int]:
    """In this process: the peak of capturing and editing a network, above what Python and torch take."""
    edit(2, 4, 1 << 20)  # loads torch.export and what operators need
    plain = resident("VmRSS")
    graph = edit(layers, width, budget)
    weights = sum(tensor.nbytes for tensor in graph.constants.values())
    return {"weights": weights, "edit": resident() - plain}


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """Peaks as multiples of the weights."""
    if not Path("/proc/self/status").exists():
        return
    for layers, width, budget in ((76, 1024, 64 * MIB), (76, 1024, 256 * MIB), (4, 4352, 64 * MIB)):
        code = (
            "import json; from benchmarks import memory; "
            f"print(json.dumps(memory.measure({layers}, {width}, {budget})))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        weights = found["weights"]
        # The working space for one layer's weight, and 64 MiB of freed pages that the allocator keeps.
        allowed = weights + budget + 6 * 4 * width * width + 64 * MIB
        note = f"{layers} layers, {weights / MIB:.0f} MiB, store {budget / MIB:.0f} MiB"
        yield Line(
            "memory: peak of capture and edits / weights", found["edit"] / weights, allowed / weights, note
        )
