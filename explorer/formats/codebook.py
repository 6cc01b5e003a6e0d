"""Formats whose levels are fitted to each group: codebooks, sums of scaled binary vectors, binary and ternary.

Such a format has no scale that is the same for all its users: each group brings its own short list of real
values, its *book*, and a code is a place in that list, which is sorted.  Encoding takes the nearest level, ties to
the even code, as everywhere.  What must be stored for a group are the numbers that the book is made of, in
float32: all levels of a fitted codebook, one coefficient for each vector of a sum, one magnitude otherwise.  Zero
is a level only where the book holds it: always of ``ternary``, by chance of the others.

Sources: Han et al., 2016, arXiv:1510.00149, for codebooks; Guo et al., 2017, arXiv:1706.02021, and Xu et al., 2018,
arXiv:1802.00150, for sums of binary vectors; Rastegari et al., 2016, arXiv:1603.05279, for one; Li et al., 2016,
arXiv:1605.04711, for ternary values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from explorer.errors import SchemeError
from explorer.formats.base import Format


@dataclass(frozen=True)
class CodebookFormat(Format):
    """A format whose levels are fitted to each group by least squares.

    Args:
        family: how they are fitted, a name in ``explorer.calibrate.CODEBOOKS``.
        count: how many levels a group has.
        numbers: how many float32 numbers are stored for each group.
        shape: the levels of a group before its one magnitude scales them; empty where more is fitted than that.

    >>> CODEBOOK_FORMATS["kmeans4"].count, CODEBOOK_FORMATS["ternary"].values.tolist()
    (16, [-1.0, 0.0, 1.0])
    """

    family: str = "kmeans"
    count: int = 2
    numbers: int = 2
    shape: tuple[float, ...] = ()

    @property
    def scaled(self) -> bool:
        return True

    @property
    def values(self) -> np.ndarray:
        """The levels before scaling.

        Raises:
            SchemeError: where they are another list for each group.
        """
        if not self.shape:
            raise SchemeError(
                f"The levels of {self.name} are fitted to each group, so there is no list of them; "
                "quantize a tensor and look at its book."
            )
        return np.array(self.shape)

    @property
    def dynamic(self) -> bool:
        """Whether a book is found fast enough for each example as it comes."""
        return bool(self.shape)


@dataclass(frozen=True, eq=False)
class Codebook:
    """The levels of each group.

    Args:
        levels: real values, float32 ``(groups, levels)``, none smaller than the one before it.

    >>> book = Codebook(torch.tensor([[-1.0, 3.0], [0.0, 5.0]]))
    >>> book.round(torch.tensor([[0.9, 1.1], [9.0, 2.0]]), torch.tensor([[0], [1]])).tolist()
    [[-1.0, 3.0], [5.0, 0.0]]
    """

    levels: Tensor

    @property
    def count(self) -> int:
        """How many levels a group has."""
        return self.levels.shape[1]

    @cached_property
    def borders(self) -> Tensor:
        """The largest float32 that still goes to each level but the last, ``(groups, levels - 1)``."""
        below, above = self.levels[:, :-1].double(), self.levels[:, 1:].double()
        middle = (below + above) / 2
        border = middle.float()
        exact = border.double()
        # A middle that is a float32 itself is a tie and goes to the even code; equal levels have none.
        even = torch.arange(1, self.count) % 2 == 0
        lower = (exact > middle) | ((exact == middle) & even & (below < above))
        return torch.where(lower, torch.nextafter(border, torch.tensor(-math.inf)), border)

    @cached_property
    def _search(self) -> tuple[int, Tensor]:
        """How many borders a group has when filled up to a power of two, and the borders of all groups in a row."""
        width = 1 << (self.count - 1).bit_length()
        filled = torch.nn.functional.pad(self.borders, (0, width - self.count + 1), value=math.inf)
        return width, filled.reshape(-1)

    def index(self, values: Tensor, group: Tensor) -> Tensor:
        """The place of the nearest level, int64 of the shape of ``values``.

        Args:
            values: float32 of any shape.
            group: the number of each value's group, int64, broadcasts against ``values``.
        """
        if group.numel() == 1:
            return torch.bucketize(values.contiguous(), self.borders[int(group)])
        width, borders = self._search
        first = group * width - 1
        place = torch.zeros(values.shape, dtype=torch.int64)
        step = width // 2
        while step:
            place.add_(values > borders.take(place + (first + step)), alpha=step)
            step //= 2
        return place

    def beside(self, nearest: Tensor, away: Tensor, group: Tensor) -> Tensor:
        """The level next to each of the ``nearest`` ones on the side of ``away``'s sign; behind the last that itself.

        A group may have equal levels, which are passed over.
        """
        side = away.sign().long()
        place = self.index(nearest, group)
        for _ in range(self.count - 1):
            place = (place + side).clamp_(0, self.count - 1)
            level = self.decode(place, group)
            side = side * (level == nearest)
            if not bool(side.any()):
                break
        return self.decode(place, group)

    def decode(self, codes: Tensor, group: Tensor) -> Tensor:
        """The levels of places, float32; ``group`` as in :meth:`index`."""
        return self.levels.take(codes.long() + group * self.count)

    def round(self, values: Tensor, group: Tensor) -> Tensor:
        """The nearest level to each value, float32; arguments as in :meth:`index`."""
        return self.decode(self.index(values, group), group)


CODEBOOK_FORMATS: dict[str, CodebookFormat] = {
    f.name: f
    for f in (
        *(
            CodebookFormat(f"kmeans{n}", n, f"codebook of {1 << n} fitted values", "kmeans", 1 << n, 1 << n)
            for n in range(2, 9)
        ),
        CodebookFormat("basis1", 1, "one scaled binary vector: the same as binary", "basis", 2, 1),
        *(
            CodebookFormat(f"basis{k}", k, f"sum of {k} scaled binary vectors", "basis", 1 << k, k)
            for k in range(2, 5)
        ),
        CodebookFormat(
            "binary", 1, "a sign and the mean magnitude; no zero", "binary", 2, 1, shape=(-1.0, 1.0)
        ),
        CodebookFormat(
            "ternary", 2, "zero, and one magnitude with a sign: 1.58 bits in theory, 2 stored", "ternary", 3, 1,
            shape=(-1.0, 0.0, 1.0),
        ),
    )
}  # fmt: skip
