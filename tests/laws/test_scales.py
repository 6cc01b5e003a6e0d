"""Scale rules: OCP MX and NVFP4 by independent references, and what every rule promises."""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from explorer.calibrate import KL, Sample, fit
from explorer.errors import SchemeError
from explorer.formats import CONVENTIONS, FORMATS, SCALES, Grid, IntegerFormat, LevelFormat, granularity, pack
from explorer.graph.fakequant import quantize_activation
from explorer.recipe import PRESETS, TensorScheme
from explorer.tensor import fake_quantize, fit_tensor, quantize
from tests import oracles
from tests.laws.cases import TENSORS

# OCP MX 1.0, table 1: the exponent of the largest normal number of each element format, and that number.
MX = {
    "fp8_e5m2": (15, 57344, ml_dtypes.float8_e5m2),
    "fp8_e4m3": (8, 448, ml_dtypes.float8_e4m3fn),
    "fp6_e3m2": (4, 28, ml_dtypes.float6_e3m2fn),
    "fp6_e2m3": (2, 7.5, ml_dtypes.float6_e2m3fn),
    "fp4_e2m1": (2, 6, ml_dtypes.float4_e2m1fn),
    # Two's complement with an implicit scale of 2**-6: the largest is 1 + 63/64.
    "int8": (0, 127 / 64, None),
}


def mx(block: np.ndarray, name: str) -> tuple[float, np.ndarray]:
    """The scale of a block and its values, by the words of OCP MX 1.0, section 6.3."""
    exponent, largest, dtype = MX[name]
    most = max(abs(float(x)) for x in block)
    power = math.frexp(most)[1] - 1 - exponent if most else 0
    scale = 2.0 ** min(127, max(-127, power))
    unit = np.clip(block.astype(np.float64) / scale, -largest, largest)
    kept = np.rint(unit * 64) / 64 if dtype is None else unit.astype(dtype).astype(np.float64)
    return scale, (kept * scale).astype(np.float32)


def check_mx(rows: np.ndarray, name: str, size: int) -> None:
    result = quantize(torch.from_numpy(rows), TensorScheme(name, f"subchannel:{size}", scale="pow2"))
    values = result.values().numpy()
    for row in range(len(rows)):
        for index, start in enumerate(range(0, rows.shape[1], size)):
            here = slice(start, start + size)
            scale, expected = mx(rows[row, here], name)
            # The integers' implicit scale is part of theirs.
            own = scale / 64 if name == "int8" else scale
            if own >= 2.0**-127 and rows[row, here].any():
                assert result.scale[row, index].item() == own
            assert np.array_equal(values[row, here], expected), (row, index)


@pytest.mark.parametrize("name", MX)
def test_powers_of_two_are_the_scales_of_mx(name: str) -> None:
    """Blocks of many sizes of numbers, the last one of a row shorter, one of zeros, one constant."""
    draw = np.random.default_rng(4)
    rows = draw.normal(size=(12, 75)).astype(np.float32) * np.exp2(draw.integers(-60, 60, (12, 1))).astype(
        "f4"
    )
    rows[3, :32], rows[4, 32:64] = 0, 0.3
    # Just below, at and just above the powers where saturation begins.
    rows[5, :6] = [7.9, 7.999, 8.0, 6.0, 6.99, 7.0]
    for size in (16, 32):
        check_mx(rows, name, size)


@pytest.mark.parametrize("name", MX)
@given(
    rows=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 9)),
        elements=st.floats(width=32, min_value=-(2.0**120), max_value=2.0**120),
    ),
    size=st.integers(1, 5),
)
@settings(max_examples=40)
def test_any_block_of_mx(name: str, rows: np.ndarray, size: int) -> None:
    if name == "int8" and bool((np.abs(rows[rows != 0]) < 2.0**-118).any()):
        return  # The implicit scale of 2**-6 has no room below 2**-127 here.
    check_mx(rows, name, size)


def test_exponents_of_mx_are_stored_as_e8m0() -> None:
    """The same numbers in torch's dtype for them; the ends of the range, which is 2**-127 to 2**127."""
    rows = torch.tensor([[2.0**127, 0, 0], [1e-44, 0, 0], [6.0, 1, -0.2], [0, 0, 0], [2.0**-125, 0, 0]])
    result = quantize(rows, TensorScheme("fp4_e2m1", "channel", scale="pow2"))
    stored = result.scale_codes.to(torch.uint8)
    assert torch.equal(stored.view(torch.float8_e8m0fnu).float(), result.scale)
    assert stored.tolist() == [252, 0, 127, 127, 0]


def test_the_data_of_mxint8_may_be_of_one_sign() -> None:
    """Its codes stay signed, as the specification's are; unsigned ones are uint8's."""
    tensor = TENSORS["positive"]
    result = quantize(tensor, TensorScheme("int8", "subchannel:32", scale="pow2"))
    assert (result.qmin, result.qmax) == (-127, 127)
    assert quantize(tensor, TensorScheme("uint8", "layer", scale="pow2")).qmax == 255


def test_asymmetric_powers_of_two_clip_nothing() -> None:
    for name in ("uint4", "int8"):
        for kind in ("normal", "heavy", "off-centre"):
            free = quantize(TENSORS[kind], TensorScheme(name, "layer", symmetric=False)).scale
            power = quantize(TENSORS[kind], TensorScheme(name, "layer", symmetric=False, scale="pow2")).scale
            assert torch.frexp(power)[0] == 0.5 and 1 <= power / free < 2


def squared_error(
    rows: torch.Tensor, scale: torch.Tensor, number: LevelFormat | IntegerFormat
) -> torch.Tensor:
    """Of each row (groups, elements) for its scale (groups,), in float64."""
    unit = (rows / scale[:, None]).double().numpy()
    listed = isinstance(number, LevelFormat)
    levels = number.values if listed else np.arange(-number.highest, number.highest + 1)
    kept = levels[np.abs(unit[..., None] - levels).argmin(-1)]
    return ((torch.from_numpy(kept) * scale[:, None].double() - rows.double()) ** 2).sum(1)


@pytest.mark.parametrize("name", ["fp4_e2m1", "fp6_e2m3", "fp8_e4m3", "int4", "log4", "nf4"])
def test_the_power_of_least_error_is_found(name: str) -> None:
    """Among all near the one of the whole range, also the next larger, under which nothing is clipped."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(40, 32, generator=draw) * torch.exp(3 * torch.randn(40, 1, generator=draw))
    rows[:6] *= torch.linspace(1, 6, 32)
    number = FORMATS[name]
    assert isinstance(number, LevelFormat | IntegerFormat)
    plain = fit_tensor(rows, TensorScheme(name, "channel", scale="pow2"), 0).scale
    found = fit_tensor(rows, TensorScheme(name, "channel", scale="pow2", objective="mse"), 0).scale
    errors = torch.stack([squared_error(rows, plain * 2.0**k, number) for k in range(-5, 3)])
    best = errors.min(0).values
    assert bool((squared_error(rows, found, number) <= best * (1 + 1e-5)).all())
    if name in ("fp4_e2m1", "int4"):
        assert len((found / plain).unique()) > 1


def test_the_power_of_least_divergence_is_found() -> None:
    tensor = TENSORS["heavy"].reshape(-1)
    scheme = TensorScheme("int4", "layer", scale="pow2", objective="kl")
    sample = Sample.of(tensor, granularity("layer"), 0)
    goal, absmax = KL(bins=128), float(tensor.abs().max())
    least, plain = goal.least(128), fit(sample, scheme.grid, goal)
    costs = [
        oracles.kl(tensor.tolist(), [1.0] * len(tensor), absmax, 2.0**k, 0, -7, 7, 128, least)
        for k in range(-4, 6)
    ]
    assert float(plain.scale) == 2.0 ** (int(np.argmin(costs)) - 4)


# --- NVFP4 ----------------------------------------------------------------------------------------------------


def nvfp4(rows: np.ndarray, size: int = 16) -> tuple[np.ndarray, np.ndarray, np.float32, np.ndarray]:
    """Values, e4m3 scales, the tensor's scale, and which e4m3 scales are near enough to a tie to fall either way."""
    shared = np.float32(np.abs(rows).max() / np.float32(6 * 448))
    values, scales = np.empty_like(rows), []
    near = []
    for row, kept in zip(rows, values, strict=True):
        for start in range(0, len(row), size):
            block = row[start : start + size]
            exact = float(np.abs(block).max()) / 6 / float(shared)
            scale = np.float32(np.float32(min(exact, 448)).astype(ml_dtypes.float8_e4m3fn))
            scale = np.float32(1) if exact == 0 else max(scale, np.float32(2.0**-9))
            beside = [np.float32(exact * (1 + d)).astype(ml_dtypes.float8_e4m3fn) for d in (-1e-6, 1e-6)]
            near.append(beside[0] != beside[1])
            scales.append(scale)
            full = np.float32(scale * shared)
            unit = np.clip(block / full, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
            kept[start : start + size] = unit * full
    return values, np.array(scales), shared, np.array(near)


@pytest.mark.parametrize("kind", ["normal", "wide", "with zeros", "one sign"])
def test_nvfp4(kind: str) -> None:
    draw = np.random.default_rng(8)
    rows = draw.normal(size=(6, 70)).astype(np.float32)
    if kind == "wide":
        rows *= np.exp2(draw.integers(-20, 5, (6, 1))).astype(np.float32)
    if kind == "with zeros":
        rows[1], rows[2, 16:32] = 0, 0
    if kind == "one sign":
        rows = np.abs(rows)
    values, scales, shared, near = nvfp4(rows)
    result = quantize(torch.from_numpy(rows), PRESETS["nvfp4"].recipe.default.weight)
    assert result.tensor_scale is not None and result.tensor_scale.item() == shared
    stored = result.scale_codes.to(torch.uint8).view(torch.float8_e4m3fn).float().reshape(-1).numpy()
    assert np.array_equal(stored[~near], scales[~near]) and near.mean() < 0.1
    assert np.array_equal(result.scale.reshape(-1).numpy(), stored * shared)
    width = -(-rows.shape[1] // 16)
    for index in np.flatnonzero(~near):
        row, start = index // width, index % width * 16
        assert np.array_equal(
            result.values().numpy()[row, start : start + 16], values[row, start : start + 16]
        )


def test_a_block_far_below_the_others_keeps_a_scale() -> None:
    """Where its e4m3 number would be zero it is the smallest there is, and its values are those nearest."""
    rows = torch.tensor([[448 * 6.0, 0, 0, 0], [0.01, 0.004, -0.002, 0.0]])
    result = quantize(rows, TensorScheme("fp4_e2m1", "channel", scale="fp8"))
    assert result.scale.tolist() == [448.0, 2.0**-9]
    assert result.codes[1].tolist() == [7, 4, 10, 0]  # 5.12, 2.05, -1.02 and 0 steps


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30, 3e38])
def test_small_scales_of_any_tensor_are_numbers(scale: float) -> None:
    rows = torch.tensor([[1.0, -0.5], [1e-4, 1e-5], [0, 0]]) * scale
    result = quantize(rows, TensorScheme("fp4_e2m1", "channel", scale="fp8"))
    assert bool(torch.isfinite(result.values()).all()) and bool((result.scale >= oracles.FLOAT_TINY).all())
    if scale > 1e-31:
        assert float((result.values()[0] - rows[0]).abs().max()) <= 0.04 * scale


@pytest.mark.parametrize("name", ["int8", "fp8_e4m3", "nf4", "log4", "fp4_e2m1"])
def test_small_scales_of_other_formats(name: str) -> None:
    """The largest level takes the place of 6; the widest group's number is 448."""
    rows = TENSORS["normal"]
    result = quantize(rows, TensorScheme(name, "channel", scale="fp8"))
    number = FORMATS[name]
    highest = 127 if isinstance(number, IntegerFormat) else number.highest
    assert result.tensor_scale is not None
    assert result.tensor_scale.item() == pytest.approx(float(rows.abs().max()) / highest / 448, rel=1e-6)
    free = quantize(rows, TensorScheme(name, "channel")).scale
    assert float((result.scale / free - 1).abs().max()) <= 1 / 16 + 1e-6


def test_small_scales_of_least_error() -> None:
    """No scale of the same tensor does better for any group."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(30, 16, generator=draw) * torch.exp(torch.randn(30, 1, generator=draw))
    number = FORMATS["fp4_e2m1"]
    assert isinstance(number, LevelFormat)
    result = quantize(rows, TensorScheme("fp4_e2m1", "channel", scale="fp8", objective="mse"))
    assert result.tensor_scale is not None
    every = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float() * result.tensor_scale
    errors = torch.stack([squared_error(rows, scale.expand(30), number) for scale in every])
    assert bool((squared_error(rows, result.scale, number) <= errors.min(0).values * (1 + 1e-5)).all())


@pytest.mark.parametrize("goal", ["mse", "kl", "percentile:99.9", "minmax"])
def test_what_scales_share_does_not_depend_on_pieces(goal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = TensorScheme("fp4_e2m1", "subchannel:5", scale="fp8", objective=goal)
    whole = quantize(TENSORS["far-apart"], scheme)
    monkeypatch.setattr("explorer.calibrate.search._CHUNK", 1)
    turns = quantize(TENSORS["far-apart"], scheme)
    assert torch.equal(whole.scale, turns.scale) and torch.equal(whole.codes, turns.codes)
    assert torch.equal(whole.tensor_scale, turns.tensor_scale)  # type: ignore[arg-type]


# --- activations, presets, sizes ------------------------------------------------------------------------------

BLOCKS = ["mxfp8", "mxfp6", "mxfp4", "mxint8", "nvfp4"]


@pytest.mark.parametrize("preset", BLOCKS)
@pytest.mark.parametrize("shape", [(5, 70), (4, 9, 40), (3, 35, 4, 4)], ids=str)
def test_blocks_of_activations_lie_along_the_channels(preset: str, shape: tuple[int, ...]) -> None:
    """Each example by itself, each position cut along the channels; what others in the batch hold does not matter."""
    scheme = PRESETS[preset].recipe.default.input
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values *= torch.exp2(torch.arange(len(values)).float() * 3).reshape(-1, *[1] * (len(shape) - 1))
    channel = 1 if len(shape) == 4 else -1
    got = quantize_activation(values, scheme, None, channel)
    fixed = replace(scheme, mode="static")
    for index, example in enumerate(values):
        positions = example.movedim(channel if channel < 0 else 0, -1).reshape(-1, shape[channel])
        expected = fake_quantize(positions, fixed)
        mine = got[index].movedim(channel if channel < 0 else 0, -1).reshape(-1, shape[channel])
        assert torch.equal(mine, expected)
        alone = quantize_activation(values[index : index + 1], scheme, None, channel)
        assert torch.equal(alone[0], got[index])


@pytest.mark.parametrize(
    ("preset", "bits"), [("mxfp8", 8.25), ("mxfp6", 6.25), ("mxfp4", 4.25), ("mxint8", 8.25)]
)
def test_bits_of_mx(preset: str, bits: float) -> None:
    """A quarter of a bit each for an exponent of 8 bits in blocks of 32."""
    result = quantize(torch.randn(8, 64), PRESETS[preset].recipe.default.weight)
    assert 8 * (result.payload_bytes + result.metadata_bytes) / 512 == bits


def test_bits_of_nvfp4() -> None:
    result = quantize(torch.randn(8, 64), PRESETS["nvfp4"].recipe.default.weight)
    assert 8 * (result.payload_bytes + result.metadata_bytes) == 512 * 4.5 + 32


@pytest.mark.parametrize("rule", SCALES)
def test_scales_come_back_from_what_is_stored(rule: str) -> None:
    result = quantize(TENSORS["far-apart"], TensorScheme("fp4_e2m1", "subchannel:4", scale=rule))
    stored = np.frombuffer(pack(result.scale_codes.numpy(), SCALES[rule].bits), np.uint8)
    dtype = {"float": np.float32, "pow2": ml_dtypes.float8_e8m0fnu, "fp8": ml_dtypes.float8_e4m3fn}[rule]
    scale = stored.view(dtype).astype(np.float32).reshape(result.scale.shape)
    if result.tensor_scale is not None:
        scale = scale * result.tensor_scale.numpy()
    assert np.array_equal(scale, result.scale.numpy())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"granularity": "layer"}, "one scale only; use granularity: subchannel:16"),
        ({"format": "uint8", "symmetric": False}, "without a zero point; set symmetric: true"),
    ],
)
def test_small_scales_are_refused_where_they_make_no_sense(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        TensorScheme(scale="fp8", **fields)  # type: ignore[arg-type]


def test_the_extent_may_be_given_for_each_group() -> None:
    grid = Grid(FORMATS["fp4_e2m1"], scale=SCALES["fp8"], widest=torch.tensor([6.0, 2688.0]))  # type: ignore[arg-type]
    params = grid.params(torch.tensor([-6.0, -6.0]), torch.tensor([1.0, 1.0]))
    assert params.scale.tolist() == pytest.approx([1.0, 1.0]) and params.shared is not None
    assert params.shared.tolist() == pytest.approx([1 / 448, 1.0])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["int2", "uint3", "int8", "uint16"])
def test_small_scales_of_the_largest_numbers(name: str, convention: str) -> None:
    """Full code ranges end further out on one side than the largest magnitude; that level is a number too."""
    most = torch.finfo(torch.float32).max
    tensor = torch.tensor([[most, -most], [-1.0, most / 3]])
    found = quantize(tensor, TensorScheme(name, "channel", convention=convention, scale="fp8"))
    ends = [found.scale * (code - found.zero_point) for code in (found.qmin, found.qmax)]
    assert all(end.isfinite().all() for end in [found.values(), *ends])
    kept = found.scale_codes.numpy().astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    kept = kept * found.tensor_scale.numpy()
    assert np.array_equal(kept, found.scale.numpy())
    if name == "int8":
        assert (found.values()[0] / tensor[0]).min() > 0.85
