"""Loops that are compiled: the same numbers as in Python, as with NumPy, and as in torch's passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from explorer.calibrate import GrowingHistogram, loops
from explorer.calibrate.prepared import Plan, Stage
from explorer.compiled import compiled
from explorer.formats import CONVENTIONS, FORMATS, Grid, QParams, fake_quantize_, granularity, uniform
from explorer.formats import loops as formats
from explorer.recipe import TensorScheme
from explorer.study import loops as measures
from explorer.study.metrics import ErrorSums
from explorer.tensor import fit_tensor

Case = tuple[Callable[..., Any], list[Any]]
SEEDS = st.integers(0, 2**32 - 1)
F32 = hnp.from_dtype(np.dtype(np.float32), allow_nan=False)


def drawn(seed: int, *shape: int) -> np.ndarray:
    """Numbers as activations have them, every third of them zero."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(shape).astype(np.float32)
    values[draw.random(shape) < 1 / 3] = 0
    return values


def counted(seed: int, *shape: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.where(draw.random(shape) < 0.3, 0.0, draw.integers(0, 50, shape)).astype(np.float64)


def entropies(counts: np.ndarray, each: float, noise: float) -> np.ndarray:
    sums = np.empty((len(counts), counts.shape[1] + 1, 3))
    loops.running_entropies(counts, each, noise, sums)
    return sums


def of_bins(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums, moments = np.empty((len(counts), counts.shape[1] + 1, 3)), np.empty((len(counts), 2))
    loops.running_sums(counts, -9, sums, moments)
    return sums, moments


def empty(*shape: int, dtype: Any = np.float64) -> np.ndarray:
    return np.zeros(shape, dtype)


F0, NO_ENDS = np.empty(0, np.float32), np.empty((2, 0), np.float32)
PLAN = Plan((Stage.times(np.linspace(1, 0.2, 5)), Stage.plus([-0.1, 0, 0.1], [0.1, 0, 0]))).arrays
# Each loop with arguments made of a seed; those at the end are where it puts what it finds.
LOOPS: dict[str, Callable[[int], Case]] = {
    "survey": lambda s: (loops.survey, [
        drawn(s, 70).view(np.int32), 32, 3, empty(3, dtype=np.int32), empty(3, dtype=np.int32),
        empty(2, dtype=np.int32), empty(8, dtype=np.int32)]),
    "turned_ends": lambda s: (loops.turned_ends, [drawn(s, 70).view(np.int32)]),
    "power_above": lambda s: (loops.power_above, [float(-(2.0 ** (s % 300 - 150))), 0.125, -100]),
    "widen": lambda s: (loops.widen, [counted(s, 2, 40), 32, s % 4]),
    "furthest": lambda s: (loops.furthest, [drawn(s, 40), 1 + s % 3, 4, 1 if s % 2 else -1]),
    "tally_some": lambda s: (loops.tally_some, [
        drawn(s, 300), drawn(s + 1, 70), 32, np.float32([-2, -1, 0]), np.float32([2, 1, 0]), 1, 1, -100,
        np.float32([-0.5, 1.25] if s % 2 else [np.nan, np.nan]), np.array([-3, 0, 0, 0]),
        empty(2, 40, dtype=np.int64)]),
    "look": lambda s: (loops.look, [
        drawn(s, 600), 32, 3, 90, 1, 2, -100, np.float32([np.nan, np.nan]), np.array([-100, 0, 0, 0]),
        empty(2, 40, dtype=np.int64), empty(2, dtype=np.float32)]),
    "tally_all": lambda s: (loops.tally_all, [
        drawn(s, 3, 300), None, -100, np.int32([-100, 0, 4]), counted(s, 3, 32), empty(3),
        empty(3, 2, dtype=np.float32)]),
    "tally_all, weighted": lambda s: (loops.tally_all, [
        drawn(s, 3, 300), np.abs(drawn(s + 1, 3, 300)), -100, np.int32([-100, 0, 4]), counted(s, 3, 32), empty(3),
        empty(3, 2, dtype=np.float32)]),
    "settled": lambda s: (loops.settled, [
        counted(s, 2, 48).astype(np.int64), np.array([-3, 7, 3, 30]), np.float32([-0.08, 0.06]), 10_000, -3 + s % 3, 5,
        1.1 if s % 2 else 1e9, empty(40)]),
    "running_sums": lambda s: (loops.running_sums, [counted(s, 2, 20), -9, empty(2, 21, 3), empty(2, 2)]),
    "squared_errors": lambda s: (loops.squared_errors, [
        *of_bins(counted(s, 2, 20)), -9, np.float64([0.5, 0.25]), np.abs(drawn(s, 2, 5)) + np.float32(0.1),
        np.random.default_rng(s).integers(-3, 3, (2, 5)).astype(np.int32), -8, 7, empty(2, 5)]),
    "squared_error": lambda s: (loops.squared_error, [
        *[each[0] for each in of_bins(counted(s, 2, 20))], -9, 0.7 + s % 9, s % 5, -8, 7]),
    "running_entropies": lambda s: (loops.running_entropies, [counted(s, 2, 20), 3.0, 1.5, empty(2, 21, 3)]),
    "divergences": lambda s: (loops.divergences, [
        counted(s, 2, 64), entropies(counted(s, 2, 64), 3.0, 1.5), np.float32([1, 2]), 3.0, 1.5,
        np.arange(-8.5, 8, dtype=np.float32), s % 2 == 0, np.abs(drawn(s, 2, 5)) / 5 + np.float32(0.01),
        np.zeros((2, 5), np.int32), 3, empty(2, 5)]),
    "divergence": lambda s: (loops.divergence, [
        counted(s, 1, 64)[0], entropies(counted(s, 1, 64), 3.0, 1.5)[0], np.float32(2), 3.0, 1.5,
        np.arange(-8.5, 8, dtype=np.float32), s % 2 == 0, np.float32(0.3), np.float32(s % 3), 3]),
    "affine": lambda s: (formats.affine, [
        np.float32(-(s % 7)), np.float32(s % 5), s % 2 == 0, np.float32(255), -128, 127, 0, np.float32(1e-30),
        np.float32(0.01)]),
    "affines": lambda s: (formats.affines, [
        -np.abs(drawn(s, 9)), np.abs(drawn(s + 1, 9)), s % 2 == 0, 15.0, -8, 7, 0, 1e-30, 0.01,
        empty(9, dtype=np.float32), empty(9, dtype=np.int32)]),
    "rounding_error": lambda s: (loops.rounding_error, [
        drawn(s, 300), None, np.float32(0.3), 2, -8, 7, 5.0 + s % 50]),
    "rounding_error, weighted": lambda s: (loops.rounding_error, [
        drawn(s, 30), np.abs(drawn(s + 1, 30)), np.float32(0.3), 2, -8, 7, np.inf]),
    "rounding_errors": lambda s: (loops.rounding_errors, [
        drawn(s, 3, 150), None, np.abs(drawn(s, 3, 5)) + np.float32(0.1), np.int32([[0, 1, -2, 0, 3]] * 3), -8, 7,
        empty(3, 5)]),
    "descend": lambda s: (loops.descend, [
        np.float32([[-3, -2], [2, 0]]), *PLAN, s % 2 == 0, 15.0, -8, 7, 0, 1e-30, 0.0,
        drawn(s, 2, 150), None, np.float32([1, 4]), np.float32([[-1, 0], [1, 0.5]]), empty(0, 0, 3), F0, None,
        0, None, 1.0, 1.0, F0, 0,
        empty(2, 2, dtype=np.float32)]),
    "descend, by bins": lambda s: (loops.descend, [
        np.float32([[-3, -2], [2, 0]]), *PLAN, s % 2 == 0, 15.0, -8, 7, 0, 1e-30, 0.0, None, None, F0, NO_ENDS,
        of_bins(counted(s, 2, 20))[0], np.float64([0.5, 0.25]), of_bins(counted(s, 2, 20))[1], -9, None, 1.0, 1.0, F0,
        0, empty(2, 2, dtype=np.float32)]),
    "descend, by divergence": lambda s: (loops.descend, [
        np.float32([[-3, -2], [2, 0]]), *PLAN, s % 2 == 0, 15.0, -8, 7, 0, 1e-30, 0.0, None, None, F0, NO_ENDS,
        entropies(counted(s, 2, 64), 3.0, 1.5), np.float32([3, 2]), None, 0, counted(s, 2, 64), 3.0, 1.5,
        np.arange(-8.5, 8, dtype=np.float32), 3, empty(2, 2, dtype=np.float32)]),
    "recount": lambda s: (loops.recount, [
        counted(s, 2, 30).astype(np.float32), -11, np.float64([0.5, 0.25]), np.float32([7.7, 2.5]),
        np.float32([3, 0]), empty(2, 16)]),
    "stand_ins": lambda s: (loops.stand_ins, [
        np.pad(counted(s, 2, 20), ((0, 0), (4, 0))) * (s % 5 > 0), np.float64([3, 0]), np.float64([0.5, 0.25]),
        np.float32([[[-1, -1], [2, 1]], [[-2, 0], [1, 1]]])]),
    "rounded": lambda s: (formats.rounded, [
        drawn(s, 60), 5, np.float32([0.1, 0.2, 0.3]), np.int32([0, 3, -2]), -4, 3, s % 2 == 0,
        empty(60, dtype=np.float32)]),
    "rounded, one by one": lambda s: (formats.rounded, [
        drawn(s, 60), 1, np.float32([0.1, 0.2, 0.3]), np.int32([1] if s % 3 else [0, 3, -2]), -4, 3, s % 2 == 0,
        empty(60, dtype=np.float32)]),
    "error_sums": lambda s: (measures.error_sums, [drawn(s, 70), drawn(s + 1, 70)]),
}  # fmt: skip


# Sums of float32 numbers in another order.
RTOL = {"rounding_error": 1e-5, "rounding_errors": 1e-5}


def test_every_loop_is_in_the_table() -> None:
    files = loops, formats, measures
    found = {name for file in files for name, each in vars(file).items() if hasattr(each, "__wrapped__")}
    assert found == {name.partition(",")[0] for name in LOOPS}


@pytest.mark.parametrize("name", LOOPS)
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_machine_code_gives_the_numbers_of_python(name: str, seed: int) -> None:
    (loop, fast), (_, slow) = LOOPS[name](seed), LOOPS[name](seed)
    found, wanted = loop(*fast), loop.__wrapped__(*slow)  # type: ignore[attr-defined]
    for one, other in zip(
        *[each if isinstance(each, tuple) else (each,) for each in (found, wanted)], strict=True
    ):
        if other is not None:
            np.testing.assert_allclose(one, other, rtol=RTOL.get(name.partition(",")[0], 1e-7))
    for one, other in zip(fast, slow, strict=True):
        if isinstance(one, np.ndarray):
            # Additions may be in another order, and a logarithm differ in the last bit.
            np.testing.assert_allclose(one, other, rtol=RTOL.get(name.partition(",")[0], 1e-9), atol=1e-9)


def test_where_nothing_can_be_kept_a_loop_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = numba.njit
    asked = []

    def refusing(*args: Any, cache: bool = False, **options: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return made(*args, **options)

    monkeypatch.setattr(numba, "njit", refusing)
    assert compiled(lambda number: number + 1)(2) == 3
    assert asked == [True, False]


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 90), elements=F32), st.integers(1, 20).map(lambda n: 2 * n))
def test_extremes_are_those_of_numpy(values: np.ndarray, block: int) -> None:
    starts = range(0, len(values), block)
    low, high, ends = (
        np.empty((2, len(starts)), np.float32)[0],
        np.empty(len(starts), np.float32),
        np.empty(2, np.float32),
    )
    loops.survey(
        values.view(np.int32),
        block,
        1,
        *(each.view(np.int32) for each in (low, high, ends)),
        np.empty(0, np.int32),
    )
    parts = [values[start : start + block] for start in starts]
    assert low.tolist() == [part.min() for part in parts] and high.tolist() == [part.max() for part in parts]
    assert ends.tolist() == [values.min(), values.max()]
    least, largest = np.sort(values)[[len(values) // 3, 2 * len(values) // 3]]
    state, places = np.array([-100, 0, 0, 0]), np.zeros((2, 72), np.int64)
    found = loops.tally_some(
        values[:0], values, block, low, high, 1, 0, -100, np.array([least, largest]), state, places
    )
    far = values[(values < least) | (values > largest)].astype(np.float64)
    assert found == state[3] == len(far) and state[2] == (far == 0).sum() and places[0].sum() == 0
    # Edges are those of float32: what is next to nothing lies on either side of zero.
    factor = 64 / np.ldexp(1.0, state[0] + 1)
    wanted = (far[far != 0] * factor).clip(-64, 64).astype(np.float32) + np.float32(32)
    counts = np.bincount(wanted.clip(0, 63).astype(int), minlength=64)
    assert places[1, :64].tolist() == counts.tolist() and not places[1, 64:].any()


@given(hnp.arrays(np.float32, st.integers(9, 60), elements=F32), st.integers(1, 3), st.integers(0, 2))
def test_the_furthest_but_a_few_are_those_of_sorting(values: np.ndarray, step: int, place: int) -> None:
    assert loops.furthest(values, step, place, 1) == np.sort(values[::step])[-1 - place]
    assert loops.furthest(values, step, place, -1) == np.sort(values[::step])[place]


@pytest.mark.parametrize("count", [5000, 200_000])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("power", [-99, -3, 0, 3, 127])
def test_a_largest_value_just_below_a_power_of_two_is_counted(count: int, sign: int, power: int) -> None:
    """In float32 its place rounds up to the one behind the last bin."""
    scale = np.float32(2.0**power)
    values = torch.from_numpy(drawn(0, 1, count)).clamp_(-3, 3) * float(scale / 4)
    values[0, 7] = float(sign * np.nextafter(scale, np.float32(0)))
    tally = GrowingHistogram(1)
    tally.add(values)
    assert float(tally.count) == pytest.approx(count)
    assert tally.counts[0, -1 if sign > 0 else 0] == 1


def test_a_weight_just_below_a_power_of_two_has_a_range() -> None:
    weight = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 1 - 2**-24
    scale = float(fit_tensor(weight, TensorScheme("int8", "layer", objective="mse"), 0).scale)
    assert 0.9 / 255 < scale <= 1 / 255


@pytest.mark.parametrize("grain", ["layer", "channel", "group:3", "subchannel:4"])
@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    asymmetric=st.booleans(),
    reciprocal=st.booleans(),
    wide=st.booleans(),
)
def test_one_pass_gives_the_bits_of_many(
    grain: str, seed: int, shape: list[int], axis: int, asymmetric: bool, reciprocal: bool, wide: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Long runs have a vector loop of their own, short ones in the middle are written out.
    shape, axis = ([*shape[:-1], 40] if wide else shape), axis % len(shape)
    whole = torch.randn(*shape[:-1], 2 * shape[-1], generator=draw)
    whole.view(-1)[::11] = torch.tensor(float("nan"))
    whole.view(-1)[3::13] = torch.tensor(float("-inf"))
    whole.view(-1)[5::7] = -1e-6
    values = whole[..., ::2]
    kind = granularity(grain)
    groups = kind.groups(values.shape, axis)
    params = QParams(
        torch.rand(groups, generator=draw) + 0.01,
        torch.randint(-4, 4, (groups,), generator=draw, dtype=torch.int32) * asymmetric,
        -8,
        7,
        reciprocal,
    )
    spread = params.spread(lambda number: kind.expand(number, values.shape, axis))
    # What does not lie in one piece goes through the passes of torch.
    many = fake_quantize_(values, *spread, params, torch.empty_like(whole)[..., ::2])
    one = fake_quantize_(values.contiguous(), *spread, params)
    torch.testing.assert_close(one, many, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(one.signbit(), many.signbit())


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", ["int2", "int8", "uint4", "int16"])
@settings(max_examples=60, deadline=None)
@given(
    ends=hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 6)), elements=F32),
    symmetric=st.booleans(),
    narrow=st.sampled_from([None, True, False]),
    positive=st.booleans(),
)
def test_parameters_in_one_loop_are_those_of_torch(
    convention: str, name: str, ends: np.ndarray, symmetric: bool, narrow: bool | None, positive: bool
) -> None:
    ends[np.isinf(ends)] = np.finfo(np.float32).max
    low, high = torch.from_numpy(np.sort(ends, 0))
    kind = Grid(FORMATS[name], symmetric, CONVENTIONS[convention], narrow, positive=positive and symmetric)
    assert (kind.affine is None) == (convention == "nncf")
    one, many = kind.params(low, high), kind._in_passes(low, high)
    assert torch.equal(one.scale, many.scale) and torch.equal(one.zero_point, many.zero_point)
    assert one.zero_point.dtype == many.zero_point.dtype


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 60)), elements=st.floats(-1e4, 1e4, width=32))
)
def test_sums_of_errors_are_those_of_float64(pair: np.ndarray) -> None:
    x, y = pair.astype(np.float64)
    error = (pair[0] - pair[1]).astype(np.float64)
    wanted = x @ x, error @ error, x @ y, y @ y, np.abs(error).max()
    scale = x @ x + y @ y
    for one, other in zip(measures.error_sums(*pair), wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-12 * scale)


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_infinite_error(worst: float) -> None:
    x, y = torch.ones(40), torch.ones(40)
    y[17] = worst
    for each in (ErrorSums.of(x, y), ErrorSums.of(x[::2], torch.cat([y[17:], x])[: len(x[::2])])):
        assert each.noise == each.peak == math.inf and each.sqnr_db == -math.inf


def test_many_threads_take_the_passes_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    values, params = (
        torch.randn(64, 64),
        QParams(torch.tensor([0.1]), torch.zeros(1, dtype=torch.int32), -8, 7),
    )
    spread = params.spread(lambda number: number.reshape(()))
    wanted = fake_quantize_(values, *spread, params)
    monkeypatch.setattr("explorer.compiled._FEW_THREADS", 0)
    monkeypatch.setattr("explorer.compiled._FEW_VALUES", 64)
    monkeypatch.setattr(uniform, "PIECE", 64)
    monkeypatch.setattr(uniform, "rounded", lambda *_: pytest.fail("a loop on one thread"))
    assert torch.equal(fake_quantize_(values, *spread, params), wanted)
