"""Where in a value the numbers of each image lie.

Most operators keep the images along the first axis.  Attention may put positions there, windows stand beside each
other along the images' axis, and ``reshape(-1, channels)`` may mix images and positions either way.  What belongs to
one image has to be known wherever an image must not depend on the others of its batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from explorer.graph.ir import Along, Graph
from explorer.graph.walk import walk


def images_first(value: Tensor, along: Along) -> Tensor:
    """The value with an axis of the images in front of all others, ``(images, ...)``; a view where there is one.

    The axis that they lay along keeps its place behind it, with the numbers of one image.

    >>> images_first(torch.zeros(16, 2, 8), Along(axis=1)).shape
    torch.Size([2, 16, 1, 8])
    >>> images_first(torch.arange(6), Along(each=3)).tolist(), images_first(torch.arange(6), Along(3, 0, True)).tolist()
    ([[0, 1, 2], [3, 4, 5]], [[0, 2, 4], [1, 3, 5]])
    """
    if along.axis is None:
        return value.unsqueeze(0)
    images = value.shape[along.axis] // along.each
    sizes = (along.each, images) if along.inner else (images, along.each)
    return value.unflatten(along.axis, sizes).movedim(along.axis + along.inner, 0)


def as_before(value: Tensor, along: Along) -> Tensor:
    """The contrary of :func:`images_first`."""
    if along.axis is None:
        return value.squeeze(0)
    return value.movedim(0, along.axis + along.inner).flatten(along.axis, along.axis + 1)


def by_image(value: Tensor, along: Along, images: int) -> Tensor:
    """The numbers that belong to each of so many images, ``(images, numbers)``; all of them where they are shared."""
    return images_first(value, along).reshape(1 if along.axis is None else images, -1).expand(images, -1)


def with_images(graph: Graph, pair: Tensor) -> Graph:
    """The graph with where the images lie in each value: what grows, and where, with one image more."""
    first, second = _different(pair[0], 1), _different(pair[1], -1)
    two, three = torch.stack([first, second]), torch.stack([first, second, first])
    nodes = (
        replace(node, along=_along(fewer, more)) if isinstance(fewer, Tensor) else node
        for (node, fewer), (_, more) in zip(walk(graph, two), walk(graph, three), strict=True)
    )
    return replace(graph, nodes=tuple(nodes))


def _different(image: Tensor, step: int) -> Tensor:
    """The image changed a little, for the images of an example may be all alike."""
    if not image.is_floating_point():
        return image.roll(step, -1) if image.dim() else image
    return image + torch.linspace(0, 0.1 * step, image.numel(), dtype=image.dtype).reshape(image.shape)


def _along(two: Tensor, three: Tensor) -> Along:
    """Where images lie in a value, from that for two images and that for these and the first of them again."""
    for axis, (fewer, more) in enumerate(zip(two.shape, three.shape, strict=True)):
        each = more - fewer
        if each and fewer == 2 * each:
            whole = Along(each, axis)
            ways = [whole, replace(whole, inner=True)] if each > 1 else [whole]
            return min(ways, key=lambda along: _away(two, three, along))
    return Along(1, None)


def _away(two: Tensor, three: Tensor, along: Along) -> float:
    """How far the images of ``three`` are from those of ``two`` if they lie so."""
    found, known = images_first(three, along), images_first(two, along)
    away = (found.double() - known[[0, 1, 0]].double()).nan_to_num_(0.0, 0.0, 0.0)
    return float(away.abs().sum())
