"""Granularity: however a tensor is cut, each group is quantized as if it were alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from explorer.calibrate import Sample
from explorer.errors import SchemeError
from explorer.formats import CONVENTIONS, GRANULARITIES, granularity
from explorer.recipe import TensorScheme
from explorer.tensor import fake_quantize, fit_tensor, quantize
from tests import strategies
from tests.strategies import GOALS, GRAINS, SCALED, names, pairwise, valid

# All groups have both signs and like sizes: whether codes are unsigned and NNCF's floor are decided for a tensor
# as a whole, and only there may one group matter to another.
WEIGHT = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(11)) * 0.3
WEIGHT.reshape(6, 12)[:, [0, 6, 11]] = -0.21
AXES = {
    "format": SCALED[::4],
    "convention": tuple(CONVENTIONS),
    "objective": GOALS,
    "symmetric": (True, False),
    "scale": ("float", "pow2"),
}
SCHEMES = [TensorScheme(**fields) for fields in pairwise(AXES, lambda fields: valid(TensorScheme, fields))]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=strategies.label)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def cut(scheme: TensorScheme, grain: str) -> TensorScheme:
    return replace(scheme, granularity=grain)


@by_scheme
def test_one_channel_is_a_layer(scheme: TensorScheme) -> None:
    one = WEIGHT[:1]
    assert same(fake_quantize(one, cut(scheme, "channel")), fake_quantize(one, cut(scheme, "layer")))


@by_scheme
def test_groups_of_one_are_channels(scheme: TensorScheme) -> None:
    for axis in (0, 1):
        by_channel = fake_quantize(WEIGHT, cut(scheme, "channel"), axis)
        assert same(fake_quantize(WEIGHT, cut(scheme, "group:1"), axis), by_channel)
        whole = WEIGHT.numel() // WEIGHT.shape[axis]
        assert same(fake_quantize(WEIGHT, cut(scheme, f"subchannel:{whole}"), axis), by_channel)


@by_scheme
def test_one_group_of_all_channels_is_a_layer(scheme: TensorScheme) -> None:
    assert same(fake_quantize(WEIGHT, cut(scheme, "group:6")), fake_quantize(WEIGHT, cut(scheme, "layer")))


@by_scheme
def test_tokens_are_the_channels_of_the_other_axis(scheme: TensorScheme) -> None:
    matrix = WEIGHT.reshape(6, 12)
    assert same(
        fake_quantize(matrix, cut(scheme, "token"), 1), fake_quantize(matrix, cut(scheme, "channel"), 0)
    )


@by_scheme
@pytest.mark.parametrize("grain", ["group:4", "subchannel:5"])
def test_ragged_blocks_are_quantized_by_themselves(scheme: TensorScheme, grain: str) -> None:
    """The last block is shorter; its padding is seen by no statistic."""
    result = fake_quantize(WEIGHT, cut(scheme, grain))
    if grain.startswith("group"):
        pieces = [(slice(0, 4), slice(None)), (slice(4, 6), slice(None))]
    else:
        pieces = [(slice(c, c + 1), slice(b, b + 5)) for c in range(6) for b in (0, 5, 10)]
    flat, got = WEIGHT.reshape(6, 12), result.reshape(6, 12)
    for rows, columns in pieces:
        block = flat[rows, columns].contiguous()
        assert same(got[rows, columns].contiguous(), fake_quantize(block, cut(scheme, "layer")))


@pytest.mark.parametrize("grain", GRAINS)
@given(data=st.data())
@settings(max_examples=25)
def test_shapes_agree(grain: str, data: st.DataObject) -> None:
    """The plan (shape), the matrix and the expansion tell the same story, on any axis."""
    tensor = data.draw(strategies.tensors(dims=(0, 4), largest=5))
    axis = data.draw(st.integers(-tensor.dim(), max(tensor.dim() - 1, 0)))
    how = granularity(grain)
    assert granularity(how.name) == how and how.name == grain
    matrix, weights = how.matrix(tensor, axis)
    assert matrix.shape[0] == how.groups(tensor.shape, axis)
    counts = torch.full((1, 1), matrix.shape[1]) if weights is None else weights.sum(1)
    assert how.largest(tensor.shape, axis) == int(counts.max())
    assert tensor.numel() == (matrix.numel() if weights is None else int(weights.sum()))
    index = torch.arange(len(matrix), dtype=torch.float32)
    owner = how.expand(index, tensor.shape, axis).expand(tensor.shape)
    for group, row in enumerate(matrix):
        mine = row if weights is None else row[weights[group] > 0]
        assert torch.equal(tensor[owner == group].sort().values, mine.sort().values)
    assert Sample.of(tensor, how, axis).total.sum() == tensor.numel()


@pytest.mark.parametrize("grain", GRAINS)
def test_parameters_have_the_shape_of_the_granularity(grain: str) -> None:
    for axis in (0, 1, 3, -1):
        result = quantize(WEIGHT, TensorScheme("int8", grain), axis)
        assert tuple(result.scale.shape) == granularity(grain).shape(WEIGHT.shape, axis)
        assert torch.equal(result.scale.reshape(-1), fit_tensor(WEIGHT, result.scheme, axis).scale)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_axis_is_only_a_place(grain: str, axis: int) -> None:
    """Quantizing along an axis is moving that axis to the front, quantizing, and moving it back."""
    scheme = TensorScheme("int4", grain, objective="mse")
    moved = WEIGHT.movedim(axis, 0).contiguous()
    assert same(
        fake_quantize(WEIGHT, scheme, axis).contiguous(),
        fake_quantize(moved, scheme, 0).movedim(0, axis).contiguous(),
    )


def test_finer_granularity_is_never_worse() -> None:
    """With the full range of each group, the largest error falls as groups get smaller."""
    grains = ["layer", "group:3", "channel", "subchannel:6", "subchannel:2"]
    bounds = [
        float(fit_tensor(WEIGHT, TensorScheme("int8", grain, convention="torch"), 0).scale.max())
        for grain in grains
    ]
    means = [
        float(fit_tensor(WEIGHT, TensorScheme("int8", grain, convention="torch"), 0).scale.mean())
        for grain in grains
    ]
    assert bounds == sorted(bounds, reverse=True) and means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("chanel", "Did you mean 'channel'"),
        ("group", "needs a positive whole number after the colon, for example 'group:32'"),
        ("group:0", "positive whole number"),
        ("group:-3", "positive whole number"),
        ("group:2.5", "positive whole number"),
        ("group:٣", "positive whole number"),
        ("subchannel:", "for example 'subchannel:32'"),
        ("subchannel:99999999999999", "positive whole number"),
        ("layer:3", "no granularity 'layer:3'"),
        ("", "no granularity ''"),
    ],
)
def test_bad_names_are_refused(word: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        granularity(word)


def test_every_granularity_is_covered() -> None:
    assert len(GRAINS) == len(GRANULARITIES) == len(names(GRANULARITIES))
