"""ONNX models with QuantizeLinear and DequantizeLinear around their operators, or with QLinear operators.

The model is read and not run.  Parameters are those at an operator's inputs: a weight's, and an activation's
where it comes in, which is where a recipe acts.  Source: ONNX operators, QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from explorer.errors import ParametersError
from explorer.sources.factory import describe
from explorer.sources.foreign.common import BIAS, RANGES, Contents, numbers
from explorer.study.foreign import ForeignTensor
from explorer.study.naming import module_path

# Operators with their inputs that a recipe acts at; the third is left, for a bias.
_LAYERS: dict[str, tuple[int, ...]] = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Gather": (0,),
}
# Operators on integers: where value, scale and zero point of each of their inputs stand.
_QLINEAR: dict[str, tuple[tuple[int, int, int], ...]] = {
    "QLinearConv": ((0, 1, 2), (3, 4, 5)),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "QGemm": ((0, 1, 2), (3, 4, 5)),
}
_DYNAMIC = (
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
)
_BESIDE = (
    "MatMulNBits",
    "QAttention",
    "QLinearAdd",
    "QLinearMul",
    "QLinearGlobalAveragePool",
    "QLinearAveragePool",
)
# What lies between a quantizer and an operator without changing a value.
_PASSING = ("Identity", "Transpose")


def read_onnx(content: bytes, name: str) -> Contents:
    """The parameters in a model.

    Raises:
        ParametersError: when the package onnx is missing, or the file is damaged or has no quantizer.
    """
    try:
        import onnx
    except ImportError:
        raise ParametersError(
            f"{name}: reading ONNX models needs the package onnx; install quantization-explorer[onnx]."
        ) from None
    try:
        model = onnx.load_model_from_string(content)
    except Exception as problem:  # protobuf's error is not of a public class
        raise ParametersError(f"{name} is damaged or no ONNX model: {describe(problem)}.") from None
    if not model.graph.node:
        raise ParametersError(f"{name} is damaged or no ONNX model: it has no operators.")
    try:
        return _Model(model.graph, onnx).read()
    except ParametersError as error:
        raise ParametersError(f"{name}: {error}") from None
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as problem:
        raise ParametersError(f"{name} is damaged: {describe(problem)}.") from None


class _Source(NamedTuple):
    """Where an operator's input comes from.

    Args:
        name: of the value before its quantizer.
        parameters: scale, zero point and so on.
        nodes: the quantizers passed on the way.
        constant: it is a weight.
        turned: its two axes are exchanged on the way.
    """

    name: str
    parameters: dict[str, Any]
    nodes: tuple[int, ...]
    constant: bool
    turned: bool = False


class _Model:
    """One graph, with the tables that finding one's way takes."""

    def __init__(self, graph: Any, onnx: Any) -> None:
        self.graph, self.onnx = graph, onnx
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t
        self.maker = {name: number for number, node in enumerate(self.nodes) for name in node.output if name}
        self.contents = Contents("onnx")
        self.used: set[int] = set()

    def read(self) -> Contents:
        for number, node in enumerate(self.nodes):
            if node.op_type in _LAYERS:
                self._layer(number, node)
            elif node.op_type in _QLINEAR:
                self._qlinear(number, node)
            elif node.op_type in _DYNAMIC:
                self._leave(node, "its ranges are taken from each example as it comes")
            elif node.op_type in _BESIDE or node.op_type.startswith("QLinear"):
                self._leave(
                    node, f"{node.op_type} is no operator that a recipe acts at, or one that is not read"
                )
        for number, node in enumerate(self.nodes):
            if node.op_type == "DequantizeLinear" and number not in self.used:
                self._unused(node)
        return self.contents

    # -- operators --------------------------------------------------------------------------------

    def _layer(self, number: int, node: Any) -> None:
        sources = {}
        for place in _LAYERS[node.op_type]:
            source = self._source(node.input[place]) if place < len(node.input) else None
            if source is not None:
                sources[place] = source
        activations = 0
        for source in sources.values():
            self.used.update(source.nodes)
            index = activations if not source.constant else 0
            activations += not source.constant
            turned = source.turned != self._inward(node)
            self._add(number, node, source, index, source.constant and turned)

    def _inward(self, node: Any) -> bool:
        """Whether the operator's weight has its inputs first."""
        if node.op_type == "Gemm":
            return not any(a.name == "transB" and a.i for a in node.attribute)
        return node.op_type == "MatMul"

    def _qlinear(self, number: int, node: Any) -> None:
        activations = 0
        for value, scale, zero_point in _QLINEAR[node.op_type]:
            name = node.input[value]
            constant = name in self.constants
            across = any(a.name == "transB" and a.i for a in node.attribute)
            # A scale for each output channel runs along the columns of a matrix that lies as it is multiplied.
            axis = 0 if node.op_type == "QLinearConv" or across else -1
            parameters = self._parameters(node, node.input[scale], node.input[zero_point], name, axis)
            if parameters is None:
                continue
            source = _Source(name, parameters, (), constant)
            turned = constant and node.op_type != "QLinearConv" and not across
            self._add(number, node, source, 0 if constant else activations, turned)
            activations += not constant
        # Its quantizers before it are the same numbers again.
        for name in node.input:
            self.used.update(n for n in (self.maker.get(name),) if n is not None)

    def _add(self, number: int, node: Any, source: _Source, index: int, turned: bool) -> None:
        hints = self._scopes(node)
        if source.constant:
            hints = (module_path(source.name), *hints)
        role = "weight" if source.constant else "input"
        name = source.name
        self.contents.add(
            role, tuple(h for h in dict.fromkeys(hints) if h), name,
            index=index, site=number, turned=turned, **source.parameters,
        )  # fmt: skip

    def _scopes(self, node: Any) -> tuple[str, ...]:
        """The module that a node comes from, as its exporter says."""
        for entry in getattr(node, "metadata_props", ()):
            if entry.key.endswith("name_scopes"):
                scopes = re.findall(r"'([^']*)'", entry.value)
                if len(scopes) > 1:
                    return (scopes[-2],)
        return (module_path(node.name),) if "/" in node.name else (module_path(f"{node.name}.weight"),)

    # -- quantizers -------------------------------------------------------------------------------

    def _source(self, name: str) -> _Source | None:
        """What quantizes an input, and what it quantizes; None where nothing does."""
        turned = False
        number = self.maker.get(name)
        while number is not None and self.nodes[number].op_type in _PASSING:
            node = self.nodes[number]
            turned ^= node.op_type == "Transpose"
            number = self.maker.get(node.input[0])
        if number is None or self.nodes[number].op_type != "DequantizeLinear":
            return None
        last = self.nodes[number]
        before, clip, passed = last.input[0], None, [number]
        maker = self.maker.get(before)
        if maker is not None and self.nodes[maker].op_type == "Clip":
            # Fewer codes than the type has: a narrow or a reduced range.
            clip = self.nodes[maker]
            passed.append(maker)
            before = clip.input[0]
            maker = self.maker.get(before)
        origin = before
        if maker is not None and self.nodes[maker].op_type == "QuantizeLinear":
            passed.append(maker)
            origin = self.nodes[maker].input[0]
            if self.maker.get(origin) is not None and self.nodes[self.maker[origin]].op_type == "Identity":
                origin = self.nodes[self.maker[origin]].input[0]
        zero_point = last.input[2] if len(last.input) > 2 else ""
        parameters = self._parameters(last, last.input[1], zero_point, origin, 1, clip)
        if parameters is None:
            self.used.update(passed)
            return None
        return _Source(origin, parameters, tuple(passed), origin in self.constants, turned)

    def _parameters(
        self, node: Any, scale: str, zero_point: str, origin: str, axis: int, clip: Any = None
    ) -> dict[str, Any] | None:
        """Scale, zero point and codes at a node, and the weight where it is one; None where there are none."""
        if scale not in self.constants:
            self._leave(node, "its scale is computed while the network runs")
            return None
        options = {a.name: a for a in node.attribute}
        steps = numbers(self._array(scale), origin)
        dtype = self._dtype(zero_point, origin, options)
        if dtype not in RANGES:
            self.contents.left.append((origin, f"codes of the type {dtype}, which are not compared"))
            return None
        low, high = RANGES[dtype]
        if clip is not None:
            low, high = self._clip(clip, low, high)
        given = self._array(zero_point) if zero_point in self.constants else np.zeros(tuple(steps.shape))
        zero = numbers(given.astype(np.float64), origin, whole=True).expand(steps.shape).contiguous()
        block = int(options["block_size"].i) if "block_size" in options else 0
        one = steps.numel() == 1 and not block
        found = {
            "scale": steps.reshape(()) if one else steps,
            "zero_point": zero.reshape(()) if one else zero,
            "qmin": low,
            "qmax": high,
            "axis": None if one else int(options["axis"].i) if "axis" in options else axis,
            "block": block,
        }
        if origin in self.constants:
            found["values"] = self._weight(origin, found)
        return found

    def _weight(self, name: str, parameters: dict[str, Any]) -> Tensor:
        """A weight as the model has it, real: codes become real numbers by their parameters."""
        array = self._array(name)
        plain = torch.from_numpy(np.array(array, dtype=np.float32))
        if np.issubdtype(array.dtype, np.floating):
            return plain
        tensor = ForeignTensor(name, **parameters).fitted(tuple(plain.shape))
        scale, zero_point = tensor.spread(tuple(plain.shape))
        return (plain - zero_point) * scale

    def _dtype(self, zero_point: str, origin: str, options: dict[str, Any]) -> str:
        kinds = self.onnx.TensorProto.DataType
        if zero_point in self.constants:
            return str(kinds.Name(self.constants[zero_point].data_type)).lower()
        if origin in self.constants and self.constants[origin].data_type != self.onnx.TensorProto.FLOAT:
            return str(kinds.Name(self.constants[origin].data_type)).lower()
        given = options["output_dtype"].i if "output_dtype" in options else 0
        return str(kinds.Name(given)).lower() if given else "uint8"

    def _clip(self, node: Any, low: int, high: int) -> tuple[int, int]:
        ends = []
        for place, default in ((1, low), (2, high)):
            name = node.input[place] if place < len(node.input) else ""
            ends.append(int(self._array(name)) if name in self.constants else default)
        return max(low, ends[0]), min(high, ends[1])

    def _array(self, name: str) -> np.ndarray:
        tensor = self.constants[name]
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            raise ParametersError(f"{name!r} lies in another file; save the model with its tensors inside.")
        return np.asarray(self.onnx.numpy_helper.to_array(tensor))

    # -- what is left -----------------------------------------------------------------------------

    def _leave(self, node: Any, reason: str) -> None:
        self.contents.left.append((node.name or node.output[0], reason))

    def _unused(self, node: Any) -> None:
        takers = [other for other in self.nodes if node.output[0] in other.input]
        name = node.input[0]
        made = self.maker.get(name)
        if made is not None and self.nodes[made].op_type == "QuantizeLinear":
            name = self.nodes[made].input[0]
        tensor = self.constants.get(name)
        if tensor is not None and tensor.data_type == self.onnx.TensorProto.INT32:
            reason = BIAS
        elif not takers:
            reason = "it feeds nothing but the network's result"
        else:
            words = ", ".join(sorted({other.op_type for other in takers}))
            reason = f"it feeds {words}, where no recipe acts"
        self.contents.left.append((name, reason))
