"""Input at the edges: what docs/architecture.md says of it."""

from __future__ import annotations

import math

import pytest
import torch

from explorer.errors import SchemeError, TensorError
from explorer.recipe import TensorScheme
from explorer.tensor import fake_quantize, quantize
from tests.strategies import SCHEMES, label

# Of the largest float32 itself a range may end a step further out, which is no float32.
MOST = torch.finfo(torch.float32).max / 4
EDGES = {
    "subnormal": torch.tensor([[1e-40, -3e-42, 0.0], [1e-45, 2e-45, -1e-45]]),
    "largest": torch.tensor([[MOST, -MOST, 1.0], [MOST, MOST / 2, 0.0]]),
    "both": torch.tensor([[MOST, 1e-45, -1.0], [1e-45, 0.0, 0.0]]),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("scheme", SCHEMES[::6], ids=label)
def test_edges_of_float32_stay_numbers(scheme: TensorScheme, name: str) -> None:
    """No NaN and no sign that turns; infinity only where the scheme asks for it; codes say the same."""
    tensor = EDGES[name]
    found = fake_quantize(tensor, scheme)
    if scheme.overflow == "saturate":
        assert found.isfinite().all()
        assert torch.equal(quantize(tensor, scheme).values(), found)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scheme", SCHEMES[::7], ids=label)
def test_what_is_no_number_is_refused(scheme: TensorScheme, bad: float) -> None:
    with pytest.raises(TensorError, match=r"The weight of 'fc' holds . NaN and . infinite values among 3"):
        quantize(torch.tensor([1.0, bad, 2.0]), scheme, name="weight of 'fc'")


@pytest.mark.parametrize("size", [4096, 2**31])
@pytest.mark.parametrize(("large", "whole"), [("subchannel", "channel"), ("group", "layer")])
def test_a_block_larger_than_its_axis_is_the_whole_axis(large: str, whole: str, size: int) -> None:
    """Whatever the size is, no more memory is taken than the tensor needs."""
    tensor = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    found, wanted = (quantize(tensor, TensorScheme("int4", grain)) for grain in (f"{large}:{size}", whole))
    assert torch.equal(found.codes, wanted.codes) and found.scale.numel() == wanted.scale.numel()


@pytest.mark.parametrize("word", ["percentile:0", "percentile:101", "clip:0", "lp:0", "lp:7", "group:0"])
def test_numbers_out_of_bounds_are_refused_with_a_usual_one(word: str) -> None:
    field = "granularity" if word.startswith("group") else "objective"
    with pytest.raises(SchemeError, match=r"usual choice|for example"):
        TensorScheme(**{field: word})
