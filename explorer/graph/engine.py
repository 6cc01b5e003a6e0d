"""The engine: values of a (graph, recipe) pair, and nothing computed twice.

Every value has a key made of all that it depends on: the operator and its constants, the keys of its
inputs, the schemes that apply at it, the batch.  Evaluation pulls on the wanted nodes, stops at what the
store holds, and computes the rest.  A value is kept only where it spares work later
(:attr:`explorer.graph.ir.Graph.worth_keeping`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from explorer.formats import QParams
from explorer.graph.fakequant import quantize_activation
from explorer.graph.ir import Graph, Layer, digest, fill, tensor_digest
from explorer.graph.memory import keep_pages
from explorer.graph.store import Store
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.tensor import apply, fit_tensor

# Raise this when the same key could stand for another value than before.
ENGINE_VERSION = "1"
# Batches whose largest activation is about this long stay near the cache.
_CACHE_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images and the name of their contents."""

    images: Tensor
    key: str

    @classmethod
    def of(cls, images: Tensor) -> Batch:
        return cls(images, tensor_digest(images))


# For each input of a layer, the parameters of its static range, or None where there is none to be found.
InputParams = Callable[[Layer, int, TensorScheme], QParams]


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe worked out for a graph, before any image is seen.

    Args:
        graph: the network.
        configs: the schemes of each quantizable layer by name.
        params: for each layer whose input has static ranges, the parameters of each input.
        keys: a name for how each node is computed, the images left out.
    """

    graph: Graph
    configs: Mapping[str, LayerConfig]
    params: Mapping[str, tuple[QParams, ...]]
    keys: Mapping[str, str]


def params_key(params: tuple[QParams, ...]) -> str:
    """A name for the parameters of a layer's inputs."""
    return digest(
        *(
            f"{tensor_digest(p.scale)}{tensor_digest(p.zero_point)}{p.qmin}{p.qmax}{p.reciprocal}"
            for p in params
        )
    )


def weight_key(graph: Graph, layer: Layer, scheme: TensorScheme) -> str:
    """A name for the weight of ``layer`` after quantization by ``scheme``."""
    assert layer.weight is not None
    plain = graph.digests[layer.weight]
    return plain if scheme.off else digest("weight", ENGINE_VERSION, plain, scheme.key, str(layer.axis))


def plan(graph: Graph, recipe: Recipe, input_params: InputParams) -> Plan:
    """Work out a recipe: which schemes act where, with which parameters, and the key of every node."""
    configs = {name: recipe.config(name) for name, layer in graph.by_layer.items() if layer.quantizable}
    params: dict[str, tuple[QParams, ...]] = {}
    for name, config in configs.items():
        layer, scheme = graph.by_layer[name], config.input
        if layer.inputs and scheme.scaled and scheme.mode == "static":
            params[name] = tuple(input_params(layer, index, scheme) for index in range(len(layer.inputs)))
    keys: dict[str, str] = {graph.input: "images", **graph.digests}
    for node in graph.nodes:
        parts = [ENGINE_VERSION, node.signature, *(keys[name] for name in node.inputs)]
        layer_here = graph.layer_at.get(node.name)
        if layer_here is not None:
            config = configs[layer_here.name]
            if layer_here.weight and not config.weight.off:
                parts += ["weight", weight_key(graph, layer_here, config.weight)]
            if layer_here.inputs and not config.input.off:
                parts += ["input", config.input.key]
                if layer_here.name in params:
                    parts.append(params_key(params[layer_here.name]))
        keys[node.name] = digest(*parts)
    return Plan(graph, configs, params, keys)


@dataclass
class Engine:
    """Evaluates plans of one graph on batches.

    Args:
        graph: the network.
        store: keeps what is worth keeping.
        computed: how often each node has been computed, for those who want to check that nothing is twice.
    """

    graph: Graph
    store: Store
    computed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        keep_pages()

    def batch_size(self) -> int:
        """How many images at a time keep the largest activation near the cache, from 8 to 200."""
        batch = self.graph.example_batch
        sizes = [4 * math.prod(node.shape) / batch for node in self.graph.nodes if node.shape[:1] == (batch,)]
        return int(max(8, min(200, _CACHE_BYTES // max([1.0, *sizes]))))

    def weight(self, layer: Layer, scheme: TensorScheme) -> Tensor:
        """The weight of a layer after quantization, kept in the store."""
        assert layer.weight is not None
        plain = self.graph.constants[layer.weight]
        if scheme.off:
            return plain
        key = weight_key(self.graph, layer, scheme)
        found = self.store.get(key)
        if found is None:
            params = fit_tensor(plain, scheme, layer.axis) if scheme.scaled else None
            found = apply(plain.float(), scheme, params, layer.axis).to(plain.dtype)
            self.store.put(key, found)
        return found

    def run(
        self, plan: Plan, batch: Batch, wanted: Iterable[str] | None = None, keep: bool = True
    ) -> dict[str, Any]:
        """The values of the ``wanted`` nodes (the network's result if None) for one batch.

        Args:
            plan: how everything is quantized.
            batch: the images.
            wanted: names of nodes, or of the input.
            keep: whether to put new values into the store; what it already holds is used in any case.
        """
        graph = self.graph
        targets = list(wanted) if wanted is not None else [graph.output]
        values: dict[str, Any] = {graph.input: batch.images}
        pending = [name for name in targets if name != graph.input]
        needed: set[str] = set()
        while pending:
            name = pending.pop()
            if name in needed or name in values:
                continue
            if name in graph.worth_keeping:
                found = self.store.get(f"{plan.keys[name]}:{batch.key}")
                if found is not None:
                    values[name] = found
                    continue
            needed.add(name)
            pending += [i for i in graph.by_name[name].inputs if i not in graph.constants]
        uses = Counter(i for name in needed for i in graph.by_name[name].inputs)
        uses.update(targets)
        with torch.inference_mode():
            for node in graph.nodes:
                if node.name not in needed:
                    continue
                values[node.name] = self._compute(plan, node.name, values)
                self.computed[node.name] += 1
                if keep and node.name in graph.worth_keeping:
                    self.store.put(f"{plan.keys[node.name]}:{batch.key}", values[node.name])
                for name in node.inputs:
                    uses[name] -= 1
                    if not uses[name]:
                        values.pop(name, None)
        return {name: values[name] for name in targets}

    def _compute(self, plan: Plan, name: str, values: dict[str, Any]) -> Any:
        graph = self.graph
        node = graph.by_name[name]
        inputs = {i: graph.constants[i] if i in graph.constants else values[i] for i in node.inputs}
        layer = graph.layer_at.get(name)
        if layer is None:
            return node.target(*fill(node.args, inputs), **fill(dict(node.kwargs), inputs))
        config = plan.configs[layer.name]
        if layer.weight is not None:
            inputs[layer.weight] = self.weight(layer, config.weight)
        if not config.input.off:
            params = plan.params.get(layer.name, (None,) * len(layer.inputs))
            # One value may come in twice (attention of x with itself); its parameters are the same then.
            for source, fixed in zip(layer.inputs, params, strict=True):
                if inputs[source] is values[source]:
                    inputs[source] = quantize_activation(values[source], config.input, fixed, layer.channel)
        return node.target(*fill(node.args, inputs), **fill(dict(node.kwargs), inputs))
