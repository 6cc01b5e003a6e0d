"""Uniform (affine) quantization: from a range of real numbers to a scale, a zero point and codes.

``real = scale * (code - zero_point)``.  Several conventions are in use that differ by up to 0.4% in the
scale, and by one code in places; ``CONVENTIONS`` lists those that are offered, and a :class:`QParams`
carries scale, zero point and the lowest and highest code explicitly, so that nobody has to guess.

Sources: ONNX operators QuantizeLinear and DequantizeLinear; the LiteRT int8 quantization specification;
torch.ao.quantization observers; AIMET's quantization analyzers; NNCF's fake-quantize parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from explorer.compiled import alone
from explorer.errors import SchemeError, unknown
from explorer.formats.base import IntegerFormat
from explorer.formats.codebook import Codebook, CodebookFormat
from explorer.formats.levels import LevelFormat
from explorer.formats.loops import affines, rounded
from explorer.formats.scales import LARGEST, SCALES, TINY, ScaleRule

# Elements that a thread takes through all passes at a time in tensors that do not fit the cache.
PIECE = 1 << 20
# A run of fewer neighbours that share a scale is not worth a vector loop of its own.
SHORT_RUN = 32
# No level of a format is further from zero, in units of the scale.
_MOST_STEPS = 1 << 16
# Adding a tensor is faster than adding a Python number, of which every call makes a tensor.
_ZERO = torch.zeros(())


@dataclass(frozen=True)
class Convention:
    """Whose arithmetic is meant.

    Args:
        narrow: a symmetric signed format leaves out its lowest code (-127..127 at 8 bits).
        halves: a symmetric scale divides by half of all steps (127.5 at 8 bits) and not by the largest code.
        unsigned: a symmetric format turns to the unsigned codes when the tensor is never negative.
        snap: an asymmetric range has one border moved outwards until zero falls on the grid; otherwise
            the zero point is rounded and the range shifts by up to half a step.
        reciprocal: values are multiplied by ``1 / scale`` and not divided by the scale.
        floor: the smallest scale, where it is more than a scale rule's own.
        least_range: the smallest width of an asymmetric range.
        group_floor: the smallest range of a group as a share of the largest group's, and in absolute terms.
    """

    name: str
    help: str
    narrow: bool = False
    halves: bool = False
    unsigned: bool = True
    snap: bool = False
    reciprocal: bool = False
    floor: float = 0.0
    least_range: float = 0.0
    group_floor: tuple[float, float] = (0.0, 0.0)


CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention("onnx", "ONNX QuantizeLinear, LiteRT: absmax/127, codes -127..127", narrow=True),
        Convention(
            "torch",
            "torch.ao observers: absmax/127.5, codes -128..127",
            halves=True,
            unsigned=False,
            reciprocal=True,
            floor=float(torch.finfo(torch.float32).eps),
        ),
        Convention("aimet", "AIMET: absmax/127, codes -128..127", least_range=0.01),
        Convention(
            "nncf",
            "NNCF: absmax/127, codes -128..127, one border moved so that zero is a level",
            snap=True,
            group_floor=(0.01, 8e-5),
        ),
    )
}


@dataclass(frozen=True)
class Grid:
    """A family of level sets, from which a range picks one.

    A format that is a list of levels has no zero point: its ranges are symmetric, and the largest magnitude
    goes to its last level.  A format whose levels are fitted has no ranges: ``explorer.calibrate.fit`` finds them.
    """

    format: IntegerFormat | LevelFormat | CodebookFormat
    symmetric: bool = True
    convention: Convention = CONVENTIONS["onnx"]
    narrow: bool | None = None
    scale: ScaleRule = SCALES["float"]
    # Set by `settle`: the tensor is never negative, so a symmetric range is (0, a).
    positive: bool = False
    # The largest group's extent where ranges come some groups at a time, or one number a group where the groups
    # belong to several tensors; None takes it from the ranges.
    widest: float | Tensor | None = None

    def settle(self, minimum: Tensor, maximum: Tensor | None = None) -> Grid:
        """The grid for a tensor whose smallest and largest values (groups,) are known.

        The largest may be left out where the scale rule does not ask for the extent of the whole tensor.
        """
        grid = self
        if self.scale.shared_bits and self.widest is None and maximum is not None:
            grid = replace(self, widest=extent(minimum, maximum))
        if not isinstance(self.format, IntegerFormat):
            return grid
        signed = self.scale.signed and self.format.signed
        positive = self.symmetric and self.convention.unsigned and not signed and bool((minimum >= 0).all())
        return grid if positive == grid.positive else replace(grid, positive=positive)

    def spanning(self, minimum: Tensor, maximum: Tensor) -> Grid:
        """The grid that knows how far the groups reach, (groups,) each, where parameters depend on the widest."""
        asked = self.scale.shared_bits or self.convention.group_floor[1]
        return replace(self, widest=extent(minimum, maximum)) if asked and self.widest is None else self

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        if isinstance(self.format, CodebookFormat):
            return 0, self.format.count - 1
        if isinstance(self.format, LevelFormat):
            return 0, (1 << self.format.bits) - 1
        low, high = self.format.lowest, self.format.highest
        if not self.symmetric:
            return low, high
        if self.positive:
            return 0, (1 << self.format.bits) - 1
        narrow = self.convention.narrow if self.narrow is None else self.narrow
        return low + int(narrow), high

    @property
    def centre(self) -> int:
        """The zero point of a symmetric range."""
        if self.positive or not isinstance(self.format, IntegerFormat) or self.format.signed:
            return 0
        return 1 << (self.format.bits - 1)

    def params(self, low: Tensor, high: Tensor) -> QParams:
        """The parameters for the ranges ``low``..``high`` (groups,), each widened to hold zero."""
        return (
            self._in_one_loop(low, high)
            if self.affine is not None and low.is_cpu
            else self._in_passes(low, high)
        )

    def _in_passes(self, low: Tensor, high: Tensor) -> QParams:
        low = low.float().clamp(max=0.0)
        high = high.float().clamp(min=0.0)
        share, least = self.convention.group_floor
        if least:
            width = torch.maximum(-low, high)
            floor = (share * self._widest(width)).clamp(min=least)
            high = torch.where(width < floor, floor, high)
        params = self._symmetric(low, high) if self.symmetric else self._asymmetric(low, high)
        return self._finite(params)

    @cached_property
    def affine(self) -> tuple[bool, float, int, int, int, float, float] | None:
        """What the parameters of a range follow from, where they depend on nothing but the range and these numbers.

        Whether it is symmetric, its steps, the lowest and the highest code, the zero point of a symmetric range, the
        least scale and the least width of an asymmetric range.
        """
        kind = self.convention
        if (
            not isinstance(self.format, IntegerFormat)
            or not self.scale.free
            or kind.snap
            or kind.group_floor[1]
        ):
            return None
        least = max(kind.floor, self.scale.least)
        return self.symmetric, self._steps, *self.codes, self.centre, least, kind.least_range

    def _in_one_loop(self, low: Tensor, high: Tensor) -> QParams:
        """The same bit for bit; of few groups each pass of torch takes as long as all of this."""
        assert self.affine is not None
        lows, highs = (end.detach().float().contiguous().numpy().reshape(-1) for end in (low, high))
        # Torch's own memory: small arrays of NumPy, which stay, were seen to leave holes that weights do not fit in.
        scale, zero_point = torch.empty(low.shape), torch.empty(low.shape, dtype=torch.int32)
        largest = affines(
            lows, highs, *self.affine, scale.numpy().reshape(-1), zero_point.numpy().reshape(-1)
        )
        params = self._made(scale, zero_point)
        return params if largest <= LARGEST / _MOST_STEPS else self._finite(params)

    @property
    def _steps(self) -> float:
        """How many steps a range has, a symmetric one how many from zero on."""
        lowest, highest = self.codes
        if not self.symmetric:
            return float(highest - lowest)
        if isinstance(self.format, LevelFormat):
            return self.format.highest
        if self.convention.halves and not self.positive:
            return ((1 << self.format.bits) - 1) / 2
        return float(highest - self.centre)

    def _finite(self, params: QParams) -> QParams:
        """The same with smaller scales where a level would be more than the largest float32."""
        if float(params.scale.max()) <= LARGEST / _MOST_STEPS:
            return params
        if params.levels is not None:
            furthest = torch.tensor(params.levels.highest, dtype=torch.float64)
        else:
            furthest = torch.maximum(params.qmax - params.zero_point, params.zero_point - params.qmin)
        most = LARGEST / furthest.double()
        limit = most.float()
        limit = torch.where(limit > most, torch.nextafter(limit, torch.zeros(())), limit)
        return replace(params, scale=self.scale.capped(params.scale, limit, params.shared))

    def _widest(self, absmax: Tensor) -> Tensor:
        return absmax.max() if self.widest is None else torch.as_tensor(self.widest)

    def _made(self, scale: Tensor, zero_point: Tensor, shared: Tensor | None = None) -> QParams:
        levels = self.format if isinstance(self.format, LevelFormat) else None
        return QParams(scale, zero_point, *self.codes, self.convention.reciprocal, levels, shared)

    def _symmetric(self, low: Tensor, high: Tensor) -> QParams:
        absmax, steps = torch.maximum(-low, high), self._steps
        widest = self._widest(absmax)
        scale = self.scale.symmetric(absmax, steps, self.convention.floor, widest)
        zero_point = torch.full(scale.shape, self.centre, dtype=torch.int32)
        return self._made(scale, zero_point, self.scale.shared(steps, widest))

    def _asymmetric(self, low: Tensor, high: Tensor) -> QParams:
        (lowest, highest), steps = self.codes, self._steps
        if self.convention.least_range:
            high = torch.maximum(high, low + self.convention.least_range)
        if self.convention.snap:
            low, high = _snap(low, high, steps)
        width = high - low
        step = width / steps
        if float(step.max()) == math.inf:
            # The width of a range beyond half the largest float is not a float; its step still is.
            step = torch.where(step.isinf(), high / steps - low / steps, step)
        scale = torch.where(width > 0, step, 1.0)
        scale = self.scale.asymmetric(scale.clamp(min=max(self.convention.floor, self.scale.least)))
        # The lowest code is even, so rounding the quotient alone is the same and does not round twice.
        zero_point = (low / scale).round_().neg_().add_(lowest).clamp_(lowest, highest)
        return self._made(scale, zero_point.to(torch.int32))

    def constant(self, value: Tensor) -> QParams:
        """Parameters that reproduce one number a group, ``value`` (groups,), exactly where the scale rule can."""
        if self.symmetric and not self.scale.free:
            return self.params(value, value)
        lowest, highest = self.codes
        # A number too small to have a reciprocal becomes zero where scales are multiplied by.
        none = value.abs() < TINY if self.convention.reciprocal else value == 0
        scale = torch.where(none, torch.ones_like(value), value.abs()).float()
        if self.symmetric:
            zero_point = torch.full(scale.shape, self.centre, dtype=torch.int32)
        else:
            zero_point = torch.where(value < 0, highest, torch.where(value > 0, lowest, max(lowest, 0)))
            zero_point = zero_point.to(torch.int32)
        return self._made(self.scale.asymmetric(scale), zero_point)


def extent(minimum: Tensor, maximum: Tensor) -> float:
    """How far the group that reaches furthest lies from zero, of smallest and largest values (groups,)."""
    return float(torch.maximum(maximum, -minimum).clamp(min=0).max())


def _snap(low: Tensor, high: Tensor, steps: float) -> tuple[Tensor, Tensor]:
    """Move one border outwards so that zero is a level; neither border ever moves inwards."""
    width = (high - low).clamp(min=TINY)
    below = torch.round(-low / width * steps)
    inside = (below > 0) & (below < steps)
    lower = torch.where(inside, -below / (steps - below).clamp(min=1) * high, low)
    higher = torch.where(inside, -(steps - below) / below.clamp(min=1) * low, high)
    move_low = high - lower > higher - low
    new_low = torch.where(inside & move_low, lower, low)
    new_high = torch.where(inside & ~move_low, higher, high)
    # A border so near zero that it rounds onto it is kept: the other side's steps then cover it.
    return torch.minimum(new_low, low), torch.maximum(new_high, high)


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point of each group, and the codes in use.

    Args:
        scale: float32 ``(groups,)``, real units a step.
        zero_point: int32 ``(groups,)``, the code of real zero.
        qmin: the lowest code.
        qmax: the highest code.
        reciprocal: multiply by ``1 / scale`` instead of dividing (they differ in the last bit).
        levels: the list of levels, where codes are not the integers themselves.
        shared: the factor that all scales of the tensor have in common, where the scale rule has one.
        book: the levels of each group, where they are fitted; scales are 1 then.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    reciprocal: bool = False
    levels: LevelFormat | None = None
    shared: Tensor | None = None
    book: Codebook | None = None

    @classmethod
    def of_levels(cls, levels: Tensor) -> QParams:
        """The parameters of fitted levels, float32 ``(groups, levels)``, increasing."""
        groups, count = levels.shape
        zero_point = torch.zeros(groups, dtype=torch.int32)
        return cls(torch.ones(groups), zero_point, 0, count - 1, book=Codebook(levels))

    @property
    def clip(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest real value of each group, float32 ``(groups,)``."""
        if self.book is not None:
            return self.book.levels[:, 0], self.book.levels[:, -1]
        if self.levels is not None:
            return self.scale * self.levels.lowest, self.scale * self.levels.highest
        return self.scale * (self.qmin - self.zero_point), self.scale * (self.qmax - self.zero_point)

    @cached_property
    def _first_zero(self) -> Tensor:
        """The zero point of the first group, ``()``."""
        return self.zero_point.view(-1)[0]

    @cached_property
    def centre(self) -> int | None:
        """The zero point where all groups share one, else None."""
        lowest, highest = torch.aminmax(self.zero_point)
        return int(lowest) if lowest == highest else None

    def spread(self, expand: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they broadcast against values; with a book the number of the group for a scale.

        Args:
            expand: takes one number a group, ``(groups,)``, to a tensor that broadcasts against the values.
        """
        if self.book is not None:
            return expand(torch.arange(len(self.scale))), self._first_zero
        zero_point = self._first_zero if self.centre is not None else expand(self.zero_point)
        return expand(self.scale), zero_point

    def where(self, mask: Tensor, other: QParams) -> QParams:
        """These parameters where ``mask`` (groups,), the others' elsewhere.

        Raises:
            SchemeError: when the two use different codes.
        """
        if (self.qmin, self.qmax) != (other.qmin, other.qmax) or self.book is not None:
            raise SchemeError("Parameters with different codes cannot be joined.")
        return replace(
            self,
            scale=torch.where(mask, self.scale, other.scale),
            zero_point=torch.where(mask, self.zero_point, other.zero_point),
        )


def encode(values: Tensor, scale: Tensor, zero_point: Tensor, params: QParams) -> Tensor:
    """Codes of ``values``, int32; ``scale`` and ``zero_point`` as :meth:`QParams.spread` gives them."""
    if params.book is not None:
        return params.book.index(values, scale).to(torch.int32)
    unit = values * (1.0 / scale) if params.reciprocal else values / scale
    if params.levels is not None:
        return params.levels.encode(unit)
    return unit.round_().add_(zero_point).clamp_(params.qmin, params.qmax).to(torch.int32)


def decode(codes: Tensor, scale: Tensor, zero_point: Tensor, params: QParams) -> Tensor:
    """Real values of ``codes``, float32; ``scale`` and ``zero_point`` as :meth:`QParams.spread` gives them."""
    if params.book is not None:
        return params.book.decode(codes, scale)
    if params.levels is not None:
        return params.levels.decode(codes).mul_(scale)
    return (codes - zero_point).float().mul_(scale)


def fake_quantize_(
    values: Tensor, scale: Tensor, zero_point: Tensor, params: QParams, out: Tensor | None = None
) -> Tensor:
    """``decode(encode(values))`` without the integers in between, into ``out`` (may be ``values``).

    ``scale`` and ``zero_point`` broadcast against ``values``, as :meth:`QParams.spread` gives them; ``out`` has the
    shape of ``values``.
    """
    out = torch.empty_like(values) if out is None else out
    if params.book is not None:
        for part, result, group in _pieces(values, out, scale):
            result.copy_(params.book.round(part, group))
        return out
    if params.levels is not None:
        for part, result, step in _pieces(values, out, scale):
            torch.mul(params.levels.round(part / step), step, out=result)
        return out
    if alone(values, out):
        _round_in_one_pass(values, scale, zero_point, params, out)
        return out
    if zero_point.numel() == 1:
        zero = int(zero_point)
        bounds: tuple[float, float] | None = (params.qmin - zero, params.qmax - zero)
        tensors: tuple[Tensor, ...] = (scale,)
    else:
        bounds = None
        tensors = scale, *((code - zero_point).to(out.dtype) for code in (params.qmin, params.qmax))
    for part, result, step, *borders in _pieces(values, out, *tensors):
        if params.reciprocal:
            torch.mul(part, 1.0 / step, out=result)
        else:
            torch.div(part, step, out=result)
        result.round_()
        if bounds is not None:
            result.clamp_(*bounds)
        else:
            # Two passes with one border each are vector loops; clamp with borders that differ is not.
            torch.maximum(result, borders[0], out=result)
            torch.minimum(result, borders[1], out=result)
        # + 0.0 is not needed for the value but turns -0.0, which codes cannot tell from 0.0, into 0.0.
        result.add_(_ZERO).mul_(step)
    return out


def _round_in_one_pass(
    values: Tensor, scale: Tensor, zero_point: Tensor, params: QParams, out: Tensor
) -> None:
    """:func:`fake_quantize_` with even steps."""
    steps, inner = _runs(scale, values.shape)
    zeros, _ = _runs(zero_point if zero_point.numel() == 1 else zero_point.expand_as(scale), values.shape)
    before, after = values.detach().numpy().reshape(-1), out.detach().numpy().reshape(-1)
    rounded(before, inner, steps, zeros, params.qmin, params.qmax, params.reciprocal, after)


def _runs(param: Tensor, shape: torch.Size) -> tuple[np.ndarray, int]:
    """The numbers of ``param`` in the order in which values of ``shape`` meet them, and how many neighbours share one.

    They are those of one pass through the axes in which groups differ; the next pass meets them again.
    """
    if param.numel() == 1:
        return param.detach().numpy().reshape(1), math.prod(shape)
    own = (1,) * (len(shape) - param.dim()) + tuple(param.shape)
    apart = [axis for axis, size in enumerate(own) if size > 1]
    first, last = apart[0], apart[-1] + 1
    if first and math.prod(shape[last:]) < SHORT_RUN:
        # So few neighbours are not worth a vector loop of their own.
        last = len(shape)
    wide = param.detach().reshape(own[first:]).expand(*shape[first:last], *own[last:])
    return wide.reshape(-1).numpy(), math.prod(shape[last:])


def _pieces(values: Tensor, out: Tensor, *params: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``values``, ``out`` and the parameters that broadcast against them, cut alike along the first axes."""
    params = tuple(_runs_joined(param, values.shape) for param in params)
    size = PIECE * torch.get_num_threads()
    if values.numel() <= size:
        yield values, out, *params
    elif all(param.numel() == 1 for param in params) and values.is_contiguous() and out.is_contiguous():
        for part, result in zip(values.view(-1).split(size), out.view(-1).split(size), strict=True):
            yield part, result, *(param.reshape(()) for param in params)
    else:
        rows = max(1, size * len(values) // values.numel())
        lists = [tensor.split(rows) for tensor in (values, out)]
        for param in params:
            apart = param.dim() == values.dim() and len(param) > 1
            lists.append(param.split(rows) if apart else (param,) * len(lists[0]))
        yield from zip(*lists, strict=True)


def _runs_joined(param: Tensor, shape: torch.Size) -> Tensor:
    """``param`` written out over all but the first axis where only a few neighbours share a number."""
    if param.numel() == 1 or param.dim() != len(shape) or len(param) > 1 or shape[0] == 1:
        return param
    run = 1
    for own, size in zip(param.shape[::-1], shape[::-1], strict=True):
        if own > 1:
            break
        run *= size
    return param.expand(1, *shape[1:]).contiguous() if 1 < run < SHORT_RUN else param


def convention(name: str) -> Convention:
    """The convention called ``name``.

    Raises:
        SchemeError: when there is none.
    """
    if name not in CONVENTIONS:
        raise SchemeError(unknown("convention", name, CONVENTIONS))
    return CONVENTIONS[name]
