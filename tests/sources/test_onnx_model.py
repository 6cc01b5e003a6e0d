"""ONNX models as networks: every operator beside ONNX Runtime, names and layers as torch has them, hostile files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from explorer.errors import ModelError
from explorer.graph import capture
from explorer.sources import load_model
from explorer.sources.onnxops import OPERATORS
from fuzz.law import attempt
from fuzz.targets import TARGETS, _models, net

RNG = np.random.default_rng(0)


def constant(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(nodes: list[Any], held: dict[str, Any], shape: tuple[Any, ...], opset: int = 17) -> Any:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    values += [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [constant(name, array) for name, array in held.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def saved(made: Any, folder: Path) -> str:
    onnx.save(made, folder / "net.onnx")
    return str(folder / "net.onnx")


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# An operator between x of shape (n, 4, 6, 6) and y: attributes, other inputs, opset.
CASES: list[tuple[str, dict[str, Any], list[Any], int]] = [
    *((name, {}, [], 17) for name in (
        "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
        "Identity", "LeakyRelu", "LogSoftmax", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax",
        "Softplus", "Tanh", "Flatten", "Dropout", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "Elu")),
    ("Mish", {}, [], 18), ("Gelu", {}, [], 20), ("Gelu", {"approximate": "tanh"}, [], 20),
    ("Softmax", {"axis": 1}, [], 11), ("Softmax", {"axis": 1}, [], 17),
    *((name, {}, [floats(4, 6, 6)], 17) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")),
    *((name, {}, [np.float32(1.5)], 17) for name in ("Add", "Sub", "Mul", "Div")),
    ("Clip", {}, [np.float32(-0.5), np.float32(0.5)], 17), ("Clip", {}, [np.float32(0)], 17),
    ("Clip", {"min": -0.2, "max": 0.3}, [], 6),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, [], 17), ("ReduceMean", {}, [ints(-1)], 18),
    ("ReduceL2", {"axes": [1]}, [], 17), ("ReduceProd", {"axes": [1]}, [], 17),
    ("ReduceSum", {"noop_with_empty_axes": 1}, [], 17),
    ("Conv", {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1], "strides": [2, 1]}, [floats(2, 4, 3, 3), floats(2)], 17),
    ("Conv", {"group": 2, "dilations": [2, 2], "pads": [1, 1, 1, 1]}, [floats(6, 2, 3, 3)], 17),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [floats(2, 4, 2, 2)], 17),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, [floats(4, 3, 3, 3)], 17),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [], 17),
    ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "strides": [2, 2]}, [], 17),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, [], 17),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, [], 17),
    ("BatchNormalization", {"epsilon": 1e-3}, [floats(4), floats(4), floats(4), abs(floats(4)) + 1], 17),
    ("InstanceNormalization", {}, [floats(4), floats(4)], 17),
    ("LayerNormalization", {"axis": -2}, [floats(6, 6), floats(6, 6)], 17),
    ("GroupNormalization", {"num_groups": 2}, [floats(4), floats(4)], 21),
    ("MatMul", {}, [floats(6, 5)], 17), ("Einsum", {"equation": "nchw,wk->nchk"}, [floats(6, 5)], 17),
    ("Reshape", {}, [ints(0, 2, -1)], 17), ("Flatten", {"axis": 2}, [], 17),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [], 17), ("Unsqueeze", {}, [ints(1, -1)], 17),
    ("Expand", {}, [ints(2, 1, 1, 1, 1)], 17), ("Tile", {}, [ints(1, 2, 1, 3)], 17),
    ("Gather", {"axis": 2}, [ints(-1, 0, 3)], 17), ("Gather", {"axis": 1}, [np.int64(2)], 17),
    ("Slice", {}, [ints(1, -1), ints(100, -100), ints(1, 3), ints(2, -2)], 17),
    ("Concat", {"axis": 1}, [floats(1, 2, 6, 6)], 17),
    ("Pad", {}, [ints(0, 0, 1, 2, 0, 0, 0, 3), np.float32(1.5)], 17),
    ("Pad", {"mode": "reflect"}, [ints(0, 0, 1, 2, 0, 0, 0, 3)], 17),
    ("Pad", {"mode": "edge"}, [ints(0, 0, 1, 0, 0, 0, 1, 0)], 17),
    ("DepthToSpace", {"blocksize": 2}, [], 17), ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [], 17),
    ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
     [None, np.float32([1, 1, 2, 2])], 17),
    ("Resize", {"mode": "linear"}, [None, np.float32([1, 1, 2, 2])], 17),
    ("Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
     [None, np.float32([1, 1, 2, 2])], 17),
    ("Trilu", {"upper": 0}, [], 17), ("Pow", {}, [np.float32(2)], 17),
]  # fmt: skip
# These hold the size of a batch.
BATCHED = ("Expand", "Concat")


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{n}")
def test_an_operator_is_onnx_runtimes(number: int, tmp_path: Path) -> None:
    """Loading compares; an operator that is wrong is refused."""
    name, attributes, others, opset = CASES[number]
    batch = 1 if name in BATCHED else "n"
    held = {f"c{i}": each for i, each in enumerate(others) if each is not None}
    inputs = ["x", *("" if each is None else f"c{i}" for i, each in enumerate(others))]
    made = model([helper.make_node(name, inputs, ["y"], **attributes)], held, (batch, 4, 6, 6), opset)
    if name in BATCHED:
        with pytest.raises(ModelError, match="batches of 1 only"):
            load_model(saved(made, tmp_path))
        return
    assert load_model(saved(made, tmp_path)).example is not None


def test_a_wrong_operator_is_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda a, x: x)
    with pytest.raises(ModelError, match=r"'y' differs from ONNX Runtime's by \d"):
        load_model(saved(model([helper.make_node("Relu", ["x"], ["y"])], {}, ("n", 3)), tmp_path))


def test_layers_are_those_of_the_network_that_was_exported(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(_models()[0])
    loaded = load_model(str(tmp_path / "net.onnx"))
    assert loaded.example is not None
    ours, own = capture(loaded.module, loaded.example), capture(net(), loaded.example)
    assert [(layer.name, layer.op, layer.shape) for layer in ours.layers] == [
        (layer.name, layer.op, layer.shape) for layer in own.layers
    ]
    with torch.inference_mode():
        x = torch.randn(5, 1, 4, 4)
        assert torch.allclose(loaded.module(x), net()(x), atol=1e-5)


def test_shapes_are_computed_for_any_batch(tmp_path: Path) -> None:
    """A product and a sum are a linear layer, reached through the arithmetic of an exporter."""
    (tmp_path / "net.onnx").write_bytes(_models()[1])
    loaded = load_model(str(tmp_path / "net.onnx"))
    assert loaded.example is not None
    graph = capture(loaded.module, loaded.example)
    assert [(layer.op, layer.shape) for layer in graph.layers] == [("linear", (3, 4))]
    assert graph.by_layer[graph.layers[0].name].parameters == 15


def test_tensors_outside_of_the_models_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 48)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "beside").write_bytes(np.ones((3, 4), np.float32).tobytes())

    def at(location: str, length: int = 48) -> str:
        made = model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((3, 4), np.float32)}, ("n", 3)
        )
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        (folder / "net.onnx").write_bytes(made.SerializeToString())
        return str(folder / "net.onnx")

    assert load_model(at("beside")).example is not None
    for location in ("../secret", str(tmp_path / "secret"), "link"):
        with pytest.raises(ModelError, match="outside of its own folder"):
            load_model(at(location))
    with pytest.raises(ModelError, match="not beside it"):
        load_model(at("nowhere"))
    with pytest.raises(ModelError, match="does not hold as much"):
        load_model(at("beside", 1 << 30))


def relu() -> Any:
    return model([helper.make_node("Relu", ["x"], ["y"])], {}, ("n", 3))


def wide(rows: int) -> Any:
    """A convolution on images of one column, which says itself how long they are."""
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    return model([conv], {"w": floats(2, 1, 3, 3)}, ("n", 1, rows, 1))


@pytest.mark.parametrize("rows", [1 << bits for bits in range(18, 23)])
def test_images_of_any_declared_size_take_no_more_memory_than_allowed(rows: int, tmp_path: Path) -> None:
    read = attempt(TARGETS["onnx"], wide(rows).SerializeToString(), tmp_path)
    assert read == (rows <= 1 << 19)


def test_values_that_do_not_fit_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("explorer.sources.collect.free_bytes", lambda: 0)
    with pytest.raises(ModelError, match=r"needs about 608\.0 MiB for 2 examples, more than the 256\.0 MiB"):
        load_model(saved(wide(1 << 21), tmp_path))


def test_what_is_no_float_network_for_any_batch_is_refused(tmp_path: Path) -> None:
    two = relu()
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3]))
    nan = model([helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.float32([1, np.nan, 1])}, ("n", 3))
    large = model(
        [helper.make_node("Expand", ["x", "s"], ["y"])], {"s": ints(1 << 20, 1 << 20, 1, 3)}, ("n", 3)
    )
    open_axis = model([helper.make_node("Relu", ["x"], ["y"])], {}, ("n", "wide"))
    quantized = model([helper.make_node("QuantizeLinear", ["x", "s"], ["y"])], {"s": np.float32(1)}, ("n", 3))
    unknown = model([helper.make_node("Loop", ["x"], ["y"])], {}, ("n", 3))
    other = model([helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")], {}, ("n", 3))
    lost = model([helper.make_node("Relu", ["nothing"], ["y"])], {}, ("n", 3))
    for part, made in {
        "takes 2 inputs": two, "NaN": nan, "too large to run": large, "must be numbers": open_axis,
        r"quantized already \(QuantizeLinear\).*foreign": quantized, "not read: Loop": unknown,
        "not read: com.microsoft:FusedConv": other, "'nothing'": lost,
    }.items():  # fmt: skip
        with pytest.raises(ModelError, match=part):
            load_model(saved(made, tmp_path))
    (tmp_path / "net.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(ModelError, match="damaged or no ONNX model"):
        load_model(str(tmp_path / "net.onnx"))
    with pytest.raises(ModelError, match=r"There is no file.*Did you mean 'net\.onnx'"):
        load_model(str(tmp_path / "nett.onnx"))
