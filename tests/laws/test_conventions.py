"""Conventions against those whose they are: PyTorch and ONNX Runtime bit for bit, the others in fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.quantization import MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

from explorer.calibrate import MovingAverage, Sample
from explorer.errors import SchemeError
from explorer.formats import CONVENTIONS, FORMATS, Grid, IntegerFormat, QParams, convention
from explorer.recipe import TensorScheme
from explorer.tensor import fake_quantize, fit_tensor, quantize
from tests import oracles, strategies
from tests.laws.cases import TENSORS
from tests.strategies import INTEGERS

ORDINARY = ("normal", "convolution", "positive", "negative", "heavy", "vector", "far-apart", "off-centre")
SYMMETRIES = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])


def number(name: str) -> IntegerFormat:
    found = FORMATS[name]
    assert isinstance(found, IntegerFormat)
    return found


def draws(count: int, seed: int) -> torch.Tensor:
    """Many small tensors (count, 12) of many sizes, none of them constant."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 12, generator=draw) * torch.exp(4 * torch.randn(count, 1, generator=draw))


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("kind", CONVENTIONS)
@SYMMETRIES
def test_parameters_in_fractions(name: str, kind: str, symmetric: bool) -> None:
    """Scale and zero point are the exact ones, rounded; by channel, for groups of either sign and of both."""
    tensor = draws(12, seed=1).clamp(-1e3, 1e3)
    tensor = tensor / tensor.abs().amax(1, keepdim=True) * torch.logspace(-0.5, 0.5, 12)[:, None]
    cases = [tensor] if symmetric else [tensor, tensor.abs(), -tensor.abs()]
    cases += [tensor.abs()] if symmetric else []
    for values in cases:
        params = fit_tensor(values, TensorScheme(name, "channel", symmetric, convention=kind), 0)
        for row, scale, zero_point in zip(values, params.scale, params.zero_point, strict=True):
            bits, signed = number(name).bits, name.startswith("int")
            exact = oracles.affine(float(row.min()), float(row.max()), bits, signed, symmetric, kind)
            assert (params.qmin, params.qmax) == (exact.qmin, exact.qmax)
            # The width and its quotient round once each, a moved border three times.
            roundings = 6 if kind == "nncf" else 2
            assert abs(Fraction(float(scale)) / exact.scale - 1) <= roundings * Fraction(1, 2**24)
            wanted = max(exact.qmin, min(exact.qmax, oracles.round_half_even(exact.unrounded)))
            if int(zero_point) != wanted:
                # A quotient up to 2**bits was rounded to 24 bits before it was rounded to a whole number.
                slack = Fraction(4 * 2**bits, 2**24)
                assert oracles.near_tie(exact.unrounded, slack) and abs(int(zero_point) - wanted) == 1


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "uint8", "int16"])
@pytest.mark.parametrize("kind", CONVENTIONS)
@SYMMETRIES
def test_codes_in_fractions(name: str, kind: str, symmetric: bool) -> None:
    for tensor_name in ("normal", "heavy", "off-centre"):
        tensor = TENSORS[tensor_name]
        scheme = TensorScheme(name, "layer", symmetric, convention=kind)
        result = quantize(tensor, scheme)
        scale, zero_point = result.scale.item(), int(result.zero_point)
        for value, got in zip(tensor.reshape(-1).tolist(), result.codes.reshape(-1).tolist(), strict=True):
            wanted, quotient = oracles.code(value, scale, zero_point, result.qmin, result.qmax)
            # The quotient is rounded to 24 bits, with a reciprocal twice, before it is rounded to a code.
            assert got == wanted or oracles.near_tie(quotient, abs(quotient) / 2**22)


@pytest.mark.parametrize(
    ("kind", "scale", "qmin", "qmax"),
    [("onnx", 1 / 127, -127, 127), ("torch", 1 / 127.5, -128, 127), ("aimet", 1 / 127, -128, 127),
     ("nncf", 1 / 127, -128, 127)],
)  # fmt: skip
def test_the_int8_table(kind: str, scale: float, qmin: int, qmax: int) -> None:
    """The conventions in use differ by 0.4 percent: said in numbers."""
    result = quantize(torch.tensor([-1.0, 0.3, 1.0]), TensorScheme("int8", "layer", convention=kind))
    assert result.scale.item() == np.float32(scale)
    assert (result.qmin, result.qmax, int(result.zero_point)) == (qmin, qmax, 0)
    assert set(CONVENTIONS) == {"onnx", "torch", "aimet", "nncf"}, "a new convention needs a line here"


@pytest.mark.parametrize(("narrow", "lowest"), [(True, -127), (False, -128)])
@pytest.mark.parametrize("kind", CONVENTIONS)
def test_narrow_is_the_users_choice(kind: str, narrow: bool, lowest: int) -> None:
    result = quantize(TENSORS["normal"], TensorScheme("int8", "layer", convention=kind, narrow=narrow))
    assert (result.qmin, result.qmax) == (lowest, 127)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_zero_point_is_rounded_once(kind: str) -> None:
    """-128 + 1.4999999 is -126.5 in float32, and would round to -126."""
    params = Grid(number("int8"), False, CONVENTIONS[kind]).params(
        torch.tensor([-1.4999999]), torch.tensor([253.5])
    )
    assert (params.scale.item(), params.zero_point.item()) == (1.0, -127)


@pytest.mark.parametrize("kind", CONVENTIONS)
def test_symmetric_data_that_is_never_negative_uses_unsigned_codes(kind: str) -> None:
    result = quantize(TENSORS["positive"], TensorScheme("int8", "layer", convention=kind))
    expected = (-128, 127) if kind == "torch" else (0, 255)
    assert (result.qmin, result.qmax) == expected and int(result.zero_point) == 0


def test_aimet_ranges_have_a_least_width() -> None:
    low, high = torch.tensor([-1e-4, -3.0]), torch.tensor([1e-4, 5.0])
    params = Grid(number("int8"), False, CONVENTIONS["aimet"]).params(low, high)
    assert params.scale.tolist() == pytest.approx([0.01 / 255, 8 / 255], rel=1e-6)


def test_nncf_ranges_of_near_zero_groups_are_lifted() -> None:
    """To one percent of the largest group's range, and at least 8e-5."""
    for largest, floor in ((5.0, 0.05), (1e-3, 8e-5)):
        top = torch.tensor([largest, 1e-7])
        params = Grid(number("int8"), True, CONVENTIONS["nncf"]).params(-top, top)
        assert params.scale.tolist() == pytest.approx([largest / 127, floor / 127], rel=1e-6)


@pytest.mark.parametrize("name", INTEGERS)
def test_nncf_moves_one_border_so_that_zero_is_a_level(name: str) -> None:
    """Both ends of the range stay inside the clip, and zero falls on the grid without shifting it."""
    tensor = draws(40, seed=3).clamp(-1e3, 1e3)
    tensor = tensor / tensor.abs().amax(1, keepdim=True)
    params = fit_tensor(tensor, TensorScheme(name, "channel", False, convention="nncf"), 0)
    low, high = params.clip
    both = (tensor.min(1).values < 0) & (tensor.max(1).values > 0)
    # A border within half a step of zero rounds onto it and is not moved.
    moved = both & (params.zero_point > params.qmin) & (params.zero_point < params.qmax)
    slack = 1e-5
    assert bool(moved.any())
    assert bool((low <= tensor.min(1).values + slack)[moved].all())
    assert bool((high >= tensor.max(1).values - slack)[moved].all())


# --- PyTorch ------------------------------------------------------------------------------------------------

TORCH = [(f"int{b}", torch.qint8 if b <= 8 else torch.qint32) for b in (2, 3, 4, 5, 6, 7, 8, 12, 16)]
TORCH += [(f"uint{b}", torch.quint8 if b <= 8 else torch.qint32) for b in (2, 4, 7, 8, 16)]


def torch_options(name: str, dtype: torch.dtype) -> dict[str, object]:
    """The codes for an observer; at 8 bits the dtype says them (and then symmetric uint8 is centred on 128)."""
    return {"dtype": dtype} if number(name).bits == 8 else {
        "dtype": dtype, "quant_min": number(name).lowest, "quant_max": number(name).highest
    }  # fmt: skip


def torch_cases() -> list[tuple[str, torch.dtype, bool]]:
    # Symmetric unsigned codes of other widths: torch's observers put the centre at (qmin + qmax) // 2, one below.
    return [
        (n, d, s) for n, d in TORCH for s in (True, False) if not (s and n.startswith("u") and n != "uint8")
    ]


@pytest.mark.parametrize(("name", "dtype", "symmetric"), torch_cases())
def test_torch_per_tensor(name: str, dtype: torch.dtype, symmetric: bool) -> None:
    scheme = TensorScheme(name, "layer", symmetric, convention="torch")
    qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    extra = {f"draw {i}": row for i, row in enumerate(draws(60, seed=7))}
    for kind, tensor in {**{k: TENSORS[k] for k in ORDINARY}, "zeros": TENSORS["zeros"], **extra}.items():
        result = quantize(tensor, scheme)
        if kind != "zeros":
            # torch gives zeros the least scale; here they get one, which is as exact.
            observer = MinMaxObserver(qscheme=qscheme, **torch_options(name, dtype))
            observer(tensor)
            scale, zero_point = observer.calculate_qparams()
            assert result.scale.item() == scale.item(), kind
            assert int(result.zero_point) == int(zero_point), kind
        expected = torch.fake_quantize_per_tensor_affine(
            tensor, result.scale.item(), int(result.zero_point), result.qmin, result.qmax
        )
        assert torch.equal(fake_quantize(tensor, scheme).view(torch.int32), expected.view(torch.int32)), kind


@pytest.mark.parametrize(("name", "dtype", "symmetric"), torch_cases())
@pytest.mark.parametrize("axis", [0, 1])
def test_torch_per_channel(name: str, dtype: torch.dtype, symmetric: bool, axis: int) -> None:
    scheme = TensorScheme(name, "channel", symmetric, convention="torch")
    qscheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    for kind in ("normal", "convolution", "heavy", "far-apart", "off-centre"):
        tensor = TENSORS[kind]
        observer = PerChannelMinMaxObserver(ch_axis=axis, qscheme=qscheme, **torch_options(name, dtype))
        observer(tensor)
        scale, zero_point = observer.calculate_qparams()
        result = quantize(tensor, scheme, axis)
        assert torch.equal(result.scale, scale), kind
        assert torch.equal(result.zero_point.long(), zero_point.long()), kind
        expected = torch.fake_quantize_per_channel_affine(
            tensor, result.scale, result.zero_point, axis, result.qmin, result.qmax
        )
        got = fake_quantize(tensor, scheme, axis)
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), kind


@given(
    tensor=strategies.tensors(),
    symmetric=st.booleans(),
    name=st.sampled_from(["int4", "int8", "uint8", "int16"]),
)
@settings(max_examples=60)
def test_torch_on_any_tensor(tensor: torch.Tensor, symmetric: bool, name: str) -> None:
    result = quantize(tensor, TensorScheme(name, "layer", symmetric, convention="torch"))
    expected = torch.fake_quantize_per_tensor_affine(
        tensor, result.scale.item(), int(result.zero_point), result.qmin, result.qmax
    )
    assert torch.equal(result.values().view(torch.int32), expected.view(torch.int32))


@given(
    values=st.lists(strategies.tensors(smallest=3, largest=3, dims=(2, 2), bound=1e4), min_size=1, max_size=6)
)
@settings(max_examples=40)
def test_moving_average_is_torchs(values: list[torch.Tensor]) -> None:
    observer = MovingAverageMinMaxObserver()
    for batch in values:
        observer(batch)
    ranges = torch.stack([torch.stack([v.min(), v.max()])[:, None] for v in values])
    joined = torch.cat([v.reshape(1, -1) for v in values], 1)
    sample = Sample(joined, None, joined.min(1).values, joined.max(1).values, ranges)
    low, high = MovingAverage()(sample, Grid(number("int8")))
    assert (low.item(), high.item()) == (observer.min_val.item(), observer.max_val.item())


# --- ONNX Runtime -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", oracles.ONNX_TYPES)
@pytest.mark.parametrize("grain", ["layer", "channel"])
@SYMMETRIES
def test_onnx_runtime(name: str, grain: str, symmetric: bool) -> None:
    """QuantizeLinear gives the same codes and DequantizeLinear the same numbers, bit for bit."""
    for kind in ("normal", "convolution", "positive", "heavy", "far-apart", "off-centre", "huge", "tiny"):
        tensor = TENSORS[kind]
        for axis in range(tensor.dim()) if grain == "channel" else (0,):
            result = quantize(tensor, TensorScheme(name, grain, symmetric), axis)
            # Symmetric codes of data that is never negative are ONNX's unsigned type.
            stored = f"u{name}" if result.qmax > number(name).highest and name.startswith("int") else name
            codes, values = oracles.onnx_quantize(
                tensor.numpy(), result.scale.numpy(), result.zero_point.numpy(), stored,
                axis if grain == "channel" else None,
            )  # fmt: skip
            assert np.array_equal(codes, result.codes.numpy()), (kind, axis)
            assert np.array_equal(values, result.values().numpy()), (kind, axis)


@pytest.mark.parametrize("name", oracles.ONNX_TYPES)
def test_onnx_runtime_saturates_alike(name: str) -> None:
    """Values beyond the range: a percentile clips, and so does the runtime."""
    tensor = TENSORS["heavy"]
    result = quantize(tensor, TensorScheme(name, "layer", symmetric=False, objective="percentile:90"))
    assert bool((result.codes == result.qmax).sum() > 1)
    codes, values = oracles.onnx_quantize(
        tensor.numpy(), result.scale.numpy(), result.zero_point.numpy(), name, None
    )
    assert np.array_equal(codes, result.codes.numpy()) and np.array_equal(values, result.values().numpy())


# --- the values themselves ----------------------------------------------------------------------------------


def test_parameters_with_different_codes_do_not_join() -> None:
    one = QParams(torch.ones(1), torch.zeros(1, dtype=torch.int32), 0, 3)
    other = QParams(torch.ones(1), torch.zeros(1, dtype=torch.int32), -1, 2)
    with pytest.raises(SchemeError, match="different codes"):
        one.where(torch.tensor([True]), other)


def test_unknown_convention_names_the_nearest() -> None:
    with pytest.raises(SchemeError, match=r"no convention 'onxx'; .* Did you mean 'onnx'\?"):
        convention("onxx")
