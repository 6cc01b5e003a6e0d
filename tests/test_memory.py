"""Memory is bounded: weights once, one batch's live activations, and the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from explorer.graph import Batch, Engine, Graph, Store, capture, plan
from explorer.graph.store import size_of
from explorer.recipe import Recipe, TensorScheme

ROOT = Path(__file__).parent.parent
MIB = 1 << 20


def weights_only(bits: int) -> Recipe:
    """Weights of so many bits, activations in float: no images are needed to set ranges."""
    return Recipe.preset("fp32").with_default(weight=TensorScheme(f"int{bits}", "channel"))


def planned(graph: Graph, recipe: Recipe):  # type: ignore[no-untyped-def]
    return plan(graph, recipe, lambda *_: None)  # type: ignore[arg-type, return-value]


class Chain(nn.Module):
    """Many convolutions of small width, each around a shortcut."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(layers - 2))
        self.fc = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


def test_a_hundred_layers_on_large_images_stay_within_the_budget() -> None:
    """What is held is counted from outside, tensor by tensor."""
    graph = capture(Chain(100, 2).eval(), torch.randn(2, 3, 224, 224))
    budget = 24 * MIB  # of 76 MiB
    engine = Engine(graph, Store(budget))
    batch = Batch.of(torch.randn(2, 3, 224, 224))
    for bits in (8, 4):
        for _ in engine.values(planned(graph, weights_only(bits)), batch, [graph.output]):
            pass
        held = {value.untyped_storage().data_ptr(): size_of(value) for value in engine.store._values.values()}
        assert sum(held.values()) <= engine.store.facts.bytes <= budget
    assert engine.store.facts.entries > 20


def test_what_a_graph_knows_grows_with_its_layers_only() -> None:
    """A thousand layers: no set of layers for each node."""
    nodes = capture(nn.Sequential(*(nn.Linear(2, 2) for _ in range(120))).eval(), torch.zeros(2, 2))
    assert len(nodes.upstream(nodes.output)) == 120
    assert sum(sys.getsizeof(bits) for bits in nodes.reach.values()) < 120 * 120
    assert sum(map(len, nodes.made_of.values())) <= len(nodes.nodes)


# A network of 96 MiB whose layers are quantized one after another; peaks are told by the system.
PEAKS = """
import gc, sys, torch
from torch import nn
from explorer.graph import Batch, Engine, Store, capture
from tests.test_memory import MIB, planned, weights_only

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

def fresh():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

net = nn.Sequential(*(part for _ in range(24) for part in (nn.Linear(1024, 1024), nn.ReLU())), nn.Linear(1024, 10))
graph = capture(net.eval(), torch.zeros(2, 1024))
engine, batch = Engine(graph, Store(int(sys.argv[1]))), Batch.of(torch.randn(64, 1024))
graph.digests
engine.run(planned(graph, weights_only(8)), batch)
gc.collect(); fresh(); base = peak()
recipe = weights_only(8)
for name in [layer.name for layer in graph.layers][::4]:
    recipe = recipe.with_layer(name, weight={"format": "int4"})
    engine.run(planned(graph, recipe), batch)
print(sum(t.nbytes for t in graph.constants.values()), base, peak(), engine.store.facts.bytes)
"""


def test_an_edit_needs_no_multiple_of_the_network() -> None:
    """The peak while layers are edited stays above the network itself by the store and some layers' weights."""
    if not Path("/proc/self/clear_refs").exists():
        return
    budget = 32 * MIB
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(budget)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    weights, base, peak, kept = map(int, done.stdout.split())
    assert weights > 96 * MIB and kept <= budget
    assert peak - base < budget + 12 * 4 * MIB < weights, (base / MIB, peak / MIB)


POOLS = """
import threading
import numpy as np
from pathlib import Path
from explorer.graph.memory import keep_pages

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_pages()
ended, before = threading.Event(), resident()
for _ in range(10):
    used = threading.Event()

    def work(used=used):
        parts = [np.ones(1 << 20, dtype=np.float32) for _ in range(8)]
        del parts
        used.set()
        ended.wait()

    threading.Thread(target=work, daemon=True).start()
    used.wait()
print(resident() - before)
"""


def test_threads_keep_their_memory_together() -> None:
    """Ten threads that have held 32 MiB each, one after the other, and live on."""
    if not Path("/proc/self/statm").exists():
        return
    done = subprocess.run(
        [sys.executable, "-c", POOLS], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * 32 * MIB
