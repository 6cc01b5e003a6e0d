"""Other tools' parameters: files that those tools write themselves, AIMET's by its specification, and damaged ones."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from explorer.errors import ExplorerError, ParametersError
from explorer.graph import Graph, capture
from explorer.sources import FOREIGN_SUFFIXES, read_foreign
from explorer.study import ForeignParameters, ForeignTensor
from tests.small import images, tiny

LAYERS = {"stem": (4, 1, 3, 3), "mid": (4, 4, 3, 3), "fc": (4, 4)}


@cache
def graph() -> Graph:
    return capture(tiny(), images()[0][:2])


def weight(name: str) -> Tensor:
    found = graph().by_layer[name].weight
    assert found is not None
    return graph().constants[found]


def constant(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def tinynet(transposed: bool = False, named: bool = True) -> Any:
    """The tiny network as an ONNX model in float, BatchNorm folded, as an exporter writes it."""
    net = graph()
    names = {name: f"{name}.weight" if named else f"onnx::{i}" for i, name in enumerate(LAYERS)}
    paths = {name: f"/{name}/Op" if named else "" for name in LAYERS}
    biases = {name: net.by_name[net.by_layer[name].node].args[2].node for name in LAYERS}
    held = [constant(names[name], weight(name).numpy()) for name in ("stem", "mid")]
    fc = weight("fc").numpy()
    held.append(constant(names["fc"], fc.T.copy() if transposed else fc))
    held += [constant(f"{name}.bias", net.constants[bias].numpy()) for name, bias in biases.items()]
    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["x", names["stem"], "stem.bias"], ["a"], paths["stem"], **pads),
        helper.make_node("Relu", ["a"], ["b"], "/Relu"),
        helper.make_node("Conv", ["b", names["mid"], "mid.bias"], ["c"], paths["mid"], **pads),
        helper.make_node("Add", ["b", "c"], ["d"], "/Add"),
        helper.make_node("Relu", ["d"], ["e"], "/Relu_1"),
        helper.make_node("ReduceMean", ["e"], ["f"], "/ReduceMean", axes=[2, 3], keepdims=0),
    ]
    if transposed:
        nodes += [helper.make_node("MatMul", ["f", names["fc"]], ["g"], "/fc/MatMul" if named else "")]
        nodes += [helper.make_node("Add", ["g", "fc.bias"], ["y"], "/fc/Add")]
    else:
        nodes += [helper.make_node("Gemm", ["f", names["fc"], "fc.bias"], ["y"], paths["fc"], transB=1)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 1, 6, 6]), ("y", ["n", 4]))
    ]
    made = helper.make_graph(nodes, "tiny", values[:1], values[1:], held)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model


class Reader:
    """The images that ONNX Runtime calibrates on."""

    def __init__(self) -> None:
        batches = images()[0][:40].split(10)
        self.batches = iter([{"x": batch.numpy()} for batch in batches])

    def get_next(self) -> Any:
        return next(self.batches, None)


@cache
def quantized(form: str = "QDQ", channel: bool = True, transposed: bool = False, named: bool = True) -> bytes:
    """The model after onnxruntime.quantization.quantize_static."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(Reader)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            patch.chdir(folder)
            onnx.save(tinynet(transposed, named), "m.onnx")
            quantize_static(
                "m.onnx", "q.onnx", Reader(), quant_format=QuantFormat[form], per_channel=channel,
                weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
            )  # fmt: skip
            return Path("q.onnx").read_bytes()


def read(content: bytes, name: str = "q.onnx") -> ForeignParameters:
    return read_foreign(name, graph(), content)


def runtime_codes(model: bytes, value: str, feed: np.ndarray) -> np.ndarray:
    """An integer value inside a model, as ONNX Runtime computes it."""
    made = onnx.load_model_from_string(model)
    made.graph.output.append(helper.make_tensor_value_info(value, TensorProto.UINT8, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(run.run([value], {"x": feed})[0])


# -- ONNX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("transposed", [False, True], ids=["gemm", "matmul"])
def test_onnx_runtime_models(form: str, channel: bool, transposed: bool) -> None:
    """Every weight's codes are those in the model, and so are the codes of the first activation."""
    content = quantized(form, channel, transposed)
    found = read(content)
    assert set(found.tensors) == {(n, t, 0) for n in LAYERS for t in ("weight", "input")}
    model = onnx.load_model_from_string(content)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in LAYERS:
        theirs = found.tensors[name, "weight", 0]
        codes = stored[f"{name}.weight_quantized"]
        codes = codes.T if transposed and name == "fc" else codes
        assert np.array_equal(theirs.encode(weight(name)).numpy(), codes)
        assert theirs.bits == 8 and theirs.signed and theirs.tool == "onnx" and not theirs.note
        assert (theirs.axis is not None) == (
            channel and not (transposed and name == "fc" and theirs.axis is None)
        )
    x = images()[0][:7].numpy()
    inner = next(n for n in model.graph.node if n.op_type == "QuantizeLinear").output[0]
    ours = found.tensors["stem", "input", 0].encode(torch.from_numpy(x)).numpy()
    assert np.array_equal(runtime_codes(content, inner, x), ours)


def test_what_belongs_nowhere_is_listed() -> None:
    found = read(quantized())
    reasons = dict(found.left)
    assert sum("bias" in reason for reason in reasons.values()) == 3
    assert reasons["c"] == "it feeds Add, where no recipe acts"
    assert "nothing but the network's result" in reasons["y_QuantizeLinear_Input"]
    taken = {tensor.name for tensor in found.tensors.values()} | set(reasons)
    quantizers = {
        n.input[0]
        for n in onnx.load_model_from_string(quantized()).graph.node
        if n.op_type == "QuantizeLinear"
    }
    assert quantizers <= taken


def test_without_names_the_weights_tell() -> None:
    found = read(quantized(named=False))
    assert set(found.tensors) == {(n, t, 0) for n in LAYERS for t in ("weight", "input")}
    assert all("its weight is this one's" in how for how in found.how.values())


def test_foreign_weights_are_noted_and_shapes_decide() -> None:
    """Another training of the same network: nothing is known again by its values."""
    model = onnx.load_model_from_string(quantized(named=False))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_quantized") and tensor.data_type == TensorProto.INT8:
            codes = numpy_helper.to_array(tensor)
            tensor.CopyFrom(constant(tensor.name, np.roll(codes, 1, axis=-1)[..., ::-1].copy()))
    found = read(model.SerializeToString())
    assert found.how["mid", "weight", 0] == "the only one left of this shape"
    assert "not ours" in found.tensors["mid", "weight", 0].note


def qdq(dtype: int, axis: int | None, scale: Any, zero_point: Any, clip: tuple[int, int] | None = None,
        opset: int = 21, **options: Any) -> Any:  # fmt: skip
    """A linear layer whose float weight goes through a quantizer."""
    nodes = []
    held = [constant("fc.weight", weight("fc").numpy()), constant("s", np.float32(scale))]
    zeros = helper.make_tensor("z", dtype, np.shape(zero_point), np.ravel(zero_point).tolist())
    held.append(zeros)
    options = options if axis is None else {"axis": axis, **options}
    nodes.append(helper.make_node("QuantizeLinear", ["fc.weight", "s", "z"], ["q"], **options))
    last = "q"
    if clip is not None:
        held += [
            helper.make_tensor(name, dtype, [], [end]) for name, end in zip(("lo", "hi"), clip, strict=True)
        ]
        nodes.append(helper.make_node("Clip", ["q", "lo", "hi"], ["k"]))
        last = "k"
    nodes.append(helper.make_node("DequantizeLinear", [last, "s", "z"], ["w"], **options))
    nodes.append(helper.make_node("Gemm", ["x", "w"], ["y"], "/fc/Gemm", transB=1))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy"]
    made = helper.make_graph(nodes, "one", values[:1], values[1:], held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


QDQ: dict[str, tuple[Any, ...]] = {
    "int8 tensor": (TensorProto.INT8, None, 0.01, 3),
    "uint8 axis": (TensorProto.UINT8, 0, [0.01, 0.02, 0.03, 0.04], [120, 128, 3, 255]),
    "uint16": (TensorProto.UINT16, None, 1e-4, 30000),
    "int4 axis 1": (TensorProto.INT4, 1, [0.1, 0.2, 0.05, 0.1], [0, 1, -3, 0]),
    "uint4": (TensorProto.UINT4, None, 0.11, 7),
}


@pytest.mark.parametrize("case", QDQ)
def test_quantize_linear_gives_the_same_codes(case: str) -> None:
    dtype, axis, scale, zero_point = QDQ[case]
    model = qdq(dtype, axis, scale, zero_point)
    theirs = read(model.SerializeToString()).tensors["fc", "weight", 0]
    del model.graph.node[1:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("q", dtype, [4, 4]))
    assert np.array_equal(codes_of(model), theirs.encode(weight("fc")).numpy())


def codes_of(model: Any) -> np.ndarray:
    """What a model without images gives, by ONNX's own reference where ONNX Runtime lacks the type."""
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(model).run(None, {"x": np.zeros((1, 4), np.float32)})[0]).astype(int)


def test_blocks_along_an_axis() -> None:
    scale = np.float32([[0.01, 0.02], [0.03, 0.01], [0.02, 0.02], [0.01, 0.05]])
    model = qdq(TensorProto.INT8, 1, scale, np.zeros((4, 2), int), block_size=2)
    theirs = read(model.SerializeToString()).tensors["fc", "weight", 0]
    assert theirs.describe() == "int8 blocks of 2 along axis 1"
    wide = np.repeat(scale, 2, axis=1)
    expected = np.clip(np.round(weight("fc").numpy() / wide), -128, 127)
    assert np.array_equal(theirs.encode(weight("fc")).numpy(), expected)
    assert np.array_equal(theirs.apply(weight("fc")).numpy(), (expected * wide).astype(np.float32))


def test_a_clip_between_quantizers_narrows_the_codes() -> None:
    theirs = read(qdq(TensorProto.INT8, None, 0.001, 0, (-127, 127)).SerializeToString())
    found = theirs.tensors["fc", "weight", 0]
    assert (found.qmin, found.qmax) == (-127, 127)


def test_floats_and_running_scales_are_left() -> None:
    left = read(qdq(TensorProto.FLOAT8E4M3FN, None, 0.01, 0.0).SerializeToString()).left
    assert "float8e4m3fn" in left[0][1]
    model = qdq(TensorProto.INT8, None, 0.01, 0)
    del model.graph.initializer[1]
    assert "computed while the network runs" in read(model.SerializeToString()).left[0][1]


def test_integer_operators_are_left_with_a_reason() -> None:
    node = helper.make_node("ConvInteger", ["q", "w"], ["y"], "/stem/Conv_quant")
    made = helper.make_graph([node], "one", [], [], [])
    assert "each example" in read(helper.make_model(made).SerializeToString()).left[0][1]


def test_a_model_that_is_not_quantized() -> None:
    with pytest.raises(ParametersError, match=r"m\.onnx: nothing in it is quantized"):
        read(tinynet().SerializeToString(), "m.onnx")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ParametersError, match=r"needs the package onnx; install quantization-explorer\[onnx\]"
    ):
        read(b"", "m.onnx")


# -- AIMET -----------------------------------------------------------------------------------------


def legacy(
    low: float, high: float, scale: float, offset: int, symmetric: bool, bits: int = 8
) -> dict[str, Any]:
    return {
        "bitwidth": bits, "dtype": "int", "is_symmetric": str(symmetric),
        "min": low, "max": high, "scale": scale, "offset": offset,
    }  # fmt: skip


def aimet(data: dict[str, Any]) -> ForeignParameters:
    return read(json.dumps(data).encode(), "net.encodings")


def same_parameters(theirs: ForeignTensor, scale: Any, zero_point: Any, codes: tuple[int, int]) -> None:
    assert np.allclose(theirs.scale.numpy(), scale) and np.array_equal(theirs.zero_point.numpy(), zero_point)
    assert (theirs.qmin, theirs.qmax) == codes and theirs.tool == "aimet"


def test_aimet_of_version_0_6_1() -> None:
    channels = [legacy(-1.28 * k, 1.27 * k, 0.01 * k, -128, True) for k in (1, 2, 3, 4)]
    found = aimet(
        {
            "version": "0.6.1",
            "param_encodings": {"stem.weight": channels, "fc.weight": [legacy(-1.27, 1.27, 0.01, -127, True)],
                                "fc.bias": [legacy(-1, 1, 1e-9, -(2**31), True, 32)]},
            "activation_encodings": {"mid": {"input": {"0": legacy(-0.5, 2.05, 0.01, -50, False)},
                                             "output": {"0": legacy(-0.5, 2.05, 0.01, -50, False)}},
                                     "x": [legacy(0, 2.55, 0.01, 0, False)],
                                     "fc": {"input": {"0": {"dtype": "float", "bitwidth": 16}}}},
        }
    )  # fmt: skip
    same_parameters(found.tensors["stem", "weight", 0], [0.01, 0.02, 0.03, 0.04], [0] * 4, (-128, 127))
    same_parameters(found.tensors["fc", "weight", 0], 0.01, 0, (-127, 127))
    same_parameters(found.tensors["mid", "input", 0], 0.01, 50, (0, 255))
    same_parameters(found.tensors["stem", "input", 0], 0.01, 0, (0, 255))
    reasons = dict(found.left)
    assert "bias" in reasons["fc.bias"] and "floating-point" in reasons["fc.input.0"]
    assert "goes to no layer" in reasons["mid.output.0"]
    # scale * (code + offset), as the specification has it.
    codes = found.tensors["mid", "input", 0].encode(torch.tensor([-0.5, 0.0, 2.05]))
    assert [round(0.01 * (code - 50), 3) for code in codes.tolist()] == [-0.5, 0.0, 2.05]


def test_aimet_of_version_1() -> None:
    base = {"dtype": "INT", "bw": 8, "enc_type": "PER_CHANNEL", "is_sym": True}
    found = aimet(
        {
            "version": "1.0.0",
            "param_encodings": [
                {**base, "name": "model.stem.weight", "scale": [0.01, 0.02, 0.03, 0.04], "offset": [-128] * 4},
                {**base, "name": "fc.weight", "enc_type": "PER_BLOCK", "block_size": 2,
                 "scale": [0.1] * 8, "offset": [-8] * 8},
                {**base, "name": "mid.weight", "enc_type": "LPBQ", "scale": [0.1], "offset": [-8]},
            ],
            "activation_encodings": [
                {"name": "/stem/Conv_output_0", "bw": 16, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False,
                 "scale": [1e-4], "offset": [-30000]},
                {"name": "input", "bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False,
                 "scale": [0.02], "offset": [-128]},
            ],
        }
    )  # fmt: skip
    same_parameters(found.tensors["stem", "weight", 0], [0.01, 0.02, 0.03, 0.04], [0] * 4, (-128, 127))
    same_parameters(found.tensors["stem", "input", 0], 0.02, 128, (0, 255))
    assert found.how["stem", "input", 0] == "called as a network's input is"
    reasons = dict(found.left)
    assert "blocks of version 1" in reasons["fc.weight"] and "LPBQ" in reasons["mid.weight"]
    # The convolution's output goes through a ReLU before it comes anywhere.
    assert "no layer as it is" in reasons["/stem/Conv_output_0"]


def test_aimet_of_version_2() -> None:
    blocks = np.full((4, 2), 0.5).tolist()
    found = aimet(
        {
            "version": "2.0.0",
            "encodings": [
                {"name": "stem.weight", "output_dtype": "int8", "y_scale": [0.1, 0.2, 0.3, 0.4], "axis": 0},
                {"name": "fc.weight", "output_dtype": "int4", "y_scale": blocks, "axis": 1, "block_size": 2},
                {"name": "x", "output_dtype": "uint8", "y_scale": 0.1, "y_zero_point": 41},
                {"name": "fc.bias", "output_dtype": "int32", "y_scale": 1e-5},
                {"name": "mid.weight", "output_dtype": "int2", "y_scale": 0.1, "y_zero_point": -0.5},
                {"name": "other.weight", "output_dtype": "int8", "y_scale": 0.1},
            ],
        }
    )
    same_parameters(found.tensors["stem", "weight", 0], [0.1, 0.2, 0.3, 0.4], [0] * 4, (-128, 127))
    same_parameters(found.tensors["stem", "input", 0], 0.1, 41, (0, 255))
    same_parameters(found.tensors["fc", "weight", 0], blocks, np.zeros((4, 2)), (-8, 7))
    reasons = dict(found.left)
    assert (
        "no whole numbers" in reasons["mid.weight"]
        and "no layer is called 'other'" in reasons["other.weight"]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is no JSON"),
        (b"[]", "holds no encodings"),
        (b'{"version": "3.0.0", "encodings": []}', "version '3.0.0'"),
        (b'{"encodings": []}', "nothing in it is quantized"),
        (b"[" * 100_000, "is no JSON"),
    ],
)
def test_aimet_files_that_are_none(content: bytes, words: str) -> None:
    with pytest.raises(ParametersError, match=words):
        read(content, "net.json")


# -- PyTorch ---------------------------------------------------------------------------------------


def trained(backend: str = "fbgemm") -> nn.Module:
    """The tiny network (without BatchNorm) with torch's own fake quantizers, after one batch."""
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    net = tiny()
    net.bn = nn.Identity()
    net.train()
    net.qconfig = get_default_qat_qconfig(backend)  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = prepare_qat(net)
        made(images()[0][:20])
    return made


def plain() -> Graph:
    net = tiny()
    net.bn = nn.Identity()
    return capture(net, images()[0][:2])


def saved(state: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_fake_quantizers_of_torch(backend: str, suffix: str) -> None:
    module, net = trained(backend), plain()
    state = module.state_dict()
    content = (
        saved(state) if suffix == "pt" else save_safetensors({k: v.contiguous() for k, v in state.items()})
    )
    found = read_foreign(f"q.{suffix}", net, content)
    for name in LAYERS:
        theirs = found.tensors[name, "weight", 0]
        quantizer = getattr(module, name).weight_fake_quant
        quantizer.disable_observer()
        assert (theirs.qmin, theirs.qmax) == (quantizer.quant_min, quantizer.quant_max) and not theirs.note
        ours = net.constants[net.by_layer[name].weight or ""]
        assert torch.equal(theirs.apply(ours), quantizer(getattr(module, name).weight))
    assert not any("fc" in key[0] and key[1] == "input" for key in found.tensors)
    assert {name for name, _ in found.left} == {f"{n}.activation_post_process" for n in LAYERS}


def test_ranges_of_activations() -> None:
    """Codes 0 to 127, as fbgemm has them, follow from the range that was observed."""
    state = trained("fbgemm").state_dict()
    found = read_foreign(
        "q.pt", plain(), saved({k.replace("stem.act", "bn.act"): v for k, v in state.items()})
    )
    assert not found.get("mid", "input"), "a ReLU lies between"
    chain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    state = {
        f"0.activation_post_process.{k[29:]}": v
        for k, v in state.items()
        if k.startswith("stem.activation_post_process.")
    }
    found = read_foreign("q.pt", capture(chain.eval(), torch.zeros(2, 4)), saved(state))
    theirs = found.tensors["1", "input", 0]
    assert (theirs.qmin, theirs.qmax) == (0, 127) and found.how["1", "input", 0] == "the output of '0'"


def test_quantized_tensors_of_torch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        channels = torch.quantize_per_channel(
            weight("stem"),
            torch.tensor([0.01, 0.02, 0.03, 0.04]),
            torch.zeros(4, dtype=torch.int),
            0,
            torch.qint8,
        )
        whole = torch.quantize_per_tensor(weight("fc"), 0.01, 3, torch.quint8)
        state = {"stem.weight": channels, "fc._packed_params._packed_params": (whole, None),
                 "mid.scale": torch.tensor(0.1),
                 "mid.zero_point": torch.tensor(7), "relu_input_scale_0": torch.tensor(1.0)}  # fmt: skip
        found = read(saved(state), "q.pth")
        codes = found.tensors["stem", "weight", 0].encode(weight("stem"))
        assert torch.equal(codes, channels.int_repr().int())
        assert torch.equal(found.tensors["fc", "weight", 0].encode(weight("fc")), whole.int_repr().int())
        again = read_foreign({"stem": {"weight": channels}}, graph()).tensors["stem", "weight", 0]
        assert torch.equal(again.scale, found.tensors["stem", "weight", 0].scale)
    assert {name for name, _ in found.left} == {"mid", "relu_input_scale_0"}


def test_dictionaries_in_memory() -> None:
    given = {"scale": [0.1, 0.2, 0.3, 0.4], "zero_point": 0, "qmin": -8, "qmax": 7}
    found = read_foreign({"mid": {"weight": given, "input": {**given, "scale": 0.5}}}, graph())
    assert found.tensors["mid", "weight", 0].describe() == "int4 axis 0"
    assert found.tensors["mid", "input", 0].describe() == "int4 layer"
    for wrong, words in (
        ({"mid": {"weigth": given}}, "Did you mean 'weight'"),
        ({"mid": {"weight": {**given, "qmx": 1}}}, "Did you mean 'qmax'"),
        ({"mid": {"weight": {"scale": 1.0}}}, "lacks 'zero_point'"),
        ({"mid": {"weight": 3}}, "neither a quantized tensor nor a dictionary"),
        ({}, "is empty"),
        ({"a": torch.ones(2)}, "Nothing in this state_dict"),
        (3, "give a file, a state_dict or a dictionary"),
    ):
        with pytest.raises(ParametersError, match=words):
            read_foreign(wrong, graph())  # type: ignore[arg-type]
    left = read_foreign({"mid": {"weight": {**given, "scale": [0.1, 0.2]}}}, graph()).left
    assert "takes (4,)" in left[0][1]
    left = read_foreign({"mid": {"weight": {**given, "scale": [0.1, -0.2, 1, 1]}}}, graph()).left
    assert "not a positive number" in left[0][1]


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    with pytest.raises(ParametersError, match="could run code"):
        read(saved({"a": Evil()}), "q.pt")
    assert not (tmp_path / "ran").exists()


# -- files -----------------------------------------------------------------------------------------


def test_names_of_files(tmp_path: Path) -> None:
    with pytest.raises(ParametersError, match=r"not from \.tflite"):
        read_foreign("m.tflite", graph())
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ParametersError, match=r"Did you mean 'model\.onnx'"):
        read_foreign(tmp_path / "modle.onnx", graph())
    with pytest.raises(ParametersError, match="damaged or no ONNX model"):
        read_foreign(tmp_path / "model.onnx", graph())


SEEDS: dict[str, Callable[[], bytes]] = {
    ".onnx": quantized,
    ".json": lambda: json.dumps(
        {
            "version": "0.6.1",
            "param_encodings": {"fc.weight": [legacy(-1, 1, 0.01, -128, True)]},
            "activation_encodings": {},
        }
    ).encode(),
    ".pt": lambda: saved(
        {"fc.weight_fake_quant.scale": torch.ones(1), "fc.weight_fake_quant.zero_point": torch.zeros(1)}
    ),
    ".safetensors": lambda: save_safetensors({"fc.scale": torch.ones(1), "fc.zero_point": torch.zeros(1)}),
}


@pytest.mark.parametrize("suffix", SEEDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_give_a_sentence(suffix: str, data: st.DataObject) -> None:
    """Bytes changed, cut, put in, or nothing but noise: parameters, or one sentence."""
    content = bytearray(SEEDS[suffix]())
    if data.draw(st.integers(0, 4)) == 0:
        content = bytearray(data.draw(st.binary(max_size=200)))
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        content = (
            content[: data.draw(st.integers(1, max(1, len(content))))]
            if data.draw(st.booleans())
            else content
        )
    try:
        found = read(bytes(content), f"file{suffix}")
    except ExplorerError as error:
        assert f"file{suffix}" in str(error) and "\n" not in str(error)
    else:
        assert found.tensors or found.left


WORDS = [
    "scale",
    "offset",
    "bw",
    "bitwidth",
    "dtype",
    "is_sym",
    "min",
    "max",
    "y_scale",
    "y_zero_point",
    "output_dtype",
    "axis",
    "block_size",
    "name",
    "input",
    "output",
    "0",
    "fc.weight",
    "enc_type",
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["int", "int8", "True", "PER_CHANNEL"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["0.6.1", "1.0.0", "2.0.0"]), json_values, json_values)
def test_strange_encodings_give_a_sentence(version: str, params: Any, activations: Any) -> None:
    data = {
        "version": version,
        "param_encodings": params,
        "activation_encodings": activations,
        "encodings": params,
    }
    try:
        read(json.dumps(data).encode(), "a.json")
    except ExplorerError as error:
        assert "\n" not in str(error)


def test_every_ending_has_a_reader() -> None:
    assert {".onnx", ".json", ".encodings", ".pt", ".pth", ".safetensors"} <= set(FOREIGN_SUFFIXES)
