"""ONNX models as networks: operator by operator, and compared with ONNX Runtime before anything else is done with them.

The converter that there is, onnx2torch 1.5.15, knows few of today's operators (of opset 18 and later not even
ReduceMean), holds on to the size of the batch, and makes Python code of the names in a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explorer.errors import ModelError, nearest
from explorer.graph.ir import Ref
from explorer.sources.collect import budget, in_words
from explorer.sources.factory import describe
from explorer.sources.onnxops import DTYPES, MOST_NUMBERS, OPERATORS
from explorer.sources.steps import ROWS, Input, Program, Step, example_for, tensors_of
from explorer.study.naming import module_path

# Of protobuf, bytes.
LONGEST = (1 << 31) - 1
# The greatest difference from ONNX Runtime, as a share of the largest result.
TOLERANCE = 1e-3
# Elements that are compared in float64 at a time.
_PART = 1 << 20
_QUANTIZED = re.compile(r"Q(uantize|Linear|Gemm|Attention)|Dequantize|DynamicQuantize|\w+Integer|\w+NBits")
_FREE = "export it with a first axis that has a name instead of a number (dynamic_shapes, dynamic_axes)."
_NAME = re.compile(r"\w+(\.\w+)*")
# Names that an exporter has thought of.
_INVENTED = re.compile(r"val_|node_|_val_|\d+$|.*::")
_EXTERNAL = 1
# Inputs that hold a layer's weight and bias.
_PLACES = {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}


def load_onnx(path: Path) -> tuple[Program, Tensor]:
    """The network in a file, and one input for it (a few examples).

    Raises:
        ModelError: for what is damaged, too large, quantized already, or has operators that are not known; for several
            inputs, and a batch of one size only; and where ONNX Runtime gives another result.
    """
    try:
        import onnx
        import onnx.inliner
        import onnxruntime
    except ImportError:
        raise ModelError(
            f"{path}: reading an ONNX model, and comparing it with ONNX Runtime, needs onnx and onnxruntime; "
            "install quantization-explorer[onnx]."
        ) from None
    try:
        size = path.stat().st_size
        if size > min(LONGEST, budget()):
            raise ModelError(
                f"{path} takes {in_words(size)}; models of up to {in_words(min(LONGEST, budget()))} are read."
            )
        content = path.read_bytes()
    except FileNotFoundError:
        names = [each.name for each in path.parent.glob("*.onnx")]
        raise ModelError(f"There is no file {path}.{nearest(path.name, names)}") from None
    except OSError as problem:
        raise ModelError(f"The model {path} cannot be read: {problem.strerror or problem}.") from None
    try:
        model = onnx.load_model_from_string(content)
        if not model.graph.node:
            raise ModelError(f"{path.name} is damaged or no ONNX model: it has no operators.")
        _fetch(model, path, onnx)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        reader = _Reader(model, path.name, onnx)
        module = reader.program()
        image = reader.image()
        example = example_for(module, image, path.name, _FREE)
        _compare(module, model, image, example, path.name, onnxruntime)
    except ModelError:
        raise
    except (
        Exception
    ) as problem:  # what a damaged file raises is anybody's guess: protobuf, NumPy, missing names, ...
        raise ModelError(f"{path.name} is damaged or no ONNX model: {describe(problem)}.") from problem
    return module, example


def _fetch(model: Any, path: Path, onnx: Any) -> None:
    """Put tensors that lie in files of their own into the model; these files lie in the model's folder or below."""
    folder = path.resolve().parent
    taken = 0
    for tensor in _all_tensors(model.graph):
        if tensor.data_location != _EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        file = (folder / said.get("location", "")).resolve()
        if not file.is_relative_to(folder) or Path(said.get("location", "/")).is_absolute():
            raise ModelError(
                f"{path.name} keeps {tensor.name!r} in {said.get('location')!r}, outside of its own folder; "
                "that is not read."
            )
        if not file.is_file():
            raise ModelError(f"{path.name} keeps {tensor.name!r} in {file.name!r}, which is not beside it.")
        start = int(said.get("offset", 0))
        length = int(said.get("length", max(0, file.stat().st_size - start)))
        taken += length
        if start < 0 or length < 0 or start + length > file.stat().st_size or taken > min(LONGEST, budget()):
            raise ModelError(
                f"{path.name} keeps {tensor.name!r} in {in_words(max(length, 0))} of {file.name!r}, which does not "
                "hold as much, or is too large."
            )
        with open(file, "rb") as stream:
            stream.seek(start)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.data_location = 0


def _all_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


class _Reader:
    """One model, with the tables that reading it takes."""

    def __init__(self, model: Any, name: str, onnx: Any) -> None:
        self.model, self.graph, self.name, self.onnx = model, model.graph, name, onnx
        self.opset = max(
            [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")], default=1
        )
        self.tensors: dict[str, Tensor] = {}
        self.held: dict[str, str] = {}
        self.constants: dict[str, Any] = {}
        # Weights that are held with their outputs first; and by the name of a product, its bias and the sum's name.
        self.turned: set[str] = set()
        self.biases: dict[str, tuple[str, str]] = {}

    def image(self) -> Input:
        held = {tensor.name for tensor in self.graph.initializer}
        inputs = [value for value in self.graph.input if value.name not in held]
        if len(inputs) != 1:
            raise ModelError(
                f"The network in {self.name} takes {len(inputs)} inputs; it must take one tensor, whose first axis is "
                "the batch."
            )
        kind = inputs[0].type.tensor_type
        dtype = DTYPES.get(kind.elem_type)
        if dtype not in (torch.float32, torch.int32, torch.int64):
            raise ModelError(
                f"The network in {self.name} takes {dtype}; the explorer gives float32, or whole numbers for tokens."
            )
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        if not sizes or any(size is None or size < 1 for size in sizes[1:]) or sizes[0] == 0:
            raise ModelError(
                f"The network in {self.name} takes an input of shape {tuple(sizes)}; all but its first axis must be "
                "numbers, for instance by onnx.tools.update_model_dims."
            )
        return Input(inputs[0].name, dtype, tuple(sizes), tuple(size or ROWS for size in sizes))

    def program(self) -> Program:
        self._check_operators()
        self._find_linear()
        paths = [self._path(node) for node in self.graph.node]
        self._weights(paths)
        steps = [
            step
            for node, path in zip(self.graph.node, paths, strict=True)
            for step in self._steps(node, path)
        ]
        known = {*self.held, *self.constants, self.image().name, *(n for s in steps for n in _each(s.result))}
        results = [value.name for value in self.graph.output]
        lost = [name for name in (*results, *(n for s in steps for n in _refs(s.args))) if name not in known]
        if lost:
            raise ModelError(
                f"{self.name} is damaged, or needs a result of an operator that is not computed: {lost[0]!r}."
            )
        outputs: Any = Ref(results[0]) if len(results) == 1 else {name: Ref(name) for name in results}
        own = dict(self.held)
        return Program(self.tensors, own, (), self.image().name, steps, {}, outputs).eval()

    def _check_operators(self) -> None:
        kinds = {f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type: node.op_type
                 for node in self.graph.node}  # fmt: skip
        quantized = [kind for kind, word in kinds.items() if _QUANTIZED.match(word)]
        if quantized:
            raise ModelError(
                f"The network in {self.name} is quantized already ({', '.join(quantized[:3])}); load the float "
                "network, and give this file as another tool's parameters (python -m explorer foreign)."
            )
        unknown = [kind for kind in kinds if kind not in OPERATORS and kind != "Constant"]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ModelError(
                f"The network in {self.name} has operators that are not read: {', '.join(unknown[:5])}{more}; "
                f"{len(OPERATORS)} of opset 7 to 23 are."
            )

    def _find_linear(self) -> None:
        """A product with a weight, and the sum of it and a vector, are one linear layer, as torch has it."""
        uses = Counter(name for node in self.graph.node for name in node.input)
        uses.update(value.name for value in self.graph.output)
        ranks = {tensor.name: len(tensor.dims) for tensor in self.graph.initializer}
        products: dict[str, Any] = {}
        for node in self.graph.node:
            if node.op_type == "MatMul" and ranks.get(node.input[1]) == 2 and uses[node.input[1]] == 1:
                self.turned.add(node.input[1])
                products[node.output[0]] = node
            elif node.op_type == "Add" and len(node.input) == 2:
                for made, other in (node.input, tuple(reversed(node.input))):
                    if (
                        made in products
                        and uses[made] == 1
                        and ranks.get(other) == 1
                        and made not in self.biases
                    ):
                        self.biases[made] = (other, node.output[0])
                        break

    # -- tensors --------------------------------------------------------------------------------------------------

    def _weights(self, paths: Sequence[str]) -> None:
        """Tensors by names that say whose they are: the model's own, or else the layer's."""
        wanted: dict[str, str] = {}
        for node, path in zip(self.graph.node, paths, strict=True):
            for place, name in enumerate(node.input):
                if place in _PLACES and path and name not in wanted:
                    wanted[name] = f"{path}.{_PLACES[place]}"
            bias = self.biases.get(node.output[0])
            if bias is not None and path:
                wanted.setdefault(bias[0], f"{path}.bias")
        scales = {name for node in self.graph.node if node.op_type == "Resize" for name in node.input[1:3]}
        given = [(tensor.name, tensor) for tensor in self.graph.initializer]
        given += [
            (node.output[0], attribute)
            for node in self.graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
        ]
        for name, value in given:
            tensor = self._value(value)
            if tensor.dtype == torch.int64 and tensor.dim() < 2 and tensor.numel() <= MOST_NUMBERS:
                self.constants[name] = tensor.tolist()
            elif tensor.is_floating_point() and not tensor.dim():
                self.constants[name] = float(tensor)
            elif name in scales:
                self.constants[name] = tensor.reshape(-1).tolist()
            elif name in wanted or hasattr(value, "dims"):
                self._hold(name, wanted.get(name, ""), tensor)
            else:
                self.constants[name] = tensor

    def _value(self, value: Any) -> Tensor:
        """An initializer, or the attribute of a Constant."""
        if hasattr(value, "HasField") and hasattr(value, "ref_attr_name"):
            if value.HasField("t"):
                value = value.t
            else:
                return torch.tensor(self.onnx.helper.get_attribute_value(value))
        claimed = int(np.prod([max(0, n) for n in value.dims], dtype=np.float64))
        if claimed > max(1, value.ByteSize()) * 8:
            raise ModelError(
                f"{self.name} is damaged: {value.name!r} claims {claimed:,} elements and does not hold them."
            )
        return torch.from_numpy(np.array(self.onnx.numpy_helper.to_array(value)))

    def _hold(self, name: str, hint: str, tensor: Tensor) -> None:
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ModelError(f"The tensor {name} in {self.name} holds {int(tensor.isnan().sum()):,} NaN.")
        tensor = tensor.t().contiguous() if name in self.turned else tensor
        own = name if _NAME.fullmatch(name) and not _INVENTED.match(name) else ""
        for owner in (own, hint if _NAME.fullmatch(hint) else "", f"tensors.t{len(self.tensors)}"):
            parts = owner.split(".")
            prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
            free = not prefixes & set(self.tensors) and not any(
                k.startswith(owner + ".") for k in self.tensors
            )
            if owner and free and not any(hasattr(_EMPTY, part) for part in parts):
                break
        self.tensors[owner] = (
            nn.Parameter(tensor, requires_grad=False) if tensor.is_floating_point() else tensor
        )
        self.held[name] = owner

    # -- operators ------------------------------------------------------------------------------------------------

    def _path(self, node: Any) -> str:
        """The module that a node comes from: by its exporter, its name, or its weight's."""
        for entry in node.metadata_props:
            if entry.key.endswith("name_scopes"):
                scopes = re.findall(r"'([^']*)'", entry.value)
                if len(scopes) > 1:
                    return str(scopes[-2])
        if "/" in node.name:
            return module_path(node.name)
        weight = node.input[1] if len(node.input) > 1 else ""
        return module_path(weight) if "." in weight and not _INVENTED.match(weight) else node.name

    def _steps(self, node: Any, path: str) -> Iterator[Step]:
        if node.op_type == "Constant" or any(node.output[0] == total for _, total in self.biases.values()):
            return
        if node.op_type == "MatMul" and node.input[1] in self.turned:
            bias, total = self.biases.get(node.output[0], ("", node.output[0]))
            tensors = [Ref(name) for name in (*node.input, bias) if name]
            yield Step(F.linear, tuple(tensors), {}, total, path, "")
            return
        attributes = {each.name: self._attribute(each) for each in node.attribute}
        attributes |= {"opset": self.opset, "outputs": len(node.output)}
        if isinstance(attributes.get("value"), Tensor):
            tensor = attributes["value"]
            attributes |= {"value": tensor.reshape(()).item(), "dtype": tensor.dtype}
        args = tuple(
            None if not name else self.constants[name] if name in self.constants else Ref(name)
            for name in node.input
        )
        result: Any = tuple(node.output) if node.op_type == "Split" else node.output[0]
        yield Step(partial(OPERATORS[node.op_type], attributes), args, {}, result, path, "")

    def _attribute(self, attribute: Any) -> Any:
        if attribute.HasField("t"):
            return self._value(attribute)
        value = self.onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode()
        return list(value) if hasattr(value, "__len__") and not isinstance(value, str) else value


_EMPTY = nn.Module()


def _each(result: Any) -> tuple[str, ...]:
    return result if isinstance(result, tuple) else (result,)


def _refs(args: Any) -> Iterator[str]:
    return (value.node for value in args if isinstance(value, Ref))


def _compare(module: Program, model: Any, image: Input, example: Tensor, name: str, onnxruntime: Any) -> None:
    """Refuse a network whose results on random examples are not ONNX Runtime's.

    Raises:
        ModelError: with the greatest difference.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # what it has taken is given back with it
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        size = image.sizes[0] or len(example)
        rows = example if len(example) % size == 0 else torch.cat([example] * size)[: size * ROWS]
        parts = [
            session.run(None, {image.name: rows[at : at + size].numpy()}) for at in range(0, len(rows), size)
        ]
        del session
    except Exception as problem:
        raise ModelError(f"ONNX Runtime does not run {name}: {describe(problem)}.") from problem
    with torch.inference_mode():
        ours = tensors_of(module(rows))
    for value, mine, theirs in zip(model.graph.output, ours, zip(*parts, strict=True), strict=True):
        expected = torch.from_numpy(np.concatenate(theirs) if len(parts) > 1 else np.asarray(theirs[0]))
        if mine.shape != expected.shape:
            raise ModelError(
                f"The network in {name} was not understood: its result {value.name!r} is {tuple(mine.shape)} here and "
                f"{tuple(expected.shape)} in ONNX Runtime."
            )
        most, apart = _reach(expected, mine)
        if not apart <= TOLERANCE * max(most, 1e-6):
            raise ModelError(
                f"The network in {name} was not understood: its result {value.name!r} differs from ONNX Runtime's by "
                f"{apart:.3g} (results reach {most:.3g})."
            )


def _reach(expected: Tensor, mine: Tensor) -> tuple[float, float]:
    """The largest magnitude of what is expected, and of the difference from it; a part at a time."""
    most = apart = torch.zeros((), dtype=torch.float64)
    for part, own in zip(expected.reshape(-1).split(_PART), mine.reshape(-1).split(_PART), strict=True):
        if len(part):
            most = torch.maximum(most, part.double().abs().max())
            apart = torch.maximum(apart, (own.double() - part.double()).abs().max())
    return float(most), float(apart)
