"""Formats side by side for one tensor, at equal bits for a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from explorer.errors import SchemeError
from explorer.formats import FORMATS, IntegerFormat
from explorer.recipe import TensorScheme
from explorer.study.grouped import Grouped, level_values
from explorer.study.numberline import number_line
from explorer.tensor import bits_per_value, oversized

# From coarse to fine; each costs more scales.
LADDER = ("layer", "channel", *(f"subchannel:{size}" for size in (512, 256, 128, 64, 32, 16)))
# Bits for a value that two schemes may be apart and still be compared.
TOLERANCE = 0.25
COLUMNS = [
    "format", "granularity", "symmetric", "objective", "bits", "bits_per_value", "sqnr_db", "used_levels", "levels",
    "clipped_fraction", "present",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rival:
    """One scheme for a tensor.

    Args:
        scheme: the scheme.
        bits: for a value, scales, zero points and fitted levels counted.
        sqnr_db: of the whole tensor.
        used: how many levels some element takes, of all groups together.
        count: how many levels there are.
        levels: the real values of the levels of the group with the widest range, increasing.
        clipped_fraction: the share of elements beyond the outermost levels of their group.
        present: it is what the tensor has now.
    """

    scheme: TensorScheme
    bits: float
    sqnr_db: float
    used: int
    count: int
    levels: np.ndarray
    clipped_fraction: float
    present: bool

    def row(self) -> list[Any]:
        """A row of the table."""
        s = self.scheme
        return [
            s.format, s.granularity, s.symmetric, s.objective, s.bits, self.bits, self.sqnr_db, self.used, self.count,
            self.clipped_fraction, self.present,
        ]  # fmt: skip


def candidates(
    scheme: TensorScheme, shape: tuple[int, ...], axis: int, bits: float, ladder: tuple[str, ...] = LADDER
) -> list[TensorScheme]:
    """Of each format the granularity that comes nearest to ``bits`` for a value, where one comes near.

    Signed integers are symmetric and unsigned ones asymmetric; the rest is as in ``scheme``.

    >>> names = [rival.format for rival in candidates(TensorScheme("int4"), (64, 576), 0, 4.06)]
    >>> "nf4" in names, "int8" in names
    (True, False)
    """
    found = []
    for name in FORMATS:
        offers = [
            offer
            for grain in ladder
            if (offer := _with(scheme, name, grain)) is not None and not oversized(offer, shape, axis)
        ]
        near = [
            (abs(bits_per_value(offer, shape, axis) - bits), place, offer)
            for place, offer in enumerate(offers)
        ]
        near = [each for each in near if each[0] <= TOLERANCE]
        if near:
            found.append(min(near)[2])
    return found


def _with(scheme: TensorScheme, name: str, grain: str) -> TensorScheme | None:
    """``scheme`` with another format and granularity; None where they do not go together."""
    number = FORMATS[name]
    if not number.scaled:
        return None if grain != LADDER[0] else scheme.with_format(name)
    try:
        base = replace(scheme, narrow=None)
        if isinstance(number, IntegerFormat):
            base = replace(base, format=name, symmetric=number.signed)
        else:
            base = base.with_format(name)
            if base.mode != scheme.mode == "dynamic" and grain != "layer":
                # The positions of an activation are not known beforehand.
                return None
        return replace(base, granularity=grain)
    except SchemeError:
        return None


def rivals(
    present: TensorScheme,
    bits: float | None,
    shape: tuple[int, ...],
    axis: int,
    group: Callable[[TensorScheme], Grouped],
    ladder: tuple[str, ...] = LADDER,
) -> Iterator[tuple[Rival, ...]]:
    """The present scheme and others at equal bits for a value, best SQNR first; one more at each step.

    Args:
        present: what the tensor has now; float32 is left out.
        bits: for a value, all metadata counted; None for those of ``present``.
        shape: of the tensor.
        axis: its channel axis.
        group: puts the tensor under a scheme.
        ladder: the granularities to choose from.

    Raises:
        SchemeError: for bits for a value that are no positive number.
    """
    wanted = bits_per_value(present, shape, axis) if bits is None else bits
    if isinstance(wanted, bool) or not (isinstance(wanted, int | float) and 0 < wanted < math.inf):
        raise SchemeError(f"The bits for a value are a number above 0, such as 4.25; not {bits!r}.")
    schemes = candidates(present, shape, axis, float(wanted), ladder)
    if not present.off:
        schemes = [present, *(scheme for scheme in schemes if scheme.key != present.key)]
    found: list[Rival] = []
    for scheme in schemes:
        if scheme.off:
            continue
        tensor = group(scheme)
        line = number_line(tensor, None)
        levels = line.levels if tensor.params is None else level_values(tensor.params, tensor.widest)
        own_bits = bits_per_value(scheme, shape, axis)
        found.append(
            Rival(
                scheme, own_bits, line.sqnr_db, line.used, len(line.levels), levels, line.clipped_fraction,
                scheme.key == present.key,
            )
        )  # fmt: skip
        yield tuple(sorted(found, key=lambda rival: -rival.sqnr_db))


def table(found: tuple[Rival, ...]) -> pd.DataFrame:
    """The rivals as a table, a row each."""
    return pd.DataFrame([rival.row() for rival in found], columns=COLUMNS)
