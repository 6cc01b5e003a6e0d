"""Where one operator of a graph is written as others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from explorer.graph.ir import Graph, Node, Ref

aten = torch.ops.aten


class Site:
    """The place of one operator in the graph, where others are put instead of it.

    Args:
        graph: the network, with shapes.
        node: the operator.
        used: which of its results somebody reads, where it has several.
    """

    def __init__(self, graph: Graph, node: Node, used: frozenset[int]) -> None:
        self.graph, self.node, self.used = graph, node, used
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.sources: dict[str, str] = {}

    def add(self, word: str, target: Callable[..., Any], *args: Any, reads: str = "", **kwargs: Any) -> Ref:
        """One more operator, named after the old one and ``word``; with an empty word it takes the old one's place."""
        name = f"{self.node.name}_{word}" if word else self.node.name
        origin = self.node.name if word else ""
        self.nodes.append(
            replace(self.node, name=name, target=target, args=args, kwargs=kwargs, reads=reads, origin=origin)
        )
        return Ref(name)

    def constant(self, word: str, value: Tensor, of: Ref) -> Ref:
        """A constant made of the parameter ``of``."""
        name = f"{self.node.name}_{word}"
        self.constants[name] = value
        if of.node in self.graph.sources:
            self.sources[name] = self.graph.sources[of.node]
        return Ref(name)

    def shape(self, value: Ref) -> tuple[int, ...]:
        """The shape of a value that was there before."""
        return self.graph.shape_of(value.node)

    def fixed(self, value: Any) -> Tensor | None:
        """The constant that an argument stands for, if it does."""
        return self.graph.constants.get(value.node) if isinstance(value, Ref) else None

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument of the old operator."""
        if name in self.node.kwargs:
            return self.node.kwargs[name]
        return self.node.args[place] if place < len(self.node.args) else default


# What stands for the operator's result, or for each of its results; None where it stays as it is.
Lowered = Ref | tuple[Ref, ...] | None
