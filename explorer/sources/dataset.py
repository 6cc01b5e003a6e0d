"""Datasets with numbered images, read one by one when they are needed; nothing of them is collected."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data import Subset as TorchSubset

from explorer.errors import DataError
from explorer.sources.factory import describe
from explorer.sources.images import (
    Batch,
    Data,
    as_tensor,
    checked_images,
    checked_indices,
    checked_labels,
    stacked,
)
from explorer.sources.preprocess import Preprocess

_lock = threading.Lock()  # the random numbers of Python, NumPy and torch are shared by all threads


@dataclass(frozen=True, eq=False)
class DatasetData(Data):
    """A dataset of ``(x, y)`` or ``x``, read by number: x an image as Pillow has it, a tensor or an array.

    ``items`` has a length and is indexed by number; ``collate`` makes a batch of some of its items, None stacks them.
    Random numbers that reading draws are fixed by the image's number, so that an image is the same every time.
    ``wish``, ``default`` and ``free`` are as in ``load_data``.  Raises DataError when the first image cannot be read.
    """

    name: str
    items: Any
    collate: Callable[[list[Any]], Any] | None = None
    classes: tuple[str, ...] | None = None
    wish: Preprocess | None = None
    default: Preprocess | None = None
    free: bool = False
    labelled: bool = field(init=False)
    preprocess: Preprocess | None = field(init=False)

    def __post_init__(self) -> None:
        if len(self.items) == 0:
            raise DataError(f"There are no images in {self.name}.")
        x, y = self._pair([0])
        object.__setattr__(self, "labelled", y is not None)
        first = x[0] if isinstance(x, list) else x
        object.__setattr__(self, "preprocess", self._step(first))
        object.__setattr__(self, "pixels", first.dtype == torch.uint8)

    def __len__(self) -> int:
        return len(self.items)

    def targets(self) -> Sequence[int] | None:
        found = _listed_labels(self.items) if self.labelled and self.collate is None else None
        return found if found is not None and len(found) == len(self) else None

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = checked_indices(indices, len(self), self.name)
        x, y = self._pair(chosen)
        if isinstance(x, list):
            names = [f"image {index} of {self.name}" for index in chosen]
            x = _joined(
                [self._prepared(image[None], name) for image, name in zip(x, names, strict=True)], names
            )
        else:
            x = self._prepared(x, self.name)
        if len(x) != len(chosen):
            raise DataError(f"The collate_fn of {self.name} makes {len(x)} images of {len(chosen)}.")
        return Batch(x, None if y is None else self._labels(y, len(chosen)))

    def _labels(self, labels: Tensor, count: int) -> Tensor:
        return checked_labels(labels, count, self.name, self.classes, self.free)

    def _pair(self, indices: Sequence[int]) -> tuple[Any, Tensor | None]:
        """The images at ``indices``, one tensor or a list of single ones, and their labels."""
        samples = [self._sample(index) for index in indices]
        if self.collate is not None:
            try:
                batch = self.collate(samples)
            except Exception as problem:
                raise DataError(f"The collate_fn of {self.name} failed: {describe(problem)}.") from problem
            x, y = _halves(batch)
            return as_tensor(x, self.name), None if y is None else as_tensor(y, self.name)
        halves = [_halves(sample) for sample in samples]
        labels = [y for _, y in halves if y is not None]
        if labels and len(labels) != len(halves):
            raise DataError(f"Of {len(halves)} images in {self.name} only {len(labels)} have labels.")
        return [_pixels(x, self.name) for x, _ in halves], self._whole(labels) if labels else None

    def _whole(self, labels: list[Any]) -> Tensor:
        tensors = [as_tensor(label, self.name) for label in labels]
        if (self.free or tensors[0].ndim > 1) and len({tensor.shape for tensor in tensors}) == 1:
            return torch.stack(tensors)
        if any(tensor.numel() != 1 for tensor in tensors):
            raise DataError(
                f"The labels in {self.name} have shape {tuple(tensors[0].shape)}; give one whole number for each."
            )
        return torch.stack([tensor.reshape(()) for tensor in tensors])

    def _sample(self, index: int) -> Any:
        try:
            with _fixed(index):
                return self.items[index]
        except DataError:
            raise
        except Exception as problem:
            raise DataError(f"Reading image {index} of {self.name} failed: {describe(problem)}.") from problem

    def _step(self, images: Tensor) -> Preprocess | None:
        return self.wish or (self.default if images.dtype == torch.uint8 else None)

    def _prepared(self, images: Tensor, name: str) -> Tensor:
        images = checked_images(images, name)
        step = self._step(images)
        if images.dtype == torch.uint8 or step is not None:
            images = (step or Preprocess()).apply(images)
        return images


def from_dataset(
    value: Any,
    name: str,
    wish: Preprocess | None = None,
    default: Preprocess | None = None,
    free: bool = False,
) -> DatasetData | None:
    """A map-style dataset, or a DataLoader over one, read by number; None for what has to be gone through in order."""
    collate = None
    if isinstance(value, DataLoader):
        items = _items(value)
        collate = None if value.collate_fn is default_collate else value.collate_fn
    else:
        items = value if hasattr(value, "__len__") and hasattr(value, "__getitem__") else None
    return (
        None if items is None else DatasetData(name, items, collate, class_names(items), wish, default, free)
    )


def class_names(items: Any) -> tuple[str, ...] | None:
    """What the datasets of torchvision call ``classes``; identifiers of ImageNet's classes where there are."""
    while isinstance(items, TorchSubset):
        items = items.dataset
    names = getattr(items, "wnids", getattr(items, "classes", None))
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _items(loader: DataLoader[Any]) -> Any:
    """What a loader draws from, in the order of numbers; None where the draw itself says which images there are."""
    sampler, dataset = loader.sampler, loader.dataset
    if isinstance(loader.dataset, torch.utils.data.IterableDataset) or loader.batch_sampler is None:
        return None
    plain = type(sampler) is SequentialSampler
    shuffled = (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and len(sampler) == len(sampler.data_source)
    )
    if type(loader.batch_sampler) is not BatchSampler or loader.drop_last:
        return None
    if plain or shuffled:
        return dataset
    if type(sampler) is SubsetRandomSampler:
        return TorchSubset(dataset, list(sampler.indices))
    return None


def _halves(item: Any) -> tuple[Any, Any]:
    pair = list(item) if isinstance(item, (tuple, list)) else [item]
    return pair[0], pair[1] if len(pair) > 1 else None


def _pixels(x: Any, name: str) -> Tensor:
    """One image as it is, of Pillow's as uint8 (C, H, W)."""
    if isinstance(x, Image.Image):
        grey = x.mode in ("1", "L", "LA", "La")
        tensor = torch.from_numpy(np.array(x.convert("L" if grey else "RGB")))
        return tensor[None] if grey else tensor.permute(2, 0, 1).contiguous()
    return as_tensor(x, name)


def _joined(images: list[Tensor], names: list[str]) -> Tensor:
    if all(image.ndim == 4 for image in images):
        return stacked([image[0] for image in images], names)
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            raise DataError(
                f"The {name} has shape {tuple(image.shape[1:])} and the {names[0]} {tuple(images[0].shape[1:])}; "
                "all must agree."
            )
    return torch.cat(images)


def _listed_labels(items: Any) -> Sequence[int] | None:
    """The labels that a dataset keeps in a list, so that no image is read for them."""
    if isinstance(items, TorchSubset):
        whole = _listed_labels(items.dataset)
        return None if whole is None else [whole[index] for index in items.indices]
    found = items.tensors[1] if isinstance(items, TensorDataset) and len(items.tensors) > 1 else None
    for name in ("targets", "labels", "_labels"):
        found = getattr(items, name, None) if found is None else found
    values = found.tolist() if isinstance(found, (Tensor, np.ndarray)) else found
    usable = isinstance(values, (list, tuple)) and all(type(value) is int for value in values)
    return values if usable else None


@contextmanager
def _fixed(seed: int) -> Iterator[None]:
    """Random numbers that depend on ``seed`` alone; those of the caller go on as if nothing had been drawn."""
    with _lock, torch.random.fork_rng(devices=[]):
        python, numpy = random.getstate(), np.random.get_state()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
