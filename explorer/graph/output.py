"""Ranges of inputs that keep a layer's output, found by running the layer's own operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from explorer.calibrate import MSE, Objective, Sample
from explorer.calibrate.fit import params_of
from explorer.calibrate.output import candidates, share_of
from explorer.calibrate.rules import Range
from explorer.formats import Grid
from explorer.graph.engine import Batch, Engine, Plan, call_with
from explorer.graph.fakequant import quantize_activation
from explorer.graph.ir import Graph, Layer
from explorer.recipe import TensorScheme

# The layer is run on so many calibration images, or on four batches where these are fewer.
IMAGES = 64
Values = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class OutputOfInput(Objective):
    """The range of one input that changes the layer's output least, its weight and other inputs in float.

    It starts from the ranges of least squared error of the input, or the full ones where these do better, and
    takes a step only where it lowers the cost.  Where several groups of channels have scales of their own, all
    take the same share of their full ranges; one at a time would mean to run the layer for each.

    Args:
        graph: with the layer.
        layer: whose output is looked at.
        index: which input.
        scheme: of the input.
        batches: the values that the layer's node reads, batch by batch, constants left out.
    """

    graph: Graph
    layer: Layer
    index: int
    scheme: TensorScheme
    batches: Sequence[Values]

    @property
    def name(self) -> str:
        return "output"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        grid = grid.spanning(sample.minimum, sample.maximum)
        plain = [self._result(values, None, grid) for values in self.batches]
        extremes = sample.minimum, sample.maximum
        low_end, high_end = full = extremes[0].clamp(max=0.0), extremes[1].clamp(min=0.0)

        def cost(found: Range) -> float:
            params = params_of(*extremes, grid, *found)
            return sum(
                float((self._result(values, params, grid) - before).square_().sum(dtype=torch.float64))
                for values, before in zip(self.batches, plain, strict=True)
            )

        starts = [extremes, MSE()(sample, grid)]
        costs = [cost(start) for start in starts]
        least = min(costs)
        best = starts[costs.index(least)]
        shares = [share_of(end, whole).median()[None] for end, whole in zip(best, full, strict=True)]
        both_ends = not grid.symmetric and bool(((low_end < 0) & (high_end > 0)).any())
        for low, high in candidates(shares, both_ends):
            found = low_end * low, high_end * high
            now = cost(found)
            if now < least:
                least, best = now, found
                shares[:] = [low, high]
        return best

    def _result(self, values: Values, params: Any, grid: Grid) -> Tensor:
        """The layer's output, its input quantized by ``params`` if there are any."""
        source, node = self.layer.inputs[self.index], self.graph.by_name[self.layer.node]
        constants = self.graph.constants
        inputs = {name: constants[name] if name in constants else values[name] for name in node.inputs}
        changes: dict[str, Callable[[Tensor], Tensor]] = {}
        if params is not None:
            changes[source] = partial(
                quantize_activation, scheme=self.scheme, params=params, channel=self.layer.channel,
                along=self.graph.along(source),
            )  # fmt: skip
        with torch.inference_mode():
            result = call_with(node, inputs, changes)
        assert isinstance(result, Tensor)
        return result.float()


def some_images(engine: Engine, batches: Iterable[Batch]) -> list[Batch]:
    """The first images, as many at a time as the engine likes."""
    size = engine.batch_size()
    wanted, parts, count = min(IMAGES, 4 * size), [], 0
    for batch in batches:
        parts.append(batch.images[: wanted - count])
        count += len(parts[-1])
        if count >= wanted:
            break
    return [Batch.of(part) for part in torch.cat(parts).split(size)] if parts else []


def values_at(
    engine: Engine, plan: Plan, batches: Sequence[Batch], layers: Sequence[Layer]
) -> Iterator[tuple[Layer, list[Values]]]:
    """Each layer with the values that its node reads, batch by batch; held no longer than some layer needs them.

    Args:
        engine: of the graph.
        plan: the float network.
        batches: the images.
        layers: in any order; they come in that of execution.
    """
    graph = engine.graph
    needs = {
        layer.name: [name for name in graph.by_name[layer.node].inputs if name not in graph.constants]
        for layer in sorted(layers, key=lambda layer: graph.order[layer.node])
    }
    uses = Counter(name for names in needs.values() for name in names)
    held: list[dict[str, Any]] = [{} for _ in batches]
    runs = [engine.values(plan, batch, uses, keep=False) for batch in batches]
    for found in zip(*runs, strict=True):
        for values, (name, value) in zip(held, found, strict=True):
            values[name] = value
        for ready in [
            own for own, names in needs.items() if all(n in values for values in held for n in names)
        ]:
            names = needs.pop(ready)
            yield graph.by_layer[ready], [{name: values[name] for name in names} for values in held]
            uses.subtract(names)
            for values in held:
                for name in names:
                    if not uses[name]:
                        values.pop(name, None)
