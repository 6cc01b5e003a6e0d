"""Computing on another device: refused where there is none, the same numbers where there is one.

No machine of this project's tests has CUDA.  What can be checked without it is that every tensor is moved where it has
to be: under torch's fake tensors, which know their device and refuse to mix two, without any numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import explorer as qx
from explorer.errors import JobError
from explorer.graph import Batch, Engine, Store, engine, fakequant, plan
from explorer.graph.device import device_of
from explorer.graph.ir import Node
from explorer.recipe import Recipe
from tests.kinds import KINDS, graph_of
from tests.nets import images, ready
from tests.test_kinds import FLOAT, calibration_of

HAS_CUDA = torch.cuda.is_available()


@pytest.mark.parametrize(("word", "message"), [
    ("gpu", "There is no device 'gpu'; there are cpu, cuda, cuda:0, auto."),
    ("cuda:x", "There is no device 'cuda:x'"),
    ("cpu:1", "There is no device 'cpu:1'"),
])  # fmt: skip
def test_devices_that_do_not_exist_are_refused(word: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        device_of(word)
    assert message in str(caught.value)


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
def test_without_cuda_it_is_refused_or_left() -> None:
    with pytest.raises(JobError, match="The device 'cuda' needs CUDA, which this machine or this build"):
        qx.Session(ready(KINDS["conv1d"].build), data=images((2, 7)), device="cuda")
    assert device_of("auto") == "cpu"


FAKED = ("conv1d", "embedding", "lstm, two ways", "lstm cells", "sdpa, causal", "attention, masked")
RECIPES = {
    "w8a8": Recipe.preset("w8a8"),
    "channels": FLOAT.with_layer(
        "*", input={"format": "uint8", "granularity": "channel", "symmetric": False}
    ),
    "dynamic": Recipe.preset("int8_dynamic"),
    "levels": FLOAT.with_layer(
        "*", input={"format": "fp8_e4m3", "granularity": "layer", "objective": "minmax"}
    ),
    "bf16": FLOAT.with_layer("*", input={"format": "bf16"}),
}


class One(int):
    """A number that says how many it is, as a tensor does."""

    def numel(self) -> int:
        return 1


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", FAKED)
def test_no_tensor_is_left_on_another_device(name: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator has all of its tensors on the graph's device, and what comes out is on the CPU."""
    graph = graph_of(name)
    batch = Batch.of(KINDS[name].examples(3, 5))
    calibration = calibration_of(graph, batch)
    there = torch.device("cuda:0")
    seen: set[str] = set()
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def faked(value: Any, target: torch.device) -> Any:
        """What moving does; from the device come zeros."""
        if not isinstance(value, Tensor) or value.device == target:
            return value
        seen.add(target.type)
        if target != there:
            return torch.zeros(value.shape, dtype=value.dtype)
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=there)

    plain_call, plain_quantize = Node.call, fakequant.quantize_activation

    def call(node: Node, values: Any, **extra: Any) -> Any:
        with mode:
            return plain_call(node, values, **extra)

    def quantize(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return plain_quantize(*args, **kwargs)

    plain_round = fakequant.fake_quantize_

    def rounded(values: Tensor, scale: Tensor, zero_point: Tensor, params: Any) -> Tensor:
        if values.device != there:
            return plain_round(values, scale, zero_point, params)
        # One zero point for all is read as a number, which a fake tensor has none of.
        zero = One(zero_point) if zero_point.numel() == 1 else zero_point
        # A build without CUDA cannot ask a fake tensor of CUDA to be contiguous; a clone is.
        with mode, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "contiguous", Tensor.clone)
            return plain_round(values, scale, zero, params)  # type: ignore[arg-type]

    monkeypatch.setattr(fakequant, "fake_quantize_", rounded)
    for part in (engine, fakequant):
        monkeypatch.setattr(part, "moved", faked)
        monkeypatch.setattr(part, "quantize_activation", quantize)
    monkeypatch.setattr(engine, "device_name", lambda name: "fake")
    # Ranges are found where there are numbers.
    elsewhere = replace(graph, device=str(there))
    working = plan(elsewhere, RECIPES[recipe], calibration.params, calibration.weight_params)
    monkeypatch.setattr(Node, "call", call)
    found = Engine(elsewhere, Store(1 << 24)).run(working, batch)[graph.output]
    assert found.device.type == "cpu" and found.shape == (3, *graph.by_name[graph.output].shape[1:])
    assert seen == {"cpu", "cuda"}


@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
@pytest.mark.parametrize("name", FAKED)
def test_cuda_gives_the_same_to_rounding(name: str) -> None:
    graph = graph_of(name)
    batch = Batch.of(KINDS[name].examples(3, 5))
    calibration = calibration_of(graph, batch)
    there = replace(graph, device="cuda:0")
    here_plan = plan(graph, FLOAT, calibration.params)
    there_plan = plan(there, FLOAT, calibration.params)
    found = Engine(there, Store(1 << 24)).run(there_plan, batch)[graph.output]
    expected = Engine(graph, Store(1 << 24)).run(here_plan, batch)[graph.output]
    assert found.device.type == "cpu" and there_plan.keys != here_plan.keys
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
