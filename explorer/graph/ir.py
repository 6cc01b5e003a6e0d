"""The graph: a network as a frozen value, captured once and used by everything.

A node is an operator with its arguments; an argument that is another node's value is a :class:`Ref`.
Nothing here computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Ref(NamedTuple):
    """The value of another node."""

    node: str


def refs(value: Any) -> Iterator[str]:
    """The nodes that an argument refers to, in order."""
    if isinstance(value, Ref):
        yield value.node
    elif isinstance(value, tuple | list):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from refs(item)


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """The argument with every :class:`Ref` replaced by the value of its node."""
    if isinstance(value, Ref):
        return values[value.node]
    if isinstance(value, tuple | list):
        return [fill(item, values) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, values) for key, item in value.items()}
    return value


def redirect(value: Any, names: Mapping[str, str]) -> Any:
    """The argument with its :class:`Ref` s renamed."""
    if isinstance(value, Ref):
        return Ref(names.get(value.node, value.node))
    if isinstance(value, tuple | list):
        return tuple(redirect(item, names) for item in value)
    if isinstance(value, dict):
        return {key: redirect(item, names) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Along:
    """Where in a value the images lie.

    Args:
        each: how many places along the axis belong to one image.
        axis: the axis along which there are more with more images; None for a value that all images share.
        inner: whether the images alternate along it, and do not follow one another.
    """

    each: int = 1
    axis: int | None = 0
    inner: bool = False


# One image beside the other along the first axis.
ALONG_FIRST = Along()


@dataclass(frozen=True, eq=False)
class Node:
    """One operator and its arguments.

    Args:
        name: unique in the graph.
        target: the function, pure.
        args: positional arguments; tuples may be nested and hold :class:`Ref` s.
        kwargs: arguments by name.
        module: the path of the user's module that it comes from.
        source: file and line of the user's code, or nothing.
        shape: of the value for the example, its batch axis included; () for other values than tensors.
        dtype: of the value; None for other values than tensors.
        reads: the node with what its layer's product reads, where that is what it has made itself before (the
            states of a recurrent network); it comes later.
        origin: the node of the exported program that it is a part of; empty where it is that node.
        along: where in the value the images lie.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: str = ""
    source: str = ""
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    reads: str = ""
    origin: str = ""
    along: Along = ALONG_FIRST

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*refs(self.args), *refs(dict(self.kwargs))]))

    @cached_property
    def op(self) -> str:
        """The operator's name, for example ``aten.conv2d.default``."""
        return (
            str(self.target)
            if not hasattr(self.target, "__name__") or "." in str(self.target)
            else self.target.__name__
        )

    @cached_property
    def _prepared(self) -> tuple[list[Any], dict[str, Any], tuple[tuple[int, str], ...]] | None:
        """The arguments with gaps for values, and whose values go where; None when values are nested in them."""
        nested = any(True for arg in self.args if not isinstance(arg, Ref) for _ in refs(arg))
        if nested or any(True for _ in refs(dict(self.kwargs))):
            return None
        gaps = tuple((index, arg.node) for index, arg in enumerate(self.args) if isinstance(arg, Ref))
        args = [None if isinstance(arg, Ref) else fill(arg, {}) for arg in self.args]
        return args, fill(dict(self.kwargs), {}), gaps

    def call(self, values: Mapping[str, Any], **extra: Any) -> Any:
        """The operator's result, given the values of its inputs, and more arguments than the graph has."""
        if self._prepared is None:
            return self.target(*fill(self.args, values), **fill(dict(self.kwargs), values), **extra)
        args, kwargs, gaps = self._prepared
        args = args.copy()
        for index, name in gaps:
            args[index] = values[name]
        return self.target(*args, **kwargs, **extra)

    @cached_property
    def signature(self) -> str:
        """A text that names the operator and all arguments that are not nodes."""
        empty = dict.fromkeys(self.inputs, "")
        return (
            f"{self.op}{redirect(self.args, empty)!r}{sorted(redirect(dict(self.kwargs), empty).items())!r}"
        )


@dataclass(frozen=True)
class Layer:
    """A place where a recipe acts: a node with a weight, or a product of activations.

    Args:
        name: as in the user's module.
        node: the node's name in the graph.
        op: a short name, for example ``conv2d``.
        weight: the constant that holds the weight, or None.
        axis: the weight's output-channel axis.
        inputs: the nodes whose values are its activations, in order; of a recurrent product the one with the states
            that it reads step by step, which comes after it.
        channel: the channel axis of those activations.
        shape: of the weight, or of the first input for one example.
        parameters: how many numbers its constants hold (weight and bias).
        macs: multiply-adds for one example.
        reason: why it cannot be quantized; empty when it can.
        shares: the layer before it that has the same weight; empty when there is none.  Under the same scheme it is
            quantized and stored once.
    """

    name: str
    node: str
    op: str
    weight: str | None
    axis: int
    inputs: tuple[str, ...]
    channel: int
    shape: tuple[int, ...]
    parameters: int
    macs: int
    reason: str = ""
    shares: str = ""

    @property
    def quantizable(self) -> bool:
        return not self.reason


def tensor_digest(tensor: Tensor) -> str:
    """A name for the contents of a tensor: dtype, shape and bytes.

    >>> tensor_digest(torch.zeros(2)) == tensor_digest(torch.zeros(2, 1))
    False
    """
    # Processors have instructions for this one: images are named in a third of the time that BLAKE2 takes.
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def digest(*parts: str) -> str:
    """A name for a list of texts."""
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured network.

    Args:
        nodes: in an order in which each comes after its inputs.
        input: the name that stands for the images.
        output: the node whose value is the network's result, (N, classes).
        constants: parameters and buffers, folded ones included, by name.
        sources: the name in the user's module of each constant that was a parameter there.
        layers: in the order of execution.
        example_batch: how many examples the shapes of the nodes are for.
        example_shape: the shape of one image.
        device: where an engine is to compute it; everything here stays on the CPU.
    """

    nodes: tuple[Node, ...]
    input: str
    output: str
    constants: Mapping[str, Tensor]
    sources: Mapping[str, str]
    layers: tuple[Layer, ...]
    example_batch: int
    example_shape: tuple[int, ...]
    device: str = "cpu"

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def by_layer(self) -> Mapping[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a node's value, a constant or the input, for the example."""
        if name == self.input:
            return (self.example_batch, *self.example_shape)
        return tuple(self.constants[name].shape) if name in self.constants else self.by_name[name].shape

    def along(self, name: str) -> Along:
        """Where the images lie in a node's value, a constant or the input."""
        if name == self.input:
            return ALONG_FIRST
        return Along(axis=None) if name in self.constants else self.by_name[name].along

    def dtype_of(self, name: str) -> torch.dtype | None:
        """The type of the numbers of a node's value or a constant."""
        return self.constants[name].dtype if name in self.constants else self.by_name[name].dtype

    @cached_property
    def layer_at(self) -> Mapping[str, Layer]:
        """The quantizable layer at a node, by the node's name."""
        return {layer.node: layer for layer in self.layers if layer.quantizable}

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """The digest of every constant."""
        return {name: tensor_digest(tensor) for name, tensor in self.constants.items()}

    @cached_property
    def digest(self) -> str:
        """A name for the whole network."""
        parts = [self.input, self.output]
        for node in self.nodes:
            parts += [node.name, node.signature, *node.inputs]
        return digest(*parts, *(f"{name}={value}" for name, value in sorted(self.digests.items())))

    @cached_property
    def order(self) -> Mapping[str, int]:
        """The place of each node in the order of execution."""
        return {node.name: place for place, node in enumerate(self.nodes)}

    @cached_property
    def _bits(self) -> Mapping[str, int]:
        """A bit for each quantizable layer, by its name."""
        return {layer.name: 1 << place for place, layer in enumerate(self.layer_at.values())}

    @cached_property
    def reach(self) -> Mapping[str, int]:
        """For each node, as bits, the layers whose change changes its value: itself, if a layer, and all before it."""
        found: dict[str, int] = {}
        for node in self.nodes:
            layer = self.layer_at.get(node.name)
            bits = self._bits[layer.name] if layer is not None else 0
            for name in node.inputs:
                bits |= found.get(name, 0)
            found[node.name] = bits
        return found

    def upstream(self, node: str) -> frozenset[str]:
        """The layers whose change changes the value of ``node``."""
        return frozenset(name for name, bit in self._bits.items() if self.reach[node] & bit)

    @cached_property
    def worth_keeping(self) -> frozenset[str]:
        """The nodes whose values spare work after an edit of one layer.

        A value is needed again exactly when some consumer depends on a layer that the value does not
        depend on: after an edit of that layer the consumer is computed anew from the old value.  Everything
        else would be computed again anyway, or is never asked for.
        """
        kept = {self.output}
        for node in self.nodes:
            for name in node.inputs:
                if name in self.by_name and self.reach[node.name] & ~self.reach[name]:
                    kept.add(name)
        return frozenset(kept)

    @cached_property
    def made_of(self) -> Mapping[str, tuple[str, ...]]:
        """For each value worth keeping, the nodes to compute when it is gone and all other kept values are there."""
        return {name: self._between(name) for name in self.worth_keeping if name in self.by_name}

    def _between(self, name: str) -> tuple[str, ...]:
        found, pending = {name}, [name]
        while pending:
            for before in self.by_name[pending.pop()].inputs:
                if before in self.by_name and before not in self.worth_keeping and before not in found:
                    found.add(before)
                    pending.append(before)
        return tuple(found)

    def descendants(self, layer: str) -> frozenset[str]:
        """The nodes whose value changes when the layer called ``layer`` is quantized differently."""
        bit = self._bits[layer]
        return frozenset(name for name, bits in self.reach.items() if bits & bit)
