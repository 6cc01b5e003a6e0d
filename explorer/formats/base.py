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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from explorer.errors import SchemeError, TensorError, unknown

Entry = TypeVar("Entry")

# A listing longer than this is a drawing that nobody can read and an array that nobody wants.
MOST_VALUES = 1 << 16

OVERFLOWS: dict[str, str] = {
    "saturate": "values beyond the range become the largest",
    "infinity": "values beyond the range become infinity, in fp8_e4m3 NaN",
}


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

    @property
    def beyond(self) -> float | None:
        """What a value beyond the largest may become instead of it: infinity or NaN; None where there is no code."""
        return None

    @property
    def unsaturated(self) -> Format:
        """The format in which such values become infinity or NaN; the same where there is no code for them."""
        return self


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


def entry_named(name: str, table: Mapping[str, Entry], kind: str) -> tuple[Entry, str, str]:
    """The entry of ``table`` for a name such as ``channel`` or ``group:4``, which stands there as ``group:N``.

    Args:
        name: a word, or a word, a colon and a number.
        table: entries by word or by template.
        kind: what the table lists, for the message.

    Returns:
        The entry, the word, and what follows the colon.

    Raises:
        SchemeError: for an unknown name, with the nearest one.

    >>> entry_named("group:4", {"layer": 0, "group:N": 1}, "granularity")
    (1, 'group', '4')
    """
    word, _, number = str(name).partition(":")
    templates = {key.partition(":")[0]: key for key in table if ":" in key}
    key = templates.get(word, str(name))
    if key not in table:
        raise SchemeError(unknown(kind, name, table))
    return table[key], word, number


@dataclass(frozen=True)
class Parameter:
    """The number after the colon in the name of a table's entry: what it may be, and what is usual.

    Args:
        usual: what menus offer.
        above: every number lies above this one,
        most: and at or below this one.
        step: of a field in which it is typed.
        count: how many such numbers may follow each other, with colons between them.
    """

    usual: float
    above: float
    most: float
    step: float
    count: int = 1

    def check(self, what: str, *numbers: float) -> None:
        """Refuse numbers out of bounds.

        Args:
            what: the number's name, to begin a sentence with.

        Raises:
            SchemeError: with the bounds and the usual number.

        >>> Parameter(99.9, 50, 100, 0.1).check("A percentile", 99.0)
        """
        for number in numbers:
            if not self.above < number <= self.most:
                raise SchemeError(
                    f"{what} lies above {spelled(self.above)} and at most at {spelled(self.most)}, "
                    f"not at {spelled(number)}; {spelled(self.usual)} is a usual choice."
                )


def spelled(number: float) -> str:
    """A number as it stands in a name, to ten digits.

    >>> spelled(99.999999), spelled(2.0)
    ('99.999999', '2')
    """
    return f"{number:.10g}"


def family(name: str, table: Iterable[str]) -> str:
    """The entry of a table that a name belongs to.

    >>> family("group:7", ["layer", "group:N"]), family("layer", ["layer", "group:N"])
    ('group:N', 'layer')
    """
    word = name.partition(":")[0]
    return next((key for key in table if key.partition(":")[0] == word), name)


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
