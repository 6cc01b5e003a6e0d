"""What quantization does to a layer by itself: to its weight, and to its own output in the float network."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from explorer.graph import Batch, Engine, Layer, Plan
from explorer.graph.images import by_image
from explorer.study.evaluate import weight_sums
from explorer.study.measures import Estimate, energy_ratio_db
from explorer.study.metrics import ErrorSums
from explorer.study.sweep import Board, Sweep

# Images of the pass that measures the layers' own outputs.
OUTPUT_IMAGES = 128


def energy(values: Tensor) -> np.ndarray:
    """The sum of squares of each image, float64 ``(images,)``; infinite where it holds NaN."""
    norm = torch.linalg.vector_norm(values.flatten(1), dim=1).double()
    return norm.nan_to_num_(nan=math.inf, posinf=math.inf).square().numpy()


def fill_weights(sweep: Sweep, board: Board) -> None:
    """The SQNR of each row's weight: no image is needed."""
    for index, row in enumerate(sweep.rows):
        layer, local = sweep.engine.graph.by_layer[row.layer], sweep.local_plan(row)
        if layer.weight is not None and not local.configs[row.layer].weight.off:
            board.weight_sqnr[index] = weight_sums(sweep.engine, local, layer).sqnr_db


def output_error(engine: Engine, floats: Plan, plan: Plan, layer: Layer, batch: Batch) -> ErrorSums:
    """What ``plan`` does to the output of a layer alone, whose inputs are the float network's."""
    inputs = [name for name in engine.graph.by_name[layer.node].inputs if name not in engine.graph.constants]
    values = engine.run(floats, batch, [layer.node, *inputs])
    with torch.inference_mode():
        return ErrorSums.of(values[layer.node], engine.compute(plan, layer.node, values))


def output_steps(sweep: Sweep, images: int = OUTPUT_IMAGES) -> Iterator[tuple[list[Estimate], int]]:
    """After each batch: the SQNR of each row's output, its layer's input being the float network's, and the images."""
    engine, graph = sweep.engine, sweep.engine.graph
    plans = [sweep.local_plan(row) for row in sweep.rows]
    layers = [graph.by_layer[row.layer] for row in sweep.rows]
    wanted = {layer.node for layer in layers}
    for layer in layers:
        wanted.update(name for name in graph.by_name[layer.node].inputs if name not in graph.constants)
    energies: list[list[np.ndarray]] = [[] for _ in sweep.rows]
    seen = 0
    for examples in sweep.batches(min(sweep.total, images)):
        values = engine.run(sweep.floats, examples.batch, wanted, keep=False)
        seen += len(examples.batch.images)
        with torch.inference_mode():
            for found, plan, layer in zip(energies, plans, layers, strict=True):
                plain = values[layer.node]
                error = engine.compute(plan, layer.node, values) - plain
                along, images = graph.along(layer.node), len(examples.batch.images)
                found.append(np.stack([energy(by_image(each, along, images)) for each in (plain, error)]))
        yield [energy_ratio_db(*np.concatenate(found, axis=1)) for found in energies], seen
