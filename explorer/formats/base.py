"""What a number format is, and the numerical conventions of the whole package.

A format is a sorted list of values that can be represented; encoding a number means taking the nearest
value of the list, ties to the even code.  Formats of integers are *scaled*: one real number, the scale,
and one integer, the zero point, carry a code to a real value::

    real = scale * (code - zero_point)

Rounding is half to even.  Zero is always exactly representable.  A group of values that are all equal is
reproduced exactly.  NaN and infinity are errors (:func:`check_finite`); nothing is dropped in silence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explorer.errors import TensorError

# A listing longer than this is a drawing that nobody can read and an array that nobody wants.
MOST_VALUES = 1 << 16


@dataclass(frozen=True)
class Format(ABC):
    """A number format: its name in recipes, its bits for one value, and one line of help."""

    name: str
    bits: int
    help: str

    @property
    @abstractmethod
    def scaled(self) -> bool:
        """Whether codes become real numbers through a scale (and a zero point)."""

    @property
    @abstractmethod
    def values(self) -> np.ndarray:
        """The representable values before scaling, float64 ``(levels,)``, increasing."""


@dataclass(frozen=True)
class IntegerFormat(Format):
    """Integers of ``bits`` bits, two's complement when ``signed``.

    >>> IntegerFormat("int2", 2, "").values.tolist()
    [-2.0, -1.0, 0.0, 1.0]
    """

    signed: bool = True

    @property
    def scaled(self) -> bool:
        return True

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return self.lowest + (1 << self.bits) - 1

    @property
    def values(self) -> np.ndarray:
        return np.arange(self.lowest, self.highest + 1, dtype=np.float64)


def check_finite(tensor: Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        TensorError: naming the tensor, how many elements are not finite and how many there are.

    >>> check_finite(torch.ones(3), "weight of 'fc'")
    """
    # A sum is finite only if every term is, and costs a fifth of isfinite(); overflow is told apart below.
    if tensor.numel() == 0 or not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return
    nan = int(torch.isnan(tensor).sum())
    infinite = int(torch.isinf(tensor).sum())
    if nan or infinite:
        raise TensorError(
            f"The {name} holds {nan} NaN and {infinite} infinite values among {tensor.numel():,}; "
            "it cannot be quantized."
        )
