"""Finding the layers of a captured graph: where a recipe acts, and what it does not reach and why."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from explorer.graph.ir import Graph, Layer, Node, Ref
from explorer.graph.ops import LAYER_OPS, LayerOp, reason_for
from explorer.graph.passes import constant_at


def _layer_name(source: str) -> str:
    """The user's name of the layer that owns a parameter.

    >>> _layer_name("layer1.0.conv1.weight"), _layer_name("attn.in_proj_weight"), _layer_name("scale")
    ('layer1.0.conv1', 'attn.in_proj', 'scale')
    >>> _layer_name("conv.parametrizations.weight.original1"), _layer_name("rnn.weight_ih_l0")
    ('conv', 'rnn')
    """
    # torch.nn.utils.parametrizations keeps what a weight is made of below its module.
    source = source.split(".parametrizations.")[0] + ".weight" if ".parametrizations." in source else source
    head, _, last = source.rpartition(".")
    # A recurrent module has many weights and is one layer.
    if re.fullmatch(r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?", last) and head:
        return head
    if last in ("weight", "bias") and head:
        return head
    stem = re.sub(r"_(weight|bias)$", "", last)
    return f"{head}.{stem}" if head else stem


def _numel(graph: Graph, *names: str | None) -> int:
    return sum(graph.constants[name].numel() for name in names if name is not None)


def find_layers(graph: Graph) -> tuple[Layer, ...]:
    """Every place where a recipe can act, and every parameter that no recipe reaches, with the reason."""
    taken: Counter[str] = Counter()
    found: list[Layer] = []

    def unique(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}@{taken[name]}"

    def shape_of(name: str) -> tuple[int, ...]:
        if name == graph.input:
            return (graph.example_batch, *graph.example_shape)
        return tuple(graph.constants[name].shape) if name in graph.constants else graph.by_name[name].shape

    for node in graph.nodes:
        kind = LAYER_OPS.get(node.op)
        layer = _product_layer(graph, node, kind, shape_of) if kind is not None else None
        if layer is not None:
            found.append(replace(layer, name=unique(layer.name)))
            continue
        owned = [name for name in node.inputs if name in graph.sources]
        if owned:
            source = graph.sources[owned[0]]
            short = node.op.removeprefix("aten.").split(".")[0].strip("_")
            short = "batch_norm" if "batch_norm" in short else short
            found.append(
                Layer(
                    unique(_layer_name(source)), node.name, short, owned[0], 0, (), 1,
                    tuple(graph.constants[owned[0]].shape), _numel(graph, *owned), 0, reason_for(node.op),
                )
            )  # fmt: skip
    return tuple(found)


def _product_layer(graph: Graph, node: Node, kind: LayerOp, shape_of: Any) -> Layer | None:
    weight = constant_at(graph, node, kind.weight)
    operands = [node.args[index] for index in kind.inputs if index < len(node.args)]
    axis = kind.axis
    if kind.weight is None:
        # x @ W with a parameter W is a linear layer whose output channels are W's last axis.
        fixed = [index for index in kind.inputs if constant_at(graph, node, index) is not None]
        if len(fixed) == 1 and fixed[0] == kind.inputs[1] and kind.op == "matmul":
            weight = constant_at(graph, node, fixed[0])
            axis = graph.constants[weight].dim() - 1 if weight else axis
            operands = operands[:1]
        elif fixed:
            return None
    elif weight is None:
        return None
    inputs = tuple(operand.node for operand in operands if isinstance(operand, Ref))
    shapes = tuple(shape_of(name) for name in inputs)
    weight_shape = tuple(graph.constants[weight].shape) if weight else None
    operand_shapes = shapes if kind.weight is not None or weight_shape is None else (*shapes, weight_shape)
    macs = kind.macs(operand_shapes, weight_shape, node.shape) // graph.example_batch
    if weight:
        name = _layer_name(graph.sources.get(weight, weight))
    else:
        name = f"{node.module}.{kind.op}" if node.module else kind.op
    bias = constant_at(graph, node, kind.bias)
    first = weight_shape if weight_shape is not None else shapes[0][1:]
    return Layer(
        name, node.name, kind.op if kind.weight is not None or weight is None else "linear",
        weight, axis, inputs, kind.channel, first, _numel(graph, weight, bias), macs,
    )  # fmt: skip
