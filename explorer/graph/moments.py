"""Second moments of layers' inputs, gathered in one pass over some images.

``E[x x']`` is the mean over images and positions, x being what one output channel sees at one position: the
patch under a convolution's kernel, a linear layer's input vector.  Of an image with more than ``POSITIONS``
positions so many are looked at, spread evenly and shifted from image to image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.calibrate import Moments
from explorer.calibrate.sample import stride
from explorer.errors import DataError
from explorer.formats import check_finite
from explorer.graph.engine import Batch, Engine, Plan
from explorer.graph.ir import Graph, Layer, Node

# Of each image so many positions are looked at.
POSITIONS = 64
# The most numbers that one layer's moments may have: 2304 inputs (a 3x3 kernel on 256 channels) in full.
MOST_NUMBERS = 2304**2
# The most numbers of moments that are gathered in one pass: 128 MiB.
PASS_NUMBERS = 1 << 25
# Inputs are laid out so many numbers at a time.
_CHUNK = 1 << 21
NO_IMAGES = "There are no calibration images; activations need some to set their ranges."


def block_size(parts: int, columns: int) -> int:
    """How many neighbouring inputs have their moments taken together; all of them where that is not too much.

    >>> block_size(1, 2304), block_size(1, 4608), block_size(1000, 9)
    (2304, 1152, 9)
    """
    return min(columns, max(1, MOST_NUMBERS // (parts * columns)))


def kind_of(graph: Graph, layer: Layer) -> str:
    """How a layer's moments are taken: ``full``, ``diagonal`` or ``plain``.

    A transposed convolution has the mean square of each input channel, the same for all taps of the kernel.  An
    embedding looks its values up, so that an error of the weight is that of its output: ``plain``; so is a
    product with a stack of matrices taken.
    """
    assert layer.weight is not None
    if layer.op.startswith("conv_transpose"):
        return "diagonal"
    stacked = layer.op == "linear" and graph.constants[layer.weight].dim() != 2
    return "full" if layer.inputs and not stacked else "plain"


def parts_of(graph: Graph, layer: Layer) -> int:
    """How many groups a convolution has."""
    return int(_argument(graph.by_name[layer.node], 6, "groups", 1)) if layer.op.startswith("conv") else 1


def numbers_of(graph: Graph, layer: Layer) -> int:
    """How many numbers a layer's moments have."""
    columns = columns_of(graph, layer)
    if kind_of(graph, layer) != "full":
        return columns
    parts = parts_of(graph, layer)
    return parts * columns * block_size(parts, columns)


def columns_of(graph: Graph, layer: Layer) -> int:
    """How many inputs one output channel has."""
    assert layer.weight is not None
    weight = graph.constants[layer.weight]
    return weight.numel() // weight.shape[layer.axis]


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[place] if place < len(node.args) else default


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """A number for each axis, of one number for all or a list."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * axes if len(values) == 1 else values


def patches(node: Node, kernel: tuple[int, ...], x: Tensor) -> Tensor:
    """What a convolution's kernel sees at each position, a view ``(N, *positions, channels, *kernel)``.

    Args:
        node: the convolution, for its stride, padding and dilation.
        kernel: the kernel's shape.
        x: its input, ``(N, channels, ...)``.
    """
    axes = len(kernel)
    steps = _each(_argument(node, 3, "stride", 1), axes)
    spaces = _each(_argument(node, 5, "dilation", 1), axes)
    spans = [space * (size - 1) + 1 for space, size in zip(spaces, kernel, strict=True)]
    padding = _argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        whole = [span - 1 if padding == "same" else 0 for span in spans]
        borders = [(total // 2, total - total // 2) for total in whole]
    else:
        borders = [(size, size) for size in _each(padding, axes)]
    x = F.pad(x, [size for pair in reversed(borders) for size in pair])
    for axis, (span, step, space) in enumerate(zip(spans, steps, spaces, strict=True)):
        x = x.unfold(2 + axis, span, step)[..., ::space]
    return x.movedim(1, 1 + axes)


class _Sums:
    """The sums of one layer's moments while they are gathered."""

    def __init__(self, graph: Graph, layer: Layer) -> None:
        assert layer.weight is not None
        self.node, self.layer = graph.by_name[layer.node], layer
        self.kernel = tuple(graph.constants[layer.weight].shape[2:]) if layer.op.startswith("conv") else ()
        self.kind, self.columns, self.parts = kind_of(graph, layer), columns_of(graph, layer), 1
        if self.kind == "full":
            self.parts = parts_of(graph, layer)
            self.size = block_size(self.parts, self.columns)
            blocks = -(-self.columns // self.size)
            self.sums = torch.zeros(self.parts * blocks, self.size, self.size)
        self.total: Tensor | None = None
        self.images = self.count = 0

    def add(self, x: Tensor, images: int) -> None:
        """Take in the input for the next ``images`` images."""
        check_finite(x, f"activation {self.layer.inputs[0]!r}")
        x = x.float()
        if self.kind == "diagonal":
            total = x.square().sum([axis for axis in range(x.dim()) if axis != 1], dtype=torch.float64)
            self.total = total if self.total is None else self.total + total
            self.count += x.numel() // x.shape[1]
            return
        if self.kernel:
            view = patches(self.node, self.kernel, x)
        else:
            whole = x.shape[0] % images == 0
            view = x.reshape(images if whole else len(x), -1, x.shape[-1])
        for rows in self._rows(view):
            width = self.sums.shape[0] // self.parts * self.size
            rows = F.pad(rows.reshape(len(rows), self.parts, -1), (0, width - self.columns))
            rows = rows.reshape(len(rows), -1, self.size).transpose(0, 1)
            self.sums.baddbmm_(rows.transpose(1, 2), rows)
            self.count += rows.shape[1]

    def _rows(self, view: Tensor) -> Iterator[Tensor]:
        """The inputs at some positions of each image, ``(rows, inputs)``, from ``(N, *positions, ...)``."""
        axes = len(self.kernel) or 1
        shape = view.shape[1 : 1 + axes]
        positions, inputs = math.prod(shape), math.prod(view.shape[1 + axes :])
        taken = min(positions, POSITIONS)
        step = stride(positions, POSITIONS) if positions > POSITIONS else 1
        places = torch.arange(taken) * step
        size = max(1, _CHUNK // (taken * inputs))
        for part in view.split(size):
            # From image to image everything is moved on by one.
            number = torch.arange(self.images, self.images + len(part))[:, None]
            index = torch.unravel_index((places + number) % positions, shape)
            self.images += len(part)
            yield part[(torch.arange(len(part))[:, None], *index)].reshape(-1, inputs)

    def moments(self) -> Moments:
        """The mean of what was taken in."""
        if self.kind == "diagonal":
            assert self.total is not None
            mean = (self.total / self.count).float()
            return Moments(
                mean.repeat_interleave(self.columns // len(mean))[None, :, None, None], self.columns
            )
        blocks = (self.sums / self.count).reshape(self.parts, -1, self.size, self.size)
        return Moments(blocks, self.columns)


def gather(
    engine: Engine, plan: Plan, batches: Iterable[Batch], layers: Sequence[Layer]
) -> dict[str, Moments]:
    """The moments of the inputs of ``layers`` in one pass, by the layers' names.

    Args:
        engine: of the graph.
        plan: the float network.
        batches: the images.
        layers: with a weight each.

    Raises:
        DataError: when there are no images.
        TensorError: when an input holds NaN or infinity.
    """
    graph = engine.graph
    found = {
        layer.name: Moments.plain(columns_of(graph, layer))
        for layer in layers
        if kind_of(graph, layer) == "plain"
    }
    sums = {layer.name: _Sums(graph, layer) for layer in layers if layer.name not in found}
    if not sums:
        return found
    readers: dict[str, list[_Sums]] = defaultdict(list)
    for own in sums.values():
        readers[own.layer.inputs[0]].append(own)
    batch = None
    for batch in batches:
        for name, value in engine.values(plan, batch, readers, keep=False):
            for own in readers[name]:
                own.add(value, len(batch.images))
    if batch is None:
        raise DataError(NO_IMAGES)
    return {**found, **{name: own.moments() for name, own in sums.items()}}


def passes(graph: Graph, layers: Iterable[Layer]) -> Iterator[list[Layer]]:
    """The layers in runs whose moments may be held together."""
    run: list[Layer] = []
    held = 0
    for layer in layers:
        numbers = numbers_of(graph, layer)
        if run and held + numbers > PASS_NUMBERS:
            yield run
            run, held = [], 0
        run.append(layer)
        held += numbers
    if run:
        yield run
