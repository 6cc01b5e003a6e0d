"""Packing: codes become bytes without gaps, and come back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from explorer.errors import TensorError
from explorer.formats import FORMATS, SCALES, CodebookFormat, pack, packed_bytes, packing, unpack
from explorer.recipe import TensorScheme
from explorer.tensor import bits_per_value, entropy_bits, quantize
from tests import oracles
from tests.laws.cases import TENSORS, quantized
from tests.strategies import SCHEMES, label


@st.composite
def coded(draw: st.DrawFn) -> tuple[list[int], int, int]:
    bits = draw(st.integers(1, 32))
    lowest = draw(st.sampled_from([0, -(1 << (bits - 1)), 1 - (1 << (bits - 1)), 5]))
    codes = draw(st.lists(st.integers(lowest, lowest + (1 << bits) - 1), max_size=40))
    return codes, bits, lowest


@given(coded())
@settings(max_examples=100)
def test_round_trip_and_layout(case: tuple[list[int], int, int]) -> None:
    codes, bits, lowest = case
    data = pack(np.array(codes, np.int64), bits, lowest)
    assert len(data) == packed_bytes(len(codes), bits) == -(-len(codes) * bits // 8)
    assert data == oracles.bits_of(codes, bits, lowest)
    assert unpack(data, len(codes), bits, lowest).tolist() == codes


@pytest.mark.parametrize("bits", [1, 3, 5, 8, 11])
def test_long_codes_are_packed_in_pieces(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, 1003)
    whole = pack(codes, bits)
    monkeypatch.setattr(packing, "_CHUNK", 64)
    assert pack(codes, bits) == whole
    assert np.array_equal(unpack(whole, len(codes), bits), codes)


@pytest.mark.parametrize(("codes", "lowest"), [([4], 0), ([-1], 0), ([2], -2), ([-3], -2)])
def test_codes_that_do_not_fit_are_refused(codes: list[int], lowest: int) -> None:
    with pytest.raises(TensorError, match=rf"outside of {lowest} \.\. {lowest + 3}"):
        pack(np.array(codes), 2, lowest)


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(TensorError, match="9 codes of 4 bits need 5 bytes, not 4"):
        unpack(b"1234", 9, 4)


@given(
    st.lists(st.integers(-40000, 40000), min_size=1, max_size=50), st.sampled_from([torch.int32, torch.int64])
)
@settings(max_examples=50)
def test_entropy_is_scipys(codes: list[int], dtype: torch.dtype) -> None:
    counts = np.unique(codes, return_counts=True)[1]
    assert entropy_bits(torch.tensor(codes, dtype=dtype)) == pytest.approx(
        stats.entropy(counts, base=2), abs=1e-12
    )


@pytest.mark.parametrize("name", ["int4", "fp4_e2m1", "fp8_e5m2", "fp16", "fp32"])
def test_entropy_of_a_tensor(name: str) -> None:
    """At most the bits of the format, and zero for one code; an even spread over all codes has them all."""
    result = quantize(
        torch.randn(64, 64, generator=torch.Generator().manual_seed(1)), TensorScheme(name, "layer")
    )
    assert 0 < result.entropy_bits <= min(result.scheme.bits, 12)
    assert quantize(torch.ones(5, 5), TensorScheme(name, "layer")).entropy_bits == 0
    even = torch.arange(-7.0, 8.0).repeat(4)
    assert quantize(even, TensorScheme("int4", "layer")).entropy_bits == pytest.approx(math.log2(15))


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
def test_quantized_tensors_pack(scheme: TensorScheme) -> None:
    """A size is the length of real bytes, from which the codes come back."""
    for name, tensor in TENSORS.items():
        result = quantized(scheme, name)
        data = result.pack()
        assert len(data) == result.payload_bytes == -(-tensor.numel() * FORMATS[scheme.format].bits // 8), (
            name
        )
        lowest = min(result.qmin, 0)
        assert torch.equal(
            torch.from_numpy(unpack(data, tensor.numel(), scheme.bits, lowest)),
            result.codes.reshape(-1).long(),
        ), name
        groups = result.scale.numel()
        number = FORMATS[scheme.format]
        if isinstance(number, CodebookFormat):
            # What the levels are made of, as bytes: all of them, or one coefficient a vector.
            assert result.book is not None
            stored = result.book.numpy().nbytes if number.family == "kmeans" else 4 * number.numbers * groups
            assert result.metadata_bytes == stored, name
        elif scheme.scaled:
            rule = SCALES[scheme.scale]
            scales = len(pack(result.scale_codes.numpy(), rule.bits)) + rule.shared_bits // 8
            zero_points = 0 if scheme.symmetric else -(-groups * scheme.bits // 8)
            assert result.metadata_bytes == scales + zero_points, name
        else:
            assert result.metadata_bytes == 0, name
        assert result.total_bytes == len(data) + result.metadata_bytes, name
        assert result.bits_per_value == 8 * result.total_bytes / tensor.numel(), name
        assert result.bits_per_value == bits_per_value(scheme, tuple(tensor.shape), 0), name
