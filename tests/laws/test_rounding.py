"""Stochastic rounding: neighbours only, right on average, and the same whatever else is in the batch."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from explorer.errors import SchemeError
from explorer.formats import FORMATS, ROUNDINGS, granularity, rounding, roundings, uniform
from explorer.formats.roundings import Stochastic
from explorer.graph.fakequant import quantize_activation
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.tensor import apply, fake_quantize, fit_tensor, quantize
from tests.laws import cases
from tests.strategies import SCHEMES, label

# A scheme for each format and each other axis that the tables have, with rounding by chance.
CHANCE = [
    TensorScheme(**{**scheme.to_dict(), "rounding": "stochastic:3"}) for scheme in SCHEMES if not scheme.off
]
FORMATS_BY_CHANCE = list({scheme.format: scheme for scheme in CHANCE}.values())
# One run in ten thousand of each statistical test would fail by chance; the seeds are fixed, so none does.
TAIL = 1e-4


@pytest.mark.parametrize("name", ["normal", "far-apart", "off-centre", "heavy", "constant-rows", "scalar"])
@pytest.mark.parametrize("scheme", FORMATS_BY_CHANCE, ids=label)
def test_a_value_becomes_one_of_its_two_neighbours(scheme: TensorScheme, name: str) -> None:
    """By a list of all levels of its group; a level itself stays, and what is quantized stays as it is."""
    tensor = cases.TENSORS[name]
    found = quantize(tensor, scheme)
    values = found.values()
    assert torch.equal(values, fake_quantize(tensor, scheme))
    params = fit_tensor(tensor, scheme, 0) if scheme.scaled else None
    assert torch.equal(apply(values, scheme, params, 0), values)
    number = FORMATS[scheme.format]
    # A scale of one where there is none.
    grain = scheme.grain if number.scaled else granularity("layer")
    book = params.book if params is not None else None
    if book is not None:
        # The number of each group in place of its scale.
        found = replace(found, scale=torch.arange(found.scale.numel()))
    parts = [grain.expand(part.reshape(-1), tensor.shape, 0) for part in (found.scale, found.zero_point)]
    columns = [part.expand(tensor.shape).reshape(-1).tolist() for part in (tensor, values, *parts)]
    for value, result, step, centre in zip(*columns, strict=True):
        if book is not None:
            levels = np.unique(book.levels[int(step)].numpy())
        elif number.scaled and not hasattr(number, "levels"):
            levels = (np.arange(found.qmin, found.qmax + 1) - centre).astype(np.float32) * np.float32(step)
        else:
            levels = number.values.astype(np.float32) * np.float32(step)
        place = int(np.searchsorted(levels, np.float32(value)))
        beside = levels[[max(place - 1, 0), min(place, len(levels) - 1)]]
        # Where the value is a level, `place` points at it and it is the upper neighbour.
        wanted = {float(beside[1])} if beside[1] == np.float32(value) else {float(b) for b in beside}
        assert result in wanted


@pytest.mark.parametrize(
    "name", ["int8", "uint4", "fp8_e4m3", "nf4", "log4", "fp16", "bf16", "kmeans2", "ternary"]
)
def test_rounding_is_right_on_average(name: str) -> None:
    """Over seeds the share of the upper neighbour is the value's place between its neighbours (binomial)."""
    seeds = 400
    tensor = torch.tensor([1.0, -0.83, 0.311, -0.2024, 0.0667, 0.50001, -0.01])
    schemes = [TensorScheme(name, "layer", rounding=f"stochastic:{seed}") for seed in range(seeds)]
    found = torch.stack([fake_quantize(tensor, scheme) for scheme in schemes])
    low, high = found.amin(0), found.amax(0)
    for index, value in enumerate(tensor.tolist()):
        a, b = Fraction(low[index].item()), Fraction(high[index].item())
        if a == b:
            continue
        share = float((Fraction(np.float32(value).item()) - a) / (b - a))
        upper = int((found[:, index] == high[index]).sum())
        assert stats.binomtest(upper, seeds, min(max(share, 0.0), 1.0)).pvalue > TAIL


def test_rounding_has_no_bias_over_many_elements() -> None:
    """The error of a mean over 2**18 elements, by the central limit theorem."""
    draw = torch.Generator().manual_seed(4)
    tensor = torch.rand(1 << 18, generator=draw) * 2 - 1
    after = fake_quantize(tensor, TensorScheme("int4", "layer", rounding="stochastic"))
    error = (after - tensor).double()
    deviation = float(error.mean() / (error.std() / math.sqrt(error.numel())))
    assert abs(deviation) < stats.norm.isf(TAIL / 2)
    # Beyond half a step now, but never beyond a step.
    step = 1 / 7
    assert step / 2 < float(error.abs().max()) < step * 1.0001


def test_chances_are_even_and_independent() -> None:
    """Even by Kolmogorov and Smirnov; neighbours, seeds and places without correlation, for equal values too."""
    values = torch.full((100_000,), 0.37)
    one, two = (Stochastic(seed).chances(values).double().numpy() for seed in (0, 1))
    assert stats.kstest(one, "uniform").pvalue > TAIL
    bound = stats.norm.isf(TAIL / 2) / math.sqrt(len(values))
    for other in (two, np.roll(one, 1), np.roll(one, 1024)):
        assert abs(np.corrcoef(one, other)[0, 1]) < bound
    assert one.min() >= 0 and one.max() < 1


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("grain", ["layer", "channel", "token", "subchannel:2"])
@pytest.mark.parametrize("name", ["int4", "fp4_e2m1", "fp16"])
def test_an_example_does_not_depend_on_its_batch(name: str, grain: str, mode: str) -> None:
    try:
        scheme = TensorScheme(name, grain, mode=mode, rounding="stochastic:5")
        LayerConfig(input=scheme)
    except SchemeError:
        return
    values = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    params = fit_tensor(values, scheme, 1) if scheme.scaled and mode == "static" else None
    together = quantize_activation(values, scheme, params, 1)
    halves = [quantize_activation(part, scheme, params, 1) for part in values.split([1, 3, 2])]
    assert torch.equal(together, torch.cat(halves))
    # Nor on how the tensor lies in memory.
    strided = values.to(memory_format=torch.channels_last)
    assert torch.equal(quantize_activation(strided, scheme, params, 1), together)


def test_pieces_do_not_change_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(7, 300, generator=torch.Generator().manual_seed(1))
    schemes = [TensorScheme(name, "channel", rounding="stochastic") for name in ("int3", "fp6_e2m3")]
    whole = [fake_quantize(tensor, scheme) for scheme in schemes]
    monkeypatch.setattr(roundings, "_PIECE", 97)
    monkeypatch.setattr(uniform, "PIECE", 128)
    for scheme, expected in zip(schemes, whole, strict=True):
        assert torch.equal(fake_quantize(tensor, scheme), expected)


def test_names_keys_and_files() -> None:
    nearest, chance = TensorScheme("int4"), TensorScheme("int4", rounding="stochastic:12")
    assert "rounding" not in nearest.to_dict() and chance.to_dict()["rounding"] == "stochastic:12"
    assert len({s.key for s in (nearest, chance, TensorScheme("int4", rounding="stochastic"))}) == 3
    assert len({TensorScheme("fp16", rounding=r).key for r in ("nearest", "stochastic", "stochastic:1")}) == 3
    assert TensorScheme("fp32", rounding="stochastic").key == TensorScheme("fp32").key
    assert chance.describe() == "int4 channel sym minmax stochastic:12"
    assert TensorScheme(rounding="stochastic:0").rounding == "stochastic"
    recipe = Recipe.preset("w8a8").with_layer("fc", weight={"rounding": "stochastic:4"})
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe == Recipe.from_json(recipe.to_json())
    assert "nearest" not in Recipe.preset("w8a8").to_yaml()
    assert all(entry.help for entry in ROUNDINGS.values())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stochastik", "Did you mean 'stochastic"),
        ("nearest:3", "no rounding 'nearest:3'"),
        ("stochastic:", "needs a whole number after the colon"),
        ("stochastic:x", "needs a whole number after the colon"),
        ("stochastic:1.5", "whole number, not 1.5; use 2"),
        ("stochastic:-1", "A seed lies above -1"),
        ("stochastic:nan", "A seed lies above -1"),
    ],
)
def test_bad_roundings_are_refused(word: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        rounding(word)


@pytest.mark.parametrize("name", ["fp8_e5m2", "fp16"])
def test_what_overflows_does_so_by_chance_or_not(name: str) -> None:
    tensor = torch.tensor([1e9, -1e9, 1.3, 1.0])
    scheme = TensorScheme(name, "layer", overflow="infinity", rounding="stochastic", objective="clip:0.001")
    params = fit_tensor(tensor, scheme, 0) if scheme.scaled else None
    found = apply(tensor, scheme, params, 0)
    assert found[:2].tolist() == [math.inf, -math.inf] and found[2:].isfinite().all()
