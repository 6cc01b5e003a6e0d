"""Scale rules: which numbers a scale may be, and which of them a range gets.

With a the largest magnitude of a group (or the end of its clipping range) and m the largest level of the format:

* ``float``: ``a / m``, any float32 number.
* ``pow2``: ``2 ** (floor(log2 a) - floor(log2 m))`` in the range of E8M0, 2**-127 to 2**127; what then lies beyond
  the last level saturates.  This is the conversion of the OCP Microscaling Formats (MX) 1.0, 2023, section 6.3:
  fp4_e2m1 by subchannel:32 is MXFP4, int8 (codes -127 to 127) by subchannel:32 is MXINT8.  An asymmetric range,
  which MX does not know, gets the next power of two above its step, so that nothing is clipped.
* ``fp8``: an e4m3 number for each group times one float32 number for the tensor, ``A / (448 m)``, where A is the
  largest magnitude of the whole tensor: ``e4m3(a / m / tensor scale)``.  With fp4_e2m1 by subchannel:16 this is
  NVFP4 (NVIDIA, "Pretraining large language models with NVFP4", 2025, arXiv:2509.25149, appendix C).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.formats.levels import LEVEL_FORMATS

TINY = float(torch.finfo(torch.float32).tiny)
LARGEST = float(torch.finfo(torch.float32).max)
_E4M3 = LEVEL_FORMATS["fp8_e4m3"]
_LEAST_E4M3 = 2.0**-9
_E8M0_BIAS = 127


@dataclass(frozen=True)
class ScaleRule(ABC):
    """Which numbers a scale may be.

    Args:
        name: in recipes.
        help: one line.
        bits: of one stored scale.
        shared_bits: of a number that all scales of a tensor share.
        free: any float32 number may be a scale.
        signed: signed integers keep their signed codes even where a tensor is never negative.
        least: the smallest scale.
    """

    name: str
    help: str
    bits: int
    shared_bits: int = 0
    free: bool = False
    signed: bool = False
    least: float = TINY

    @abstractmethod
    def symmetric(self, absmax: Tensor, highest: float, floor: float, widest: Tensor) -> Tensor:
        """The scales of ranges ``-absmax .. absmax`` (groups,) of a format whose largest level is ``highest``.

        Args:
            absmax: float32, at least zero.
            highest: in units of the scale.
            floor: a smallest scale that is wanted besides the rule's own.
            widest: the largest magnitude of the tensor that each group belongs to, ``()`` or ``(groups,)``.
        """

    def asymmetric(self, step: Tensor) -> Tensor:
        """The scales (groups,) of ranges whose ``step`` is the width over the number of steps."""
        return step

    def capped(self, scale: Tensor, most: Tensor, shared: Tensor | None) -> Tensor:
        """The scales (groups,), smaller where they are more than ``most``, under which every level is a float32."""
        return torch.minimum(scale, most)

    def shared(self, highest: float, widest: Tensor) -> Tensor | None:
        """What all scales of a tensor share, where they do."""
        return None

    def shares(self, count: int) -> Tensor:
        """The shares of a full symmetric range that a search tries, the full range first."""
        return torch.arange(count, 0, -1) / count

    @abstractmethod
    def stored(self, scale: Tensor, shared: Tensor | None) -> Tensor:
        """The bit patterns of scales that the rule has made, from 0 to ``2**bits - 1``, int64."""


@dataclass(frozen=True)
class AnyScale(ScaleRule):
    """Any float32 number.

    >>> SCALES["float"].symmetric(torch.tensor([12.7]), 127, 0.0, torch.tensor(12.7)).item() == torch.tensor(0.1).item()
    True
    """

    def symmetric(self, absmax: Tensor, highest: float, floor: float, widest: Tensor) -> Tensor:
        return torch.where(absmax > 0, absmax / highest, 1.0).clamp_(min=max(floor, self.least))

    def stored(self, scale: Tensor, shared: Tensor | None) -> Tensor:
        return scale.contiguous().view(torch.int32).long()


@dataclass(frozen=True)
class PowerOfTwo(ScaleRule):
    """Powers of two in the range of E8M0.

    >>> SCALES["pow2"].symmetric(torch.tensor([5.0, 7.9, 8.0]), 6, 0.0, torch.tensor(8.0)).tolist()
    [1.0, 1.0, 2.0]
    """

    def symmetric(self, absmax: Tensor, highest: float, floor: float, widest: Tensor) -> Tensor:
        # |x| = mantissa * 2**exponent with mantissa in [0.5, 1).
        exponent = torch.frexp(absmax.clamp(max=LARGEST))[1] - math.frexp(highest)[1]
        power = torch.exp2(exponent.clamp(-_E8M0_BIAS, _E8M0_BIAS).double()).float()
        return torch.where(absmax > 0, power, torch.ones_like(absmax)).clamp(min=floor)

    def asymmetric(self, step: Tensor) -> Tensor:
        # log2 in double precision: exact for every float32 power of two.
        return torch.exp2(torch.ceil(torch.log2(step.double())).clamp(max=_E8M0_BIAS)).float()

    def capped(self, scale: Tensor, most: Tensor, shared: Tensor | None) -> Tensor:
        return torch.minimum(scale, torch.exp2(torch.floor(torch.log2(most.double()))).float())

    def shares(self, count: int) -> Tensor:
        """Every power from the next one, under which nothing is clipped, down to the ``count``-th part."""
        return torch.exp2(torch.tensor([0.0, 1.0, *range(-1, -(count - 1).bit_length() - 1, -1)]))

    def stored(self, scale: Tensor, shared: Tensor | None) -> Tensor:
        return torch.frexp(scale)[1].long() - 1 + _E8M0_BIAS


@dataclass(frozen=True)
class SmallFloatScale(ScaleRule):
    """An e4m3 number times what the tensor shares.

    A group whose number would round to zero gets the smallest e4m3 number, 2**-9; a group of zeros gets one.

    >>> SCALES["fp8"].symmetric(torch.tensor([2688.0, 6.0, 0.001]), 6, 0.0, torch.tensor(2688.0)).tolist()
    [448.0, 1.0, 0.001953125]
    """

    def shared(self, highest: float, widest: Tensor) -> Tensor:
        # Not so small that the product with the smallest e4m3 number were no normal float32 number; nor so
        # large that the last level, rounded at each product on the way, were infinite.
        steps = highest * _E4M3.highest
        scale = (widest / steps).clamp(TINY / _LEAST_E4M3, LARGEST * (1 - 2.0**-21) / steps)
        return torch.where(widest > 0, scale, torch.ones_like(scale))

    def symmetric(self, absmax: Tensor, highest: float, floor: float, widest: Tensor) -> Tensor:
        shared = self.shared(highest, widest)
        block = _E4M3.round((absmax / highest).clamp(min=floor) / shared).clamp(min=_LEAST_E4M3)
        return torch.where(absmax > 0, block, torch.ones_like(block)) * shared

    def capped(self, scale: Tensor, most: Tensor, shared: Tensor | None) -> Tensor:
        # What is shared is small enough for the largest code; the lowest may be one step further out.
        assert shared is not None
        nearest = _E4M3.round((most / shared).float())
        below, _ = _E4M3.beside(nearest, torch.tensor(-1.0))
        block = torch.where(nearest * shared > most, below, nearest)
        return torch.where(scale > most, block * shared, scale)

    def shares(self, count: int) -> Tensor:
        # Each number up to twice the full range's too: the largest magnitude may do best at the last level but one.
        above = 1 + torch.arange(17) / 16
        return torch.cat([above, torch.arange(count - 1, 0, -1) / count])

    def stored(self, scale: Tensor, shared: Tensor | None) -> Tensor:
        assert shared is not None
        return _E4M3.encode(scale / shared).long()


SCALES: dict[str, ScaleRule] = {
    "float": AnyScale("float", "any float32 number", 32, free=True),
    "pow2": PowerOfTwo(
        "pow2", "powers of two (E8M0), by the rule of OCP MX", 8, signed=True, least=2.0**-127
    ),
    "fp8": SmallFloatScale("fp8", "e4m3 numbers times one float32 a tensor, as in NVFP4", 8, shared_bits=32),
}
