"""Images and labels: what the networks are calibrated and measured on."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Sized
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from explorer.errors import DataError, nearest, unknown
from explorer.sources.factory import call_factory, describe, describe_type, is_factory
from explorer.sources.files import shipped
from explorer.sources.preprocess import Preprocess
from explorer.sources.zoo import CLASSES

FASHION = Preprocess(mean=(0.2860,), std=(0.3530,), resize=28, crop=28, channels=1)
"""What the networks that ship expect."""

ZOO_DATA = {
    "fashion-mnist": "fashion-mnist-test.npz",
    "fashion-mnist-calibration": "fashion-mnist-calibration.npz",
}
"""The images that ship: a data name and its file."""

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (n, C, H, W), or any tensor with the batch first, and labels (n,) int64 or None."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)


class Data(ABC):
    """Numbered images, read in any order and as often as needed.

    ``classes`` names the labels where names are known; ``labelled`` says whether there are labels at all.
    A subclass of the user's own gives the three attributes and the two methods; reading must give the same
    every time, from any thread.
    """

    name: str
    classes: tuple[str, ...] | None
    labelled: bool

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``, preprocessed, in that order; DataError for one that cannot be read."""


@dataclass(frozen=True, eq=False)
class ArrayData(Data):
    """Images and labels in memory.

    ``images`` is uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, any float (N, ...),
    or integer tokens (N, T).  uint8 images are preprocessed when read, by default only divided by 255;
    floats are given as they are (as float32) unless ``preprocess`` says otherwise; tokens always are.
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
    labelled: bool = field(init=False)

    def __post_init__(self) -> None:
        images = _checked_images(self.images, self.name)
        if self.preprocess is not None and not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise DataError(f"The inputs in {self.name} are tokens, which preprocessing does not apply to.")
        labels = self.labels
        if labels is not None:
            labels = _checked_labels(labels, len(images), self.name, self.classes)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "labelled", labels is not None)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = torch.tensor(_checked_indices(indices, len(self), self.name))
        images = self.images[chosen]
        if images.dtype == torch.uint8 or self.preprocess is not None:
            images = (self.preprocess or Preprocess()).apply(images)
        return Batch(images, None if self.labels is None else self.labels[chosen])


@dataclass(frozen=True, eq=False)
class FolderData(Data):
    """Image files, opened when they are read: colour, unless ``preprocess`` asks for one channel.

    Made by ``FolderData.open``.  ``labels`` is one number for each file, or None.
    """

    name: str
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    labelled: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labelled", self.labels is not None)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], preprocess: Preprocess | None = None) -> FolderData:
        """A folder of class folders (labels 0, 1, ... in the order of their names), or of images only.

        Names that begin with a dot are passed over, and so are files that are not images by their suffix,
        unless there is nothing else.  Raises DataError when there is no image, or none in one class.
        """
        root = Path(folder).expanduser()
        entries = _listed(root)
        images = [entry for entry in entries if _is_image(entry)]
        classes = [entry for entry in entries if entry.is_dir()]
        if not classes:
            if not images:
                raise DataError(f"The folder {root} holds no images{_strangers(entries)}.")
            return cls(root.name or str(root), tuple(images), preprocess=preprocess)
        if images:
            raise DataError(
                f"The folder {root} holds class folders and images side by side ({images[0].name}, ...); "
                "move the images into a class or elsewhere."
            )
        files: list[Path] = []
        labels: list[int] = []
        for label, each in enumerate(classes):
            found = _listed(each, deep=True)
            inside = [entry for entry in found if _is_image(entry)]
            if not inside:
                raise DataError(f"The class folder {each} holds no images{_strangers(found)}.")
            files += inside
            labels += [label] * len(inside)
        names = tuple(each.name for each in classes)
        return cls(root.name or str(root), tuple(files), tuple(labels), names, preprocess)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = _checked_indices(indices, len(self), self.name)
        step = self.preprocess or Preprocess()
        step = replace(step, channels=step.channels or 3)
        images: list[Tensor] = []
        for index in chosen:
            file = self.files[index]
            try:
                image = step.apply(_decoded(file)[None])[0]
            except DataError as problem:
                raise DataError(f"{file}: {problem}") from problem
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{file} is {_size(image)} pixels and {self.files[chosen[0]].name} {_size(images[0])}; "
                    "give a preprocessing with resize and crop, such as resize=256 crop=224."
                )
            images.append(image)
        labels = None if self.labels is None else torch.tensor([self.labels[index] for index in chosen])
        return Batch(torch.stack(images), labels)


@dataclass(frozen=True, eq=False)
class Subset(Data):
    """Some of the images of another Data, numbered anew."""

    data: Data
    indices: tuple[int, ...]
    name: str = field(init=False)
    classes: tuple[str, ...] | None = field(init=False)
    labelled: bool = field(init=False)

    def __post_init__(self) -> None:
        _checked_indices(self.indices, len(self.data), self.data.name)
        for name in ("name", "classes", "labelled"):
            object.__setattr__(self, name, getattr(self.data, name))

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = _checked_indices(indices, len(self), self.name)
        return self.data.read([self.indices[index] for index in chosen])


_Data = TypeVar("_Data", bound=Data)


def load_data(
    spec: Any,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    default: Preprocess | None = None,
) -> Data:
    """Images from wherever they are.

    ``spec`` is a name in ZOO_DATA, a folder (see ``FolderData.open``), an ``.npz`` file with ``images`` and
    perhaps ``labels``, a factory ``file.py:name`` or ``package.module:name`` that returns any of what
    follows, a DataLoader, Dataset or iterable of ``(x, y)`` or ``x``, a pair ``(x, y)`` of tensors or
    arrays, one tensor or array, or a Data.

    ``preprocess`` is the user's wish and applies to every kind of image.  ``default``, the network's own
    preprocessing, applies to uint8 images and files when there is no wish: floats are taken as ready.
    ``limit`` keeps at most so many images, spread evenly; of an iterable the first ones, so that one
    without an end can be used.  Raises DataError.

    >>> data = load_data((np.zeros((6, 1, 4, 4), np.float32), np.arange(6)), limit=3)
    >>> len(data), data.read([0, 1, 2]).labels
    (3, tensor([0, 2, 4]))
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataError(f"The limit {limit!r} makes no sense; give a number of images, 1 or more.")
    if isinstance(spec, str) and spec not in ZOO_DATA and is_factory(spec) and not Path(spec).exists():
        data = _from_object(call_factory(spec, DataError), spec, preprocess, limit, default)
    else:
        data = _from_object(spec, None, preprocess, limit, default)
    if limit is not None and len(data) > limit:
        data = Subset(data, _spread(len(data), limit))
    return data


def from_loader(
    loader: Iterable[Any],
    limit: int | None = None,
    *,
    name: str = "loader",
    preprocess: Preprocess | None = None,
) -> ArrayData:
    """Collect the batches of an iterable of ``(x, y)`` or ``x`` in memory, the first ``limit`` images of it.

    Raises DataError when it gives no image, a batch that does not fit the first, or fails itself.
    """
    return ArrayData(name, *_collected(loader, limit, name), preprocess=preprocess)


def _collected(loader: Iterable[Any], limit: int | None, name: str) -> tuple[Tensor, Tensor | None]:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    try:
        # At least one image a batch, so that no iterable runs longer than this.
        for item in islice(loader, limit):
            pair = list(item) if isinstance(item, (tuple, list)) else [item]
            x, y = pair[0], pair[1] if len(pair) > 1 else None
            images.append(_as_tensor(x, name))
            if y is not None:
                labels.append(_as_tensor(y, name))
            count += len(images[-1]) if images[-1].ndim else 1
            if limit is not None and count >= limit:
                break
    except DataError:
        raise
    except Exception as problem:
        raise DataError(f"Reading the batches of {name} failed: {describe(problem)}.") from problem
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
    if any(each.ndim != 1 for each in labels):
        raise DataError(
            f"The labels in {name} must have one axis: one whole number for each image of a batch."
        )
    return torch.cat(images)[:limit], torch.cat(labels)[:limit] if labels else None


def check_shape(data: Data, example: Tensor) -> None:
    """Raise DataError unless the images of ``data`` have the shape (but for the batch) of ``example``."""
    found, wanted = tuple(data.read([0]).images.shape[1:]), tuple(example.shape[1:])
    if found != wanted:
        raise DataError(
            f"The images of {data.name} have shape {found} and the network takes {wanted}; "
            "a preprocessing with resize, crop and channels can make them fit."
        )


def _from_object(
    value: Any, name: str | None, preprocess: Preprocess | None, limit: int | None, default: Preprocess | None
) -> Data:
    """``value`` as Data; ``name`` is the factory that it comes from, if any."""
    if isinstance(value, (str, os.PathLike)):
        return _from_path(os.fspath(value), preprocess, default)
    if isinstance(value, Data):
        if preprocess is None:
            return value
        if isinstance(value, (ArrayData, FolderData)):
            return _with_preprocess(value, preprocess)
        raise DataError(f"The data {value.name} prepares its own images; leave the preprocessing out.")
    if isinstance(value, (Tensor, np.ndarray)):
        value = (value, None)
    classes = None
    if isinstance(value, tuple) and len(value) == 2 and _is_array(value[0]) and _is_labels(value[1]):
        name = name or "arrays"
        images = _as_tensor(value[0], name)
        labels = None if value[1] is None else _as_tensor(value[1], name)
    elif isinstance(value, (Dataset, Iterable)):
        name = name or type(value).__name__
        if isinstance(value, Dataset):
            classes = _class_names(value)
            count = len(value) if isinstance(value, Sized) else 0
            if limit is not None and limit < count:
                value = torch.utils.data.Subset(value, _spread(count, limit))
            value = DataLoader(value, batch_size=64)
        images, labels = _collected(value, limit, name)
    else:
        where = f"The factory {name} returned" if name else "Data cannot be made from"
        raise DataError(
            f"{where} {describe_type(value)}; "
            "give a folder, an .npz file, a pair (images, labels), a DataLoader or a Data."
        )
    return ArrayData(name, images, labels, classes, _fitting(images, preprocess, default))


def _with_preprocess(data: _Data, preprocess: Preprocess) -> _Data:
    # Not dataclasses.replace: the pixels are checked and in order, and checking once is enough.
    changed = copy(data)
    object.__setattr__(changed, "preprocess", preprocess)
    return changed


def _class_names(dataset: Dataset) -> tuple[str, ...] | None:
    """What the datasets of torchvision call ``classes``."""
    names = getattr(dataset, "classes", None)
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _spread(count: int, limit: int) -> tuple[int, ...]:
    """``limit`` numbers below ``count``, evenly spread, so that data sorted by class keeps its classes."""
    return tuple(index * count // limit for index in range(limit))


def _fitting(images: Tensor, preprocess: Preprocess | None, default: Preprocess | None) -> Preprocess | None:
    return preprocess or (default if images.dtype == torch.uint8 else None)


def _from_path(spec: str, preprocess: Preprocess | None, default: Preprocess | None) -> Data:
    if spec in ZOO_DATA:
        images, labels = _zoo_arrays(spec)
        return ArrayData(spec, images, labels, CLASSES, preprocess or default or FASHION)
    path = Path(spec).expanduser()
    if path.is_dir():
        return FolderData.open(path, preprocess or default)
    if path.suffix == ".npz" and path.is_file():
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise DataError(f"The file {path} cannot be read: {problem.strerror}.") from problem
        images, found = _read_npz(content, str(path))
        return ArrayData(path.stem, images, found, preprocess=_fitting(images, preprocess, default))
    if path.exists():
        raise DataError(f"{path} is neither a folder of images nor an .npz file nor file.py:factory.")
    if path.suffix or os.sep in spec:
        raise DataError(f"There is no file or folder {spec}.{nearest(path.name, _names(path.parent))}")
    raise DataError(unknown("data set", spec, [*ZOO_DATA, "FOLDER", "FILE.npz", "FILE.py:FACTORY"]))


@cache
def _zoo_arrays(name: str) -> tuple[Tensor, Tensor | None]:
    return _read_npz(shipped(ZOO_DATA[name], DataError), ZOO_DATA[name])


def _read_npz(content: bytes, name: str) -> tuple[Tensor, Tensor | None]:
    try:
        archive = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise zipfile.BadZipFile("it is a single array")
        with archive:
            if "images" not in archive:
                keys = archive.files
                raise DataError(
                    f"There is no array 'images' in {name}; it holds {', '.join(keys) or 'nothing'}."
                    f"{nearest('images', keys)}"
                )
            images = archive["images"]
            labels = archive.get("labels")
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as problem:
        if "allow_pickle" in str(problem) and zipfile.is_zipfile(io.BytesIO(content)):
            raise DataError(
                f"An array in {name} holds Python objects, which are not read because that could run code; "
                "save plain arrays of numbers."
            ) from problem
        raise DataError(f"The file {name} is damaged or no .npz archive: {describe(problem)}.") from problem
    return _as_tensor(images, name), None if labels is None else _as_tensor(labels, name)


def _is_array(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_labels(value: object) -> bool:
    return value is None or _is_array(value) or (isinstance(value, list) and not any(map(_is_array, value)))


def _as_tensor(value: Any, name: str) -> Tensor:
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


def _checked_images(images: Tensor, name: str) -> Tensor:
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


def _checked_labels(labels: Tensor, count: int, name: str, classes: tuple[str, ...] | None) -> Tensor:
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


def _checked_indices(indices: Sequence[int], count: int, name: str) -> list[int]:
    chosen = [int(index) for index in indices]
    if not chosen:
        raise DataError(f"No image of {name} was asked for; give at least one number.")
    for index in chosen:
        if not 0 <= index < count:
            raise DataError(f"There is no image {index} in {name}; they are numbered 0 to {count - 1}.")
    return chosen


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _listed(folder: Path, deep: bool = False) -> list[Path]:
    try:
        entries = sorted(folder.rglob("*") if deep else folder.iterdir())
    except OSError as problem:
        raise DataError(f"The folder {folder} cannot be read: {problem.strerror}.") from problem
    return [
        entry
        for entry in entries
        if not any(part.startswith((".", "__MACOSX")) for part in entry.relative_to(folder).parts)
    ]


def _strangers(entries: Sequence[Path]) -> str:
    files = [entry.name for entry in entries if entry.is_file()]
    return f" ({files[0]} is not one by its suffix)" if files else ""


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _decoded(file: Path) -> Tensor:
    """An image file as uint8 (C, H, W): one channel where it is grey, three otherwise."""
    try:
        with Image.open(file) as image:
            mode = image.mode
            if mode.startswith("I;16"):
                pixels = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            elif mode in ("I", "F"):
                raise DataError(f"its pixels have 32 bits (mode {mode}); save it with 8 or 16 bits.")
            else:
                pixels = np.array(image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB"))
    except FileNotFoundError as problem:
        raise DataError("the file is gone.") from problem
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"it cannot be read as an image ({describe(problem)}).") from problem
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]} x {image.shape[-1]}"
