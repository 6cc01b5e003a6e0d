"""The lens against the codes themselves, torch's own observers, and ONNX Runtime's QuantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

import explorer as qx
from explorer.errors import LayerError, SchemeError
from explorer.formats import CONVENTIONS, FORMATS, IntegerFormat
from explorer.recipe import TensorScheme
from explorer.study.lens import Lens, lens_of, variants
from explorer.tensor import fit_tensor, quantize
from tests.small import images, tiny

TENSOR = (
    torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(3))
    * torch.logspace(-1, 1, 6)[:, None, None, None]
)


def lens(values: torch.Tensor, scheme: TensorScheme) -> Lens:
    return lens_of("layer", "weight", values, 0, scheme, lambda s: fit_tensor(values, s, 0))


@pytest.fixture(scope="module")
def session() -> qx.Session:
    x, y = images()
    return qx.Session(tiny(), data=(x, y), calibration=x[:40])


@pytest.mark.parametrize("grain", ["layer", "channel", "subchannel:7"])
@pytest.mark.parametrize("name", ["int8", "uint4", "int3"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_counts_are_those_of_the_codes(name: str, grain: str, symmetric: bool) -> None:
    """By one quantization for each convention, compared element by element."""
    scheme = TensorScheme(name, grain, symmetric, "mse", convention="torch")
    found = lens(TENSOR, scheme)
    own = quantize(TENSOR, scheme).codes.numpy().astype(int)
    assert len(found.readings) == 2 * len(CONVENTIONS) and found.elements == TENSOR.numel()
    for reading, (other, present) in zip(found.readings, variants(scheme), strict=True):
        there = quantize(TENSOR, other)
        apart = np.abs(there.codes.numpy().astype(int) - own)
        assert (reading.differing, reading.largest) == ((apart > 0).sum(), apart.max())
        assert (reading.qmin, reading.qmax) == (there.qmin, there.qmax)
        assert reading.present == present == (other == scheme)
        noise = ((TENSOR - there.values()).double() ** 2).sum()
        assert reading.sqnr_db == pytest.approx(
            10 * np.log10(float((TENSOR.double() ** 2).sum() / noise)), abs=1e-3
        )
        for value, code in zip(found.values, reading.codes, strict=True):
            assert code == there.codes[value == TENSOR].item()
    assert sum(reading.present for reading in found.readings) == 1


@pytest.mark.parametrize("channel", [False, True])
def test_torch_reads_the_same(channel: bool) -> None:
    scheme = TensorScheme("int8", "channel" if channel else "layer")
    by_name = {(r.convention, r.symmetric): r for r in lens(TENSOR, scheme).readings}
    for symmetric in (True, False):
        kind = ("per_channel_" if channel else "per_tensor_") + ("symmetric" if symmetric else "affine")
        observer = (PerChannelMinMaxObserver if channel else MinMaxObserver)(
            dtype=torch.qint8, qscheme=getattr(torch, kind)
        )
        observer(TENSOR)
        scale, zero_point = observer.calculate_qparams()
        found = by_name["torch", symmetric]
        assert found.scale[0] == scale.min() and found.scale[2] == scale.max()
        assert found.zero_point == (zero_point.min(), zero_point.max())


def test_onnx_runtime_gives_the_example_codes() -> None:
    found = lens(TENSOR, TensorScheme("uint8", "layer", symmetric=False))
    reading = next(r for r in found.readings if (r.convention, r.symmetric) == ("onnx", False))
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(found.values)]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("z", TensorProto.UINT8, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [len(found.values)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    codes = run.run(
        None,
        {
            "x": np.float32(found.values),
            "s": np.array(reading.scale[0], np.float32),
            "z": np.array(reading.zero_point[0], np.uint8),
        },
    )[0]
    assert tuple(codes.tolist()) == reading.codes


def test_of_a_network(session: qx.Session) -> None:
    weight = session.lens("mid")
    assert weight.exact and weight.elements == 4 * 4 * 9
    assert next(r for r in weight.readings if r.present).differing == 0
    entering = session.lens("mid", "input")
    assert not entering.exact and entering.elements > 0
    present = next(r for r in entering.readings if r.present)
    assert (present.convention, present.symmetric) == ("onnx", False)
    table = weight.frame()
    assert list(table["share"]) == [r.differing / weight.elements for r in weight.readings]
    assert weight.to_dict()["readings"][0]["convention"] == "onnx"


def test_examples_hold_both_ends_and_a_difference() -> None:
    found = lens(TENSOR, TensorScheme("int8", "layer"))
    assert found.values[0] == TENSOR.min() and found.values[-1] == TENSOR.max()
    assert list(found.values) == sorted(set(found.values))
    assert any(len(set(codes)) > 1 for codes in zip(*(r.codes for r in found.readings), strict=True))


def test_one_value_is_enough() -> None:
    assert lens(torch.ones(3, 2), TensorScheme("int8", "layer")).values == (1.0,)


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if not isinstance(f, IntegerFormat)])
def test_formats_without_conventions_say_so(session: qx.Session, name: str) -> None:
    with pytest.raises(SchemeError, match=f"{name!r} is the same in every tool"):
        session.lens("mid", scheme=name)


def test_only_what_goes_together_is_compared(session: qx.Session) -> None:
    """Scales with a common factor have no zero point; a symmetric range has one bound."""
    small = session.lens("mid", scheme=TensorScheme("int4", "subchannel:16", scale="fp8"))
    assert [(r.convention, r.symmetric) for r in small.readings] == [(name, True) for name in CONVENTIONS]
    ends = TensorScheme("int8", "channel", symmetric=False, objective="clip:0.5:0.75")
    assert sum(reading.present for reading in session.lens("mid", scheme=ends).readings) == 1


def test_refusals(session: qx.Session) -> None:
    with pytest.raises(SchemeError, match="mode: static"):
        session.lens("mid", "input", TensorScheme("int8", "layer", mode="dynamic"))
    with pytest.raises(LayerError, match="not a 'weigth'"):
        session.lens("mid", "weigth")
    with pytest.raises(LayerError, match="no number 1"):
        session.lens("mid", "input", index=1)
