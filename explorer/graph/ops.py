"""Which operators are layers, and what is known of each.

``LAYER_OPS`` is the table: an operator with a weight or a product of activations, where its weight, bias and
activations stand among the arguments, along which axis its output channels lie, and how many multiply-adds
(one multiplication and one addition count as one) it does for one example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerOp:
    """A line of the table.

    Args:
        op: short name.
        weight: index of the weight among the arguments, or None when every operand is an activation.
        bias: index of the bias, or None.
        inputs: indices of the activations.
        axis: the output-channel axis of the weight.
        channel: the channel axis of the activations.
        macs: multiply-adds from the shapes of inputs, weight (or None) and output, for the whole batch.
    """

    op: str
    weight: int | None
    bias: int | None
    inputs: tuple[int, ...]
    axis: int
    channel: int
    macs: Callable[[tuple[Shape, ...], Shape | None, Shape], int]


def _conv(inputs: tuple[Shape, ...], weight: Shape | None, output: Shape) -> int:
    assert weight is not None
    return math.prod(output) * math.prod(weight[1:])


def _transposed(inputs: tuple[Shape, ...], weight: Shape | None, output: Shape) -> int:
    assert weight is not None
    return math.prod(inputs[0]) * math.prod(weight[1:])


def _linear(inputs: tuple[Shape, ...], weight: Shape | None, output: Shape) -> int:
    assert weight is not None
    return math.prod(output) * weight[-1]


def _product(inputs: tuple[Shape, ...], weight: Shape | None, output: Shape) -> int:
    return math.prod(output) * inputs[0][-1]


def _attention(inputs: tuple[Shape, ...], weight: Shape | None, output: Shape) -> int:
    query, key, value = inputs[:3]
    # scores (L x S x E) and their product with the values (L x S x Ev), for each example and head
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(inputs: tuple[Shape, ...], weight: Shape | None, output: Shape) -> int:
    assert weight is not None
    # A product for each state (N, T, H) that is read.
    return math.prod(inputs[0][:-1]) * math.prod(weight)


def _none(inputs: tuple[Shape, ...], weight: Shape | None, output: Shape) -> int:
    return 0


LAYER_OPS: dict[str, LayerOp] = {
    "aten.conv1d.default": LayerOp("conv1d", 1, 2, (0,), 0, 1, _conv),
    "aten.conv2d.default": LayerOp("conv2d", 1, 2, (0,), 0, 1, _conv),
    "aten.conv3d.default": LayerOp("conv3d", 1, 2, (0,), 0, 1, _conv),
    "aten.conv1d.padding": LayerOp("conv1d", 1, 2, (0,), 0, 1, _conv),
    "aten.conv2d.padding": LayerOp("conv2d", 1, 2, (0,), 0, 1, _conv),
    "aten.conv3d.padding": LayerOp("conv3d", 1, 2, (0,), 0, 1, _conv),
    "aten.conv_transpose1d.default": LayerOp("conv_transpose1d", 1, 2, (0,), 1, 1, _transposed),
    "aten.conv_transpose2d.input": LayerOp("conv_transpose2d", 1, 2, (0,), 1, 1, _transposed),
    "aten.conv_transpose3d.input": LayerOp("conv_transpose3d", 1, 2, (0,), 1, 1, _transposed),
    "aten.linear.default": LayerOp("linear", 1, 2, (0,), 0, -1, _linear),
    "aten.embedding.default": LayerOp("embedding", 0, None, (), 0, -1, _none),
    "aten.matmul.default": LayerOp("matmul", None, None, (0, 1), 1, -1, _product),
    "aten.mm.default": LayerOp("matmul", None, None, (0, 1), 1, -1, _product),
    "aten.bmm.default": LayerOp("matmul", None, None, (0, 1), 1, -1, _product),
    "aten.addmm.default": LayerOp("matmul", None, 0, (1, 2), 1, -1, _product),
    "aten.baddbmm.default": LayerOp("matmul", None, 0, (1, 2), 1, -1, _product),
    # Their activations are not among the arguments: see Node.reads.
    "lstm_states": LayerOp("recurrent", 3, 4, (), 0, -1, _recurrent),
    "gru_states": LayerOp("recurrent", 2, 3, (), 0, -1, _recurrent),
    "rnn_tanh_states": LayerOp("recurrent", 2, 3, (), 0, -1, _recurrent),
    "rnn_relu_states": LayerOp("recurrent", 2, 3, (), 0, -1, _recurrent),
    "aten.scaled_dot_product_attention.default": LayerOp("sdpa", None, None, (0, 1, 2), 0, -1, _attention),
}

# Operators that hold parameters or state and stay in float, with the reason that the page shows.
REASONS: dict[str, str] = {
    "batch_norm": "a BatchNorm with no convolution or linear layer before it to be folded into",
    "layer_norm": "a LayerNorm works on sums and square roots, not on products with a weight matrix",
    "group_norm": "a GroupNorm works on sums and square roots, not on products with a weight matrix",
    "instance_norm": "an InstanceNorm works on sums and square roots, not on products with a weight matrix",
    "rms_norm": "an RMSNorm works on sums and square roots, not on products with a weight matrix",
    "lstm": "an LSTM whose state is projected (proj_size), or whose weights are computed, is one operator",
    "gru": "a GRU whose weights are computed is one operator",
    "rnn": "an RNN whose weights are computed is one operator",
    "embedding_bag": "an EmbeddingBag looks values up and adds them up in one operator",
    "einsum": "an einsum that is no single matrix product",
    "prelu": "the slope of a PReLU multiplies element by element",
    "bilinear": "a bilinear product of two activations and a weight is not supported",
    "matmul": "a matrix product whose left factor is a parameter",
    "mm": "a matrix product whose left factor is a parameter",
    "bmm": "a matrix product whose left factor is a parameter",
    "addmm": "a matrix product whose left factor is a parameter",
    "scaled_dot_product_attention": "an attention with a parameter for its queries, keys or values",
    "add": "a parameter that is added to activations",
    "addcmul": "parameters that multiply activations element by element and are added to them",
    "mul": "a parameter that multiplies activations element by element",
    "expand": "a parameter that is repeated for each example",
    "cat": "a parameter that is joined to activations",
}


def reason_for(op: str) -> str:
    """Why an operator that uses a parameter is not quantized."""
    short = op.removeprefix("aten.").split(".")[0].strip("_")
    for word, reason in REASONS.items():
        # Whole words of the name: 'mul' is in '_foreach_mul' but not in 'matmul'.
        if f"_{word}_" in f"_{short}_":
            return reason
    return f"the operator {short!r} is not a convolution, a linear layer, an embedding or a matrix product"
