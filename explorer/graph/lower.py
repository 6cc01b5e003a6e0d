"""Operators that hide matrix products, written as the products that a recipe reaches.

``LOWERINGS`` is the table: an operator and the function that writes it as others.  The last of the new nodes keeps
the name of the old one, so that every value that was there before is found under its name.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from explorer.graph.ir import Graph, Node, Ref, redirect
from explorer.graph.recurrent import LOOPS, lower_gru_cell, lower_lstm_cell, lower_recurrent, lower_rnn_cell
from explorer.graph.site import Lowered, Site, aten


def _attention(site: Site) -> Lowered:
    """Queries by keys, softmax, probabilities by values, as ``F.scaled_dot_product_attention`` defines it."""
    query, key, value = site.node.args[:3]
    mask, dropout = site.argument(3, "attn_mask"), site.argument(4, "dropout_p", 0.0)
    causal, scale = site.argument(5, "is_causal", False), site.argument(6, "scale")
    if dropout:
        return None
    heads, groups = site.shape(query)[-3:-2], site.shape(key)[-3:-2]
    if site.argument(7, "enable_gqa", False) and heads != groups:
        times = heads[0] // groups[0]
        key = site.add("key", aten.repeat_interleave.self_int, key, times, -3)
        value = site.add("value", aten.repeat_interleave.self_int, value, times, -3)
    factor = 1 / math.sqrt(site.shape(query)[-1]) if scale is None else scale
    turned = site.add("key_turned", aten.transpose.int, key, -2, -1)
    scores = site.add(
        "scaled", aten.mul.Tensor, site.add("scores", aten.matmul.default, query, turned), factor
    )
    if causal:
        every = site.add("every", aten.ones_like.default, scores, dtype=torch.bool)
        scores = site.add(
            "causal", aten.where.ScalarOther, site.add("past", aten.tril.default, every), scores, -math.inf
        )
    elif mask is not None:
        booleans = site.graph.dtype_of(mask.node) is torch.bool
        scores = (
            site.add("masked", aten.where.ScalarOther, mask, scores, -math.inf)
            if booleans
            else site.add("masked", aten.add.Tensor, scores, mask)
        )
    softmax = aten._safe_softmax.default if mask is not None else aten.softmax.int
    return site.add("", aten.matmul.default, site.add("probabilities", softmax, scores, -1), value)


def _linear(site: Site) -> Lowered:
    """A linear layer that has examples first, and one part of what ``nn.MultiheadAttention`` keeps in one parameter."""
    x, weight = site.node.args[:2]
    bias = site.argument(2, "bias")
    parts = _projections(site, weight, bias)
    steps = _steps_first(site, x)
    if len(parts) == 1 and steps is None:
        return None
    if steps is not None:
        x = x if steps < 0 else site.add("steps", aten.unflatten.int, x, 0, (steps, -1))
        x = site.add("examples", aten.transpose.int, x, 0, 1)
    products = [site.add(word or "product", aten.linear.default, x, *tensors) for word, *tensors in parts]
    out = products[0]
    if len(products) > 1:
        out = site.add("parts" if steps is not None else "", aten.cat.default, tuple(products), -1)
    if steps is None:
        return out
    turned = site.add("" if steps < 0 else "turned", aten.transpose.int, out, 0, 1)
    return turned if steps < 0 else site.add("", aten.flatten.using_ints, turned, 0, 1)


def _projections(site: Site, weight: Ref, bias: Ref | None) -> list[tuple[str, Ref, Ref | None]]:
    """A word, the weight and the bias of each of the projections in one parameter, in their order."""
    whole, whole_bias = site.fixed(weight), site.fixed(bias)
    source = site.graph.sources.get(weight.node, "").rpartition(".")[2] if whole is not None else ""
    known = bias is None or whole_bias is not None
    if whole is None or source != "in_proj_weight" or not known or whole.shape[0] == whole.shape[1]:
        return [("", weight, bias)]
    words = "qkv"[-(whole.shape[0] // whole.shape[1]) :]
    found = []
    for place, word in enumerate(words):
        own = site.constant(f"{word}_weight", whole.chunk(len(words))[place], weight)
        shift = None
        if bias is not None and whole_bias is not None:
            shift = site.constant(f"{word}_bias", whole_bias.chunk(len(words))[place], bias)
        found.append((word, own, shift))
    return found


def _steps_first(site: Site, x: Ref) -> int | None:
    """Whether steps come before examples in a value that has just been turned so, as in torch's own attention.

    Returns:
        None when not; -1 when examples are the second axis; else how many steps the first axis has been made of.
    """
    node = site.graph.by_name.get(x.node)
    joined = None
    if node is not None and node.op in _JOINING and len(node.shape) == 2:
        joined, node = node, _before(site.graph, node)
    while node is not None and node.op == "aten.clone.default":
        node = _before(site.graph, node)
    if node is None or len(node.shape) < 3 or not _turns(node):
        return None
    if joined is None:
        return -1 if len(node.shape) == 3 else None
    steps, examples = node.shape[:2]
    return steps if joined.shape[0] == steps * examples else None


_JOINING = ("aten.reshape.default", "aten.flatten.using_ints")


def _before(graph: Graph, node: Node) -> Node | None:
    return graph.by_name.get(node.args[0].node)


def _turns(node: Node) -> bool:
    """Whether a node makes the first axis of a value the second."""
    if node.op == "aten.transpose.int":
        axes = len(node.shape)
        return {axis % axes for axis in node.args[1:3]} == {0, 1}
    return node.op == "aten.permute.default" and node.args[1][1] == 0


def _product_with_parameter(site: Site) -> Lowered:
    """A parameter on the left, or a vector: a linear layer whose rows are those of the activation.

    ``W x = (x' W')'``: what is summed over comes last in the activation, and examples first.
    """
    left, right = site.node.args[:2]
    first, second = site.fixed(left), site.fixed(right)
    if (first is None) == (second is None):
        return None
    if second is not None:
        if second.dim() == 2 and (whole := _turned(site, right)) is not None:
            return site.add("", aten.linear.default, left, whole)
        if second.dim() != 1:
            return None
        column = site.constant("column", second[:, None].clone(), right)
        product = site.add("product", aten.matmul.default, left, column)
        return site.add("", aten.squeeze.dim, product, -1)
    assert first is not None
    if len(site.shape(right)) < 2:
        return None
    x = site.add("turned", aten.transpose.int, right, -2, -1)
    if first.dim() == 2:
        product = site.add("product", aten.linear.default, x, left)
        return site.add("", aten.transpose.int, product, -2, -1)
    if first.dim() == 1:
        column = site.constant("column", first[:, None].clone(), left)
        product = site.add("product", aten.matmul.default, x, column)
        return site.add("", aten.squeeze.dim, product, -1)
    stack = site.constant("stack", first.transpose(-2, -1).contiguous(), left)
    product = site.add("product", aten.matmul.default, x, stack)
    return site.add("", aten.transpose.int, product, -2, -1)


def _turned(site: Site, matrix: Ref) -> Ref | None:
    """The parameter that ``matrix`` is the transpose of, where another layer uses it as it is."""
    constants, sources = site.graph.constants, site.graph.sources
    for name, source in sources.items():
        one = source == sources.get(matrix.node) and name != matrix.node and name in constants
        if one and constants[name].dim() == 2 and torch.equal(constants[name].t(), constants[matrix.node]):
            return Ref(name)
    return None


def _inner(site: Site) -> Lowered:
    """``torch.inner(x, W)`` is a linear layer."""
    x, weight = site.node.args[:2]
    fixed = site.fixed(weight)
    return site.add("", aten.linear.default, x, weight) if fixed is not None and fixed.dim() == 2 else None


def _tensordot(site: Site) -> Lowered:
    """``torch.tensordot`` as an einsum."""
    x, y, over_x, over_y = site.node.args[:4]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    first = [next(letters) for _ in site.shape(x)]
    second = [next(letters) for _ in site.shape(y)]
    for a, b in zip(over_x, over_y, strict=True):
        second[b] = first[a]
    shared = set(first) & set(second)
    out = [letter for letter in (*first, *second) if letter not in shared]
    return _contract(site, first, second, out, x, y)


def _einsum(site: Site) -> Lowered:
    """A sum of products of two tensors over the letters that the result does not have."""
    equation, operands = site.node.args[:2]
    if len(operands) != 2 or not isinstance(equation, str):
        return None
    left, _, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    extra = [
        len(site.shape(x)) - len(term.replace("...", "")) for x, term in zip(operands, terms, strict=True)
    ]
    # Three dots stand for axes that both are counted from the end of.
    spare = [chr(code) for code in range(0x3B1, 0x3B1 + 20)]
    written = [
        term.replace("...", "".join(spare[-n:] if n else [])) for term, n in zip(terms, extra, strict=True)
    ]
    if "->" not in equation:
        letters = "".join(terms).replace("...", "")
        out = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    dots = max([n for n, term in zip(extra, terms, strict=True) if "..." in term], default=0)
    out = out.replace("...", "".join(spare[-dots:] if dots else []))
    return _contract(site, list(written[0]), list(written[1]), list(out), *operands)


@dataclass(frozen=True)
class _Letters:
    """The axes of two tensors that are multiplied.

    Args:
        batch: those that both and the result have.
        over: those that are summed over.
        rows: those of the first alone.
        columns: those of the second alone.
    """

    batch: list[str]
    over: list[str]
    rows: list[str]
    columns: list[str]


# The product, and the letters of its axes.
Product = tuple[Ref, list[str]]


def _contract(site: Site, first: list[str], second: list[str], out: list[str], x: Ref, y: Ref) -> Lowered:
    """The sum of products as one matrix product; None where it is none."""
    if site.fixed(x) is not None:
        # The parameter comes second, as in x @ W.
        return None if site.fixed(y) is not None else _contract(site, second, first, out, y, x)
    sizes = dict(zip(second, site.shape(y), strict=True))
    alone = set(first).symmetric_difference(second) - set(out)
    spread = any(sizes.get(letter, size) != size for letter, size in zip(first, site.shape(x), strict=True))
    # A letter repeated in one tensor is a diagonal; one that nobody else has is a sum by itself.
    if spread or alone or len(set(first)) < len(first) or len(set(second)) < len(second):
        return None
    shared = [letter for letter in first if letter in second]
    letters = _Letters(
        [letter for letter in shared if letter in out],
        [letter for letter in shared if letter not in out],
        [letter for letter in first if letter not in second],
        [letter for letter in second if letter not in first],
    )
    if not letters.over:
        return None
    weight = site.fixed(y)
    if weight is None:
        found = _of_activations(site, (x, first), (y, second), letters)
    elif letters.batch:
        found = _by_stack(site, (x, first), (y, second), weight, letters)
    else:
        found = _by_matrix(site, (x, first), (y, second), weight, letters)
    if found is None:
        return None
    product, order = found
    return site.add("", aten.permute.default, product, tuple(order.index(letter) for letter in out))


def _by_matrix(site: Site, left: Product, right: Product, weight: Tensor, letters: _Letters) -> Product:
    """One linear layer: rows stay as they are, what is summed over and what comes new are one axis each."""
    second = right[1]
    sizes = dict(zip(second, weight.shape, strict=True))
    matrix = weight.permute([second.index(letter) for letter in (*letters.columns, *letters.over)])
    matrix = matrix.reshape(-1, math.prod(sizes[letter] for letter in letters.over))
    turned = site.constant("matrix", matrix.clone(), right[0])
    product = site.add(
        "product", aten.linear.default, _joined(site, "x", *left, letters.rows, letters.over), turned
    )
    if len(letters.columns) > 1:
        parts = tuple(sizes[letter] for letter in letters.columns)
        product = site.add("parts", aten.unflatten.int, product, -1, parts)
    elif not letters.columns:
        product = site.add("parts", aten.squeeze.dim, product, -1)
    return product, [*letters.rows, *letters.columns]


def _by_stack(site: Site, left: Product, right: Product, weight: Tensor, letters: _Letters) -> Product | None:
    """The product with a stack of matrices, one for each place along the axes that both and the result have."""
    batch, rows, columns, second = letters.batch, letters.rows, letters.columns, right[1]
    if not 1 <= len(rows) <= 2 or len(columns) > 1:
        return None
    # Examples first: the first axis of the activation stays where it is.
    x = _joined(site, "x", *left, [*rows[:1], *batch, *rows[1:]], letters.over)
    if len(rows) == 1:
        x = site.add("x_row", aten.unsqueeze.default, x, -2)
    stack = weight.permute([second.index(letter) for letter in (*batch, *letters.over, *columns)])
    shape = (*stack.shape[: len(batch)], -1, stack.shape[-1] if columns else 1)
    product = site.add(
        "product", aten.matmul.default, x, site.constant("stack", stack.reshape(shape).clone(), right[0])
    )
    return _without_single(site, product, len(rows) > 1, bool(columns)), [
        *rows[:1],
        *batch,
        *rows[1:],
        *columns,
    ]


def _of_activations(site: Site, left: Product, right: Product, letters: _Letters) -> Product | None:
    """The product of two activations, matrix by matrix."""
    batch, rows, columns = letters.batch, letters.rows, letters.columns
    if len(rows) > 1 or len(columns) > 1:
        return None
    x = _joined(site, "x", *left, [*batch, *rows], letters.over)
    y = _joined(site, "y", *right, [*batch, *columns], letters.over)
    x = x if rows else site.add("x_row", aten.unsqueeze.default, x, -2)
    y = y if columns else site.add("y_row", aten.unsqueeze.default, y, -2)
    product = site.add("product", aten.matmul.default, x, site.add("y_turned", aten.transpose.int, y, -2, -1))
    return _without_single(site, product, bool(rows), bool(columns)), [*batch, *rows, *columns]


def _without_single(site: Site, product: Ref, rows: bool, columns: bool) -> Ref:
    """A product without the axes of one element that it was given for the sake of multiplying."""
    if not columns:
        product = site.add("columns", aten.squeeze.dim, product, -1)
    if not rows:
        product = site.add("rows", aten.squeeze.dim, product, -2 if columns else -1)
    return product


def _joined(site: Site, word: str, x: Ref, letters: list[str], kept: list[str], over: list[str]) -> Ref:
    """``x`` with the axes ``kept`` in front and those of ``over`` joined to one behind them."""
    order = tuple(letters.index(letter) for letter in (*kept, *over))
    moved = site.add(f"{word}_moved", aten.permute.default, x, order)
    if len(over) == 1:
        return moved
    return site.add(f"{word}_joined", aten.flatten.using_ints, moved, len(kept), -1)


def _convolution(site: Site) -> Lowered:
    """The one operator for all convolutions, as programs taken apart further have it."""
    x, weight, bias, stride, padding, dilation, turned, output_padding, groups = site.node.args[:9]
    axes = len(site.shape(weight)) - 2
    if not 1 <= axes <= 3:
        return None
    if not turned:
        plain = (aten.conv1d, aten.conv2d, aten.conv3d)[axes - 1].default
        return site.add("", plain, x, weight, bias, stride, padding, dilation, groups)
    back = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[axes - 1]
    return site.add("", back, x, weight, bias, stride, padding, output_padding, groups, dilation)


LOWERINGS: dict[str, Callable[[Site], Lowered]] = {
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.linear.default": _linear,
    "aten.matmul.default": _product_with_parameter,
    "aten.mm.default": _product_with_parameter,
    "aten.bmm.default": _product_with_parameter,
    "aten.mv.default": _product_with_parameter,
    "aten.inner.default": _inner,
    "aten.tensordot.default": _tensordot,
    "aten.einsum.default": _einsum,
    "aten.convolution.default": _convolution,
    **{f"aten.{name}.input": lower_recurrent for name in LOOPS},
    "aten.lstm_cell.default": lower_lstm_cell,
    "aten.gru_cell.default": lower_gru_cell,
    "aten.rnn_tanh_cell.default": lower_rnn_cell,
    "aten.rnn_relu_cell.default": lower_rnn_cell,
}


def lower(graph: Graph) -> Graph:
    """The graph with the operators of the table written as others; shapes of new nodes are yet to be found.

    Args:
        graph: with shapes, constants computed.
    """
    constants, sources = dict(graph.constants), dict(graph.sources)
    nodes: list[Node] = []
    several: dict[str, tuple[Ref, ...]] = {}
    renamed: dict[str, str] = {}
    used: dict[str, set[int]] = defaultdict(set)
    for node in graph.nodes:
        if node.target is operator.getitem:
            used[node.args[0].node].add(node.args[1])
    for node in graph.nodes:
        if node.target is operator.getitem and node.args[0].node in several:
            renamed[node.name] = several[node.args[0].node][node.args[1]].node
            continue
        site = Site(graph, node, frozenset(used[node.name]))
        way = LOWERINGS.get(node.op)
        found = way(site) if way is not None else None
        if found is None:
            nodes.append(_redirected(node, renamed))
            continue
        nodes += [_redirected(each, renamed) for each in site.nodes]
        constants |= site.constants
        sources |= site.sources
        if not isinstance(found, Ref):
            several[node.name] = found
    if len(nodes) == len(graph.nodes) and all(map(operator.is_, nodes, graph.nodes)):
        return graph
    output = renamed.get(graph.output, graph.output)
    return replace(graph, nodes=tuple(nodes), constants=constants, sources=sources, output=output)


def _redirected(node: Node, renamed: Mapping[str, str]) -> Node:
    if not any(name in renamed for name in node.inputs):
        return node
    return replace(node, args=redirect(node.args, renamed), kwargs=redirect(dict(node.kwargs), renamed))
