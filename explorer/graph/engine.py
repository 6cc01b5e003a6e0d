"""The engine: values of a (graph, recipe) pair, and nothing computed twice.

Every value has a key made of all that it depends on: the operator and its constants, the keys of its
inputs, the schemes that apply at it, the batch.  Evaluation pulls on the wanted nodes, stops at what the
store holds, and computes the rest.  A value is kept only where it spares work later
(:attr:`explorer.graph.ir.Graph.worth_keeping`).
"""

from __future__ import annotations

import functools
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from explorer.errors import JobError
from explorer.formats import QParams
from explorer.graph.device import CPU, device_name, moved, placed
from explorer.graph.fakequant import quantize_activation
from explorer.graph.ir import Graph, Layer, Node, digest, tensor_digest
from explorer.graph.memory import keep_pages
from explorer.graph.store import ENTRY_BYTES, Store
from explorer.hand import HAND
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.tensor import apply, fit_tensor

# Raise this when the same key could stand for another value than before.
ENGINE_VERSION = "1"


@functools.cache
def _build() -> str:
    """What this processor and this build of torch may do differently from others, to the last bit."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    parts = [
        torch.__version__, torch.__config__.show(), torch.backends.cpu.get_cpu_capability(),
        repr(sorted(capabilities.items())), platform.machine(),
    ]  # fmt: skip
    return digest(*parts)


def environment() -> str:
    """A name for what a value's bits may depend on besides a key's own parts: the processor and its kernels.

    The number of threads is left out, though torch may cut a long sum by it: jobs share the threads, so it
    changes while they run, and nothing would be found again.
    """
    return f"{ENGINE_VERSION}/{_build()}/{torch.backends.mkldnn.enabled}"


# Batches whose largest activation is about this long stay near the cache.
_CACHE_BYTES = 8 << 20
# On another device a batch is to fill its processors.
_DEVICE_BYTES = 1 << 28


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
# For a layer's weight, the parameters that are not fitted to its own values alone; None where they are.
WeightParams = Callable[[Layer, TensorScheme], QParams | None]


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe worked out for a graph, before any image is seen.

    Args:
        graph: the network.
        configs: the schemes of each quantizable layer by name.
        params: for each layer whose input has static ranges, the parameters of each input.
        keys: a name for how each node is computed, the images left out.
        weights: the parameters of those weights that are not fitted to their own values alone.
    """

    graph: Graph
    configs: Mapping[str, LayerConfig]
    params: Mapping[str, tuple[QParams, ...]]
    keys: Mapping[str, str]
    weights: Mapping[str, QParams] = field(default_factory=dict)


def params_key(params: tuple[QParams, ...]) -> str:
    """A name for the parameters of a layer's inputs."""
    return digest(
        *(
            f"{tensor_digest(p.scale)}{tensor_digest(p.zero_point)}{p.qmin}{p.qmax}{p.reciprocal}"
            f"{p.levels.name if p.levels else ''}{tensor_digest(p.book.levels) if p.book else ''}"
            for p in params
        )
    )


def weight_key(graph: Graph, layer: Layer, scheme: TensorScheme, params: QParams | None = None) -> str:
    """A name for the weight of ``layer`` after quantization by ``scheme``; ``params`` as in :attr:`Plan.weights`."""
    assert layer.weight is not None
    plain = graph.digests[layer.weight]
    if scheme.off:
        return plain
    given = [] if params is None else [params_key((params,))]
    return digest("weight", environment(), plain, scheme.key, str(layer.axis), *given)


def plan(
    graph: Graph, recipe: Recipe, input_params: InputParams, weight_params: WeightParams | None = None
) -> Plan:
    """Work out a recipe: which schemes act where, with which parameters, and the key of every node.

    Args:
        graph: the network.
        recipe: what is to be worked out.
        input_params: gives the parameters of static inputs.
        weight_params: gives those of weights; None where each is fitted to its own values.
    """
    configs = {name: recipe.config(name) for name, layer in graph.by_layer.items() if layer.quantizable}
    params: dict[str, tuple[QParams, ...]] = {}
    weights: dict[str, QParams] = {}
    for name, config in configs.items():
        layer, scheme = graph.by_layer[name], config.input
        if layer.inputs and scheme.scaled and scheme.mode == "static":
            params[name] = tuple(input_params(layer, index, scheme) for index in range(len(layer.inputs)))
        given = weight_params(layer, config.weight) if weight_params and layer.weight else None
        if given is not None:
            weights[name] = given
    return worked_out(graph, configs, params, weights)


def worked_out(
    graph: Graph,
    configs: Mapping[str, LayerConfig],
    params: Mapping[str, tuple[QParams, ...]],
    weights: Mapping[str, QParams],
) -> Plan:
    """The plan of schemes and parameters that are known: the key of every node.  See :class:`Plan`."""
    keys: dict[str, str] = {graph.input: "images", **graph.digests}
    here = environment() + device_name(graph.device)
    for node in graph.nodes:
        parts = [here, node.signature, *(keys[name] for name in node.inputs)]
        layer_here = graph.layer_at.get(node.name)
        if layer_here is not None:
            config = configs[layer_here.name]
            if layer_here.weight and not config.weight.off:
                given = weights.get(layer_here.name)
                parts += ["weight", weight_key(graph, layer_here, config.weight, given)]
            if layer_here.inputs and not config.input.off:
                parts += ["input", config.input.key]
                if layer_here.name in params:
                    parts.append(params_key(params[layer_here.name]))
        keys[node.name] = digest(*parts)
    return Plan(graph, configs, params, keys, weights)


def call_with(
    node: Node, values: Mapping[str, Any], changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> Any:
    """The value of a layer's node, its activations changed before they are multiplied.

    Args:
        node: with a layer.
        values: of the node's inputs.
        changes: what is done to which activation, by the names of the layer's inputs.
    """
    inputs = {name: changes[name](value) if name in changes else value for name, value in values.items()}
    # What a recurrent product reads is made by its own node, one step after the other.
    inside = {"quantize": changes[node.reads]} if node.reads in changes else {}
    return node.call(inputs, **inside)


@dataclass
class Engine:
    """Evaluates plans of one graph on batches.

    Args:
        graph: the network, and the device to compute it on.
        store: keeps what is worth keeping, where it was computed.
        computed: how often each node has been computed, for those who want to check that nothing is twice.
    """

    graph: Graph
    store: Store
    computed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        keep_pages()
        self._device = torch.device(self.graph.device)
        self._nodes: Mapping[str, Node] = self.graph.by_name
        self._constants: Mapping[str, Tensor] = self.graph.constants
        if self._device != CPU:
            self._nodes = {name: placed(node, self._device) for name, node in self.graph.by_name.items()}
            self._constants = {
                name: moved(tensor, self._device) for name, tensor in self.graph.constants.items()
            }

    def batch_size(self) -> int:
        """How many images at a time keep the largest activation near the cache, from 8 to 500."""
        batch = self.graph.example_batch
        sizes = [4 * math.prod(node.shape) / batch for node in self.graph.nodes if node.shape[:1] == (batch,)]
        room = _CACHE_BYTES if self._device == CPU else _DEVICE_BYTES
        return int(max(8, min(500, room // max([1.0, *sizes]))))

    def check_budget(self) -> None:
        """Refuse a store that cannot hold the largest of a batch's values that are worth keeping.

        Raises:
            JobError: with the size of that value.
        """
        images = self.batch_size()
        sizes = {name: self._bytes(name) * images for name in self.graph.made_of}
        largest = max(sizes, key=sizes.__getitem__)
        if sizes[largest] + ENTRY_BYTES > self.store.budget:
            # The float network's values and the quantized network's of one batch.
            enough = 2 * (sum(sizes.values()) + ENTRY_BYTES * len(sizes))
            raise JobError(
                f"A store of {self.store.budget:,} bytes cannot hold one activation of this network: the largest, "
                f"of {largest!r} for {images} images, takes {sizes[largest]:,} bytes; "
                f"give at least {enough:,}, which holds those of one batch."
            )

    def _bytes(self, name: str) -> int:
        """What the value of a node takes for one image, bytes."""
        return 4 * math.prod(self.graph.by_name[name].shape) // self.graph.example_batch

    def weight(self, layer: Layer, scheme: TensorScheme, given: QParams | None = None) -> Tensor:
        """The weight of a layer after quantization, kept in the store; ``given`` as in :attr:`Plan.weights`."""
        assert layer.weight is not None
        plain = self.graph.constants[layer.weight]
        if scheme.off:
            return plain
        key = weight_key(self.graph, layer, scheme, given)
        found = self.store.get(key)
        if found is None:
            begun = time.perf_counter()
            params = given
            if params is None and scheme.scaled:
                params = fit_tensor(plain, scheme, layer.axis)
            found = apply(plain.float(), scheme, params, layer.axis).to(plain.dtype)
            self.store.put(key, found, time.perf_counter() - begun)
        return found

    def _weight_there(self, layer: Layer, scheme: TensorScheme, given: QParams | None) -> Tensor:
        """The same on the engine's device."""
        if self._device == CPU:
            return self.weight(layer, scheme, given)
        assert layer.weight is not None
        if scheme.off:
            return self._constants[layer.weight]
        key = f"{weight_key(self.graph, layer, scheme, given)}@{self._device}"
        found = self.store.get(key)
        if found is None:
            found = moved(self.weight(layer, scheme, given), self._device)
            self.store.put(key, found)
        return moved(found, self._device)

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
        targets = list(wanted) if wanted is not None else [self.graph.output]
        found = dict(self.values(plan, batch, targets, keep))
        return {name: found[name] for name in targets}

    def values(
        self, plan: Plan, batch: Batch, wanted: Iterable[str], keep: bool = True
    ) -> Iterator[tuple[str, Any]]:
        """The values of the ``wanted`` nodes one by one, each held no longer than somebody needs it.

        The arguments are those of :meth:`run`.
        """
        graph, kept = self.graph, self.graph.worth_keeping
        asked = set(wanted)
        if graph.input in asked:
            yield graph.input, batch.images
        values, needed = self._pull(plan, batch, asked - {graph.input})
        if keep:
            self.store.touch(f"{plan.keys[name]}:{batch.key}" for name in kept - needed)
        uses = Counter(i for name in needed for i in graph.by_name[name].inputs)
        for name in [name for name in values if name in asked]:
            yield name, moved(values[name] if uses[name] else values.pop(name), CPU)
        if uses[graph.input]:
            values |= {graph.input: moved(batch.images, self._device)}
        seconds: dict[str, float] = {}
        for name in sorted(needed, key=graph.order.__getitem__):
            node = graph.by_name[name]
            with torch.inference_mode():
                seconds[name], value = self._compute(plan, node, values)
            self.computed[name] += 1
            if keep and name in kept:
                # The result takes no room and is asked for as it is: it stands for the whole run.
                parts = seconds if name == graph.output else graph.made_of[name]
                self.store.put(f"{plan.keys[name]}:{batch.key}", value, sum(map(seconds.__getitem__, parts)))
            for before in node.inputs:
                uses[before] -= 1
                if not uses[before]:
                    values.pop(before, None)
            if uses[name]:
                values[name] = value
            if name in asked:
                yield name, moved(value, CPU)
            del value

    def _pull(self, plan: Plan, batch: Batch, asked: set[str]) -> tuple[dict[str, Any], set[str]]:
        """What the store holds of what is needed, and which nodes must be computed."""
        graph = self.graph
        values: dict[str, Any] = {}
        needed: set[str] = set()
        seen = {graph.input, *graph.constants}
        pending = list(asked)
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in graph.worth_keeping:
                found = self.store.get(f"{plan.keys[name]}:{batch.key}")
                if found is not None:
                    # What comes from a folder is not on the device yet.
                    values[name] = moved(found, self._device)
                    continue
            needed.add(name)
            pending += graph.by_name[name].inputs
        return values, needed

    def compute(self, plan: Plan, name: str, values: Mapping[str, Any]) -> Any:
        """The value of one node from those of its inputs, quantized as ``plan`` says; nothing is stored."""
        node = self.graph.by_name[name]
        there = {source: moved(values[source], self._device) for source in node.inputs if source in values}
        return moved(self._compute(plan, node, there)[1], CPU)

    def _compute(self, plan: Plan, node: Node, values: Mapping[str, Any]) -> tuple[float, Any]:
        """The value of one node and the seconds it took, those for its weight apart."""
        HAND.breathe()
        graph = self.graph
        constants = self._constants
        inputs = {i: constants[i] if i in constants else values[i] for i in node.inputs}
        layer = graph.layer_at.get(node.name)
        if layer is not None and layer.weight is not None:
            scheme, given = plan.configs[layer.name].weight, plan.weights.get(layer.name)
            inputs[layer.weight] = self._weight_there(layer, scheme, given)
        begun = time.perf_counter()
        changes: dict[str, Callable[[Tensor], Tensor]] = {}
        if layer is not None and not plan.configs[layer.name].input.off:
            scheme = plan.configs[layer.name].input
            params = plan.params.get(layer.name, (None,) * len(layer.inputs))
            # One value may come in twice (attention of x with itself); its parameters are the same then.
            for source, fixed in zip(layer.inputs, params, strict=True):
                changes[source] = functools.partial(
                    quantize_activation,
                    scheme=scheme,
                    params=fixed,
                    channel=layer.channel,
                    along=graph.along(source),
                )
        result = call_with(self._nodes[node.name], inputs, changes)
        return time.perf_counter() - begun, result
