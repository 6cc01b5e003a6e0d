"""The data sets of torchvision that lie on this machine: ``torchvision:NAME:FOLDER[:SPLIT]``.

Nothing is downloaded or unpacked.  The files of CIFAR are pickles, which could run code: they are read only if their
md5 is the one that torchvision knows for what was published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from explorer.errors import DataError, unknown
from explorer.sources.dataset import class_names, from_dataset
from explorer.sources.factory import describe
from explorer.sources.folder import FolderData
from explorer.sources.images import ArrayData, Data, as_tensor
from explorer.sources.preprocess import Preprocess

PREFIX = "torchvision:"


@dataclass(frozen=True)
class Published:
    """How a data set of torchvision is read.

    Args:
        splits: the arguments of its class for each split, the one to evaluate on first.
        pickled: its files are pickles.
        folders: where its class folders lie, instead of arguments of a class.
    """

    splits: Mapping[str, Mapping[str, Any]]
    pickled: bool = False
    folders: tuple[str, ...] = ()


def _named(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"split": name} for name in names}


_TWO = {"test": {"train": False}, "train": {"train": True}}
_KINDS = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")

DATASETS: dict[str, Published] = {
    "CIFAR10": Published(_TWO, pickled=True),
    "CIFAR100": Published(_TWO, pickled=True),
    "Country211": Published(_named("test", "valid", "train")),
    "DTD": Published(_named("test", "val", "train")),
    "EMNIST": Published({kind: {"split": kind, "train": False} for kind in _KINDS}),
    "EuroSAT": Published({"all": {}}, folders=("eurosat/2750",)),
    "FGVCAircraft": Published(_named("test", "val", "train", "trainval")),
    "FashionMNIST": Published(_TWO),
    "Flowers102": Published(_named("test", "val", "train")),
    "Food101": Published(_named("test", "train")),
    "GTSRB": Published(_named("test", "train")),
    "ImageNet": Published(_named("val", "train"), folders=("{split}",)),
    "Imagenette": Published(
        _named("val", "train"),
        folders=("imagenette2/{split}", "imagenette2-320/{split}", "imagenette2-160/{split}"),
    ),
    "KMNIST": Published(_TWO),
    "MNIST": Published(_TWO),
    "OxfordIIITPet": Published(_named("test", "trainval")),
    "RenderedSST2": Published(_named("test", "val", "train")),
    "STL10": Published(_named("test", "train", "unlabeled")),
    "SVHN": Published(_named("test", "train", "extra")),
}


def from_torchvision_data(spec: str, wish: Preprocess | None, default: Preprocess | None) -> Data:
    """A data set in DATASETS; ``wish`` and ``default`` are as in ``load_data``.

    Raises:
        DataError: for a name or split that does not exist, and for files that are missing, damaged or not the published
            ones.
    """
    name, _, rest = spec.removeprefix(PREFIX).partition(":")
    if name not in DATASETS:
        raise DataError(unknown("data set of torchvision", name, DATASETS))
    known = DATASETS[name]
    folder, split = _parted(rest, known)
    if not rest:
        raise DataError(f"{spec} lacks the folder; write {PREFIX}{name}:FOLDER[:SPLIT].")
    if split not in known.splits:
        raise DataError(unknown(f"split of {name}", split, known.splits))
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"There is no folder {folder}.")
    title = name if split == "all" else f"{name} {split}"
    if known.folders:
        return _opened(root, known, split, title, wish or default)
    return _prepared(_read(name, known, root, split), title, wish, default)


def _parted(rest: str, known: Published) -> tuple[str, str]:
    """The folder and the split; the folder may hold colons itself."""
    folder, colon, split = rest.rpartition(":")
    if not colon or (split not in known.splits and Path(rest).is_dir()):
        return rest, next(iter(known.splits))
    return folder, split


def _opened(root: Path, known: Published, split: str, title: str, step: Preprocess | None) -> Data:
    places = [root / each.format(split=split) for each in known.folders]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise DataError(f"There is no folder {' or '.join(map(str, places))}; unpack {title} there.")
    opened = FolderData.open(found, step)
    return FolderData(title, opened.files, opened.labels, opened.classes, step)


def _read(name: str, known: Published, root: Path, split: str) -> Any:
    """The dataset as torchvision reads it."""
    from explorer.sources.vision import torchvision  # takes seconds, and most sessions do without

    kind = getattr(torchvision.datasets, name)
    if known.pickled:
        _check_pickles(torchvision, kind, root, name)
    try:
        return kind(str(root), download=False, **known.splits[split])
    except Exception as problem:
        if isinstance(problem, RuntimeError) and "not found" in str(problem):
            raise DataError(
                f"torchvision does not find {name} in {root}, or its files are not those that were published; nothing "
                "is downloaded, and the folder is the one that holds the data set's own folder."
            ) from problem
        raise DataError(f"Reading {name} in {root} failed: {describe(problem)}.") from problem


def _check_pickles(torchvision: Any, kind: Any, root: Path, name: str) -> None:
    """Refuse pickles that are not the published ones: reading others could run code."""
    folder = root / kind.base_folder
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    for file, md5 in files:
        if not (folder / file).is_file():
            raise DataError(
                f"There is no file {folder / file}; {name} is not in {root}, and nothing is downloaded."
            )
        if not md5 or not torchvision.datasets.utils.check_integrity(str(folder / file), md5):
            raise DataError(
                f"The file {folder / file} is not the one that was published (its md5 is not {md5}); it is not read "
                "because it is a pickle, which could run code."
            )


def _prepared(dataset: Any, title: str, wish: Preprocess | None, default: Preprocess | None) -> Data:
    """Pixels in memory as they are, files as files, and all else through the dataset, image by image."""
    classes = class_names(dataset)
    pixels = getattr(dataset, "data", None)
    if isinstance(pixels, (Tensor, np.ndarray)):
        images = as_tensor(pixels, title)
        return ArrayData(title, images, _labels(dataset, title), classes, wish or default)
    files = _files(dataset)
    if files is not None:
        paths, labels = files
        return FolderData(title, paths, labels, classes, wish or default, kind="classes")
    found = from_dataset(dataset, title, wish, default)
    if found is None:
        raise DataError(f"The data set {title} has no length.")
    return found


def _labels(dataset: Any, title: str) -> Tensor | None:
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None:
            labels = as_tensor(found, title)
            # STL10's unlabelled images have -1.
            return None if bool((labels == -1).all()) else labels
    return None


def _files(dataset: Any) -> tuple[tuple[Path, ...], tuple[int, ...]] | None:
    """The files and labels of a dataset that keeps a list of them, so that damaged ones are found."""
    samples: Sequence[tuple[Any, Any]] | None = getattr(
        dataset, "samples", getattr(dataset, "_samples", None)
    )
    if samples is None:
        paths = getattr(dataset, "_image_files", getattr(dataset, "_images", None))
        labels = getattr(dataset, "_labels", None)
        if paths is None or labels is None or len(paths) != len(labels):
            return None
        samples = list(zip(paths, labels, strict=True))
    if not all(isinstance(path, (str, Path)) for path, _ in samples):
        return None
    return tuple(Path(path) for path, _ in samples), tuple(int(label) for _, label in samples)
