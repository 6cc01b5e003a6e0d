"""Finding the layers of a captured graph: where a recipe acts, and what it does not reach and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from explorer.graph.ir import Graph, Layer, Node, Ref
from explorer.graph.ops import LAYER_OPS, LayerOp, reason_for
from explorer.graph.passes import constant_at


def _layer_name(source: str) -> str:
    """The user's name of the layer that owns a parameter.

    >>> _layer_name("layer1.0.conv1.weight"), _layer_name("attn.in_proj_weight"), _layer_name("scale")
    ('layer1.0.conv1', 'attn.in_proj', 'scale')
    >>> _layer_name("conv.parametrizations.weight.original1"), _layer_name("rnn.weight_ih_l0")
    ('conv', 'rnn.ih_l0')
    >>> _layer_name("old.weight_v"), _layer_name("pruned.weight_orig")
    ('old', 'pruned')
    """
    # torch.nn.utils.parametrizations keeps what a weight is made of below its module.
    source = source.split(".parametrizations.")[0] + ".weight" if ".parametrizations." in source else source
    head, _, last = source.rpartition(".")
    # What torch.nn.utils keeps in place of a weight that it has normed or pruned.
    last = re.sub(r"^(weight|bias)_(v|g|orig)$", r"\1", last)
    if last in ("weight", "bias") and head:
        return head
    # A recurrent module has several weights, each a layer.
    stem = re.sub(r"_(weight|bias)$|^(weight|bias)_(?=(ih|hh|hr)(_l\d|$))", "", last)
    return f"{head}.{stem}" if head else stem


def _numel(graph: Graph, *names: str | None) -> int:
    return sum(graph.constants[name].numel() for name in names if name is not None)


def find_layers(
    graph: Graph, aliases: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> tuple[Layer, ...]:
    """Every place where a recipe can act, and every parameter that no recipe reaches, with the reason.

    Args:
        graph: with shapes.
        aliases: all names of parameters that have several, by each of them.
    """
    taken: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    owner: dict[str, str] = {}
    found: list[Layer] = []

    def unique(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}@{taken[name]}"

    for node in graph.nodes:
        kind = LAYER_OPS.get(node.op)
        layer = _product_layer(graph, node, kind) if kind is not None else None
        if layer is not None:
            name = layer.name
            if layer.weight is not None:
                source = graph.sources.get(layer.weight, layer.weight)
                # A parameter that several modules have is each module's own where that one uses it.
                own = [alias for alias in aliases.get(source, ()) if alias.rpartition(".")[0] == node.module]
                name = _projection(graph, layer.weight, rows) or _layer_name(own[0] if own else source)
            name = unique(name)
            shares = owner.setdefault(layer.weight, name) if layer.weight is not None else name
            found.append(replace(layer, name=name, shares="" if shares == name else shares))
            continue
        owned = [name for name in node.inputs if name in graph.sources]
        if owned:
            source = graph.sources[owned[0]]
            short = node.op.removeprefix("aten.").split(".")[0].strip("_")
            short = "batch_norm" if "batch_norm" in short else short
            name = _layer_name(source)
            if short in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
                name = source.rpartition(".")[0] or short
            found.append(
                Layer(
                    unique(name), node.name, short, owned[0], 0, (), 1,
                    tuple(graph.constants[owned[0]].shape), _numel(graph, *owned), 0, reason_for(node.op),
                )
            )  # fmt: skip
    return tuple(found)


def _projection(graph: Graph, weight: str, rows: Counter[str]) -> str:
    """The name of one of the projections that ``nn.MultiheadAttention`` keeps in one parameter.

    They come in the order of their rows; ``rows`` counts how many there were.
    """
    head, _, last = graph.sources.get(weight, "").rpartition(".")
    shape = graph.constants[weight].shape
    if last != "in_proj_weight" or len(shape) != 2:
        return ""
    whole = 3 * shape[1]
    begin = rows[head] % whole
    rows[head] += shape[0]
    words = {(0, 1): "q_proj", (1, 1): "k_proj", (2, 1): "v_proj", (1, 2): "kv_proj"}
    word = words.get((begin // shape[1], shape[0] // shape[1]), "in_proj")
    return f"{head}.{word}" if head else word


def _product_layer(graph: Graph, node: Node, kind: LayerOp) -> Layer | None:
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
    if node.reads:
        inputs = (node.reads,)
    shapes = tuple(map(graph.shape_of, inputs))
    weight_shape = tuple(graph.constants[weight].shape) if weight else None
    operand_shapes = shapes if kind.weight is not None or weight_shape is None else (*shapes, weight_shape)
    macs = kind.macs(operand_shapes, weight_shape, node.shape) // graph.example_batch
    name = f"{node.module}.{kind.op}" if node.module else kind.op
    bias = constant_at(graph, node, kind.bias)
    first = weight_shape if weight_shape is not None else shapes[0][1:]
    return Layer(
        name, node.name, kind.op if kind.weight is not None or weight is None else "linear",
        weight, axis, inputs, kind.channel, first, _numel(graph, weight, bias), macs,
    )  # fmt: skip
