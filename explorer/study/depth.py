"""Where the error is born and how it grows: each layer's output alone, and with all that comes before it quantized.

*Local* is what a layer adds by itself: its inputs are the float network's, only it is quantized.  *Cumulative* is
what has gathered at the same place in the quantized network.  Where the two are far apart the error came from
before; where the cumulative SQNR drops from one layer to the next and the local one is low, it is born there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from explorer.graph import Batch, Engine, Layer, Plan
from explorer.graph.images import by_image
from explorer.study.evaluate import Examples
from explorer.study.local import energy
from explorer.study.measures import energy_ratio_db

# Images of the pass unless said otherwise.
IMAGES = 128


@dataclass(frozen=True)
class Depth:
    """One layer's output under a recipe.

    Args:
        layer: its name.
        op: its kind.
        local_db: SQNR of its output, its inputs being the float network's, dB; infinite where nothing is quantized.
        local_low: the lower end of its 95% interval.
        local_high: the upper end.
        cumulative_db: SQNR of its output in the quantized network, dB.
        cumulative_low: the lower end of its 95% interval.
        cumulative_high: the upper end.
        images: how many images this is from.
        complete: whether no more are to come.
    """

    layer: str
    op: str
    local_db: float
    local_low: float
    local_high: float
    cumulative_db: float
    cumulative_low: float
    cumulative_high: float
    images: int
    complete: bool


# For each layer the energies of each image, float64 (3, images): of its output, of the local and of the whole error.
Energies = Mapping[str, np.ndarray]


def _reads(engine: Engine, layer: Layer) -> set[str]:
    """The nodes whose values a layer is computed from, its own among them: there is something to compare with."""
    graph = engine.graph
    return {layer.node, *(name for name in graph.by_name[layer.node].inputs if name not in graph.constants)}


def _energy(engine: Engine, layer: Layer, batch: Batch, value: Tensor) -> np.ndarray:
    return energy(by_image(value, engine.graph.along(layer.node), len(batch.images)))


def layer_energies(engine: Engine, floats: Plan, plan: Plan, batch: Batch) -> Energies:
    """What one batch says of all layers; a value is held only until the last layer has read it."""
    layers = list(engine.graph.layer_at.values())
    reads = {layer.name: _reads(engine, layer) for layer in layers}
    waiting, wanted = dict(reads), set().union(*reads.values())
    plain: dict[str, Any] = {}
    quantized: dict[str, Any] = {}
    found: dict[str, np.ndarray] = {}
    ours = engine.values(plan, batch, {layer.node for layer in layers})
    for name, value in engine.values(floats, batch, wanted):
        plain[name] = value
        for layer in [each for each in layers if each.name in waiting and waiting[each.name] <= plain.keys()]:
            while layer.node not in quantized:
                quantized.update([next(ours)])
            exact, whole = plain[layer.node], quantized.pop(layer.node)
            with torch.inference_mode():
                alone = engine.compute(plan, layer.node, plain)
                found[layer.name] = np.stack(
                    [_energy(engine, layer, batch, each) for each in (exact, alone - exact, whole - exact)]
                )
            del waiting[layer.name]
        needed = set().union(*waiting.values())
        plain = {key: kept for key, kept in plain.items() if key in needed}
    return found


def depth_steps(
    engine: Engine, floats: Plan, plan: Plan, batches: Iterable[Examples], total: int
) -> Iterator[pd.DataFrame]:
    """Sharper and sharper tables with a row for each layer (the fields of :class:`Depth`), one after each batch.

    Args:
        engine: of the graph.
        floats: the float network worked out.
        plan: the recipe worked out.
        batches: the images, in the order in which they are to be seen.
        total: how many they hold together.
    """
    layers = engine.graph.layer_at.values()
    seen: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    images = 0
    for examples in batches:
        images += len(examples.batch.images)
        for name, more in layer_energies(engine, floats, plan, examples.batch).items():
            seen[name].append(more)
        rows = []
        for layer in layers:
            signal, alone, whole = np.concatenate(seen[layer.name], axis=1)
            (local, (a, b)), (cumulative, (c, d)) = (energy_ratio_db(signal, x) for x in (alone, whole))
            rows.append(Depth(layer.name, layer.op, local, a, b, cumulative, c, d, images, images >= total))
        yield pd.DataFrame([vars(row) for row in rows], columns=[field.name for field in fields(Depth)])
