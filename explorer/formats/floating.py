"""Floating-point formats: fp32 (quantization off), fp16 and bf16.

They are used as they are, without a scale; a value beyond the largest finite one saturates to it, or becomes
infinity where it would round to the number after it, as in IEEE 754.
Source: IEEE 754-2019 (binary16, binary32); bfloat16 as in the Intel "BFLOAT16 hardware numerics
definition" (2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from explorer.errors import SchemeError
from explorer.formats.base import Format


@dataclass(frozen=True)
class FloatFormat(Format):
    """A binary floating-point format that torch holds as a dtype."""

    dtype: torch.dtype = torch.float32
    saturates: bool = True

    @property
    def scaled(self) -> bool:
        return False

    @property
    def exact(self) -> bool:
        """Whether float32 values pass unchanged."""
        return self.dtype == torch.float32

    @property
    def highest(self) -> float:
        return float(torch.finfo(self.dtype).max)

    @property
    def beyond(self) -> float | None:
        return None if self.exact else math.inf

    @cached_property
    def unsaturated(self) -> FloatFormat:
        return self if self.exact else replace(self, saturates=False)

    @property
    def values(self) -> np.ndarray:
        """The finite values, increasing, minus zero left out.

        Raises:
            SchemeError: for fp32, which has 4 billion of them.
        """
        if self.exact:
            raise SchemeError("fp32 has more than 4 billion values; they are not listed.")
        codes = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
        values = codes.view(self.dtype).to(torch.float64).numpy()
        return np.unique(values[np.isfinite(values)] + 0.0)

    def snap(self, values: Tensor) -> Tensor:
        """The nearest representable values, float32 of the same shape; half to even."""
        return values if self.exact else self._narrowed(values).to(torch.float32)

    def _narrowed(self, values: Tensor) -> Tensor:
        if self.saturates:
            values = values.clamp(-self.highest, self.highest)
        return values.to(self.dtype)

    def encode(self, values: Tensor) -> Tensor:
        """The bit patterns, int32 of the same shape, from 0 to ``2**bits - 1`` (int64 for fp32)."""
        if self.exact:
            return values.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        return self._narrowed(values).contiguous().view(torch.int16).to(torch.int32) & 0xFFFF

    def decode(self, codes: Tensor) -> Tensor:
        """The float32 values of bit patterns made by :meth:`encode`."""
        if self.exact:
            signed = torch.where(codes >= 1 << 31, codes - (1 << 32), codes)
            return signed.to(torch.int32).view(torch.float32)
        signed = torch.where(codes >= 1 << 15, codes - (1 << 16), codes)
        return signed.to(torch.int16).view(self.dtype).to(torch.float32)
