"""Iterables of batches, collected in memory within a budget."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from explorer.errors import DataError
from explorer.graph.memory import free_bytes
from explorer.sources.factory import describe
from explorer.sources.images import ArrayData, as_tensor
from explorer.sources.preprocess import Preprocess


def budget() -> int:
    """The memory that the images of one source may take, bytes: half of what is free now, 256 MiB at least."""
    return max(1 << 28, free_bytes() // 2)


def in_words(size: int) -> str:
    """A number of bytes for a message.

    >>> in_words(3 << 29), in_words(5000)
    ('1.5 GiB', '5,000 bytes')
    """
    for unit, shift in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):,.1f} {unit}"
    return f"{size:,} bytes"


def from_loader(
    loader: Iterable[Any],
    limit: int | None = None,
    *,
    name: str = "loader",
    preprocess: Preprocess | None = None,
) -> ArrayData:
    """Collect the batches of an iterable of ``(x, y)`` or ``x`` in memory, the first ``limit`` images of it.

    Raises DataError when it gives no image, a batch that does not fit the first, more than :func:`budget` allows, or
    fails itself.
    """
    return ArrayData(name, *collected(loader, limit, name), preprocess=preprocess)


def collected(
    loader: Iterable[Any], limit: int | None, name: str, free: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The first ``limit`` images of an iterable of batches, and their labels; DataError as in :func:`from_loader`."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = size = 0
    allowed = budget()
    try:
        # At least one image a batch, so that no iterable runs longer than this.
        for item in islice(loader, limit):
            pair = list(item) if isinstance(item, (tuple, list)) else [item]
            x, y = pair[0], pair[1] if len(pair) > 1 else None
            images.append(as_tensor(x, name))
            if y is not None:
                labels.append(as_tensor(y, name))
            count += len(images[-1]) if images[-1].ndim else 1
            size += images[-1].nbytes
            if limit is not None and count >= limit:
                break
            if size > allowed:
                raise DataError(
                    f"The first {count:,} images of {name} take {in_words(size)}, more than the {in_words(allowed)} "
                    "that may be collected (half of the free memory); give a Dataset with a length, which is read "
                    "image by image, or fewer images."
                )
    except DataError:
        raise
    except Exception as problem:
        raise DataError(f"Reading the batches of {name} failed: {describe(problem)}.") from problem
    _check_fit(images, labels, name, free)
    return torch.cat(images)[:limit], torch.cat(labels)[:limit] if labels else None


def _check_fit(images: list[Tensor], labels: list[Tensor], name: str, free: bool) -> None:
    if not images:
        raise DataError(f"There are no images in {name}.")
    for index, batch in enumerate(images):
        if batch.ndim < 2 or batch.shape[1:] != images[0].shape[1:] or batch.dtype != images[0].dtype:
            raise DataError(
                f"Batch {index} of {name} has shape {tuple(batch.shape)} ({batch.dtype}) and the first "
                f"{tuple(images[0].shape)} ({images[0].dtype}); all but the first axis must agree."
            )
    if labels and len(labels) != len(images):
        raise DataError(f"Of {len(images)} batches in {name} only {len(labels)} have labels.")
    if not free and any(each.ndim in (0, 2) for each in labels):
        raise DataError(
            f"The labels in {name} must have one axis: one whole number for each image of a batch."
        )
