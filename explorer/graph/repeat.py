"""Whether a network gives the same values again: without that, a kept value is not what it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from explorer.errors import ModelError
from explorer.graph.ir import Graph, Node, tensor_digest
from explorer.graph.walk import walk


def check_repeatable(graph: Graph, images: Tensor) -> None:
    """Compute every node twice from the same inputs and refuse the first whose value differs.

    Args:
        graph: the network, in float.
        images: one batch.

    Raises:
        ModelError: naming the node, its operator and the line of the user's code.
    """
    for _ in walk(graph, images, compute_twice):
        pass


def compute_twice(node: Node, values: Mapping[str, Any]) -> Any:
    """The value of a node that gives the same twice.

    Raises:
        ModelError: where it does not.
    """
    first, second = node.call(values), node.call(values)
    # Nobody may read what was never written; whoever does gives the same for the same.
    if "empty" not in node.op and not _same(first, second):
        place = f" ({node.op}, at {node.source})" if node.source else f" ({node.op})"
        raise ModelError(
            f"The node {node.name!r}{place} gives another value each time it is computed: it draws random numbers "
            "or keeps state between calls, so that no two evaluations of this network could be compared."
        )
    return first


def _same(first: Any, second: Any) -> bool:
    """Whether two values agree to the last bit, so that NaN is like itself."""
    if isinstance(first, Tensor):
        # Comparing is a pass less than naming contents, and enough unless there are NaN.
        return torch.equal(first, second) or tensor_digest(first) == tensor_digest(second)
    if isinstance(first, tuple | list):
        return all(map(_same, first, second))
    return bool(first == second)
