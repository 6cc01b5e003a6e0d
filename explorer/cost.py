"""What a quantized network costs: bytes to store, bit operations to run.

Sizes count everything that must be stored: packed codes, scales in their own width, zero points, and all
that stays in float (biases, norms, tables).  One MAC is one multiplication and one addition; bit operations
are ``MACs x weight bits x activation bits`` for one example (Yao et al., 2021, arXiv:2011.10680).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from explorer.formats import packed_bytes
from explorer.graph import Graph, Layer
from explorer.graph.engine import weight_key
from explorer.graph.observe import by_output
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.tensor import metadata_bytes


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer.

    Args:
        payload: bytes of the weight's codes (of its floats where it is not quantized).
        metadata: bytes of scales and zero points, of weight and static inputs.
        rest: bytes of what stays in float beside the weight (the bias).
        bops: bit operations for one example.
    """

    payload: int
    metadata: int
    rest: int
    bops: int

    @property
    def size(self) -> int:
        return self.payload + self.metadata + self.rest


@dataclass(frozen=True)
class Cost:
    """The cost of a network under a recipe.

    Args:
        layers: by name.  A weight that several layers share under one scheme counts at the first of them.
        other: bytes of constants that belong to no layer.
    """

    layers: Mapping[str, LayerCost]
    other: int

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.other + sum(layer.size for layer in self.layers.values())

    @property
    def bops(self) -> int:
        """Bit operations for one example."""
        return sum(layer.bops for layer in self.layers.values())


def _bytes(graph: Graph, name: str) -> int:
    tensor = graph.constants[name]
    return tensor.numel() * tensor.element_size()


def _weight(graph: Graph, layer: Layer, scheme: TensorScheme) -> tuple[int, int]:
    """Payload and metadata bytes of a weight."""
    assert layer.weight is not None
    if scheme.off:
        return _bytes(graph, layer.weight), 0
    shape = tuple(graph.constants[layer.weight].shape)
    groups = scheme.grain.groups(shape, layer.axis) if scheme.scaled else 0
    return packed_bytes(math.prod(shape), scheme.bits), metadata_bytes(scheme, groups)


def _input_metadata(graph: Graph, layer: Layer, scheme: TensorScheme) -> int:
    """Bytes of the fixed scales and zero points of the inputs."""
    if not scheme.scaled or scheme.mode != "static":
        return 0
    total = 0
    for name in layer.inputs:
        node = graph.by_name.get(name)
        shape = node.shape if node is not None else (1, *graph.example_shape)
        total += metadata_bytes(scheme, scheme.grain.groups(shape, layer.channel % max(len(shape), 1)))
    return total


def _bops(layer: Layer, config: LayerConfig) -> int:
    bits = config.input.bits
    return layer.macs * bits * (config.weight.bits if layer.weight is not None else bits)


FLOAT = Recipe.preset("fp32").default


def cost(graph: Graph, recipe: Recipe) -> Cost:
    """What ``graph`` costs under ``recipe``, exactly; no image is needed."""
    counted: set[str] = set()
    stored: set[tuple[str, str]] = set()
    layers: dict[str, LayerCost] = {}
    for layer in graph.layers:
        config = recipe.config(layer.name) if layer.quantizable else FLOAT
        payload = metadata = rest = 0
        if layer.weight is not None:
            counted.add(layer.weight)
            # Under several schemes it has to be there several times.
            own = layer.name if by_output(config.weight) else ""
            form = own, weight_key(graph, layer, config.weight)
            if form not in stored:
                stored.add(form)
                payload, metadata = _weight(graph, layer, config.weight)
        for name in graph.by_name[layer.node].inputs:
            if name in graph.constants and name not in counted:
                counted.add(name)
                rest += _bytes(graph, name)
        metadata += _input_metadata(graph, layer, config.input)
        layers[layer.name] = LayerCost(payload, metadata, rest, _bops(layer, config))
    other = sum(_bytes(graph, name) for name in graph.constants if name not in counted)
    return Cost(layers, other)
