"""Formats that are a fixed list of levels: small floats, NF4, powers of two and sums of them.

All are symmetric in use: one real number, the scale, carries a level to a real value, and there is no zero point.
Encoding takes the nearest level, ties to the level whose code is even, which for floats is IEEE's rounding.
A value beyond the last level becomes the last level.  Floats that have codes for infinity (fp8_e5m2) or NaN alone
(fp8_e4m3) may make those instead, of values that would round to the number after the last one: the two
conversions of OFP8, section 5.2.

Sources: OCP 8-bit Floating Point Specification (OFP8) 1.0, 2023; OCP Microscaling Formats (MX) 1.0, 2023, for
6 and 4 bits; Dettmers et al., 2023, arXiv:2305.14314, appendix E, for NF4; Miyashita et al., 2016,
arXiv:1603.01025, for powers of two; Li et al., 2020, arXiv:1909.13144, for additive powers of two.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from explorer.formats.base import Format


@dataclass(frozen=True)
class LevelFormat(Format):
    """A list of levels and the code of each.

    Args:
        levels: what can be represented before scaling, increasing, zero among them.
        codes: the bit pattern of each level, from 0 to ``2**bits - 1``.
        specials: codes that mean no level of their own, with what they mean: minus zero, infinity, NaN.

    >>> LevelFormat("sign", 2, "", levels=(-1.0, 0.0, 1.0), codes=(3, 0, 1)).round(torch.tensor([0.4, -9.0])).tolist()
    [0.0, -1.0]
    """

    levels: tuple[float, ...] = ()
    codes: tuple[int, ...] = ()
    specials: tuple[tuple[int, float], ...] = ()

    @property
    def scaled(self) -> bool:
        return True

    @property
    def values(self) -> np.ndarray:
        return np.array(self.levels)

    @property
    def lowest(self) -> float:
        """The least level."""
        return self.levels[0]

    @property
    def highest(self) -> float:
        """The largest level."""
        return self.levels[-1]

    @cached_property
    def _levels(self) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float32)

    @cached_property
    def _codes(self) -> Tensor:
        return torch.tensor(self.codes, dtype=torch.int32)

    @cached_property
    def _by_code(self) -> Tensor:
        table = torch.full((1 << self.bits,), math.nan)
        table[self._codes.long()] = self._levels
        for code, value in self.specials:
            table[code] = value
        return table

    @property
    def by_code(self) -> np.ndarray:
        """What each code means before scaling, float64 ``(2**bits,)``; NaN for codes that mean nothing, too.

        >>> LEVEL_FORMATS["fp4_e2m1"].by_code.tolist()[6:12]
        [4.0, 6.0, -0.0, -0.5, -1.0, -1.5]
        """
        return self._by_code.double().numpy()

    @cached_property
    def borders(self) -> Tensor:
        """The largest float32 that still goes to each level but the last, ``(levels - 1,)``."""
        level = self._levels.double()
        middle = (level[:-1] + level[1:]) / 2
        border = middle.float()
        above = border.double() > middle
        # A middle that is a float32 itself is a tie and goes to the even code.
        tie_up = (border.double() == middle) & (self._codes[1:] % 2 == 0)
        return torch.where(above | tie_up, torch.nextafter(border, torch.tensor(-math.inf)), border)

    @cached_property
    def edges(self) -> Tensor:
        """Between which numbers each level is taken, ``(levels + 1,)``; the ends lie half a gap further out."""
        level = self._levels
        first, last = (3 * level[0] - level[1]) / 2, (3 * level[-1] - level[-2]) / 2
        return torch.cat([first[None], self.borders, last[None]])

    def index(self, values: Tensor) -> Tensor:
        """The place of the nearest level, int64 of the same shape; ``values`` are before scaling."""
        return torch.bucketize(values.contiguous(), self.borders)

    def round(self, values: Tensor) -> Tensor:
        """The nearest levels, float32 of the same shape; ``values`` are before scaling."""
        return self._levels.take(self.index(values))

    def beside(self, nearest: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:
        """The level next to each of the ``nearest`` ones on the side of ``away``'s sign, and how far it is.

        Behind the last level there is none: that level itself then, at no distance.
        """
        place = self.index(nearest)
        other = (place + away.sign().long()).clamp_(0, len(self.levels) - 1)
        level = self._levels.take(other)
        return level, level - self._levels.take(place)

    def encode(self, values: Tensor) -> Tensor:
        """The codes of the nearest levels, int32 of the same shape; ``values`` are before scaling."""
        return self._codes.take(self.index(values))

    def decode(self, codes: Tensor) -> Tensor:
        """What codes mean, float32: the levels of those made by :meth:`encode`."""
        return self._by_code.take(codes.long())


@dataclass(frozen=True)
class SmallFloat(LevelFormat):
    """A float of few bits: sign, exponent, mantissa, with subnormals.

    Args:
        mantissa: bits of the fraction.
        least: the exponent of the smallest normal number.
        beyond: infinity or NaN, where there is a code for what lies beyond the last level.
        saturates: what lies beyond becomes the last level all the same.

    >>> small_float("fp4_e2m1", 2, 1, "").values[8:].tolist()
    [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """

    mantissa: int = 0
    least: int = 0
    beyond: float | None = None
    saturates: bool = True

    @cached_property
    def unsaturated(self) -> SmallFloat:
        return self if self.beyond is None else replace(self, saturates=False)

    def round(self, values: Tensor) -> Tensor:
        """As of any format, in six passes of arithmetic instead of a search."""
        # What is far beyond is brought near: its quotient by the step must be a number.
        most = self.highest if self.saturates else 2 * self.highest
        values = values.clamp(-most, most)
        # The exponent's bits alone are the power of two below the magnitude; its last place is the step.
        power = (values.view(torch.int32) & 0x7F800000).view(torch.float32)
        step = power.clamp_(min=2.0**self.least).mul_(2.0**-self.mantissa)
        # + 0.0 turns -0.0, for which there is no code of its own, into 0.0.
        rounded = values.div(step).round_().mul_(step).add_(0.0)
        if self.saturates or self.beyond is None:
            return rounded
        return torch.where(rounded.abs() > self.highest, rounded.sign() * self.beyond, rounded)

    def encode(self, values: Tensor) -> Tensor:
        """As of any format; of a value beyond the last level that does not saturate, the code of :attr:`beyond`."""
        codes = super().encode(values)
        if self.saturates:
            return codes
        sign = (values < 0).int() << (self.bits - 1)
        # The first of these codes is infinity's or the only NaN's.
        special = next(code for code, value in self.specials if not math.isfinite(value))
        return torch.where(self.round(values).isfinite(), codes, special | sign)


def small_float(
    name: str, exponent: int, mantissa: int, help: str, infinities: bool = False, nan: bool = False
) -> SmallFloat:
    """A float of ``1 + exponent + mantissa`` bits.

    Args:
        infinities: the largest exponent stands for infinities and NaN, as in IEEE 754.
        nan: the largest code alone is NaN.
    """
    bias = (1 << (exponent - 1)) - 1
    magnitudes, specials = [], [(0, 0.0)]
    for code in range(1 << (exponent + mantissa)):
        power, fraction = code >> mantissa, code & ((1 << mantissa) - 1)
        top = power == (1 << exponent) - 1
        if top and (infinities or (nan and fraction == (1 << mantissa) - 1)):
            specials.append((code, math.inf if infinities and not fraction else math.nan))
            continue
        whole = fraction / (1 << mantissa) + (power > 0)
        magnitudes.append((whole * 2.0 ** (max(power, 1) - bias), code))
    levels, codes = _mirrored(magnitudes, exponent + mantissa)
    bits = 1 + exponent + mantissa
    both = [*specials[1:], *((code | 1 << (bits - 1), -value) for code, value in specials)]
    beyond = specials[1][1] if len(specials) > 1 else None
    return SmallFloat(name, bits, help, levels, codes, tuple(both), mantissa, 1 - bias, beyond)


def _mirrored(magnitudes: list[tuple[float, int]], sign: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Levels and codes in increasing order, from magnitudes with their codes; bit ``sign`` is set in negative ones."""
    both = [(-value, code | 1 << sign) for value, code in magnitudes if value] + magnitudes
    both.sort()
    return tuple(float(np.float32(value)) for value, _ in both), tuple(code for _, code in both)


def power_of_two(name: str, bits: int) -> LevelFormat:
    """Zero and the powers of two from 1 downwards, with a sign.

    >>> power_of_two("log3", 3).values.tolist()
    [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    count = (1 << (bits - 1)) - 1
    magnitudes = [(0.0, 0)] + [(2.0 ** (k - count), k) for k in range(1, count + 1)]
    help = f"zero and {count} powers of two with a sign"
    return LevelFormat(name, bits, help, *_mirrored(magnitudes, bits - 1))


def additive_powers(name: str, bits: int) -> LevelFormat:
    """Sums of powers of two, one from each of several sets of four (and one of two where bits are left).

    >>> additive_powers("apot4", 4).values[7:].round(3).tolist()
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
    """
    sets = _power_sets(bits - 1)
    sums = sorted({sum(terms) for terms in itertools.product(*sets)})
    magnitudes = [(value / sums[-1], code) for code, value in enumerate(sums)]
    help = f"sums of {len(sets)} power{'s' if len(sets) > 1 else ''} of two with a sign"
    return LevelFormat(name, bits, help, *_mirrored(magnitudes, bits - 1))


def _power_sets(bits: int) -> list[list[float]]:
    """The sets of which one power each is added, for magnitudes of ``bits`` bits."""
    terms = bits // 2
    sets: list[list[float]] = [[0.0] for _ in range(terms)]
    extra: list[float] = [0.0]
    power = 1
    for turn in range(3):
        if bits % 2 and turn == (2 if terms else 0):
            extra.append(2.0**-power)
            power += 1
        for own in sets:
            own.append(2.0**-power)
            power += 1
    return [*sets, *([extra] if bits % 2 else [])]


# Quantiles of the normal distribution, 7 below and 8 above zero, scaled to end at -1 and 1.
_NORMAL_FLOAT = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

LEVEL_FORMATS: dict[str, LevelFormat] = {
    f.name: f
    for f in (
        small_float("fp8_e4m3", 4, 3, "8-bit float, 4 exponent and 3 mantissa bits, up to 448", nan=True),
        small_float(
            "fp8_e5m2", 5, 2, "8-bit float, 5 exponent and 2 mantissa bits, up to 57344", infinities=True
        ),
        small_float("fp6_e2m3", 2, 3, "6-bit float, 2 exponent and 3 mantissa bits, up to 7.5"),
        small_float("fp6_e3m2", 3, 2, "6-bit float, 3 exponent and 2 mantissa bits, up to 28"),
        small_float("fp4_e2m1", 2, 1, "4-bit float, 2 exponent bits and 1 mantissa bit, up to 6"),
        LevelFormat("nf4", 4, "quantiles of the normal distribution (NF4)", _NORMAL_FLOAT, tuple(range(16))),
        *(power_of_two(f"log{bits}", bits) for bits in range(2, 9)),
        *(additive_powers(f"apot{bits}", bits) for bits in range(2, 9)),
    )
}
