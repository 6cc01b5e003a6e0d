"""Packing codes into bytes, so that a size is a length and not a formula."""

from __future__ import annotations

import numpy as np

from explorer.errors import TensorError

_CHUNK = 1 << 20  # codes at a time; a multiple of 8, so that every chunk ends on a whole byte


def pack(codes: np.ndarray, bits: int, lowest: int = 0) -> bytes:
    """The codes, ``bits`` bits each, least significant bit first, without gaps.

    Args:
        codes: integers of any shape, each within ``lowest .. lowest + 2**bits - 1``.
        bits: from 1 to 32.
        lowest: the code that is stored as 0.

    Raises:
        TensorError: when a code does not fit.

    >>> pack(np.array([-1, 0, 1, -2]), 2, lowest=-2).hex()
    '39'
    """
    flat = np.asarray(codes).reshape(-1)
    parts = []
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.int64) - lowest
        if part.size and (part.min() < 0 or part.max() >= 1 << bits):
            raise TensorError(
                f"A code lies outside of {lowest} .. {lowest + (1 << bits) - 1} and cannot be packed."
            )
        bit = (part[:, None] >> np.arange(bits)) & 1
        parts.append(np.packbits(bit.astype(np.uint8).reshape(-1), bitorder="little").tobytes())
    return b"".join(parts)


def unpack(data: bytes, count: int, bits: int, lowest: int = 0) -> np.ndarray:
    """The ``count`` codes that :func:`pack` stored, int64 ``(count,)``.

    Raises:
        TensorError: when there are too few bytes.

    >>> unpack(bytes.fromhex("39"), 4, 2, lowest=-2).tolist()
    [-1, 0, 1, -2]
    """
    if len(data) < packed_bytes(count, bits):
        raise TensorError(
            f"{count} codes of {bits} bits need {packed_bytes(count, bits)} bytes, not {len(data)}."
        )
    raw = np.frombuffer(data, np.uint8)
    codes = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        piece = raw[start * bits // 8 : (stop * bits + 7) // 8]
        bit = np.unpackbits(piece, bitorder="little")[: (stop - start) * bits].reshape(-1, bits)
        codes[start:stop] = bit.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))
    return codes + lowest


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes ``count`` codes of ``bits`` bits take.

    >>> packed_bytes(3, 3)
    2
    """
    return (count * bits + 7) // 8
