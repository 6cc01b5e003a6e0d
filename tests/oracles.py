"""Slow, independent answers: exact fractions, plain loops, NumPy, and the runtimes of others.

Nothing here calls the code under test, except for the names in its tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

FLOAT_TINY = float(np.finfo(np.float32).tiny)


def round_half_even(value: Fraction) -> int:
    """The nearest whole number, ties to the even one (what Python's ``round`` does with a Fraction)."""
    return round(value)


def near_tie(value: Fraction, slack: float) -> bool:
    """Whether ``value`` lies so near the middle of two whole numbers that a rounded quotient may fall either way."""
    return abs(value - math.floor(value) - Fraction(1, 2)) <= slack


@dataclass(frozen=True)
class Affine:
    """Exact parameters: scale as a fraction, the zero point before rounding, and the codes."""

    scale: Fraction
    unrounded: Fraction
    qmin: int
    qmax: int


def affine(
    low: float,
    high: float,
    bits: int,
    signed: bool,
    symmetric: bool,
    convention: str,
    narrow: bool | None = None,
) -> Affine:
    """Exact parameters of one group with values from ``low`` to ``high``, by the tables of each project.

    Written from the documents of ONNX and LiteRT, torch.ao, AIMET and NNCF, for a group that is not constant.
    """
    least = Fraction(0)
    a, b = min(Fraction(low), least), max(Fraction(high), least)
    lowest = -(2 ** (bits - 1)) if signed else 0
    highest = lowest + 2**bits - 1
    steps = 2**bits - 1
    if symmetric:
        absmax = max(-a, b)
        if low >= 0 and convention != "torch":
            return Affine(absmax / steps, Fraction(0), 0, steps)
        centre = 0 if signed else 2 ** (bits - 1)
        if convention == "torch":
            return Affine(absmax / Fraction(steps, 2), Fraction(centre), lowest + bool(narrow), highest)
        leave_out = convention == "onnx" if narrow is None else narrow
        return Affine(absmax / (2 ** (bits - 1) - 1), Fraction(centre), lowest + leave_out, highest)
    if convention == "aimet":
        b = max(b, a + Fraction(0.01))
    if convention == "nncf":
        a, b = tuned(a, b, steps)
    scale = (b - a) / steps
    return Affine(scale, lowest - a / scale, lowest, highest)


def tuned(left: Fraction, right: Fraction, steps: int) -> tuple[Fraction, Fraction]:
    """NNCF's ``tune_range``: of the two ranges in which zero is a level, the wider one."""
    level = round_half_even(-left * steps / (right - left))
    moved_left = Fraction(level, level - steps) * right if level < steps else left
    moved_right = Fraction(level - steps, level) * left if level > 0 else right
    if right - moved_left > moved_right - left:
        return moved_left, right
    return left, moved_right


def code(value: float, scale: float, zero_point: int, qmin: int, qmax: int) -> tuple[int, Fraction]:
    """The exact code of a number, and the quotient it was rounded from."""
    quotient = Fraction(value) / Fraction(scale)
    return max(qmin, min(qmax, round_half_even(quotient) + zero_point)), quotient


def distance(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The distance from each value ``(n,)`` to the nearest of its levels ``(n, levels)``, float64."""
    return np.abs(values.astype(np.float64)[:, None] - levels.astype(np.float64)).min(-1)


ONNX_TYPES = {
    name: getattr(TensorProto, name.upper())
    for name in ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16")
}


def onnx_quantize(
    values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, name: str, axis: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and values by ONNX Runtime's QuantizeLinear and DequantizeLinear, codes as float32.

    Args:
        values: float32 of any shape.
        scale: float32 ``()`` or ``(channels,)``.
        zero_point: whole numbers, the same shape.
        name: the ONNX type of the codes.
        axis: the channel axis, or None for one scale.
    """
    dims = list(scale.shape)
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, dims, scale.reshape(-1).tolist()),
        helper.make_tensor("zero_point", ONNX_TYPES[name], dims, zero_point.reshape(-1).tolist()),
    ]
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["codes"], **along),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero_point"], ["y"], **along),
        helper.make_node("Cast", ["codes"], ["numbers"], to=TensorProto.FLOAT),
    ]

    def told(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(values.shape))

    graph = helper.make_graph(nodes, "quantize", [told("x")], [told("numbers"), told("y")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=12)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    numbers, result = session.run(None, {"x": values})
    return numbers, result


def kl(
    values: Sequence[float],
    weights: Sequence[float],
    absmax: float,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    bins: int,
    least: int = 3,
) -> float:
    """The divergence of one candidate range, bin by bin, from the definition.

    The histogram spans ``-absmax .. absmax``.  A bin belongs to the code whose cell holds the bin's middle, or
    is clipped.  P is the histogram with what is clipped put onto the outermost bins that are not; Q spreads
    the mass that each code holds (what is clipped left out) evenly over its bins that are not empty.  What is
    clipped onto an empty outermost bin meets a floor of 1e-6 there.  Fewer than ``least`` bins are no range.
    """
    counts = [0.0] * bins
    for value, weight in zip(values, weights, strict=True):
        place = math.floor((np.float32(value) / np.float32(absmax) + np.float32(1)) * np.float32(bins / 2))
        counts[min(max(place, 0), bins - 1)] += weight
    owner: list[int | None] = []
    for index in range(bins):
        middle = ((index + 0.5) * 2 / bins - 1) * absmax
        cell = math.floor(middle / scale + 0.5) + zero_point
        owner.append(cell if qmin <= cell <= qmax else None)
    inside = [index for index in range(bins) if owner[index] is not None]
    if len(inside) < least:
        return math.inf
    first, last = inside[0], inside[-1]
    below, above = sum(counts[:first]), sum(counts[last + 1 :])
    kept = sum(counts[first : last + 1])
    total = below + kept + above
    candidate = [0.0] * bins
    for cell in dict.fromkeys(owner[first : last + 1]):
        mine = [index for index in inside if owner[index] == cell]
        filled = [index for index in mine if counts[index]]
        for index in filled:
            candidate[index] = sum(counts[i] for i in mine) / len(filled) / kept
    result = 0.0
    for index in inside:
        p = counts[index] + (below if index == first else 0) + (above if index == last else 0)
        if p:
            own, extra = counts[index], p - counts[index]
            result += p / total * math.log(p / total)
            result -= own / total * math.log(candidate[index]) if own else 0.0
            result -= extra / total * math.log(max(candidate[index], 1e-6)) if extra else 0.0
    return result


def mse(values: np.ndarray, scale: float, zero_point: int, qmin: int, qmax: int) -> float:
    """The sum of squared errors of one group, float64, from the values themselves."""
    return power_error(values, scale, zero_point, qmin, qmax, 2)


def power_error(
    values: np.ndarray, scale: float, zero_point: int, qmin: int, qmax: int, exponent: float
) -> float:
    """The sum of powers of the errors of one group, float64, from the values themselves."""
    exact = values.astype(np.float64)
    codes = np.clip(np.rint(exact / scale) + zero_point, qmin, qmax)
    return float((np.abs((codes - zero_point) * scale - exact) ** exponent).sum())


def bits_of(codes: Sequence[int], bits: int, lowest: int) -> bytes:
    """Codes as bytes, one binary digit after the other, least significant first."""
    digits = "".join(format(c - lowest, f"0{bits}b")[::-1] for c in codes)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[i : i + 8][::-1], 2) for i in range(0, len(digits), 8))
