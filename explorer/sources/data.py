"""Images and labels: what the networks are calibrated and measured on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from explorer.errors import DataError, nearest, unknown
from explorer.sources.collect import collected
from explorer.sources.dataset import DatasetData, from_dataset
from explorer.sources.factory import call_factory, describe_type, is_factory
from explorer.sources.files import shipped
from explorer.sources.folder import FolderData
from explorer.sources.images import ArrayData, Data, Skipped, Subset, as_tensor
from explorer.sources.npz import read_npz
from explorer.sources.preprocess import Preprocess
from explorer.sources.strata import stratified
from explorer.sources.torchvisiondata import PREFIX, from_torchvision_data
from explorer.sources.zoo import CLASSES

FASHION = Preprocess(mean=(0.2860,), std=(0.3530,), resize=28, crop=28, channels=1)
"""What the networks that ship expect."""

ZOO_DATA = {
    "fashion-mnist": "fashion-mnist-test.npz",
    "fashion-mnist-calibration": "fashion-mnist-calibration.npz",
}
"""The images that ship: a data name and its file."""


def load_data(
    spec: Any,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    default: Preprocess | None = None,
    subset: int | None = None,
    seed: int = 0,
    free: bool = False,
) -> Data:
    """Images from wherever they are.

    ``spec`` is a name in ZOO_DATA, ``torchvision:NAME:FOLDER[:SPLIT]`` (see ``torchvisiondata``), a folder (see
    ``FolderData.open``), an ``.npz`` file with ``images`` and perhaps ``labels``, a factory ``file.py:name``
    or ``package.module:name`` that returns any of what follows, a Dataset or DataLoader, an iterable of
    batches ``(x, y)`` or ``x``, a pair ``(x, y)`` of tensors or arrays, one tensor or array, or a Data.
    Folders and datasets are read image by image, as needed; iterables are collected, within half of the free
    memory.

    ``preprocess`` is the user's wish and applies to every kind of image.  ``default``, the network's own
    preprocessing, applies to uint8 images and files when there is no wish: floats are taken as ready.
    ``limit`` keeps at most so many images, spread evenly; of an iterable the first ones, so that one
    without an end can be used.  ``subset`` then draws so many at random, with the same share of each class where the
    labels are known without reading the images; ``seed`` fixes the draw.  Files of a folder that are no whole images
    are left out and listed in ``skipped``.  With ``free`` labels may be any numbers (N, ...), for a metric that is not
    of classes.  Raises DataError.

    >>> data = load_data((np.zeros((6, 1, 4, 4), np.float32), np.arange(6)), limit=3)
    >>> len(data), data.read([0, 1, 2]).labels
    (3, tensor([0, 2, 4]))
    >>> data = load_data((np.zeros((9, 1, 4, 4), np.float32), np.arange(9) // 3), subset=6)
    >>> data.read(range(6)).labels.tolist()
    [0, 0, 1, 1, 2, 2]
    """
    for name, number in (("limit", limit), ("subset", subset)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise DataError(f"The {name} {number!r} makes no sense; give a number of images, 1 or more.")
    if isinstance(spec, str) and spec.startswith(PREFIX):
        data = from_torchvision_data(spec, preprocess, default)
    elif isinstance(spec, str) and spec not in ZOO_DATA and is_factory(spec) and not Path(spec).exists():
        data = _from_object(call_factory(spec, DataError), spec, preprocess, limit, default, free)
    else:
        data = _from_object(spec, None, preprocess, limit, default, free)
    chosen: Iterable[int] = range(len(data))
    if limit is not None and len(data) > limit:
        chosen = (index * len(data) // limit for index in range(limit))
    return _whole(data, tuple(chosen), subset, seed)


def _whole(data: Data, chosen: tuple[int, ...], subset: int | None, seed: int) -> Data:
    """The images at ``chosen``, or ``subset`` of them, without those that are damaged."""
    left: dict[int, Skipped] = {}

    def usable(index: int) -> bool:
        reason = data.damage(index)
        if reason:
            left[index] = Skipped(data.name_of(index), reason)
        return not reason

    if subset is None:
        kept = tuple(index for index in chosen if usable(index))
    else:
        if subset > len(chosen):
            raise DataError(
                f"A subset of {subset:,} is more than the {len(chosen):,} images of {data.name}; leave it out."
            )
        labels = data.targets()
        known = None if labels is None else [labels[index] for index in chosen]
        places = stratified(known, len(chosen), subset, seed, lambda place: usable(chosen[place]))
        kept = tuple(chosen[place] for place in places)
    if not kept:
        first = next(iter(left.values()))
        raise DataError(
            f"None of the {len(left):,} images of {data.name} can be read; {first.name}: {first.reason}"
        )
    skipped = tuple(left[index] for index in sorted(left))
    return data if len(kept) == len(data) else Subset(data, kept, skipped)


def check_shape(data: Data, example: Tensor) -> None:
    """Raise DataError unless the images of ``data`` have the shape (but for the batch) of ``example``."""
    found, wanted = tuple(data.read([0]).images.shape[1:]), tuple(example.shape[1:])
    if found != wanted:
        raise DataError(
            f"The images of {data.name} have shape {found} and the network takes {wanted}; "
            "a preprocessing with resize, crop and channels can make them fit."
        )


def _from_object(
    value: Any,
    name: str | None,
    preprocess: Preprocess | None,
    limit: int | None,
    default: Preprocess | None,
    free: bool = False,
) -> Data:
    """``value`` as Data; ``name`` is the factory that it comes from, if any."""
    if isinstance(value, (str, os.PathLike)):
        return _from_path(os.fspath(value), preprocess, default, free)
    if isinstance(value, Data):
        if preprocess is None:
            return value
        if isinstance(value, (ArrayData, FolderData, DatasetData, Subset)):
            return _with_preprocess(value, preprocess)
        raise DataError(f"The data {value.name} prepares its own images; leave the preprocessing out.")
    if isinstance(value, (Tensor, np.ndarray)):
        value = (value, None)
    if isinstance(value, tuple) and len(value) == 2 and _is_array(value[0]) and _is_labels(value[1]):
        name = name or "arrays"
        images = as_tensor(value[0], name)
        labels = None if value[1] is None else as_tensor(value[1], name)
    elif isinstance(value, (Dataset, DataLoader)) or _is_numbered(value):
        name = name or type(value).__name__
        found = from_dataset(value, name, preprocess, default, free)
        if found is not None:
            return found
        loader = DataLoader(value, batch_size=64) if isinstance(value, IterableDataset) else value
        images, labels = collected(loader, limit, name, free)
    elif isinstance(value, Iterable):
        name = name or type(value).__name__
        images, labels = collected(value, limit, name, free)
    else:
        where = f"The factory {name} returned" if name else "Data cannot be made from"
        raise DataError(
            f"{where} {describe_type(value)}; "
            "give a folder, an .npz file, a pair (images, labels), a DataLoader or a Data."
        )
    return ArrayData(name, images, labels, None, _fitting(images, preprocess, default), free)


def _is_numbered(value: object) -> bool:
    """A dataset that does without torch's class: what has a length and numbers, and is no sequence of batches."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, Iterable)


def _with_preprocess(data: Data, preprocess: Preprocess) -> Data:
    if isinstance(data, DatasetData):
        return replace(data, wish=preprocess)
    if isinstance(data, Subset):
        return replace(data, data=_from_object(data.data, None, preprocess, None, None))
    # Not dataclasses.replace: the pixels are checked and in order, and checking once is enough.
    changed = copy(data)
    object.__setattr__(changed, "preprocess", preprocess)
    return changed


def _fitting(images: Tensor, preprocess: Preprocess | None, default: Preprocess | None) -> Preprocess | None:
    return preprocess or (default if images.dtype == torch.uint8 else None)


def _from_path(
    spec: str, preprocess: Preprocess | None, default: Preprocess | None, free: bool = False
) -> Data:
    if spec in ZOO_DATA:
        images, labels = _zoo_arrays(spec)
        return ArrayData(spec, images, labels, CLASSES, preprocess or default or FASHION)
    path = Path(spec).expanduser()
    if path.is_dir():
        return FolderData.open(path, preprocess or default)
    if path.suffix == ".npz" and path.is_file():
        images, found = read_npz(path, str(path))
        return ArrayData(path.stem, images, found, None, _fitting(images, preprocess, default), free)
    if path.exists():
        raise DataError(f"{path} is neither a folder of images nor an .npz file nor file.py:factory.")
    if path.suffix or os.sep in spec:
        raise DataError(f"There is no file or folder {spec}.{nearest(path.name, _names(path.parent))}")
    raise DataError(
        unknown(
            "data set", spec, [*ZOO_DATA, "FOLDER", "FILE.npz", "torchvision:NAME:FOLDER", "FILE.py:FACTORY"]
        )
    )


@cache
def _zoo_arrays(name: str) -> tuple[Tensor, Tensor | None]:
    return read_npz(shipped(ZOO_DATA[name], DataError), ZOO_DATA[name])


def _is_array(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _is_labels(value: object) -> bool:
    return value is None or _is_array(value) or (isinstance(value, list) and not any(map(_is_array, value)))


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
