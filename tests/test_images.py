"""Whatever a network does with the axes: an image's result does not depend on the others of its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import explorer as qx
from explorer.graph import Batch, capture
from explorer.graph.fakequant import quantize_activation
from explorer.graph.images import as_before, by_image, images_first
from explorer.graph.ir import ALONG_FIRST, Along
from explorer.recipe import TensorScheme

from .nets import images, ready

TOKENS, WIDE, CLASSES = 16, 8, 5


class _Tokens(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.mid, self.head = inner, nn.Linear(WIDE, WIDE), nn.Linear(WIDE, CLASSES)

    def tokens(self, x: Tensor) -> Tensor:
        return x.reshape(-1, TOKENS, WIDE)


class PositionsFirst(_Tokens):
    def __init__(self) -> None:
        super().__init__(nn.TransformerEncoderLayer(WIDE, 2, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.inner(self.tokens(x).transpose(0, 1))).mean(0))


class Alternating(_Tokens):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDE, WIDE))

    def forward(self, x: Tensor) -> Tensor:
        joined = self.inner(self.tokens(x).transpose(0, 1)).reshape(-1, WIDE)
        return self.head(self.mid(joined).view(TOKENS, -1, WIDE).amax(0))


class Windows(_Tokens):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDE, WIDE))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.tokens(x)).view(-1, 4, 4, WIDE).reshape(-1, 4, WIDE)
        return self.head(self.mid(x).view(-1, TOKENS, WIDE).amax(1))


NETWORKS: dict[type[_Tokens], Along] = {
    PositionsFirst: Along(1, 1),
    Alternating: Along(TOKENS, 0, inner=True),
    Windows: Along(4, 0),
}
COUNT = 12


def some(build: type[_Tokens]) -> tuple[nn.Module, Tensor]:
    """A network, and images of very different contrast, so that a range shared by two would show."""
    return ready(build), images((1, TOKENS, WIDE), COUNT) * torch.logspace(-1, 1, COUNT).view(-1, 1, 1, 1)


@pytest.mark.parametrize("example", [0, 1, 2, 3])
@pytest.mark.parametrize("build", NETWORKS)
def test_where_the_images_lie_is_found_whatever_the_example(build: type[_Tokens], example: int) -> None:
    network, x = some(build)
    # Zeros are all alike, and the number of images may be that of positions or windows.
    graph = capture(network, x[:example] if example else torch.zeros(TOKENS, 1, TOKENS, WIDE))
    assert graph.along(graph.by_layer["mid"].inputs[0]) == NETWORKS[build]
    assert graph.along(graph.input) == graph.along(graph.output) == ALONG_FIRST


@pytest.mark.parametrize("granularity", ["layer", "token", "subchannel:4"])
@pytest.mark.parametrize("build", NETWORKS)
def test_dynamic_ranges_are_each_images_own(build: type[_Tokens], granularity: str) -> None:
    network, x = some(build)
    session = qx.Session(network, data=(x, torch.zeros(COUNT, dtype=torch.int64)))
    dynamic = {
        "format": "uint4",
        "granularity": granularity,
        "symmetric": False,
        "mode": "dynamic",
        "objective": "minmax",
    }
    plan = session.plan(session.recipe.with_layer("*", input=dynamic))
    output = session.graph.output

    def result(part: Tensor) -> Tensor:
        return session.engine.run(plan, Batch.of(part), [output], keep=False)[output]

    torch.testing.assert_close(
        torch.cat([result(one) for one in x.split(1)]), result(x), rtol=1e-4, atol=1e-5
    )


SCHEMES = (
    {"format": "uint4", "symmetric": False, "mode": "dynamic"},
    {"format": "int4", "mode": "dynamic", "granularity": "token"},
    {"format": "fp4_e2m1", "mode": "dynamic", "granularity": "subchannel:2", "scale": "fp8"},
    {"format": "fp8_e4m3", "mode": "dynamic", "rounding": "stochastic:3"},
    {"format": "bf16", "rounding": "stochastic"},
)


@pytest.mark.parametrize(
    "along", [ALONG_FIRST, Along(1, 1), Along(3, 0), Along(3, 0, True), Along(2, 1, True)]
)
@pytest.mark.parametrize("fields", SCHEMES, ids=str)
def test_an_image_is_quantized_alike_in_any_batch(fields: dict[str, object], along: Along) -> None:
    scheme = TensorScheme(**{"granularity": "layer", **fields})  # type: ignore[arg-type]
    each = images((5, 3, 6, 8), 4) * torch.tensor([0.1, 1.0, 5.0, 20.0]).view(-1, 1, 1, 1, 1)
    axis = along.axis or 0
    each = each[:, :, : along.each] if axis else each[:, : along.each]
    laid = as_before(each, along)
    assert torch.equal(images_first(laid, along), each)

    def quantized(value: Tensor) -> Tensor:
        return quantize_activation(value, scheme, None, -1, along)

    alone = [images_first(quantized(as_before(one.unsqueeze(0), along)), along)[0] for one in each]
    assert torch.equal(images_first(quantized(laid), along), torch.stack(alone))
    assert len({float(part.abs().max()) for part in alone}) == 4


def test_the_numbers_of_an_image_are_found_wherever_its_axis_is() -> None:
    x = torch.arange(5 * 7 * 3.0).reshape(5, 7, 3)
    rows = x.flatten(1)
    ways: list[tuple[Tensor, Along]] = [
        (x, ALONG_FIRST), (x.transpose(0, 1), Along(1, 1)), (x.reshape(35, 3), Along(7)),
        (x.transpose(0, 1).reshape(35, 3), Along(7, inner=True)),
    ]  # fmt: skip
    for value, along in ways:
        assert torch.equal(by_image(value, along, 5), rows)
    assert torch.equal(by_image(x[0], Along(axis=None), 4), x[0].reshape(1, -1).expand(4, -1))


@pytest.mark.parametrize("goal", ["minmax", "mse"])
@pytest.mark.parametrize("build", NETWORKS)
def test_the_image_that_sets_a_range_is_found(build: type[_Tokens], goal: str) -> None:
    network, x = some(build)
    x = x[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    session = qx.Session(network, data=(x, torch.zeros(COUNT, dtype=torch.int64)))
    scheme = {"format": "uint8", "granularity": "layer", "symmetric": False, "objective": goal}
    found = session.jackknife("mid", 0, scheme)
    name, floats = session.graph.by_layer["mid"].inputs[0], session.plan(qx.Recipe.preset("fp32"))
    for influence in found.influences:
        batch = Batch.of(x[influence.image].unsqueeze(0))
        alone = session.engine.run(floats, batch, [name], keep=False)[name]
        np.testing.assert_allclose(
            [influence.minimum, influence.maximum], [alone.min(), alone.max()], rtol=1e-4
        )
    assert len(found.influences) == (COUNT if goal == "minmax" else 1)
    first = found.influences[0]
    assert first.maximum == max(one.maximum for one in found.influences) or (
        first.minimum == min(one.minimum for one in found.influences)
    )
