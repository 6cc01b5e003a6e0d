"""Passes over a captured graph: constants computed, BatchNorm folded, shapes read, leftovers removed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from explorer.graph.ir import Graph, Node, Ref, redirect
from explorer.graph.ops import LAYER_OPS
from explorer.graph.repeat import compute_twice
from explorer.graph.walk import walk

BATCH_NORMS = ("aten._native_batch_norm_legit_no_training.default", "aten.batch_norm.default")


def fold_constants(graph: Graph) -> Graph:
    """Compute every node that depends on constants alone."""
    constants = dict(graph.constants)
    sources = dict(graph.sources)
    nodes: list[Node] = []
    values: dict[str, Any] = dict(constants)
    for node in graph.nodes:
        if node.inputs and all(name in values for name in node.inputs) and node.name != graph.output:
            with torch.inference_mode():
                value = compute_twice(node, values)
            values[node.name] = value
            if isinstance(value, Tensor):
                # A view would keep the whole parameter alive and share its memory.
                constants[node.name] = value.clone()
            # Of the parts of a parameter as well.
            source = next((sources[name] for name in node.inputs if name in sources), "")
            if source:
                sources[node.name] = source
        else:
            nodes.append(node)
    return prune(replace(graph, nodes=tuple(nodes), constants=constants, sources=sources))


def prune(graph: Graph) -> Graph:
    """Without nodes and constants that the output does not need, nor a recurrent layer to be observed."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    for node in graph.nodes:
        if node.name in needed:
            needed.update([node.reads] if node.reads else [])
    return replace(
        graph,
        nodes=tuple(node for node in graph.nodes if node.name in needed),
        constants={name: tensor for name, tensor in graph.constants.items() if name in needed},
        sources={name: source for name, source in graph.sources.items() if name in needed},
    )


def with_shapes(graph: Graph, pair: Tensor) -> Graph:
    """The graph with the shape of each value, read off a run on the example."""
    nodes = (
        replace(node, shape=tuple(value.shape), dtype=value.dtype) if isinstance(value, Tensor) else node
        for node, value in walk(graph, pair)
    )
    return replace(graph, nodes=tuple(nodes))


def constant_at(graph: Graph, node: Node, index: int | None) -> str | None:
    """The name of the constant that stands at ``index`` among the node's arguments, if one does."""
    if index is None or index >= len(node.args):
        return None
    value = node.args[index]
    return value.node if isinstance(value, Ref) and value.node in graph.constants else None


def fold_batch_norm(graph: Graph) -> Graph:
    """Each BatchNorm whose input is a layer used nowhere else becomes part of that layer's weight and bias.

    ``gamma * (W x + b - mean) / sqrt(var + eps) + beta`` is a layer with ``W' = W * gamma / sqrt(var + eps)`` and
    ``b' = (b - mean) * gamma / sqrt(var + eps) + beta`` (Jacob et al., 2018, arXiv:1712.05877, section 3.2).
    """
    consumers = Counter(name for node in graph.nodes for name in node.inputs)
    consumers[graph.output] += 1
    constants = dict(graph.constants)
    sources = dict(graph.sources)
    renamed: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    for original in graph.nodes:
        node = replace(
            original, args=redirect(original.args, renamed), kwargs=redirect(dict(original.kwargs), renamed)
        )
        # The functional BatchNorm has three results, of which the first is the one wanted.
        if original.target is operator.getitem and original.args[0].node in renamed:
            renamed[node.name] = node.args[0].node
            continue
        if original.op in BATCH_NORMS and isinstance(node.args[0], Ref):
            before = nodes.get(node.args[0].node)
            in_rows = _in_rows(graph, before, nodes, consumers)
            before = in_rows or before
            kind = LAYER_OPS.get(before.op) if before is not None else None
            weight = (
                constant_at(graph, before, kind.weight) if before is not None and kind is not None else None
            )
            uses = consumers[original.args[0].node] if isinstance(original.args[0], Ref) else 0
            # A BatchNorm's channels lie second; a linear layer's features lie last.
            if (
                kind is not None
                and kind.op == "linear"
                and before is not None
                and len(before.shape) != 2
                and not in_rows
            ):
                kind = weight = None
            numbers = _batch_norm_numbers(graph, node)
            if (
                before is not None
                and kind is not None
                and weight
                and kind.bias == 2
                and uses == 1
                and numbers
            ):
                bias = constant_at(graph, before, kind.bias)
                if bias is None and len(before.args) > 2 and before.args[2] is not None:
                    nodes[node.name] = node
                    continue
                factor, mean, beta = numbers
                axis = kind.axis
                old = constants[weight]
                if old.shape[axis] != len(factor):
                    # A grouped transposed convolution: axis 1 counts the channels of one group only.
                    nodes[node.name] = node
                    continue
                view = [1] * old.dim()
                view[axis] = -1
                old_bias = constants[bias].double() if bias else torch.zeros_like(mean)
                new_weight, new_bias = f"{before.name}_folded_weight", f"{before.name}_folded_bias"
                constants[new_weight] = (old.double() * factor.view(view)).to(old.dtype)
                constants[new_bias] = ((old_bias - mean) * factor + beta).to(old.dtype)
                sources[new_weight] = sources.get(weight, weight)
                sources[new_bias] = sources[new_weight].removesuffix("weight") + "bias"
                args = (before.args[0], Ref(new_weight), Ref(new_bias), *before.args[3:])
                nodes[before.name] = replace(before, args=args)
                renamed[node.name] = node.args[0].node
                continue
        nodes[node.name] = node
    output = renamed.get(graph.output, graph.output)
    folded = replace(graph, nodes=tuple(nodes.values()), constants=constants, sources=sources, output=output)
    return prune(folded)


def _in_rows(
    graph: Graph, node: Node | None, nodes: Mapping[str, Node], consumers: Mapping[str, int]
) -> Node | None:
    """The linear layer whose features ``node`` lays out as rows, (N, T, C) -> (N T, C), and nobody else uses."""
    if node is None or node.op != "aten.reshape.default" or not isinstance(node.args[0], Ref):
        return None
    before = nodes.get(node.args[0].node)
    kind = LAYER_OPS.get(before.op) if before is not None else None
    as_captured = graph.by_name[node.name].args[0].node
    if before is None or kind is None or kind.op != "linear" or consumers[as_captured] != 1:
        return None
    return before if len(node.shape) == 2 and node.shape[-1] == before.shape[-1] else None


def _batch_norm_numbers(graph: Graph, node: Node) -> tuple[Tensor, Tensor, Tensor] | None:
    """Factor, mean and shift of a BatchNorm in eval mode, float64 (channels,); None when one is not constant."""
    # (input, weight, bias, mean, var, momentum, eps) or (input, weight, bias, mean, var, training, momentum, eps, ...)
    native = node.op.startswith("aten._native")
    if not native and node.args[5]:
        return None
    eps = node.args[6] if native else node.args[7]
    mean, var = (constant_at(graph, node, index) for index in (3, 4))
    if mean is None or var is None:
        return None
    means, variances = graph.constants[mean].double(), graph.constants[var].double()
    gamma, beta = (constant_at(graph, node, index) for index in (1, 2))
    factor = (graph.constants[gamma].double() if gamma else torch.ones_like(means)) / (variances + eps).sqrt()
    return factor, means, graph.constants[beta].double() if beta else torch.zeros_like(means)
