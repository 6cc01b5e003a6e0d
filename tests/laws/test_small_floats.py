"""Floats of few bits against ml_dtypes and torch: every code, rounding, subnormals, and what lies beyond the range."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import explorer as qx
from explorer.errors import SchemeError, TensorError
from explorer.formats import FORMATS, OVERFLOWS, FloatFormat, LevelFormat
from explorer.formats.levels import SmallFloat
from explorer.recipe import Recipe, TensorScheme
from explorer.study import histogram_of
from explorer.study.metrics import ErrorSums
from explorer.subject import Subject
from explorer.tensor import fake_quantize, quantize

DTYPES: dict[str, Any] = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
SIXTEEN: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
OPEN = {"fp8_e4m3": math.nan, "fp8_e5m2": math.inf, "fp16": math.inf, "bf16": math.inf}


def small(name: str) -> SmallFloat:
    number = FORMATS[name]
    assert isinstance(number, SmallFloat)
    return number


def points(name: str) -> np.ndarray:
    """Every level, every middle between two, their float32 neighbours, and random numbers, some beyond the range."""
    levels = small(name).values
    near = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2]).astype(np.float32)
    near = np.concatenate(
        [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, -np.float32(np.inf))]
    )
    draw = np.random.default_rng(7)
    spread = draw.normal(size=2000) * np.exp2(draw.uniform(-20, 1, 2000)) * levels[-1]
    return np.concatenate([near, spread.astype(np.float32), np.float32([1e-45, -1e-40, 0.0])])


def same(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return np.array_equal(ours.numpy(), theirs.astype(np.float32), equal_nan=True)


def test_every_float_of_few_bits_has_an_oracle() -> None:
    assert set(DTYPES) == {name for name, number in FORMATS.items() if isinstance(number, SmallFloat)}
    assert set(OPEN) == {name for name, number in FORMATS.items() if number.beyond is not None}


@pytest.mark.parametrize("name", DTYPES)
def test_every_code_means_what_the_specification_says(name: str) -> None:
    """All 256 codes (64, 16), minus zero, infinities and NaN among them."""
    number = small(name)
    codes = np.arange(1 << number.bits, dtype=np.uint8)
    expected = codes.view(DTYPES[name]).astype(np.float64)
    assert np.array_equal(number.by_code, expected, equal_nan=True)
    assert np.array_equal(np.signbit(number.by_code[expected == 0]), [False, True])
    assert np.array_equal(number.decode(torch.from_numpy(codes)).double().numpy(), expected, equal_nan=True)
    assert set(number.codes).isdisjoint(code for code, _ in number.specials)
    assert len(number.codes) + len(number.specials) == 1 << number.bits


@pytest.mark.parametrize(
    ("name", "code", "value"),
    [
        # OFP8, table 1.
        ("fp8_e4m3", 0b0_1111_110, 448), ("fp8_e4m3", 0b0_0001_000, 2.0**-6),
        ("fp8_e4m3", 0b0_0000_111, 0.875 * 2.0**-6),
        ("fp8_e4m3", 0b0_0000_001, 2.0**-9), ("fp8_e4m3", 0b0_1111_111, math.nan), ("fp8_e4m3", 0b1_1111_111, math.nan),
        ("fp8_e5m2", 0b0_11110_11, 57344), ("fp8_e5m2", 0b0_00001_00, 2.0**-14),
        ("fp8_e5m2", 0b0_00000_11, 0.75 * 2.0**-14), ("fp8_e5m2", 0b0_00000_01, 2.0**-16),
        ("fp8_e5m2", 0b0_11111_00, math.inf), ("fp8_e5m2", 0b1_11111_00, -math.inf),
        ("fp8_e5m2", 0b0_11111_01, math.nan), ("fp8_e5m2", 0b0_11111_10, math.nan),
        ("fp8_e5m2", 0b0_11111_11, math.nan),
        # OCP MX 1.0, tables 3 to 5.
        ("fp6_e2m3", 0b0_11_111, 7.5), ("fp6_e2m3", 0b0_01_000, 1), ("fp6_e2m3", 0b0_00_111, 0.875),
        ("fp6_e2m3", 0b0_00_001, 0.125), ("fp6_e3m2", 0b0_111_11, 28), ("fp6_e3m2", 0b0_001_00, 0.25),
        ("fp6_e3m2", 0b0_000_11, 0.1875), ("fp6_e3m2", 0b0_000_01, 0.0625),
        ("fp4_e2m1", 0b0_11_1, 6), ("fp4_e2m1", 0b0_01_0, 1), ("fp4_e2m1", 0b0_00_1, 0.5), ("fp4_e2m1", 0b1_11_1, -6),
    ],
)  # fmt: skip
def test_published_codes(name: str, code: int, value: float) -> None:
    assert small(name).by_code[code] == pytest.approx(value, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", DTYPES)
def test_rounding_and_saturation(name: str) -> None:
    """Half to even, subnormals too; beyond the range the last level, however far."""
    number, x = small(name), points(name)
    expected = np.clip(x, number.lowest, number.highest).astype(DTYPES[name])
    assert same(number.round(torch.from_numpy(x)), expected)
    codes = number.encode(torch.from_numpy(x)).numpy()
    nonzero = expected.astype(np.float32) != 0
    assert np.array_equal(codes[nonzero], expected.view(np.uint8)[nonzero])
    far = torch.tensor([3e38, -3e38, 2 * number.highest])
    assert number.round(far).tolist() == [number.highest, number.lowest, number.highest]


# torch's own conversion to float8_e4m3fn saturates.
@pytest.mark.parametrize(
    ("name", "oracle"), [("fp8_e4m3", "ml_dtypes"), ("fp8_e5m2", "ml_dtypes"), ("fp8_e5m2", "torch")]
)
def test_overflow_of_eight_bits(name: str, oracle: str) -> None:
    """Without saturation what rounds to the number after the last becomes infinity, in e4m3 NaN, with its sign."""
    number = small(name).unsaturated
    last = number.highest
    step = number.highest - number.values[-2]
    edge = np.float32(last + step / 2)
    x = np.concatenate([points(name), [edge, np.nextafter(edge, np.float32(0)), 1e30, 3e38]]).astype(
        np.float32
    )
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), -x])
    x = x[np.isfinite(x)]
    if oracle == "ml_dtypes":
        expected = x.astype(DTYPES[name])
        patterns = expected.view(np.uint8)
    else:
        cast = torch.from_numpy(x).to(torch.float8_e5m2)
        expected, patterns = cast.float().numpy(), cast.view(torch.uint8).numpy()
    got = number.round(torch.from_numpy(x))
    assert same(got, expected)
    codes = number.encode(torch.from_numpy(x))
    nonzero = got.numpy() != 0
    assert np.array_equal(codes.numpy()[nonzero], patterns[nonzero])
    assert same(number.decode(codes), expected)
    assert bool((~torch.isfinite(got)).any())


@pytest.mark.parametrize("name", SIXTEEN)
def test_overflow_of_sixteen_bits(name: str) -> None:
    number = FORMATS[name]
    assert isinstance(number, FloatFormat)
    edge = np.float32(number.highest + (number.highest - number.values[-2]) / 2)
    tiny = np.float32(torch.finfo(number.dtype).smallest_normal)
    x = np.float32(
        [number.highest, edge, np.nextafter(edge, np.float32(0)), 3.4e38, tiny / 3, tiny * 0.999, 1e-45]
    )
    x = np.concatenate([x, -x])
    with np.errstate(over="ignore"):
        expected = x.astype(SIXTEEN[name])
    assert same(number.unsaturated.snap(torch.from_numpy(x)), expected)
    assert np.array_equal(number.unsaturated.encode(torch.from_numpy(x)).numpy(), expected.view(np.uint16))
    assert np.isinf(expected.astype(np.float32)).sum() >= 4
    kept = number.snap(torch.from_numpy(x)).numpy()
    fine = np.isfinite(expected.astype(np.float32))
    assert np.array_equal(kept[fine], expected.astype(np.float32)[fine])
    assert (np.abs(kept[~fine]) == number.highest).all()


@pytest.mark.parametrize("name", OPEN)
@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=12))
@settings(max_examples=30)
def test_the_two_rules_differ_beyond_the_range_alone(name: str, numbers: list[float]) -> None:
    """Both routes, with a power of two for a scale, under which some values lie beyond."""
    tensor = torch.tensor(numbers)
    fields = {"granularity": "layer", "scale": "pow2"} if name in DTYPES else {}
    kept = fake_quantize(tensor, TensorScheme(name, **fields))
    scheme = TensorScheme(name, overflow="infinity", **fields)
    result = quantize(tensor, scheme)
    values = result.values()
    assert torch.allclose(fake_quantize(tensor, scheme), values, rtol=0, atol=0, equal_nan=True)
    finite = torch.isfinite(values)
    assert torch.equal(values[finite], kept[finite])
    number = FORMATS[name]
    assert isinstance(number, LevelFormat | FloatFormat)
    highest = float(result.scale) * number.highest
    assert bool((kept[~finite].abs() == highest).all()) and bool((tensor[~finite].abs() > highest).all())
    # Half a step beyond the last number still rounds to it: of two bits of mantissa an eighth of 1.75.
    assert not finite.all() or bool((tensor.abs() <= highest * (1.875 / 1.75)).all())
    if math.isnan(OPEN[name]):
        assert bool(values[~finite].isnan().all())
    else:
        assert torch.equal(values[~finite], tensor[~finite].sign() * math.inf)
    assert len(result.pack()) == result.payload_bytes


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in OPEN and name != "fp32"])
def test_overflow_is_refused_where_it_has_no_effect(name: str) -> None:
    with pytest.raises(SchemeError, match=rf"'{name}' has no code for infinity or NaN.*overflow: saturate"):
        TensorScheme(name, "layer", overflow="infinity")
    assert TensorScheme("fp16", overflow="infinity").with_format(name).overflow == "saturate"


def test_rules_of_overflow_are_named_and_explained() -> None:
    assert all(len(text) > 10 for text in OVERFLOWS.values()) and "saturate" in OVERFLOWS
    with pytest.raises(SchemeError, match="Did you mean 'infinity'"):
        TensorScheme("fp16", overflow="infinty")
    schemes = [TensorScheme(name, "layer", overflow=rule) for name in OPEN for rule in OVERFLOWS]
    assert (
        len({scheme.key for scheme in schemes})
        == len({scheme.describe() for scheme in schemes})
        == len(schemes)
    )


def test_a_search_avoids_what_becomes_infinite() -> None:
    """Its squared error is infinite, so the next larger power of two is chosen."""
    for name in ("fp8_e4m3", "fp8_e5m2"):
        tensor = torch.tensor([0.99, 0.2, -0.4, 0.9])
        scheme = TensorScheme(name, "layer", scale="pow2", overflow="infinity")
        assert not torch.isfinite(fake_quantize(tensor, scheme)).all()
        better = TensorScheme(name, "layer", objective="mse", scale="pow2", overflow="infinity")
        assert float((fake_quantize(tensor, better) - tensor).abs().max()) < 0.1


# --- what the studies say -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_infinite_noise_is_a_number_of_its_own(bad: float) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    sums = ErrorSums.of(x, torch.tensor([1.0, 2.0, bad]))
    assert sums.sqnr_db == -math.inf and sums.mse == math.inf and sums.nmse == math.inf
    assert (sums + ErrorSums.of(x, x)).sqnr_db == -math.inf


def test_a_histogram_leaves_infinity_out_and_says_so() -> None:
    x = torch.linspace(-1, 1, 101)
    scheme = TensorScheme("fp16", overflow="infinity")
    after = torch.where(x > 0.5, torch.inf, x)
    found = histogram_of("fc", "weight", scheme, x, after, None)
    assert found.infinite_fraction == pytest.approx(25 / 101)
    assert found.counts.sum() == 101 and found.quantized_counts.sum() == 76
    assert found.sqnr_db == -math.inf and np.isfinite(found.edges).all()
    weights = (x <= 0.5).float()
    found = histogram_of("fc", "weight", scheme, x, after, None, weights)
    assert found.infinite_fraction == 0 and found.sqnr_db == math.inf


@pytest.fixture(scope="module")
def lenet() -> Subject:
    return qx.Session(model="fashion-lenet5", calibration_images=8).subject


@pytest.mark.filterwarnings("error")
def test_a_network_with_infinite_weights_is_answered_or_told(lenet: Subject) -> None:
    """Layers and their own outputs have an SQNR of minus infinity; class scores that are none end in a sentence."""
    session = qx.Session(subject=lenet)
    session.recipe = Recipe.preset("mxfp8").with_layer("conv1", weight={"overflow": "infinity"})
    table = session.layers().set_index("name")["weight_sqnr_db"]
    assert table["conv1"] == -math.inf and table["ip2"] > 20
    assert session.histogram("conv1").infinite_fraction > 0
    alone = session.sensitivity("recipe", method="output", images=40).set_index("layer")["output_sqnr_db"]
    assert alone["conv1"] == -math.inf and alone["ip2"] > 10
    with pytest.raises(TensorError, match=r"infinite or NaN.*overflow: saturate"):
        session.evaluate(images=40)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["instant", "exact", "live"])
@pytest.mark.parametrize(
    ("measure", "value"), [("kl", math.inf), ("loss", math.inf), ("sqnr", -math.inf), ("top1", math.nan)]
)
def test_a_row_that_overflows_leaves_the_others_alone(
    lenet: Subject, method: str, measure: str, value: float
) -> None:
    fine = Recipe.preset("mxfp8")
    session = qx.Session(subject=lenet, recipe=fine)
    expected = session.sensitivity("recipe", measure, method, images=40).set_index("layer")
    session.recipe = fine.with_layer("conv1", weight={"overflow": "infinity"})
    found = session.sensitivity("recipe", measure, method, images=40).set_index("layer")
    assert "infinite or NaN" in found["reason"]["conv1"] and found["complete"].all()
    np.testing.assert_equal(found.loc["conv1", ["value", "low", "high"]].to_numpy(float), [value] * 3)
    others = ["conv2", "ip1", "ip2"]
    assert (found.loc[others, "reason"] == "").all() and (expected["reason"] == "").all()
    assert found.loc[others, "value"].to_list() == expected.loc[others, "value"].to_list()


@pytest.mark.filterwarnings("error")
def test_a_step_to_infinity_is_no_small_step() -> None:
    """In a network of more layers than are run one by one the others keep their estimates."""
    session = qx.Session(model="fashion-resnet20", calibration_images=8, recipe="mxfp8")
    name = session.layer_names[3]
    session.recipe = session.recipe.with_layer(name, weight={"overflow": "infinity"})
    found = session.sensitivity("recipe", method="instant", images=60).set_index("layer")
    assert found["value"][name] == math.inf and found["reason"][name]
    others = found.drop(index=name)
    assert np.isfinite(others["value"]).all() and (others["reason"] == "").all()
