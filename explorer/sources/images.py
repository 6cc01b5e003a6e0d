"""What images are to everything else: numbered, read in any order, the same every time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.errors import DataError
from explorer.sources.factory import describe, describe_type
from explorer.sources.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (n, C, H, W), or any tensor with the batch first, and labels (n, ...) or None.

    Labels are classes (n,) int64, maps of classes (n, H, W), or any numbers that a metric compares with.
    """

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Skipped:
    """An image that cannot be read: its name, why, and whether another one stands in its place."""

    name: str
    reason: str
    replaced: bool = False


class Data(ABC):
    """Numbered images, read in any order and as often as needed.

    ``classes`` names the labels where names are known; ``labelled`` says whether there are labels at all.
    A subclass of the user's own gives the three attributes and the two abstract methods; reading must give
    the same every time, from any thread.  Where they are known, ``preprocess`` is what is applied to the images, and
    ``pixels`` says whether these are 0 to 255 before that.
    """

    name: str
    classes: tuple[str, ...] | None
    labelled: bool
    preprocess: Preprocess | None = None
    pixels: bool | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``, preprocessed, in that order; DataError for one that cannot be read."""

    def targets(self) -> Sequence[int] | None:
        """The label of every image, where they are known without reading the images."""
        return None

    def name_of(self, index: int) -> str:
        """What the image ``index`` is called."""
        return f"image {index}"

    def damage(self, index: int) -> str:
        """Why the image ``index`` cannot be read, as far as can be told without decoding it; else nothing."""
        return ""

    def steps(self) -> tuple[str, ...]:
        """What happens to an image before the network sees it, in words and in order."""
        if self.pixels is None:
            return ("The data prepare their own images.",)
        return (self.preprocess or Preprocess()).steps(self.pixels)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The images left out or replaced so far because they cannot be read."""
        return ()


@dataclass(frozen=True, eq=False)
class ArrayData(Data):
    """Images and labels in memory.

    ``images`` is uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, any float (N, ...),
    or integer tokens (N, T).  uint8 images are preprocessed when read, by default only divided by 255;
    floats are given as they are (as float32) unless ``preprocess`` says otherwise; tokens always are.
    ``labels`` are classes, one for each image or one for each pixel; with ``free`` any numbers (N, ...) that a metric
    compares with.
    Raises DataError for anything else, for NaN and infinity, and for labels that do not fit.

    >>> data = ArrayData("two", torch.zeros(2, 4, 5, dtype=torch.uint8), torch.tensor([1, 0]))
    >>> batch = data.read([1])
    >>> tuple(batch.images.shape), batch.labels
    ((1, 1, 4, 5), tensor([0]))
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    free: bool = False
    labelled: bool = field(init=False)

    def __post_init__(self) -> None:
        images = checked_images(self.images, self.name)
        if self.preprocess is not None and not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise DataError(f"The inputs in {self.name} are tokens, which preprocessing does not apply to.")
        labels = self.labels
        if labels is not None:
            labels = checked_labels(labels, len(images), self.name, self.classes, self.free)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "labelled", labels is not None)
        object.__setattr__(self, "pixels", images.dtype == torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = torch.tensor(checked_indices(indices, len(self), self.name))
        images = self.images[chosen]
        if images.dtype == torch.uint8 or self.preprocess is not None:
            images = (self.preprocess or Preprocess()).apply(images)
        return Batch(images, None if self.labels is None else self.labels[chosen])

    def targets(self) -> Sequence[int] | None:
        classes = self.labels is not None and self.labels.ndim == 1 and not self.labels.is_floating_point()
        return self.labels.tolist() if self.labels is not None and classes else None


@dataclass(frozen=True, eq=False)
class Subset(Data):
    """Some of the images of another Data, numbered anew; ``left`` are those left out since they cannot be read."""

    data: Data
    indices: tuple[int, ...]
    left: tuple[Skipped, ...] = ()
    name: str = field(init=False)
    classes: tuple[str, ...] | None = field(init=False)
    labelled: bool = field(init=False)

    def __post_init__(self) -> None:
        checked_indices(self.indices, len(self.data), self.data.name)
        for name in ("name", "classes", "labelled", "preprocess", "pixels"):
            object.__setattr__(self, name, getattr(self.data, name))

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = checked_indices(indices, len(self), self.name)
        return self.data.read([self.indices[index] for index in chosen])

    def targets(self) -> Sequence[int] | None:
        found = self.data.targets()
        return None if found is None else [found[index] for index in self.indices]

    def name_of(self, index: int) -> str:
        return self.data.name_of(self.indices[index])

    def damage(self, index: int) -> str:
        return self.data.damage(self.indices[index])

    def steps(self) -> tuple[str, ...]:
        return self.data.steps()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.left + self.data.skipped


def stacked(images: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Images (C, H, W) as one tensor (N, C, H, W); DataError, with its name, for one of another size."""
    for image, name in zip(images, names, strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{name} is {_size(image)} pixels and {Path(names[0]).name} {_size(images[0])}; "
                "give a preprocessing with resize and crop, such as resize=256 crop=224."
            )
        if image.shape != images[0].shape:
            raise DataError(
                f"{name} has {image.shape[0]} channels and {Path(names[0]).name} {images[0].shape[0]}; "
                "give a preprocessing with channels=3 or channels=1."
            )
    return torch.stack(list(images))


def _size(image: Tensor) -> str:
    return " x ".join(map(str, image.shape[1:]))


def as_tensor(value: Any, name: str) -> Tensor:
    """An array or tensor of numbers as a tensor on the CPU; DataError, with ``name``, for anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
        if array.dtype.kind in "OSUVMmc":
            raise TypeError(f"it holds {array.dtype}")
        array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"{describe_type(value).capitalize()} in {name} is no array of numbers: {describe(problem)}."
        ) from problem


def checked_images(images: Tensor, name: str) -> Tensor:
    """The images with their channels first and floats as float32."""
    shape, dtype = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if images.ndim < 2:
        raise DataError(
            f"The images in {name} have shape {shape}; the first axis counts them and others must follow."
        )
    if 0 in shape:
        raise DataError(f"There are no images in {name}: their shape is {shape}.")
    if images.is_floating_point():
        images = images.float()
        bad = int(images.numel() - torch.isfinite(images).sum())
        if bad:
            raise DataError(
                f"The images in {name} hold {bad:,} NaN or infinite values (of {images.numel():,})."
            )
        return images
    if images.dtype == torch.uint8:
        if images.ndim == 3:
            return images[:, None]
        if images.ndim == 4 and shape[3] in (1, 3):
            return images.permute(0, 3, 1, 2).contiguous()
        if images.ndim == 4 and shape[1] in (1, 3):
            return images
        raise DataError(
            f"The uint8 images in {name} have shape {shape}; "
            "give (N, H, W), or (N, H, W, C) with 1 or 3 channels."
        )
    if images.ndim == 2 and images.dtype in (torch.int32, torch.int64):
        return images
    raise DataError(f"The images in {name} are {dtype} of shape {shape}; give uint8 (0 to 255) or float.")


def checked_labels(
    labels: Tensor, count: int, name: str, classes: tuple[str, ...] | None, free: bool = False
) -> Tensor:
    """The labels (count,) as int64, maps of classes (count, H, W) too; DataError where they do not fit.

    With ``free`` they may be any numbers (count, ...), those that are not whole as float32.
    """
    if free or (labels.ndim > 2 and not labels.is_floating_point()):
        return _checked_numbers(labels, count, name)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        dtype = str(labels.dtype).removeprefix("torch.")
        raise DataError(f"The labels in {name} are {dtype}; give whole numbers, one for each image.")
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(
            f"The labels in {name} have shape {tuple(labels.shape)} for {count:,} images; give one for each."
        )
    labels = labels.long()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= len(classes)):
        top = f" to {len(classes) - 1}" if classes is not None else " or more"
        raise DataError(f"The labels in {name} run from {low} to {high}; they must be 0{top}.")
    return labels


def _checked_numbers(labels: Tensor, count: int, name: str) -> Tensor:
    if labels.ndim == 0 or len(labels) != count or labels.numel() == 0:
        raise DataError(
            f"The labels in {name} have shape {tuple(labels.shape)} for {count:,} images; give one for each."
        )
    if labels.is_complex() or not bool(torch.isfinite(labels).all()):
        raise DataError(f"The labels in {name} must be real numbers without NaN and infinity.")
    return labels.float() if labels.is_floating_point() else labels.long()


def checked_indices(indices: Sequence[int], count: int, name: str) -> list[int]:
    """The numbers of images as a list; DataError for none, or one that does not exist."""
    chosen = [int(index) for index in indices]
    if not chosen:
        raise DataError(f"No image of {name} was asked for; give at least one number.")
    for index in chosen:
        if not 0 <= index < count:
            raise DataError(f"There is no image {index} in {name}; they are numbered 0 to {count - 1}.")
    return chosen
