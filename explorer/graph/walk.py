"""Going through a network plainly, without keys and store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from explorer.graph.ir import Graph, Node


def walk(
    graph: Graph, images: Tensor, compute: Callable[[Node, Mapping[str, Any]], Any] = Node.call
) -> Iterator[tuple[Node, Any]]:
    """Each node with its value, in order; a value is held until its last consumer has read it.

    Args:
        graph: the network, in float.
        images: one batch.
        compute: gives the value of a node from those of its inputs.
    """
    values: dict[str, Any] = {**graph.constants, graph.input: images}
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    for node in graph.nodes:
        with torch.inference_mode():
            value = compute(node, values)
        for name in node.inputs:
            uses[name] -= 1
            if not uses[name]:
                del values[name]
        if uses[node.name]:
            values[node.name] = value
        yield node, value
        del value


def run(graph: Graph, images: Tensor) -> dict[str, Any]:
    """The value of every node, all held; the reference for the engine."""
    values = {node.name: value for node, value in walk(graph, images)}
    return {**graph.constants, graph.input: images, **values}
