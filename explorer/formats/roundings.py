"""Rounding: to the nearest level, or up or down by chance.

Stochastic rounding takes one of the two levels beside a value, each with the probability that makes the mean
come out at the value: ``P(upper) = (value - lower) / (upper - lower)``.  It is repeatable: the chance of each
element is a hash of a seed, of the element's place in its tensor (of an activation, in its example) and of
its value, so that neither the batch nor the size of the pieces that are worked on changes a result.

Sources: Gupta et al., "Deep learning with limited numerical precision", 2015, arXiv:1502.02551; the hash
is the finaliser of SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from explorer.errors import SchemeError
from explorer.formats.base import Parameter, entry_named
from explorer.formats.floating import FloatFormat
from explorer.formats.uniform import QParams, fake_quantize_

# Elements that are hashed at a time: a few arrays of 8 bytes each stay in the cache.
_PIECE = 1 << 16
_DIGITS = 24


@dataclass(frozen=True)
class Rounding(ABC):
    """Which of its neighbouring levels a value becomes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in recipes."""

    @abstractmethod
    def scaled(
        self, values: Tensor, scale: Tensor, zero_point: Tensor, params: QParams, examples: int = 1
    ) -> Tensor:
        """``values``, or tensors like them whose nearest levels are those to be taken.

        Args:
            values: float32 of any shape.
            scale: broadcasts against the values, like ``zero_point``.
            zero_point: see :func:`fake_quantize_`.
            params: the rest of the parameters.
            examples: how many examples the values consist of, one after the other.
        """

    @abstractmethod
    def floating(self, values: Tensor, number: FloatFormat, examples: int = 1) -> Tensor:
        """The same for a format without a scale."""


@dataclass(frozen=True)
class Nearest(Rounding):
    """The nearest level, halves to the even code."""

    @property
    def name(self) -> str:
        return "nearest"

    def scaled(
        self, values: Tensor, scale: Tensor, zero_point: Tensor, params: QParams, examples: int = 1
    ) -> Tensor:
        return values

    def floating(self, values: Tensor, number: FloatFormat, examples: int = 1) -> Tensor:
        return values


@dataclass(frozen=True)
class Stochastic(Rounding):
    """The level above or the level below, by chance and without bias.

    A value that is a level stays; one beyond the range becomes its end.
    """

    seed: float = 0
    PARAMETER: ClassVar[Parameter] = Parameter(0, above=-1, most=(1 << 31) - 1, step=1)

    def __post_init__(self) -> None:
        self.PARAMETER.check("A seed", self.seed)
        if self.seed != int(self.seed):
            raise SchemeError(f"A seed is a whole number, not {self.seed:g}; use {round(self.seed)}.")

    @property
    def name(self) -> str:
        return f"stochastic:{int(self.seed)}" if self.seed else "stochastic"

    def scaled(
        self, values: Tensor, scale: Tensor, zero_point: Tensor, params: QParams, examples: int = 1
    ) -> Tensor:
        nearest = fake_quantize_(values, scale, zero_point, params)
        away = values - nearest
        if params.book is not None:
            other = params.book.beside(nearest, away, scale)
            gap = other - nearest
        elif params.levels is not None:
            # What became infinity, or NaN, is no level and has none beside it.
            level = nearest.isfinite()
            nearest, away = torch.where(level, nearest, values), away.mul_(level).nan_to_num_(0.0)
            other, gap = params.levels.beside(nearest / scale, away)
            other, gap = other * scale, gap * scale
        else:
            gap = away.sign() * scale
            other = nearest + gap
        return self._taken(values, nearest, other, away.div_(gap), examples)

    def floating(self, values: Tensor, number: FloatFormat, examples: int = 1) -> Tensor:
        nearest = number.snap(values)
        away = values - nearest
        beside = torch.nextafter(nearest.to(number.dtype), (away.sign() * torch.inf).to(number.dtype)).float()
        return self._taken(values, nearest, beside, away.div_(beside - nearest), examples)

    def _taken(self, values: Tensor, nearest: Tensor, other: Tensor, share: Tensor, examples: int) -> Tensor:
        # Where nothing is rounded the share is 0 / 0, which is larger than no chance.
        return torch.where(self.chances(values, examples) < share, other, nearest)

    def chances(self, values: Tensor, examples: int = 1) -> Tensor:
        """A number from 0 to below 1 for each element, float32 of the same shape: the same at every call."""
        # Where an element stands must not depend on how the tensor lies in memory.
        flat = values.contiguous().view(-1)
        found = torch.empty_like(flat)
        each = max(flat.numel() // examples, 1)
        seed = _mixed(torch.tensor(int(self.seed)))
        for start in range(0, flat.numel(), _PIECE):
            part = flat[start : start + _PIECE]
            place = torch.arange(start, start + part.numel()).remainder_(each)
            bits = part.view(torch.int32).long()
            mixed = _mixed(_mixed(place.mul_(_STEP).add_(seed)).bitwise_xor_(bits))
            found[start : start + _PIECE] = ((mixed >> (64 - _DIGITS)) & ((1 << _DIGITS) - 1)).float()
        return found.mul_(2.0**-_DIGITS).view(values.shape)


# SplitMix64's constants, as signed numbers; products wrap around.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def _mixed(number: Tensor) -> Tensor:
    """A hash of int64 numbers of any shape."""
    for shift, factor in ((30, _FACTORS[0]), (27, _FACTORS[1])):
        # The shift of a signed number brings in copies of its sign, which are masked out.
        number = (number ^ ((number >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return number ^ ((number >> 31) & ((1 << 33) - 1))


@dataclass(frozen=True)
class RoundingEntry:
    """A line of the table: how to build the rounding, with a number after the colon or without."""

    help: str
    build: Callable[..., Rounding]
    parameter: Parameter | None = None


ROUNDINGS: dict[str, RoundingEntry] = {
    "nearest": RoundingEntry("the nearest level, halves to the even code", Nearest),
    "stochastic:SEED": RoundingEntry(
        "the level above or below by chance, right on average", Stochastic, Stochastic.PARAMETER
    ),
}


@lru_cache(maxsize=1024)
def rounding(name: str) -> Rounding:
    """The rounding called ``name``: ``nearest``, ``stochastic`` or, with another seed, ``stochastic:7``.

    Raises:
        SchemeError: for an unknown name or a seed that is not a whole number.

    >>> rounding("stochastic:7").name, rounding("stochastic:0").name
    ('stochastic:7', 'stochastic')
    """
    entry, _, seed = entry_named(name, ROUNDINGS, "rounding")
    if entry.parameter is None or ":" not in name:
        return entry.build()
    try:
        number = float(seed)
    except ValueError:
        raise SchemeError(
            f"The rounding {name!r} needs a whole number after the colon, for example 'stochastic:1'."
        ) from None
    return entry.build(number)
