"""Parameters that another tool has chosen, beside ours: values, and what one tensor looks like under both.

Where they come from is for :mod:`explorer.sources.foreign`; which layer they belong to for
:mod:`explorer.study.naming`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from explorer.calibrate import MinMax, Sample, fit
from explorer.errors import ParametersError
from explorer.formats import (
    CONVENTIONS,
    FORMATS,
    Grid,
    IntegerFormat,
    QParams,
    encode,
    fake_quantize_,
    granularity,
)
from explorer.study.metrics import ErrorSums

# Which tensor: the layer's name, `weight` or `input`, and which of several inputs.
Place = tuple[str, str, int]
# Two scales that differ by less are the same number written down twice.
SAME = 1e-6


@dataclass(frozen=True, eq=False)
class ForeignTensor:
    """Scale, zero point and codes of one tensor, as another tool has them.

    Args:
        name: the tensor's name there.
        scale: float32, ``()`` for the whole tensor, ``(channels,)`` along ``axis``, or the tensor's own shape
            with blocks of ``block`` elements along ``axis`` counted as one.
        zero_point: int32, the shape of ``scale``.
        qmin: the lowest code.
        qmax: the highest code.
        axis: along which ``scale`` runs; None for the whole tensor.
        block: how many elements along ``axis`` share a scale; 0 for all that lie beside each other.
        tool: whose arithmetic it is, a name in ``CONVENTIONS``.
        note: what had to be assumed; empty where nothing had to be.
        values: a weight as that tool stores it, float32, quantized or not; None where it is not there.

    Raises:
        ParametersError: for scales that are not positive numbers, or shapes and codes that do not go together.

    >>> ForeignTensor("w", torch.tensor(0.5), torch.tensor(0), -128, 127).describe()
    'int8 layer'
    """

    name: str
    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None
    block: int = 0
    tool: str = "onnx"
    note: str = ""
    values: Tensor | None = None

    def __post_init__(self) -> None:
        scale, zero_point = self.scale, self.zero_point
        if scale.shape != zero_point.shape:
            raise ParametersError(
                f"{self.name!r} has scales of shape {tuple(scale.shape)} and zero points of "
                f"{tuple(zero_point.shape)}; they go in pairs."
            )
        if scale.numel() == 0 or not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ParametersError(f"{self.name!r} has a scale that is not a positive number.")
        if not -(1 << 31) <= self.qmin < self.qmax < 1 << 31 or self.qmax - self.qmin >= 1 << 16:
            raise ParametersError(
                f"{self.name!r} has codes from {self.qmin:,} to {self.qmax:,}; integers of 2 to 16 bits are compared."
            )
        if self.axis is None and scale.numel() != 1:
            raise ParametersError(f"{self.name!r} has {scale.numel()} scales, and no axis says along which.")

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return max(2, (self.qmax - self.qmin).bit_length())

    @property
    def signed(self) -> bool:
        return self.qmin < 0

    @property
    def format(self) -> str:
        """The integer format's name."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def params(self) -> QParams:
        """The parameters, a group after the other."""
        return QParams(
            self.scale.reshape(-1),
            self.zero_point.reshape(-1),
            self.qmin,
            self.qmax,
            CONVENTIONS[self.tool].reciprocal,
        )

    def describe(self) -> str:
        """A short text for tables."""
        if self.axis is None:
            return f"{self.format} layer"
        return (
            f"{self.format} blocks of {self.block} along axis {self.axis}"
            if self.block
            else f"{self.format} axis {self.axis}"
        )

    def transposed(self) -> ForeignTensor:
        """The same for the tensor with its two axes exchanged."""
        values = None if self.values is None else self.values.T
        if self.axis is None:
            return replace(self, values=values)
        scale, zero_point = self.scale, self.zero_point
        if self.block:
            scale, zero_point = scale.T.contiguous(), zero_point.T.contiguous()
        return replace(self, axis=1 - self.axis % 2, scale=scale, zero_point=zero_point, values=values)

    def fitted(self, shape: tuple[int, ...]) -> ForeignTensor:
        """The same, its axis counted from the first, checked against a tensor of ``shape``.

        Raises:
            ParametersError: when there are more or fewer scales than such a tensor takes.
        """
        if self.axis is None:
            return replace(self, scale=self.scale.reshape(()), zero_point=self.zero_point.reshape(()))
        axis = self.axis + len(shape) if self.axis < 0 else self.axis
        if not 0 <= axis < len(shape):
            raise ParametersError(f"{self.name!r} runs along axis {self.axis} of a tensor of shape {shape}.")
        if self.block:
            wanted = tuple(-(-size // self.block) if i == axis else size for i, size in enumerate(shape))
        else:
            wanted = (shape[axis],)
        if tuple(self.scale.shape) != wanted:
            raise ParametersError(
                f"{self.name!r} has scales of shape {tuple(self.scale.shape)}; a tensor of {shape} takes {wanted}."
            )
        return replace(self, axis=axis, block=min(self.block, shape[axis]))

    def spread(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they broadcast against a tensor of ``shape``."""
        if self.axis is None:
            return self.scale.reshape(()), self.zero_point.reshape(())
        axis = self.axis

        def wide(numbers: Tensor) -> Tensor:
            if self.block:
                return numbers.repeat_interleave(self.block, axis).narrow(axis, 0, shape[axis])
            return numbers.reshape([-1 if i == axis else 1 for i in range(len(shape))])

        return wide(self.scale), wide(self.zero_point)

    def encode(self, values: Tensor) -> Tensor:
        """The codes of ``values``, int32 of the same shape."""
        return encode(values, *self.spread(tuple(values.shape)), self.params)

    def apply(self, values: Tensor) -> Tensor:
        """``values`` after quantization, float32 of the same shape."""
        return fake_quantize_(values, *self.spread(tuple(values.shape)), self.params)


@dataclass(frozen=True, eq=False)
class ForeignParameters:
    """What another tool has chosen for the layers of a network.

    Args:
        source: the file, or a word for what was in memory.
        tool: ``onnx``, ``aimet`` or ``torch``.
        tensors: by place.
        how: how each place was found, in words.
        left: what belongs to no place, with the reason: nothing that was read is missing from both.
    """

    source: str
    tool: str
    tensors: Mapping[Place, ForeignTensor]
    how: Mapping[Place, str]
    left: tuple[tuple[str, str], ...] = ()

    def get(self, layer: str, tensor: str, index: int = 0) -> ForeignTensor | None:
        """The parameters of one tensor, None where the file has none."""
        return self.tensors.get((layer, tensor, index))

    def describe(self) -> str:
        """What was found, in a sentence."""
        weights = sum(tensor == "weight" for _, tensor, _ in self.tensors)
        return (
            f"{self.source} ({self.tool}): parameters of {weights} weights and {len(self.tensors) - weights} inputs; "
            f"{len(self.left)} others belong to no tensor that a recipe acts on."
        )


@dataclass(frozen=True)
class Against:
    """One tensor under our scheme and under another tool's parameters.

    Fields of ours are None where our scheme gives no codes; ``differing`` and ``largest`` also where the two
    have different numbers of codes.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        index: which input.
        name: the tensor's name in the other tool's file.
        how: how it was found to be this one.
        scheme: ours, in words.
        theirs: theirs, in words.
        scale: smallest and largest of ours.
        scale_theirs: smallest and largest of theirs.
        zero_point: smallest and largest of ours.
        zero_point_theirs: smallest and largest of theirs.
        codes: our lowest and highest code.
        codes_theirs: their lowest and highest code.
        clip: our range.
        clip_theirs: their range.
        sqnr_db: of the tensor under our scheme.
        sqnr_db_theirs: of the tensor under their parameters.
        elements: how many were looked at.
        differing: how many have another code; signed codes are compared with unsigned ones half the codes above.
        largest: by how many codes at most.
        agrees: the conventions under which the smallest and largest value of the tensor give their scales and
            zero points, for weights.
        exact: every element was looked at.
        note: what had to be assumed.
    """

    layer: str
    tensor: str
    index: int
    name: str
    how: str
    scheme: str
    theirs: str
    scale: tuple[float, float] | None
    scale_theirs: tuple[float, float]
    zero_point: tuple[int, int] | None
    zero_point_theirs: tuple[int, int]
    codes: tuple[int, int] | None
    codes_theirs: tuple[int, int]
    clip: tuple[float, float] | None
    clip_theirs: tuple[float, float]
    sqnr_db: float
    sqnr_db_theirs: float
    elements: int
    differing: int | None
    largest: int | None
    agrees: tuple[str, ...]
    exact: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Ours:
    """What our scheme makes of a tensor: its words, parameters and codes (None where it has none), and values."""

    scheme: str
    params: QParams | None
    codes: Tensor | None
    values: Tensor


def _ends(params: QParams) -> dict[str, Any]:
    bottom, top = params.clip
    return {
        "scale": (float(params.scale.min()), float(params.scale.max())),
        "zero_point": (int(params.zero_point.min()), int(params.zero_point.max())),
        "codes": (params.qmin, params.qmax),
        "clip": (float(bottom.min()), float(top.max())),
    }


def against_of(
    place: Place, how: str, values: Tensor, ours: Ours, theirs: ForeignTensor, exact: bool = True
) -> Against:
    """A tensor under both.

    Args:
        place: which tensor.
        how: how it was found to be that one.
        values: float32, any shape.
        ours: what our scheme makes of it.
        theirs: fitted to its shape.
        exact: see :class:`Against`.
    """
    differing = largest = None
    if ours.codes is not None and ours.params is not None:
        bits = max(2, (ours.params.qmax - ours.params.qmin).bit_length())
        if bits == theirs.bits:
            shift = (1 << (bits - 1)) * (int(theirs.signed) - int(ours.params.qmin < 0))
            apart = (theirs.encode(values) + shift - ours.codes).abs_()
            differing, largest = int((apart > 0).sum()), int(apart.max())
    nothing = dict.fromkeys(("scale", "zero_point", "codes", "clip"))
    layer, tensor, index = place
    return Against(
        layer=layer,
        tensor=tensor,
        index=index,
        name=theirs.name,
        how=how,
        scheme=ours.scheme,
        theirs=theirs.describe(),
        **(nothing if ours.params is None else _ends(ours.params)),
        **{f"{key}_theirs": value for key, value in _ends(theirs.params).items()},
        sqnr_db=ErrorSums.of(values, ours.values).sqnr_db,
        sqnr_db_theirs=ErrorSums.of(values, theirs.apply(values)).sqnr_db,
        elements=values.numel(),
        differing=differing,
        largest=largest,
        agrees=agreeing(values, theirs) if tensor == "weight" else (),
        exact=exact,
        note=theirs.note,
    )


def agreeing(values: Tensor, theirs: ForeignTensor) -> tuple[str, ...]:
    """The conventions, symmetric or not, whose min-max range of ``values`` gives their scales and zero points.

    >>> theirs = ForeignTensor("w", torch.tensor(1 / 127), torch.tensor(0), -128, 127)
    >>> agreeing(torch.tensor([-1.0, 0.3]), theirs)
    ('onnx symmetric', 'aimet symmetric', 'nncf symmetric')
    """
    number = FORMATS.get(theirs.format)
    if theirs.block or not isinstance(number, IntegerFormat):
        return ()
    grain, axis = granularity("layer" if theirs.axis is None else "channel"), theirs.axis or 0
    sample = Sample.of(values, grain, axis)
    found = []
    for name, convention in CONVENTIONS.items():
        for symmetric in (True, False):
            ours = fit(sample, Grid(number, symmetric, convention), MinMax())
            wanted = theirs.params
            same = torch.equal(ours.zero_point, wanted.zero_point) and torch.allclose(
                ours.scale, wanted.scale, rtol=SAME, atol=0
            )
            found += [f"{name} {'symmetric' if symmetric else 'asymmetric'}"] if same else []
    return tuple(found)
