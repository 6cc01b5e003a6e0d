"""Laws that every number format obeys under every scheme: what quantizing a tensor may and may not do to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from explorer.calibrate import GrowingHistogram, fit
from explorer.errors import SchemeError, TensorError
from explorer.formats import (
    CONVENTIONS,
    FORMATS,
    GRANULARITIES,
    MOST_VALUES,
    SCALES,
    CodebookFormat,
    FloatFormat,
    IntegerFormat,
    LevelFormat,
    check_finite,
    format_named,
)
from explorer.recipe import TensorScheme
from explorer.tensor import apply, fake_quantize, fit_tensor, quantize
from tests import oracles, strategies
from tests.laws.cases import TENSORS, faked, fitted, quantized
from tests.strategies import AXES, CODEBOOKS, FLOATING, INTEGERS, LEVELS, SCHEMES, TENSOR_KINDS, label

by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=label)


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns of float32 numbers, so that -0.0 and 0.0 differ."""
    return tensor.contiguous().view(torch.int32)


def has_zero(scheme: TensorScheme) -> bool:
    """Whether zero is a level of every group: not of fitted levels, but for those that hold it by design."""
    number = scheme.number
    return not isinstance(number, CodebookFormat) or 0.0 in number.shape


def matrices(scheme: TensorScheme, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as (groups, elements)."""
    return tuple(scheme.grain.matrix(tensor, 0)[0] for tensor in tensors)


def test_every_two_table_entries_meet_in_a_scheme() -> None:
    """The sample of schemes that the laws run over leaves out no entry, and no pair that goes together."""
    for axis, values in AXES.items():
        assert {getattr(scheme, axis) for scheme in SCHEMES} == set(values)
    pairs = {(scheme.format, scheme.granularity) for scheme in SCHEMES}
    assert pairs == {(f, g) for f in AXES["format"] for g in AXES["granularity"]}
    pairs = {(scheme.convention, scheme.objective) for scheme in SCHEMES}
    assert pairs == {(c, o) for c in AXES["convention"] for o in AXES["objective"]}


@pytest.mark.parametrize("table", [FORMATS, GRANULARITIES, CONVENTIONS, SCALES], ids=str)
def test_every_entry_is_named_and_explained(table: dict[str, object]) -> None:
    for key, entry in table.items():
        assert getattr(entry, "name", key) == key
        assert len(getattr(entry, "help", "")) > 10


@by_scheme
def test_quantizing(scheme: TensorScheme) -> None:
    """Codes in range, values by the formula, both routes bit-equal, zero exact, and a second time changes nothing."""
    for name, tensor in TENSORS.items():
        result, params = quantized(scheme, name), fitted(scheme, name)
        values = result.values()
        assert values.dtype == torch.float32 and values.shape == tensor.shape, name
        assert bool(torch.isfinite(values).all()), name
        assert torch.equal(bits(faked(scheme, name)), bits(values)), name
        assert result.qmin <= int(result.codes.min()) and int(result.codes.max()) <= result.qmax, name
        assert result.scale.shape == result.zero_point.shape, name
        assert bool((result.scale > 0).all()) and bool(torch.isfinite(result.scale).all()), name
        assert not has_zero(scheme) or bool((values[tensor == 0] == 0).all()), name
        again = apply(values, scheme, params, 0)
        assert torch.equal(bits(again), bits(values)), f"{name}: a second time changes something"
        if params is not None:
            # Zero is a level of every group, even where the tensor holds no zero.
            assert bool(((params.zero_point >= params.qmin) & (params.zero_point <= params.qmax)).all()), name
            assert not has_zero(scheme) or not bool(
                apply(torch.zeros_like(tensor), scheme, params, 0).any()
            ), name


@pytest.mark.parametrize("scheme", SCHEMES[::3], ids=label)
def test_both_routes_from_the_tensor_are_equal(scheme: TensorScheme) -> None:
    for name in ("normal", "far-apart", "constant-rows"):
        tensor = TENSORS[name]
        assert torch.equal(bits(fake_quantize(tensor, scheme)), bits(quantize(tensor, scheme).values())), name


@by_scheme
def test_order_is_kept(scheme: TensorScheme) -> None:
    for name, tensor in TENSORS.items():
        rows, result = matrices(scheme, tensor, faked(scheme, name))
        if not scheme.scaled:
            rows, result = rows.reshape(1, -1), result.reshape(1, -1)
        _, order = rows.sort(1)
        assert bool((result.gather(1, order).diff(dim=1) >= 0).all()), name


@by_scheme
def test_error_is_at_most_half_a_step(scheme: TensorScheme) -> None:
    """Inside the clipping range half a step; outside, what is clipped becomes the border."""
    for name, tensor in TENSORS.items():
        params = fitted(scheme, name)
        rows, result = (m.double() for m in matrices(scheme, tensor, faked(scheme, name)))
        if params is None:
            number = FORMATS[scheme.format]
            assert isinstance(number, FloatFormat)
            # Half a unit in the last place, of normal numbers and of the smallest ones.
            finfo = torch.finfo(number.dtype)
            inside = rows.abs() <= number.highest
            slack = finfo.eps / 2 * rows.abs() + finfo.smallest_normal * finfo.eps / 2
            assert bool(((result - rows).abs() <= slack)[inside].all()), name
            assert bool((result.abs() == number.highest)[~inside].all()), name
            continue
        low, high = (border.double()[:, None] for border in params.clip)
        scale = params.scale.double()[:, None]
        inside = (rows >= low) & (rows <= high)
        # Quotient, reciprocal and product round once each: three units in the last place of the number.
        slack = 3 * torch.finfo(torch.float32).eps * rows.abs() + 1e-44
        error = (result - rows).abs()
        half = scale / 2
        if params.levels is not None:
            # No level is nearer than the one that was taken.
            levels = torch.from_numpy(params.levels.values) * scale[..., None]
            half = (rows[..., None] - levels).abs().amin(2)
        if params.book is not None:
            half = (rows[..., None] - params.book.levels.double()[:, None]).abs().amin(2)
        assert bool((error <= half + slack)[inside].all()), name
        border = torch.where(rows < low, low, high)
        assert bool((result == border)[~inside].all()), name


@pytest.mark.parametrize("name", [name for name in FLOATING if name != "fp32"])
def test_floating_formats_take_the_nearest_value(name: str) -> None:
    number = FORMATS[name]
    assert isinstance(number, FloatFormat)
    for kind, tensor in TENSORS.items():
        exact = tensor.double().clamp(-number.highest, number.highest).reshape(-1).numpy()
        place = np.searchsorted(number.values, exact)
        around = number.values[np.clip(place[:, None] + np.arange(-2, 3), 0, len(number.values) - 1)]
        error = np.abs(fake_quantize(tensor, name).double().reshape(-1).numpy() - exact)
        assert np.array_equal(error, oracles.distance(exact, around)), kind


@pytest.mark.parametrize("name", FLOATING)
@given(data=st.data())
@settings(max_examples=40)
def test_floating_formats_agree_with_numpy_and_torch(name: str, data: st.DataObject) -> None:
    number = FORMATS[name]
    assert isinstance(number, FloatFormat)
    tensor = data.draw(strategies.tensors(bound=6e4))
    result = fake_quantize(tensor, name)
    expected = tensor.to(number.dtype).float()
    assert torch.equal(bits(result), bits(expected))
    if number.dtype == torch.float16:
        assert np.array_equal(result.numpy(), tensor.numpy().astype(np.float16).astype(np.float32))
    codes = quantize(tensor, name).codes
    assert int(codes.min()) >= 0 and int(codes.max()) < 1 << number.bits


@pytest.mark.parametrize(("name", "largest"), [("fp16", 65504.0), ("bf16", 3.3895313892515355e38)])
def test_floating_formats_saturate(name: str, largest: float) -> None:
    top = torch.tensor([3.4e38, -3.4e38])
    assert fake_quantize(top, name).tolist() == [largest, -largest]
    assert float(FORMATS[name].values[-1]) == largest


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("fp32", *CODEBOOKS)])
def test_every_listed_value_is_representable(name: str) -> None:
    """The list is sorted, without repeats, as long as the bits allow, and survives encoding."""
    number = FORMATS[name]
    values = number.values
    assert values.dtype == np.float64 and values.ndim == 1
    assert bool((np.diff(values) > 0).all()) and 0.0 in values
    assert 2 <= len(values) <= min(1 << number.bits, MOST_VALUES)
    tensor = torch.from_numpy(values.astype(np.float32))
    assert np.array_equal(tensor.double().numpy(), values)
    if isinstance(number, LevelFormat):
        scheme = TensorScheme(name, "layer")
        assert quantize(tensor, scheme).scale.item() == 1
        assert quantize(tensor, scheme).codes.tolist() == list(number.codes)
    elif number.scaled:
        # The whole list with asymmetric codes has scale 1 and gives itself back.
        scheme = TensorScheme(name, "layer", symmetric=False)
        assert quantize(tensor, scheme).scale.item() == 1
        assert torch.equal(quantize(tensor, scheme).codes.double(), tensor.double())
    else:
        scheme = TensorScheme(name)
    assert torch.equal(fake_quantize(tensor, scheme), tensor)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)]
)
def test_fp8_is_the_one_that_torch_has(name: str, dtype: torch.dtype) -> None:
    """All 256 codes, and values around every level and every middle between two."""
    number = FORMATS[name]
    assert isinstance(number, LevelFormat)
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    known = every[torch.isfinite(every)].unique()
    assert torch.equal(known, torch.tensor(number.levels))
    near = torch.cat([known, (known[1:] + known[:-1]) / 2])
    near = torch.cat([near, near.nextafter(torch.tensor(1e9)), near.nextafter(torch.tensor(-1e9))])
    near = near.clamp(-number.highest, number.highest)
    expected = near.to(dtype)
    assert torch.equal(number.round(near), expected.float())
    assert torch.equal(number.decode(number.encode(near)), expected.float())
    codes = expected.view(torch.uint8).int()
    assert torch.equal(number.encode(near)[expected.float() != 0], codes[expected.float() != 0])
    assert number.round(torch.tensor([1e30, -1e30])).tolist() == [number.highest, number.lowest]


@pytest.mark.parametrize(
    ("name", "positive"),
    [
        ("fp4_e2m1", [0.5, 1, 1.5, 2, 3, 4, 6]),  # OCP MX 1.0, table 5
        ("fp6_e2m3", [k / 8 for k in range(1, 16)] + [2 + k / 4 for k in range(8)] + [4 + k / 2 for k in range(8)]),
        ("fp6_e3m2", [k / 16 for k in range(1, 8)]
            + [2.0**e * (1 + k / 4) for e in range(-1, 5) for k in range(4)]),
        ("log3", [0.25, 0.5, 1]),
        ("log4", [2.0**k for k in range(-6, 1)]),
        ("apot3", [0.25, 0.5, 1]),  # with so few bits a power of two
        ("apot4", [0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1]),  # {0, 8, 4, 1} + {0, 2} over 10
    ],
)  # fmt: skip
def test_published_levels(name: str, positive: list[float]) -> None:
    values = FORMATS[name].values
    expected = sorted(
        {0.0, *(float(np.float32(v)) for v in positive), *(-float(np.float32(v)) for v in positive)}
    )
    assert values.tolist() == expected


def test_normal_float_is_made_of_quantiles() -> None:
    """NF4 as its paper derives it: eight quantiles above zero, seven below, each half scaled to end at one."""
    offset = 0.9677083  # mean of 1 - 1/32 and 1 - 1/30
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, [0.0], below])) / above.max()
    assert np.abs(FORMATS["nf4"].values - expected).max() < 1e-6


@pytest.mark.parametrize("name", LEVELS)
def test_encoding_is_the_nearest_level_by_search(name: str) -> None:
    """Brute force in float64, ties to the even code; zero, the ends and both infinities' neighbours included."""
    number = FORMATS[name]
    assert isinstance(number, LevelFormat)
    levels = number.values
    middle = (levels[1:] + levels[:-1]) / 2
    points = np.concatenate([levels, middle, np.random.default_rng(0).normal(0, number.highest / 2, 400)])
    x = torch.from_numpy(points.astype(np.float32))
    distance = np.abs(x.double().numpy()[:, None] - levels)
    nearest = distance == distance.min(1, keepdims=True)
    even = np.array(number.codes) % 2 == 0
    chosen = np.where(nearest.sum(1) > 1, (nearest & even).argmax(1), nearest.argmax(1))
    assert number.index(x).tolist() == chosen.tolist()
    assert torch.equal(number.round(x), torch.tensor(levels[chosen], dtype=torch.float32))
    assert number.decode(number.encode(x)).tolist() == levels[chosen].tolist()


@pytest.mark.parametrize("name", LEVELS)
def test_levels_have_no_zero_point(name: str) -> None:
    with pytest.raises(SchemeError, match=r"no zero point.*symmetric: true"):
        TensorScheme(name, symmetric=False)
    with pytest.raises(SchemeError, match="integer formats only"):
        TensorScheme(name, convention="torch")
    with pytest.raises(SchemeError, match="integer formats only"):
        TensorScheme(name, narrow=True)


def test_fp32_has_too_many_values_to_list() -> None:
    with pytest.raises(SchemeError, match="4 billion"):
        _ = FORMATS["fp32"].values


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_formats_have_the_range_of_their_bits(name: str) -> None:
    number = FORMATS[name]
    assert isinstance(number, IntegerFormat)
    width = int(name.removeprefix("u").removeprefix("int"))
    low = 0 if name.startswith("u") else -(2 ** (width - 1))
    assert (number.bits, number.lowest, number.highest) == (width, low, low + 2**width - 1)


@by_scheme
def test_constant_groups_are_exact(scheme: TensorScheme) -> None:
    """All values equal: reproduced exactly, with a positive scale that is a number."""
    for value in (0.0, 0.75, -3.0, 1e-30, -2e30, 1e-41):
        tensor = torch.full((3, 4), value)
        result = quantize(tensor, scheme)
        error = (result.values() - tensor).abs()
        assert bool((result.scale > 0).all()) and bool(torch.isfinite(result.scale).all()), value
        if not scheme.scaled:
            number = FORMATS[scheme.format]
            assert isinstance(number, FloatFormat) and torch.equal(result.values(), number.snap(tensor)), (
                value
            )
        elif abs(value) < oracles.FLOAT_TINY and (scheme.convention == "torch" or scheme.scale != "float"):
            # A scale so small has no reciprocal, or is none that the rule allows: the number becomes zero.
            assert float(error.max()) <= oracles.FLOAT_TINY
        elif value == 0 or scheme.scale == "float":
            assert not bool(error.any()), value
        else:
            # Only some scales are allowed: off by half a step of this range at most.  Objectives other than
            # minmax may see a constant group as any other and clip it.
            sides = result.qmax - int(result.zero_point.min()), int(result.zero_point.max()) - result.qmin
            steps, half = min(side for side in sides if side), 0.501
            number = FORMATS[scheme.format]
            if isinstance(number, LevelFormat):
                steps, half = number.highest, float(np.diff(number.values).max()) * 0.501
            wanted = abs(value) / steps
            floors = max(
                float(CONVENTIONS[scheme.convention].floor), CONVENTIONS[scheme.convention].least_range
            )
            if floors < abs(value) and not CONVENTIONS[scheme.convention].group_floor[1] > abs(value):
                # A power of two is less than twice too large, or less than twice too small where it saturates.
                assert float(result.scale.max()) < 2 * wanted * 1.0001, value
            saturated = max(0.0, abs(value) - float(result.scale.max()) * steps)
            assert float(error.max()) <= float(result.scale.max()) * half + saturated, value


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.scaled and s.scale == "float"], ids=label)
def test_constant_rows_among_others_are_exact(scheme: TensorScheme) -> None:
    tensor = TENSORS["constant-rows"]
    rows, result = matrices(scheme, tensor, faked(scheme, "constant-rows"))
    constant = rows.min(1).values == rows.max(1).values
    assert bool(constant.any()) == (scheme.granularity in ("channel", "subchannel:2"))
    assert torch.equal(result[constant], rows[constant])


@pytest.mark.parametrize("kind", TENSOR_KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_numbers_that_are_none_are_refused(kind: str, bad: float) -> None:
    """The sentence names the tensor and says how many."""
    tensor = TENSORS[kind].clone().reshape(-1)
    tensor[-1] = bad
    counts = "1 NaN and 0 infinite" if bad != bad else "0 NaN and 1 infinite"
    for call in (quantize, fake_quantize):
        with pytest.raises(
            TensorError, match=f"weight of 'fc' holds {counts} values among {tensor.numel()};"
        ):
            call(tensor, "int8", name="weight of 'fc'")


def test_numbers_that_are_none_are_counted() -> None:
    tensor = torch.ones(40, 50)
    tensor[0, :3], tensor[1, :2], tensor[2, 0] = float("nan"), float("inf"), float("-inf")
    with pytest.raises(TensorError, match=r"holds 3 NaN and 3 infinite values among 2,000;"):
        check_finite(tensor, "weight")
    check_finite(torch.full((4,), 3e38), "sum beyond the largest float")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["int2", "uint2", "int8", "uint16"])
def test_the_largest_floats_are_quantized(name: str, convention: str, symmetric: bool) -> None:
    """The range is wider than the largest float; its ends are not, not even moved by half a step of two bits."""
    tensor = torch.tensor([-2.5e38, 1e38, 0.0, 2.5e38])
    result = quantize(tensor, TensorScheme(name, "layer", symmetric, convention=convention))
    assert bool(torch.isfinite(result.scale).all())
    error = (result.values().double() - tensor.double()).abs().max()
    # At most one step: NNCF moves a border, others shift the range by up to half a step.
    assert float(error) <= float(result.scale) * 1.0001


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (torch.zeros(0, 3), r"The tensor has no elements \(shape \(0, 3\)\)"),
        (torch.arange(4), "The tensor holds torch.int64; only real"),
        (torch.zeros(3, dtype=torch.complex64), "only real"),
    ],
    ids=["empty", "integer", "complex"],
)
def test_tensors_that_do_not_fit_are_refused(given_: Tensor, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        quantize(given_, "int8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_taken_as_float32(dtype: torch.dtype) -> None:
    tensor = TENSORS["normal"].to(dtype)
    assert torch.equal(fake_quantize(tensor, "int8"), fake_quantize(tensor.float(), "int8"))


def test_the_given_tensor_stays_as_it_is() -> None:
    tensor = TENSORS["heavy"].clone().requires_grad_()
    before = tensor.detach().clone()
    for scheme in SCHEMES[::5]:
        assert not fake_quantize(tensor, scheme).requires_grad
        assert torch.equal(tensor, before)


def test_schemes_are_taken_in_three_forms() -> None:
    scheme = TensorScheme("int4", "layer")
    expected = quantize(TENSORS["normal"], scheme)
    fields = {"format": "int4", "granularity": "layer"}
    assert torch.equal(quantize(TENSORS["normal"], fields).codes, expected.codes)
    assert quantize(TENSORS["normal"], "int4").scheme == TensorScheme("int4")
    with pytest.raises(SchemeError, match="no field 'bits'"):
        quantize(TENSORS["normal"], {"bits": 4})
    with pytest.raises(SchemeError, match="not 4"):
        quantize(TENSORS["normal"], 4)  # type: ignore[arg-type]


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(SchemeError, match=r"There is no format 'int88'; .* Did you mean 'int8'\?"):
        format_named("int88")


@given(tensor=strategies.tensors(), scheme=strategies.lone_schemes())
@settings(max_examples=80)
def test_any_tensor_under_any_scheme(tensor: Tensor, scheme: TensorScheme) -> None:
    result = quantize(tensor, scheme)
    # Two NaN may differ in their bits.
    values = result.values().nan_to_num(nan=1e30, posinf=torch.inf, neginf=-torch.inf)
    again = fake_quantize(tensor, scheme).nan_to_num(nan=1e30, posinf=torch.inf, neginf=-torch.inf)
    assert torch.equal(bits(again), bits(values))
    assert bool(torch.isfinite(result.values()).all()) or scheme.overflow == "infinity"
    assert result.qmin <= int(result.codes.min()) and int(result.codes.max()) <= result.qmax
    assert not has_zero(scheme) or bool((values[tensor == 0] == 0).all())
    assert result.payload_bytes == len(result.pack())
    params = fit_tensor(tensor, scheme, 0) if scheme.scaled else None
    twice = apply(result.values(), scheme, params, 0)
    assert torch.allclose(twice, result.values(), rtol=0, atol=0, equal_nan=True)


# --- fake quantization in pieces ----------------------------------------------------------------------------


@pytest.mark.parametrize("grain", ["layer", "channel", "group:2", "subchannel:3"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(9, 4), (4, 5, 3, 3), (1, 6, 5), (3, 4, 7, 7)], ids=str)
def test_pieces_join_to_the_whole(
    shape: tuple[int, ...], axis: int, symmetric: bool, grain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few elements go through the passes at a time, in any order of axes, codes say the same."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scheme = TensorScheme("int4", grain, symmetric, objective="percentile:90")
    for values in (tensor, tensor.transpose(0, 1)):
        exact = quantize(values, scheme, axis).values()
        for piece in (1, 7, 40):
            monkeypatch.setattr("explorer.formats.uniform.PIECE", piece)
            assert torch.equal(bits(fake_quantize(values, scheme, axis)), bits(exact)), piece


def test_the_largest_numbers_have_a_power_of_two_for_a_scale() -> None:
    """The next power of two above 2**127 is no float32 number."""
    for name in ("int2", "uint2"):
        params = fit_tensor(
            torch.tensor([3e38, -2e38, 0.0]), TensorScheme(name, "layer", scale="pow2", narrow=True), 0
        )
        assert params.scale.item() == 2.0**127
    result = quantize(torch.tensor([3e38, -2e38, 0.0]), TensorScheme("int2", "layer", scale="pow2"))
    assert result.values().tolist() == [2.0**127, -(2.0**127), 0.0]


@pytest.mark.parametrize("name", LEVELS)
def test_searched_ranges_of_levels_are_no_worse_than_any_candidate(name: str) -> None:
    """Brute force over a hundred ranges, for a tensor and for its histogram; KL gives a range that is one."""
    tensor = TENSORS["heavy"]

    def error(scale: torch.Tensor) -> float:
        number = FORMATS[name]
        assert isinstance(number, LevelFormat)
        return float((number.round(tensor / scale) * scale - tensor).double().square().sum())

    found = quantize(tensor, TensorScheme(name, "layer", objective="mse")).scale
    full = quantize(tensor, TensorScheme(name, "layer")).scale
    best = min(error(full * share / 100) for share in range(1, 101))
    assert error(found) <= best * (1 + 1e-5)
    tally = GrowingHistogram(1)
    tally.add(tensor.reshape(1, -1))
    scheme = TensorScheme(name, "layer", objective="mse")
    assert error(fit(tally.sample(), scheme.grid, scheme.goal).scale) <= best * 1.01 + 1e-9
    divergent = quantize(tensor, TensorScheme(name, "layer", objective="kl")).scale
    assert 0 < float(divergent) <= float(full) * (1 + 1e-6)
