"""A graph as bytes, for another process; nothing in them is executed when they are read.

Constants are a safetensors file, everything else is JSON in its header.  An operator goes by its name and is looked up
among torch's operators, or among a few functions on numbers; a name that is not there is refused.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from explorer.errors import ModelError
from explorer.graph.ir import Along, Graph, Layer, Node, Ref
from explorer.graph.recurrent import STEPS

_FORMAT = "explorer-graph-3"
# Arguments of operators that JSON has no word for, by the module whose names they are.
_KINDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
# Functions beside torch's operators: picking one of several results, reckoning with sizes, steps of recurrent networks.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in (
        "getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge",
    )},
    **{name: getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{name: getattr(torch, name) for name in ("sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_ite")},
    **STEPS,
}  # fmt: skip


def layout(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a tensor, and its strides, on which a kernel's choice, and so the last bit, may depend.

    What has gaps, or one element in several places, gets the usual strides.

    >>> layout(torch.zeros(2, 3).T), layout(torch.zeros(2, 1).expand(2, 3))
    (((3, 2), (1, 3)), ((2, 3), (3, 1)))
    """
    shape, strides = tuple(tensor.shape), tensor.stride()
    whole = sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1)
    dense = all(stride == math.prod(size for _, size in whole[:i]) for i, (stride, _) in enumerate(whole))
    return (shape, strides) if dense else (shape, torch.empty(shape, device="meta").stride())


def flat(tensor: Tensor) -> Tensor:
    """The elements of a tensor in the order of :func:`layout`, ``(elements,)``."""
    shape, strides = layout(tensor)
    if strides != tensor.stride():
        tensor = tensor.contiguous()
    return tensor.as_strided((math.prod(shape),), (1,))


def graph_to_bytes(graph: Graph) -> bytes:
    """The graph as a safetensors file.

    Raises:
        ModelError: for an operator or an argument that cannot be named.
    """
    head = {
        "format": _FORMAT,
        "nodes": [_node(node) for node in graph.nodes],
        "layers": [asdict(layer) for layer in graph.layers],
        "sources": dict(graph.sources),
        "constants": [(name, *layout(tensor)) for name, tensor in graph.constants.items()],
    } | {name: getattr(graph, name) for name in ("input", "output", "example_batch", "example_shape")}
    tensors = {str(i): flat(tensor) for i, tensor in enumerate(graph.constants.values())}
    return safetensors.torch.save(tensors, {"graph": json.dumps(head)})


def graph_from_bytes(content: bytes, digest: str) -> Graph:
    """The graph that :func:`graph_to_bytes` has written.

    Args:
        content: its bytes.
        digest: of the graph; what gives another one is damaged.

    Raises:
        ModelError: for what is damaged, or names an operator that this process does not know.

    >>> from torch import nn
    >>> from explorer.graph import capture
    >>> graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.zeros(1, 1, 2, 2))
    >>> graph_from_bytes(graph_to_bytes(graph), graph.digest).layers == graph.layers
    True
    """
    try:
        tensors = safetensors.torch.load(content)  # no code in it; the graph is checked by its digest below
        head = json.loads(_header(content)["graph"])
        if head["format"] != _FORMAT:
            raise ModelError(
                f"The network was written as {head['format']!r}; this program reads {_FORMAT!r}."
            )
        graph = Graph(
            nodes=tuple(_read_node(node) for node in head["nodes"]),
            constants={
                name: tensors[str(i)].as_strided(shape, strides)
                for i, (name, shape, strides) in enumerate(head["constants"])
            },
            layers=tuple(_read_layer(layer) for layer in head["layers"]),
            input=head["input"],
            output=head["output"],
            sources=head["sources"],
            example_batch=head["example_batch"],
            example_shape=tuple(head["example_shape"]),
        )
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"The network did not arrive whole: {type(error).__name__}: {error}.") from error
    if graph.digest != digest:
        raise ModelError("The network did not arrive whole: its digest is another one.")
    return graph


def _header(content: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file: 8 bytes of length, then JSON."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size])["__metadata__"]


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "target": _target(node),
        "args": _argument(node.args),
        "kwargs": _argument(dict(node.kwargs)),
        "module": node.module,
        "source": node.source,
        "shape": list(node.shape),
        "dtype": _argument(node.dtype),
        "reads": node.reads,
        "origin": node.origin,
        "along": list(astuple(node.along)),
    }


def _read_node(made: Mapping[str, Any]) -> Node:
    args, kwargs = _read_argument(made["args"]), _read_argument(made["kwargs"])
    target = _find(made["target"])
    return Node(
        made["name"], target, args, kwargs, made["module"], made["source"], tuple(made["shape"]),
        _read_argument(made["dtype"]), made["reads"], made["origin"], Along(*made["along"]),
    )  # fmt: skip


def _read_layer(made: Mapping[str, Any]) -> Layer:
    layer = Layer(**made)
    return replace(layer, inputs=tuple(layer.inputs), shape=tuple(layer.shape))


def _target(node: Node) -> str:
    """The name of a node's operator."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"torch:{target}"
    name = next((name for name, function in _FUNCTIONS.items() if function is target), None)
    if name is not None:
        return f"plain:{name}"
    raise ModelError(
        f"The node {node.name!r} ({node.op}) is no operator of torch that has a name, so this network can only be "
        "evaluated in this process."
    )


def _find(target: str) -> Callable[..., Any]:
    """The operator with a name."""
    kind, _, name = target.partition(":")
    try:
        if kind == "torch":
            space, packet, overload = name.split(".")
            return getattr(getattr(getattr(torch.ops, space), packet), overload)
        return _FUNCTIONS[name]
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"The operator {name!r} is not known in the process that is to evaluate it; import the library that "
            "brings it there, too."
        ) from error


def _argument(value: Any) -> Any:
    """An argument in JSON: what JSON cannot tell apart is wrapped in an object with one key."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Ref):
        return {"ref": value.node}
    if isinstance(value, tuple | list):
        return [_argument(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _argument(item) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_argument(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise ModelError(
        f"An operator of this network takes {value!r} ({type(value).__name__}), which cannot go to another process."
    )


def _read_argument(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read_argument(item) for item in value)
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "ref":
        return Ref(inside)
    if kind == "dict":
        return {key: _read_argument(item) for key, item in inside.items()}
    if kind == "slice":
        return slice(*map(_read_argument, inside))
    if kind == "device":
        return torch.device(inside)
    found = getattr(torch, inside)
    if not isinstance(found, _KINDS[kind]):
        raise ValueError(f"{inside!r} is no {kind}")
    return found
