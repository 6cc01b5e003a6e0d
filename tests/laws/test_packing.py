"""Packing: codes become bytes without gaps, and come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.errors import TensorError
from explorer.formats import FORMATS, SCALES, CodebookFormat, pack, packed_bytes, packing, unpack
from explorer.recipe import TensorScheme
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
