"""Operators of ONNX as functions of torch: one table, ``OPERATORS``.

Each takes the node's attributes and its inputs; an input that is left out is None.  Small whole numbers, such as
shapes, and constants of one number are Python's and not tensors: a network captured with a free batch size computes
with them.  Source: ONNX, "Operator Schemas".
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]

# By TensorProto.DataType.
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
# Vectors of so many whole numbers are Python's.
MOST_NUMBERS = 64


def is_small(value: Any) -> bool:
    """Whether a value is whole numbers of Python, or of a size that is not known yet."""
    return isinstance(value, list | int | torch.SymInt) and not isinstance(value, bool)


def _tensor(value: Any, like: Tensor | None = None) -> Any:
    """A value as a tensor, with the type of another where it is a number."""
    if isinstance(value, Tensor) or value is None:
        return value
    real = isinstance(value, float) or (like is not None and like.is_floating_point())
    return torch.tensor(
        value, dtype=like.dtype if like is not None and real else torch.float32 if real else torch.int64
    )


def _numbers(value: Any) -> list[Any]:
    """A shape or the like as a list."""
    if isinstance(value, Tensor):
        return [int(number) for number in value.reshape(-1).tolist()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _both(function: Operator, small: Operator | None = None) -> Operator:
    """An operator of two operands: on tensors and numbers, or on small whole numbers one by one."""

    def apply(a: Attributes, x: Any, y: Any) -> Any:
        if not (is_small(x) and is_small(y)):
            x, y = (_tensor(value) if isinstance(value, list) else value for value in (x, y))
            return function(x if isinstance(y, Tensor) else _tensor(x), y)
        apart = small or function
        if not isinstance(x, list) and not isinstance(y, list):
            return apart(x, y)
        xs, ys = _numbers(x), _numbers(y)
        length = max(len(xs), len(ys))
        pairs = zip(xs * length if len(xs) == 1 else xs, ys * length if len(ys) == 1 else ys, strict=False)
        return [apart(one, two) for one, two in itertools.islice(pairs, length)]

    return apply


def _one(function: Operator) -> Operator:
    return lambda a, x: function(_tensor(x))


def _div(x: Any, y: Any) -> Any:
    whole = not any(isinstance(v, float) or (isinstance(v, Tensor) and v.is_floating_point()) for v in (x, y))
    return torch.div(x, y, rounding_mode="trunc") if whole else x / y


def _whole_div(x: Any, y: Any) -> Any:
    return x // y  # sizes are not negative


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(a: Attributes, first: Any, *others: Any) -> Any:
        found = _tensor(first)
        for each in others:
            found = function(found, _tensor(each))
        return found

    return apply


# -- shapes -----------------------------------------------------------------------------------------------------


def _shape(a: Attributes, x: Tensor) -> list[Any]:
    sizes = list(x.shape) if isinstance(x, Tensor) else [len(_numbers(x))]
    return sizes[a.get("start", 0) : a.get("end", len(sizes))]


def _reshape(a: Attributes, x: Any, shape: Any) -> Any:
    sizes = _numbers(shape)
    if is_small(x):
        return _numbers(x) if sizes else _numbers(x)[0]
    if not a.get("allowzero"):
        sizes = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes)]
    return torch.reshape(x, sizes)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.dim() + 1)
    if axis == 1:
        return torch.flatten(x, 1) if x.dim() > 1 else x[:, None]
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _axes(a: Attributes, axes: Any) -> list[int] | None:
    given = a.get("axes") if axes is None else _numbers(axes)
    return None if given is None else list(given)


def _unsqueeze(a: Attributes, x: Any, axes: Any = None) -> Any:
    wanted = _axes(a, axes) or []
    if is_small(x):
        return _numbers(x)
    rank = x.dim() + len(wanted)
    for axis in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Attributes, x: Any, axes: Any = None) -> Any:
    wanted = _axes(a, axes)
    if is_small(x):
        return _numbers(x)[0]
    if wanted is None:
        return x.squeeze()
    return x.squeeze(tuple(wanted))


def _concat(a: Attributes, *parts: Any) -> Any:
    if all(is_small(part) for part in parts):
        return [number for part in parts for number in _numbers(part)]
    return torch.cat([_tensor(part) for part in parts], a["axis"])


def _split(a: Attributes, x: Tensor, sizes: Any = None) -> Any:
    axis = a.get("axis", 0)
    given = a.get("split") if sizes is None else _numbers(sizes)
    if given is not None:
        return torch.split(x, list(given), axis)
    count = a.get("num_outputs") or a["outputs"]
    return torch.split(x, -(-x.shape[axis] // count), axis)


def _slice(
    a: Attributes, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    begin, end = (
        _numbers(a[word] if value is None else value) for word, value in (("starts", starts), ("ends", ends))
    )
    along = _axes(a, axes) or list(range(len(begin)))
    by = [1] * len(begin) if steps is None else _numbers(steps)
    if is_small(x):
        return _numbers(x)[begin[0] : end[0] : by[0]]
    for start, stop, axis, step in zip(begin, end, along, by, strict=True):
        if step < 0:
            # Backwards: turned around, and then forwards.
            size = x.shape[axis]
            first = min(start if start >= 0 else start + size, size - 1)
            last = max(stop if stop >= 0 else stop + size, -1)
            x = x.flip(axis)
            start, stop, step = size - 1 - first, size - 1 - last, -step
        x = torch.ops.aten.slice.Tensor(x, axis, start, stop, step)
    return x


def _gather(a: Attributes, x: Any, indices: Any) -> Any:
    axis = a.get("axis", 0)
    if is_small(x) and is_small(indices):
        numbers = _numbers(x)
        return [numbers[i] for i in indices] if isinstance(indices, list) else numbers[indices]
    if isinstance(indices, int):
        return x.select(axis, indices)
    index = _tensor(indices).long()
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(index, x)
    # An index may count from the end.
    index = torch.where(index < 0, index + x.shape[axis], index)
    axis %= x.dim()
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _expand(a: Attributes, x: Any, shape: Any) -> Tensor:
    x, sizes = _tensor(x), _numbers(shape)
    sizes = [1] * (x.dim() - len(sizes)) + sizes
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    return x.expand(
        [mine if isinstance(n, int) and n == 1 else n for n, mine in zip(sizes, own, strict=True)]
    )


def _pad(a: Attributes, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    ends = _numbers(a["pads"] if pads is None else pads)
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in _numbers(axes)]
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(along):
        before[axis], after[axis] = ends[place], ends[place + len(along)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        a.get("mode", "constant")
    ]
    while (
        mode != "constant"
        and len(before) > 1
        and not before[0]
        and not after[0]
        and len(before) > x.dim() - 3
    ):
        before, after = before[1:], after[1:]
    flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    number = a.get("value", 0.0) if value is None else float(value)
    return F.pad(x, flat, mode, number) if mode == "constant" else F.pad(x, flat, mode)


def _constant_of_shape(a: Attributes, shape: Any) -> Any:
    value, dtype, sizes = a.get("value", 0.0), a.get("dtype", torch.float32), _numbers(shape)
    if dtype == torch.int64 and len(sizes) == 1 and isinstance(sizes[0], int) and sizes[0] <= MOST_NUMBERS:
        return [value] * sizes[0]
    return torch.full(sizes, value, dtype=dtype)


def _cast(a: Attributes, x: Any) -> Any:
    dtype = DTYPES[a["to"]]
    if is_small(x) and dtype in (torch.int32, torch.int64):
        return x
    return _tensor(x).to(dtype)


def _where(a: Attributes, condition: Any, x: Any, y: Any) -> Any:
    if isinstance(condition, list) and is_small(x) and is_small(y):
        xs, ys = (_numbers(v) * (len(condition) if len(_numbers(v)) == 1 else 1) for v in (x, y))
        return [one if yes else other for yes, one, other in zip(condition, xs, ys, strict=True)]
    like = next((v for v in (x, y) if isinstance(v, Tensor)), None)
    return torch.where(torch.as_tensor(condition), _tensor(x, like), _tensor(y, like))


# -- reductions ---------------------------------------------------------------------------------------------------


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def apply(a: Attributes, x: Any, axes: Any = None) -> Any:
        if is_small(x):
            x = _tensor(x)
        along = _axes(a, axes)
        if not along and a.get("noop_with_empty_axes"):
            return x
        return function(x, along or list(range(x.dim())), bool(a.get("keepdims", 1)))

    return apply


def _reduce_prod(a: Attributes, x: Any, axes: Any = None) -> Any:
    if is_small(x):
        return math.prod(_numbers(x))
    along = _axes(a, axes) or list(range(x.dim()))
    for axis in sorted((axis % x.dim() for axis in along), reverse=True):
        x = x.prod(axis, bool(a.get("keepdims", 1)))
    return x


def _arg(function: Operator) -> Operator:
    return lambda a, x: function(x, a.get("axis", 0), bool(a.get("keepdims", 1)))


# -- products and windows -----------------------------------------------------------------------------------------


def _pads(
    a: Attributes, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """What is added before and after each axis: (before, ..., after, ...)."""
    rank = len(kernel)
    auto = a.get("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return list(a.get("pads") or [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank)
    before, after = [], []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        less, more = total // 2, total - total // 2
        before.append(less if auto == "SAME_UPPER" else more)
        after.append(more if auto == "SAME_UPPER" else less)
    return before + after


def _window(a: Attributes, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    rank = len(kernel)
    strides, dilations = (list(a.get(word) or [1] * rank) for word in ("strides", "dilations"))
    return strides, dilations, _pads(a, x, kernel, strides, dilations)


def _even(pads: Sequence[int]) -> bool:
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    half = len(pads) // 2
    flat = [n for i in reversed(range(half)) for n in (pads[i], pads[half + i])]
    return F.pad(x, flat, value=value)


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, pads = _window(a, x, weight.shape[2:])
    rank = weight.dim() - 2
    if not _even(pads):
        x, pads = _padded(x, pads), [0] * (2 * rank)
    call = getattr(F, f"conv{rank}d")
    return call(x, weight, bias, strides, pads[:rank], dilations, a.get("group", 1))


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, pads = _window(a, x, weight.shape[2:])
    rank = weight.dim() - 2
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or a.get("output_shape") or not _even(pads):
        raise NotImplementedError("a transposed convolution with uneven or automatic padding")
    extra = list(a.get("output_padding") or [0] * rank)
    call = getattr(F, f"conv_transpose{rank}d")
    return call(x, weight, bias, strides, pads[:rank], extra, a.get("group", 1), dilations)


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.t() if a.get("transA") else x
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    bias = bias * beta if bias is not None and beta != 1 else bias
    if alpha == 1 and a.get("transB") and (bias is None or bias.dim() == 1):
        return F.linear(x, weight, bias)
    product = x @ (weight.t() if a.get("transB") else weight) * alpha
    return product if bias is None else product + bias


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    strides, dilations, pads = _window(a, x, kernel)
    rank = len(kernel)
    if not _even(pads) or any(2 * pad > width for pad, width in zip(pads[:rank], kernel, strict=True)):
        x, pads = _padded(x, pads, -math.inf), [0] * (2 * rank)
    call = getattr(F, f"max_pool{rank}d")
    return call(x, kernel, strides, pads[:rank], dilations, bool(a.get("ceil_mode")))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    strides, dilations, pads = _window(a, x, kernel)
    rank, counted = len(kernel), bool(a.get("count_include_pad"))
    if any(dilation != 1 for dilation in dilations) or not (_even(pads) or counted):
        raise NotImplementedError("a mean over a window with gaps or uneven padding")
    if not _even(pads):
        x, pads = _padded(x, pads), [0] * (2 * rank)
    call = getattr(F, f"avg_pool{rank}d")
    return call(x, kernel, strides, pads[:rank], bool(a.get("ceil_mode")), counted)


def _global_pool(function: Callable[[Tensor, list[int]], Tensor]) -> Operator:
    return lambda a, x: function(x, list(range(2, x.dim())))


def _resize(a: Attributes, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    mode, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    names = {
        "nearest": "nearest",
        "linear": ["", "linear", "bilinear", "trilinear"][min(x.dim() - 2, 3)],
        "cubic": "bicubic",
    }
    if sizes is not None:
        target: dict[str, Any] = {"size": _numbers(sizes)[2:]}
    else:
        target = {"scale_factor": [float(number) for number in scales][2:]}
    if mode == "nearest":
        exact = where == "half_pixel" and a.get("nearest_mode", "round_prefer_floor").startswith("round")
        return F.interpolate(x, **target, mode="nearest-exact" if exact else "nearest")
    return F.interpolate(
        x,
        **target,
        mode=names[mode],
        align_corners=where == "align_corners",
        antialias=bool(a.get("antialias")),
    )


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    block = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


# -- norms and activations ----------------------------------------------------------------------------------------


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if a.get("training_mode"):
        raise NotImplementedError("a BatchNorm in training mode")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.1, a.get("epsilon", 1e-5))


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = a.get("axis", -1) % x.dim()
    return F.layer_norm(x, list(x.shape[axis:]), scale, bias, a.get("epsilon", 1e-5))


def _instance_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def _group_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, a["num_groups"], scale, bias, a.get("epsilon", 1e-5))


def _softmax(function: Operator) -> Operator:
    def apply(a: Attributes, x: Tensor) -> Tensor:
        if a["opset"] >= 13:
            return function(x, a.get("axis", -1))
        # Before, all axes from this one on were one.
        axis = a.get("axis", 1) % x.dim()
        if axis == x.dim() - 1:
            return function(x, -1)
        return function(x.flatten(axis), -1).reshape(x.shape)

    return apply


def _clip(a: Attributes, x: Any, low: Any = None, high: Any = None) -> Any:
    low, high = a.get("min", low), a.get("max", high)
    x = _tensor(x)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = _tensor(low, x), _tensor(high, x)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _pow(a: Attributes, x: Tensor, y: Any) -> Tensor:
    return x.pow(_tensor(y) if isinstance(y, list) else y)


def _range(a: Attributes, start: Any, limit: Any, delta: Any) -> Tensor:
    ends = [end.item() if isinstance(end, Tensor) else end for end in (start, limit, delta)]
    return torch.arange(*ends)


OPERATORS: dict[str, Operator] = {
    "Abs": _one(torch.abs),
    "Add": _both(operator.add),
    "And": _fold(torch.logical_and),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _one(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _one(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _both(_div, _whole_div),
    "Dropout": lambda a, x, ratio=None, training=None: x,
    "Einsum": lambda a, *x: torch.einsum(a["equation"], *x),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Equal": _both(operator.eq),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _one(torch.floor),
    "Gather": _gather,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _global_pool(lambda x, axes: x.amax(axes, keepdim=True)),
    "Greater": _both(operator.gt),
    "GreaterOrEqual": _both(operator.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": lambda a, x: (x * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _one(F.hardswish),
    "Identity": lambda a, x: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Less": _both(operator.lt),
    "LessOrEqual": _both(operator.le),
    "Log": _one(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": lambda a, x, y: torch.matmul(x, y),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Mean": lambda a, *x: torch.stack(torch.broadcast_tensors(*x)).mean(0),
    "Min": _fold(torch.minimum),
    "Mish": _one(F.mish),
    "Mod": _both(operator.mod),
    "Mul": _both(operator.mul),
    "Neg": _one(torch.neg),
    "Not": _one(torch.logical_not),
    "Or": _fold(torch.logical_or),
    "PRelu": lambda a, x, slope: torch.where(x < 0, x * slope, x),
    "Pad": _pad,
    "Pow": _pow,
    "Range": _range,
    "Reciprocal": _one(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, axes, keep: x.pow(2).sum(axes, keep).sqrt()),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": _reduce_prod,
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _one(torch.round),
    "Selu": _one(F.selu),
    "Shape": _shape,
    "Sigmoid": _one(torch.sigmoid),
    "Sign": _one(torch.sign),
    "Sin": _one(torch.sin),
    "Size": lambda a, x: math.prod(x.shape),
    "Slice": _slice,
    "Softmax": _softmax(F.softmax),
    "Softplus": _one(F.softplus),
    "Split": _split,
    "Sqrt": _one(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _both(operator.sub),
    "Sum": _fold(torch.add),
    "Tanh": _one(torch.tanh),
    "Tile": lambda a, x, repeats: x.repeat(_numbers(repeats)),
    "Transpose": lambda a, x: x.permute(a.get("perm") or list(reversed(range(x.dim())))),
    "Trilu": lambda a, x, k=None: (torch.triu if a.get("upper", 1) else torch.tril)(x, int(k or 0)),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
