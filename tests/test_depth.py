"""Local and cumulative error along the network, against eager modules with hooks that know nothing of the engine."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import explorer as qx
from explorer.study.metrics import ratio_db_interval
from tests.nets import Attention, Perceptron, images, ready
from tests.small import images as pictures
from tests.small import tiny

Stats = dict[str, tuple[float, float]]


def modules(net: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in net.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}


def quantize_input(span: tuple[float, float], part: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """uint8 with a range that holds zero, by torch's own operator."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    scale = (high - low) / 255
    return (torch.fake_quantize_per_tensor_affine(args[0], scale, round(-low / scale), 0, 255),)


def quantize_weight(part: nn.Module, bits: int) -> None:
    weight, top = part.weight.data, 2 ** (bits - 1) - 1
    scale = weight.flatten(1).abs().amax(1) / top
    zero = torch.zeros(len(scale), dtype=torch.int32)
    part.weight.data = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -top, top)


def outputs(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each layer reads and gives, by hooks."""
    reads, gives, hooks = {}, {}, []
    for name, part in modules(net).items():

        def look(_: nn.Module, args: tuple[Tensor], out: Tensor, name: str = name) -> None:
            reads[name], gives[name] = args[0].clone(), out.clone()

        hooks.append(part.register_forward_hook(look))
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return reads, gives


def brute_force(build, x: Tensor, bits: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each layer its output: in float, alone quantized, with everything quantized."""
    reads, exact = outputs(build(), x)
    net = build()
    for name, part in modules(net).items():
        quantize_weight(part, bits)
        span = float(reads[name].min()), float(reads[name].max())
        part.register_forward_pre_hook(partial(quantize_input, span))
    with torch.no_grad():
        alone = {name: part(reads[name]) for name, part in modules(net).items()}
    _, whole = outputs(net, x)
    return {name: (exact[name], alone[name], whole[name]) for name in exact}


def decibels(exact: Tensor, other: Tensor) -> float:
    return 10 * math.log10(float(exact.double().square().sum() / (exact - other).double().square().sum()))


@pytest.mark.parametrize("bits", [8, 4])
def test_both_sqnrs_are_those_of_eager_modules_with_hooks(bits):
    x, labels = pictures()
    recipe = qx.Recipe.preset("w8a8").with_default(
        weight={"format": f"int{bits}"}, input={"objective": "minmax"}
    )
    session = qx.Session(
        tiny(), data=(x, labels), calibration=(x, labels), recipe=recipe, fold=False, store_bytes=1 << 24
    )
    table = session.depth(images=None).set_index("layer")
    truth = brute_force(tiny, x, bits)
    assert list(table.index) == list(truth)
    assert (table["images"] == len(x)).all() and table["complete"].all()
    for name, (exact, alone, whole) in truth.items():
        row = table.loc[name]
        assert row["local_db"] == pytest.approx(decibels(exact, alone), abs=0.02)
        assert row["cumulative_db"] == pytest.approx(decibels(exact, whole), abs=0.02)
        noise = (exact - whole).double().flatten(1).square().sum(1).numpy()
        signal = exact.double().flatten(1).square().sum(1).numpy()
        assert (row["cumulative_low"], row["cumulative_high"]) == pytest.approx(
            ratio_db_interval(signal, noise), abs=0.05
        )
    first = table.iloc[0]
    assert first["local_db"] == first["cumulative_db"]


def test_it_sharpens_batch_by_batch_whether_warm_or_cold():
    session = qx.Session(tiny(), data=pictures(900), store_bytes=1 << 24, recipe="w4a8")
    cold = list(session.depth_steps(images=800))
    assert [int(table["images"].max()) for table in cold] == [500, 800]
    assert [bool(table["complete"].all()) for table in cold] == [False, True]
    session.evaluate(images=800)
    session.edit(["mid"], weight={"format": "int2"})
    session.depth()
    assert session.depth(recipe=session.recipe.preset("w4a8"), images=800).equals(cold[-1])


def test_what_is_not_quantized_adds_nothing_and_still_carries_what_came_before():
    off = {"weight": {"format": "fp32"}, "input": {"format": "fp32"}}
    recipe = qx.Recipe.preset("w4a8").with_layer("mid", **off)
    table = qx.Session(tiny(), data=pictures(), store_bytes=1 << 24, recipe=recipe).depth().set_index("layer")
    assert table.loc["mid", "local_db"] == math.inf and np.isfinite(table.loc["mid", "cumulative_db"])
    none = qx.Session(tiny(), data=pictures(), store_bytes=1 << 24, recipe="fp32").depth()
    assert (none[["local_db", "cumulative_db"]] == math.inf).all(axis=None)


@pytest.mark.parametrize("build, shape", [(Attention, (6, 5)), (Perceptron, (2, 3))])
def test_every_layer_has_a_row_also_products_and_a_weight_that_is_used_twice(build, shape):
    session = qx.Session(
        ready(build), data=(images(shape, 60), torch.zeros(60, dtype=torch.int64)), store_bytes=1 << 24
    )
    table = session.depth()
    assert list(table["layer"]) == list(session.layer_names)
    assert np.isfinite(table.drop(columns=["layer", "op", "complete"]).to_numpy(dtype=float)).all()
    assert (table["cumulative_low"] < table["cumulative_db"]).all()
