"""Quantizing one tensor: parameters, codes, values, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from explorer.calibrate import Sample, fit
from explorer.errors import SchemeError, TensorError, unknown
from explorer.formats import (
    FORMATS,
    MOST_VALUES,
    Codebook,
    CodebookFormat,
    FloatFormat,
    LevelFormat,
    QParams,
    check_finite,
    decode,
    encode,
    fake_quantize_,
    pack,
    packed_bytes,
)
from explorer.recipe import FIELDS, TensorScheme

SchemeLike = TensorScheme | Mapping[str, Any] | str


def as_scheme(scheme: SchemeLike) -> TensorScheme:
    """A scheme from itself, from its fields, or from the name of a format.

    Raises:
        SchemeError: when it is none of these.
    """
    if isinstance(scheme, TensorScheme):
        return scheme
    if isinstance(scheme, str):
        return TensorScheme(scheme)
    if isinstance(scheme, Mapping):
        for name in scheme:
            if name not in FIELDS:
                raise SchemeError(unknown("field", name, FIELDS))
        return TensorScheme(**scheme)
    raise SchemeError(
        f"A scheme is a TensorScheme, a dictionary of its fields, or a format's name; not {scheme!r}."
    )


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized tensor: ``values() = scale * (codes - zero_point)``, or what its group's ``book`` has at each code.

    Args:
        codes: int32, the shape of the tensor (bit patterns for fp16 and bf16, int64 for fp32).
        scale: float32: ``()`` for a layer, ``(channels,)``, ``(groups,)`` or ``(channels, blocks)``; 1 beside a book.
        zero_point: int32, the same shape as ``scale``.
        qmin: the lowest code in use.
        qmax: the highest code in use.
        scheme: the scheme that made it.
        axis: the channel axis.
        tensor_scale: float32 ``()``, the factor that all scales have in common (``scale: fp8``), else None.
        book: the levels of each group where they are fitted, float32, the shape of ``scale`` and then ``(levels,)``.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    scheme: TensorScheme
    axis: int
    tensor_scale: Tensor | None = None
    book: Tensor | None = None

    def values(self) -> Tensor:
        """The real values, float32, the shape of the tensor."""
        number = self.scheme.number
        if isinstance(number, FloatFormat):
            return number.decode(self.codes)
        params = QParams(
            self.scale.reshape(-1),
            self.zero_point.reshape(-1),
            self.qmin,
            self.qmax,
            levels=number if isinstance(number, LevelFormat) else None,
            book=None if self.book is None else Codebook(self.book.reshape(-1, self.book.shape[-1])),
        )
        return decode(self.codes, *_spread(params, self.scheme, self.codes, self.axis), params)

    def pack(self) -> bytes:
        """The codes in as few bytes as they take; scales and zero points are not among them."""
        return pack(self.codes.numpy(), self.scheme.bits, self.qmin if self.qmin < 0 else 0)

    @property
    def scale_codes(self) -> Tensor:
        """The scales as they are stored, int64 of the same shape: E8M0 or e4m3 codes, or float32 bit patterns."""
        return self.scheme.grid.scale.stored(self.scale, self.tensor_scale)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the packed codes."""
        return packed_bytes(self.codes.numel(), self.scheme.bits)

    @property
    def metadata_bytes(self) -> int:
        """Bytes of scales or fitted levels, and of zero points where they are not all the same by design."""
        return metadata_bytes(self.scheme, self.scale.numel())

    @property
    def total_bytes(self) -> int:
        """Bytes of all that must be stored: codes, scales or fitted levels, zero points."""
        return self.payload_bytes + self.metadata_bytes

    @property
    def bits_per_value(self) -> float:
        """Bits for one value, all metadata counted."""
        return 8 * self.total_bytes / self.codes.numel()

    @property
    def entropy_bits(self) -> float:
        """Shannon's entropy of the codes, bits a code; metadata is not among it."""
        return entropy_bits(self.codes)


def metadata_bytes(scheme: TensorScheme, groups: int) -> int:
    """Bytes that scales and zero points of ``groups`` groups take; zero points have the width of the codes.

    Of a fitted format the numbers that its levels are made of, in float32.

    >>> metadata_bytes(TensorScheme("fp4_e2m1", "subchannel:16", scale="fp8"), 10)
    14
    """
    if not scheme.scaled:
        return 0
    if isinstance(scheme.number, CodebookFormat):
        return 4 * groups * scheme.number.numbers
    rule = scheme.grid.scale
    scales = packed_bytes(groups, rule.bits) + packed_bytes(1, rule.shared_bits)
    return scales if scheme.symmetric else scales + packed_bytes(groups, scheme.bits)


def oversized(scheme: TensorScheme, shape: Sequence[int], axis: int) -> str:
    """Why the levels that ``scheme`` fits to each group are more than it is worth, or nothing where they are not.

    Args:
        scheme: how the tensor is quantized.
        shape: of the tensor.
        axis: its channel axis.

    >>> oversized(TensorScheme("kmeans4", "channel"), (32, 1, 3, 3), 0)
    'kmeans4 stores 16 numbers for each group of 9 values; take kmeans3, or granularity: layer.'
    """
    number = scheme.number
    if not isinstance(number, CodebookFormat):
        return ""
    size = scheme.grain.largest(tuple(shape), axis)
    if number.numbers <= size:
        return ""
    alike = [f for f in FORMATS.values() if isinstance(f, CodebookFormat) and f.family == number.family]
    fitting = [f.name for f in alike if f.numbers <= size] or ["binary"]
    wider = ", or granularity: layer" if size < math.prod(shape) >= number.numbers else ""
    return (
        f"{number.name} stores {number.numbers} numbers for each group of {size} value{'s' * (size > 1)}; "
        f"take {fitting[-1]}{wider}."
    )


def bits_per_value(scheme: TensorScheme, shape: tuple[int, ...], axis: int) -> float:
    """Bits that one value of a tensor takes, all metadata counted.

    >>> bits_per_value(TensorScheme("int4", "subchannel:32"), (8, 64), 0)
    5.0
    """
    count = math.prod(shape)
    groups = scheme.grain.groups(shape, axis) if scheme.scaled else 0
    return 8 * (packed_bytes(count, scheme.bits) + metadata_bytes(scheme, groups)) / count


def entropy_bits(codes: Tensor) -> float:
    """Shannon's entropy of codes of any shape, bits a code: what a code of variable length could store them in.

    >>> entropy_bits(torch.tensor([3, 3, -1, -1])), entropy_bits(torch.tensor([5, 5, 5]))
    (1.0, 0.0)
    """
    if codes.dtype == torch.int32 and codes.numel():
        lowest, highest = (int(end) for end in torch.aminmax(codes))
        if highest - lowest < MOST_VALUES:
            counts = torch.bincount((codes - lowest).reshape(-1))
            return _entropy(counts[counts > 0])
    return _entropy(codes.unique(return_counts=True)[1])


def _entropy(counts: Tensor) -> float:
    share = counts.double() / counts.sum()
    # + 0.0 turns -0.0 into 0.0.
    return float(-(share * share.log2()).sum()) + 0.0


def fit_tensor(tensor: Tensor, scheme: TensorScheme, axis: int) -> QParams:
    """The parameters that ``scheme`` chooses for ``tensor`` on its own values."""
    return fit(Sample.of(tensor, scheme.grain, axis), scheme.grid, scheme.goal)


def _checked(tensor: object, name: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TensorError(f"The {name} must be a torch tensor, not a {type(tensor).__name__}.")
    if tensor.numel() == 0:
        raise TensorError(f"The {name} has no elements (shape {tuple(tensor.shape)}).")
    if not tensor.is_floating_point():
        raise TensorError(
            f"The {name} holds {tensor.dtype}; only real (floating-point) tensors are quantized."
        )
    check_finite(tensor, name)
    return tensor.detach().float()


def quantize(tensor: Tensor, scheme: SchemeLike, axis: int = 0, name: str = "tensor") -> Quantized:
    """Codes, scale and zero point of a tensor.

    A codebook of more levels than a group has different values holds these values: the group is reproduced exactly.

    Args:
        tensor: real values of any shape.
        scheme: a scheme, its fields as a dictionary, or the name of a format.
        axis: the channel axis.
        name: what to call the tensor in an error.

    Raises:
        TensorError: for NaN, infinity, or a tensor without elements.
        SchemeError: for a scheme that does not exist.

    >>> quantize(torch.tensor([-1.0, 0.5, 1.27]), {"format": "int8", "granularity": "layer"}).codes.tolist()
    [-100, 50, 127]
    """
    scheme, tensor = as_scheme(scheme), _checked(tensor, name)
    number = scheme.number
    rounds = scheme.rounds
    if isinstance(number, FloatFormat):
        tensor = rounds.floating(tensor, number)
        one, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
        return Quantized(number.encode(tensor), one, zero, 0, (1 << number.bits) - 1, scheme, axis)
    params = fit_tensor(tensor, scheme, axis)
    spread = _spread(params, scheme, tensor, axis)
    codes = encode(rounds.scaled(tensor, *spread, params), *spread, params)
    shape = scheme.grain.shape(tensor.shape, axis)
    return Quantized(
        codes,
        params.scale.reshape(shape),
        params.zero_point.reshape(shape),
        params.qmin,
        params.qmax,
        scheme,
        axis,
        params.shared,
        None if params.book is None else params.book.levels.reshape(*shape, -1),
    )


def _spread(params: QParams, scheme: TensorScheme, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point, or groups, as they broadcast against ``tensor``."""
    return params.spread(lambda number: scheme.grain.expand(number, tensor.shape, axis))


def apply(tensor: Tensor, scheme: TensorScheme, params: QParams | None, axis: int) -> Tensor:
    """The values of ``tensor`` after quantization with given parameters, float32, in a new tensor.

    Args:
        tensor: float32 of any shape.
        scheme: says format and granularity.
        params: None for formats that have no scale.
        axis: the channel axis.
    """
    number = scheme.number
    if isinstance(number, FloatFormat):
        return number.snap(scheme.rounds.floating(tensor, number))
    assert params is not None
    spread = _spread(params, scheme, tensor, axis)
    return fake_quantize_(scheme.rounds.scaled(tensor, *spread, params), *spread, params)


def fake_quantize(tensor: Tensor, scheme: SchemeLike, axis: int = 0, name: str = "tensor") -> Tensor:
    """The values of ``tensor`` after quantization, float32 of the same shape; ``quantize(...).values()`` at once.

    Raises:
        TensorError: for NaN, infinity, or a tensor without elements.
        SchemeError: for a scheme that does not exist.

    >>> fake_quantize(torch.tensor([-1.0, 0.4, 1.0]), {"format": "int2", "granularity": "layer"}).tolist()
    [-1.0, 0.0, 1.0]
    """
    scheme, tensor = as_scheme(scheme), _checked(tensor, name)
    return apply(tensor, scheme, fit_tensor(tensor, scheme, axis) if scheme.scaled else None, axis)
