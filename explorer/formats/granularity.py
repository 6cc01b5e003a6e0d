"""Granularity: which elements of a tensor share one scale.

A tensor is seen as a matrix (groups, elements).  The channel axis is the output-channel axis of a weight,
and of an activation axis 1 for (N, C, ...) of convolutions and the last one for (N, ..., C).  With the
channel axis first and the rest flattened, a tensor is (channels, rest), and

* ``layer``: one group;
* ``channel``: one group a channel;
* ``group:N``: N consecutive channels share;
* ``subchannel:N``: N consecutive elements within one channel share;
* ``token``: one group for each position of an activation, over all channels.

The last block of ``group:N`` and ``subchannel:N`` may be shorter.  A padded matrix comes with weights, 0 for
the padding, so that no statistic sees it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from explorer.errors import SchemeError
from explorer.formats.base import entry_named


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """(channels, rest) of a tensor of any shape; a scalar or vector has ``rest`` 1."""
    if tensor.dim() == 0:
        return tensor.reshape(1, 1)
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _size(shape: torch.Size | tuple[int, ...], axis: int) -> tuple[int, int]:
    channels = shape[axis] if shape else 1
    return channels, math.prod(shape) // max(channels, 1)


def _pad(rows: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """Blocks of ``size`` columns, (rows * blocks, size), and weights when the last one is padded.

    Padding repeats the last element, so that the extremes of the block stay what they are.  A size beyond the
    columns is one block of them.
    """
    count, width = rows.shape
    size = min(size, max(width, 1))
    blocks = -(-width // size)
    missing = blocks * size - width
    if not missing:
        return rows.reshape(count * blocks, size), None
    filled = torch.cat([rows, rows[:, -1:].expand(count, missing)], 1)
    weights = torch.ones_like(filled)
    weights[:, width:] = 0
    return filled.reshape(count * blocks, size), weights.reshape(count * blocks, size)


@dataclass(frozen=True)
class Granularity(ABC):
    """How a tensor is cut into groups."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in recipes."""

    @abstractmethod
    def shape(self, shape: torch.Size | tuple[int, ...], axis: int) -> tuple[int, ...]:
        """The shape in which the parameters of a tensor of ``shape`` are given."""

    @abstractmethod
    def matrix(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        """The matrix (groups, elements) and its weights, None where every element counts once."""

    @abstractmethod
    def expand(self, per_group: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
        """One number a group, (groups,), as a tensor that broadcasts against ``shape``."""

    def groups(self, shape: torch.Size | tuple[int, ...], axis: int) -> int:
        """How many groups a tensor of ``shape`` has."""
        return math.prod(self.shape(shape, axis))

    def largest(self, shape: torch.Size | tuple[int, ...], axis: int) -> int:
        """How many elements the largest group of a tensor of ``shape`` has.

        >>> granularity("subchannel:8").largest((16, 9), 0)
        8
        """
        return math.prod(shape) // max(self.groups(shape, axis), 1)


def _beside(per_channel: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
    """(channels,) or (channels, rest) as a tensor that broadcasts against ``shape``."""
    if not shape:
        return per_channel.reshape(())
    if per_channel.dim() == 1:
        view = [1] * len(shape)
        view[axis] = shape[axis]
        return per_channel.reshape(view)
    rest = [size for index, size in enumerate(shape) if index != axis % len(shape)]
    return per_channel.reshape([shape[axis], *rest]).movedim(0, axis)


@dataclass(frozen=True)
class Layer(Granularity):
    """One group: the whole tensor.

    >>> Layer().matrix(torch.zeros(2, 3), 0)[0].shape
    torch.Size([1, 6])
    """

    @property
    def name(self) -> str:
        return "layer"

    def shape(self, shape: torch.Size | tuple[int, ...], axis: int) -> tuple[int, ...]:
        return ()

    def matrix(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        return tensor.reshape(1, -1), None

    def expand(self, per_group: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
        return per_group.reshape(())


@dataclass(frozen=True)
class Channel(Granularity):
    """One group a channel.

    >>> Channel().matrix(torch.zeros(2, 3, 5), 1)[0].shape
    torch.Size([3, 10])
    """

    @property
    def name(self) -> str:
        return "channel"

    def shape(self, shape: torch.Size | tuple[int, ...], axis: int) -> tuple[int, ...]:
        return (_size(shape, axis)[0],)

    def matrix(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        return _rows(tensor, axis), None

    def expand(self, per_group: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
        return _beside(per_group, shape, axis)


@dataclass(frozen=True)
class Group(Granularity):
    """``size`` consecutive channels share; the last group may be smaller.

    >>> Group(2).shape((5, 3), 0)
    (3,)
    """

    size: int

    @property
    def name(self) -> str:
        return f"group:{self.size}"

    def shape(self, shape: torch.Size | tuple[int, ...], axis: int) -> tuple[int, ...]:
        return (-(-_size(shape, axis)[0] // self.size),)

    def largest(self, shape: torch.Size | tuple[int, ...], axis: int) -> int:
        channels, rest = _size(shape, axis)
        return min(self.size, channels) * rest

    def matrix(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        rows = _rows(tensor, axis)
        return _pad(rows.reshape(1, -1), self.size * rows.shape[1])

    def expand(self, per_group: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
        channels, _ = _size(shape, axis)
        size = min(self.size, max(channels, 1))
        return _beside(per_group.repeat_interleave(size)[:channels], shape, axis)


@dataclass(frozen=True)
class SubChannel(Granularity):
    """``size`` consecutive elements of one channel share; the last block of a channel may be smaller.

    >>> SubChannel(32).shape((16, 4, 3, 3), 0)
    (16, 2)
    """

    size: int

    @property
    def name(self) -> str:
        return f"subchannel:{self.size}"

    def shape(self, shape: torch.Size | tuple[int, ...], axis: int) -> tuple[int, ...]:
        channels, rest = _size(shape, axis)
        return channels, -(-rest // self.size)

    def largest(self, shape: torch.Size | tuple[int, ...], axis: int) -> int:
        return min(self.size, _size(shape, axis)[1])

    def matrix(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        return _pad(_rows(tensor, axis), self.size)

    def expand(self, per_group: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
        channels, rest = _size(shape, axis)
        size = min(self.size, max(rest, 1))
        wide = per_group.reshape(channels, -1).repeat_interleave(size, 1)[:, :rest]
        return _beside(wide, shape, axis) if rest > 1 else _beside(wide[:, 0], shape, axis)


@dataclass(frozen=True)
class Token(Granularity):
    """One group for each position (all axes but the channel axis): activations in dynamic mode only.

    >>> Token().shape((8, 49, 96), 2)
    (392,)
    """

    @property
    def name(self) -> str:
        return "token"

    def shape(self, shape: torch.Size | tuple[int, ...], axis: int) -> tuple[int, ...]:
        return (_size(shape, axis)[1],)

    def matrix(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
        return _rows(tensor, axis).T, None

    def expand(self, per_group: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
        if not shape:
            return per_group.reshape(())
        return per_group.reshape([size for i, size in enumerate(shape) if i != axis % len(shape)]).unsqueeze(
            axis
        )


@dataclass(frozen=True)
class GranularityEntry:
    """A line of the table: how to build the granularity from the number after the colon, if it has one."""

    help: str
    build: Callable[..., Granularity]
    sized: bool = False


GRANULARITIES: dict[str, GranularityEntry] = {
    "layer": GranularityEntry("one scale for the whole tensor", Layer),
    "channel": GranularityEntry("one scale for each channel (output channel of a weight)", Channel),
    "group:N": GranularityEntry("one scale for N consecutive channels", Group, sized=True),
    "subchannel:N": GranularityEntry(
        "one scale for N consecutive inputs of one output channel", SubChannel, sized=True
    ),
    "token": GranularityEntry("one scale for each position of an activation (dynamic)", Token),
}


@lru_cache(maxsize=1024)
def granularity(name: str) -> Granularity:
    """The granularity called ``name``, for example ``channel`` or ``subchannel:32``.

    Raises:
        SchemeError: for an unknown name, or a size that is missing or not a positive whole number.

    >>> granularity("group:4")
    Group(size=4)
    """
    entry, word, size = entry_named(name, GRANULARITIES, "granularity")
    if not entry.sized:
        return entry.build()
    if not size.isascii() or not size.isdigit() or not 1 <= int(size) <= 1 << 31:
        raise SchemeError(
            f"The granularity {name!r} needs a positive whole number after the colon, "
            f"for example {word + ':32'!r}."
        )
    return entry.build(int(size))
