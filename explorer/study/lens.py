"""The lens: one tensor under each convention, symmetric and asymmetric.

Conventions differ by 0.4% in a scale and by one code in places, which is what makes a network that was
quantized with one tool differ when another one runs it.  The lens shows scale, zero point, codes, range and
SQNR of the same tensor under each, and how many of its integer codes are not those of the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from explorer.errors import SchemeError
from explorer.formats import CONVENTIONS, IntegerFormat, QParams, encode, fake_quantize_
from explorer.scheme import TensorScheme
from explorer.study.metrics import ErrorSums
from explorer.study.shown import Told

EXAMPLES = 6


@dataclass(frozen=True)
class Reading:
    """The tensor under one convention.

    Args:
        convention: its name.
        symmetric: whether the range is centred on zero.
        present: whether this is the scheme that the others are compared with.
        scale: smallest, middle and largest of the groups' scales, real units a step.
        zero_point: smallest and largest.
        qmin: the lowest code.
        qmax: the highest code.
        clip: lowest and highest real value that any group can represent.
        sqnr_db: of the elements looked at; infinite where nothing differs.
        differing: how many elements have another code than under the present scheme.
        largest: by how many codes at most.
        codes: of the lens's example values.
    """

    convention: str
    symmetric: bool
    present: bool
    scale: tuple[float, float, float]
    zero_point: tuple[int, int]
    qmin: int
    qmax: int
    clip: tuple[float, float]
    sqnr_db: float
    differing: int
    largest: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Lens(Told):
    """One tensor under every convention.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        scheme: the present scheme, in words.
        elements: how many elements were looked at.
        exact: they are all there are; otherwise those of the first batch of calibration images.
        values: examples, real, increasing: both ends and values whose codes differ.
        readings: one for each convention, symmetric and asymmetric.
    """

    layer: str
    tensor: str
    scheme: str
    elements: int
    exact: bool
    values: tuple[float, ...]
    readings: tuple[Reading, ...]

    def frame(self) -> pd.DataFrame:
        """The readings, a row each: the fields of :class:`Reading`, and ``share`` of the codes that differ."""
        table = pd.DataFrame([vars(reading) for reading in self.readings])
        table.insert(
            list(table.columns).index("largest"), "share", table["differing"] / max(self.elements, 1)
        )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {**vars(self), "readings": [vars(reading) for reading in self.readings]}


def variants(scheme: TensorScheme) -> Iterator[tuple[TensorScheme, bool]]:
    """``scheme`` under every convention, symmetric and, where it may be, asymmetric; and whether that is itself.

    Raises:
        SchemeError: for a format that has no conventions, or ranges that change with each example.

    >>> [str(present) for _, present in variants(TensorScheme("int4"))].count("True")
    1
    """
    if not isinstance(scheme.number, IntegerFormat):
        raise SchemeError(
            f"Conventions are about integers; {scheme.number.name!r} is the same in every tool. "
            "Take an integer format such as int8."
        )
    if scheme.mode == "dynamic":
        raise SchemeError(
            "Dynamic ranges change with each example, so there is no one scale to compare; use mode: static."
        )
    # Scales that share a factor have no zero points.
    kinds = (True,) if scheme.grid.scale.shared_bits else (True, False)
    for name in CONVENTIONS:
        for symmetric in kinds:
            narrow = scheme.narrow if symmetric else None
            goal = scheme.goal.centred().name if symmetric else scheme.objective
            other = replace(scheme, convention=name, symmetric=symmetric, narrow=narrow, objective=goal)
            yield other, other == scheme


def lens_of(
    layer: str,
    tensor: str,
    values: Tensor,
    axis: int,
    scheme: TensorScheme,
    fitted: Callable[[TensorScheme], QParams],
    exact: bool = True,
) -> Lens:
    """The lens over a tensor.

    Args:
        layer: the layer's name.
        tensor: which of its tensors.
        values: float32, any shape: what is encoded.
        axis: the channel axis of ``values``.
        scheme: the present one.
        fitted: the parameters of the tensor under a scheme.
        exact: see :class:`Lens`.

    Raises:
        SchemeError: as :func:`variants`.
    """
    found = [(other, present, fitted(other)) for other, present in variants(scheme)]
    reference = next(_codes(values, other, params, axis) for other, present, params in found if present)
    votes = torch.zeros(values.shape, dtype=torch.uint8)
    counts: list[tuple[int, int]] = []
    for other, _, params in found:
        apart = (_codes(values, other, params, axis) - reference).abs_()
        differs = apart > 0
        votes += differs
        counts.append((int(differs.sum()), int(apart.max())))
    chosen = example_places(values, votes)
    flat = values.reshape(-1)
    readings = []
    for (other, present, params), (differing, largest) in zip(found, counts, strict=True):
        after = fake_quantize_(values, *_spread(values, other, params, axis), params)
        codes = _codes(values, other, params, axis).reshape(-1)[chosen]
        bottom, top = params.clip
        readings.append(
            Reading(
                other.convention,
                other.symmetric,
                present,
                (float(params.scale.min()), float(params.scale.median()), float(params.scale.max())),
                (int(params.zero_point.min()), int(params.zero_point.max())),
                params.qmin,
                params.qmax,
                (float(bottom.min()), float(top.max())),
                ErrorSums.of(values, after).sqnr_db,
                differing,
                largest,
                tuple(codes.tolist()),
            )
        )
    examples = tuple(flat[chosen].tolist())
    return Lens(layer, tensor, scheme.describe(), values.numel(), exact, examples, tuple(readings))


def _spread(values: Tensor, scheme: TensorScheme, params: QParams, axis: int) -> tuple[Tensor, Tensor]:
    return params.spread(lambda number: scheme.grain.expand(number, values.shape, axis))


def _codes(values: Tensor, scheme: TensorScheme, params: QParams, axis: int) -> Tensor:
    return encode(values, *_spread(values, scheme, params, axis), params)


def example_places(values: Tensor, votes: Tensor, count: int = EXAMPLES) -> Tensor:
    """Where the examples lie, int64 ``(count or fewer,)``: both ends of ``values`` and where ``votes`` is largest.

    >>> example_places(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 0, 5]), 3).tolist()
    [1, 2, 0]
    """
    flat, marks = values.reshape(-1), votes.reshape(-1)
    most = torch.topk(marks, min(len(flat), 64 * count)).indices
    most = most[marks[most] > 0]
    most = most[flat[most].argsort()]
    # Spread over the values, not the first that come.
    picked = most[torch.linspace(0, len(most) - 1, count - 2).round().long()] if len(most) else most
    ends = [int(flat.argmin()), int(flat.argmax())]
    # One for each value: codes of equal values in one group are the same.
    places = {float(flat[place]): int(place) for place in [*ends, *picked.tolist()]}
    return torch.tensor([places[value] for value in sorted(places)], dtype=torch.int64)
