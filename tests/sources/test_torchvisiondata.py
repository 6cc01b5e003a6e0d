"""torchvision's data sets give what torchvision gives, and pickles that were not published are not opened."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from explorer.errors import DataError
from explorer.sources import Data, FolderData, fit_labels, load_data
from explorer.sources.torchvisiondata import DATASETS
from explorer.sources.vision import torchvision

RNG = np.random.default_rng(0)
sets = torchvision.datasets


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(12, 10, 3)).save(path)


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def mnist(root: Path, name: str, kind: str = "") -> None:
    for part in ("t10k", "train"):
        stem = f"emnist-{kind}-{'test' if part == 't10k' else part}" if kind else part
        idx(root / name / "raw" / f"{stem}-images-idx3-ubyte", pixels(6, 28, 28))
        idx(root / name / "raw" / f"{stem}-labels-idx1-ubyte", np.arange(6, dtype=np.uint8))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar(root: Path, patch: pytest.MonkeyPatch, kind: Any, key: str, names: str) -> None:
    folder = root / kind.base_folder
    folder.mkdir()
    lists: dict[str, list[tuple[str, str]]] = {}
    for attribute in ("train_list", "test_list"):
        for file, _ in getattr(kind, attribute):
            content = {"data": pixels(4, 3072), key: [0, 1, 1, 0]}
            (folder / file).write_bytes(pickle.dumps(content))
            lists.setdefault(attribute, []).append((file, md5(folder / file)))
        patch.setattr(kind, attribute, lists[attribute])
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({names: ["cat", "dog"]}))
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    file = root / "test_32x32.mat"
    savemat(file, {"X": pixels(32, 32, 3, 4), "y": np.array([[1], [10], [2], [3]], np.uint8)})
    url, name, _ = sets.SVHN.split_list["test"]
    patch.setattr(sets.SVHN, "split_list", {**sets.SVHN.split_list, "test": [url, name, md5(file)]})


def stl(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / sets.STL10.base_folder
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}_X.bin").write_bytes(pixels(3, 3, 96, 96).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes([1, 10, 5]))
    (folder / "unlabeled_X.bin").write_bytes(pixels(2, 3, 96, 96).tobytes())
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    (folder / "fold_indices.txt").write_text("0 1 2")
    for attribute in ("train_list", "test_list"):
        files = [[name, md5(folder / name)] for name, _ in getattr(sets.STL10, attribute)]
        patch.setattr(sets.STL10, attribute, files)


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    lines = []
    for number, name in enumerate(("Abyssinian_1", "great_dane_2", "Abyssinian_3")):
        picture(folder / "images" / f"{name}.jpg")
        lines.append(f"{name} {1 + number % 2} {1 + number % 2} 1")
    (folder / "annotations").mkdir()
    for split in ("test", "trainval"):
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")


def flowers(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    for number in (1, 2, 3):
        picture(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "setid.mat", {"trnid": [1, 2], "valid": [1, 2], "tstid": [2, 3]})
    savemat(folder / "imagelabels.mat", {"labels": [5, 1, 7]})
    known = {
        key: (name, md5(folder / name) if name.endswith(".mat") else digest)
        for key, (name, digest) in sets.Flowers102._file_dict.items()
    }
    patch.setattr(sets.Flowers102, "_file_dict", known)


def folders(root: Path, base: str, *classes: str, suffix: str = "JPEG") -> None:
    for name in classes:
        for number in range(2):
            picture(root / base / name / f"{number}.{suffix}")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        mnist(tmp_path, name)
    mnist(tmp_path, "EMNIST", "balanced")
    cifar(tmp_path, monkeypatch, sets.CIFAR10, "labels", "label_names")
    cifar(tmp_path, monkeypatch, sets.CIFAR100, "fine_labels", "fine_label_names")
    svhn(tmp_path, monkeypatch)
    stl(tmp_path, monkeypatch)
    pets(tmp_path)
    flowers(tmp_path, monkeypatch)
    folders(tmp_path, "imagenette2-160/val", "n01440764", "n02102040")
    folders(tmp_path, "val", "n01440764", "n02102040")
    folders(tmp_path, "eurosat/2750", "River", "Forest", suffix="jpg")
    for split in ("train", "val", "test"):
        (tmp_path / "dtd" / "dtd" / "labels").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dtd" / "dtd" / "labels" / f"{split}1.txt").write_text("dotted/1.jpg\nwoven/2.jpg\n")
    picture(tmp_path / "dtd" / "dtd" / "images" / "dotted" / "1.jpg")
    picture(tmp_path / "dtd" / "dtd" / "images" / "woven" / "2.jpg")
    return tmp_path


def same(found: Data, dataset: Any) -> None:
    """The pixels and labels are those that torchvision gives, in its order."""
    assert len(found) == len(dataset)
    targets = []
    for index in range(len(dataset)):
        image, label = dataset[index]
        array = torch.from_numpy(np.array(image))
        wanted = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
        assert torch.equal((found.read([index]).images[0] * 255).round().to(torch.uint8), wanted)
        targets.append(int(label))
    assert list(found.targets() or ()) == targets


SPLITS: list[tuple[str, str, dict[str, Any]]] = [
    ("MNIST", "", {"train": False}),
    ("MNIST", ":train", {"train": True}),
    ("FashionMNIST", ":test", {"train": False}),
    ("KMNIST", "", {"train": False}),
    ("EMNIST", "", {"split": "balanced", "train": False}),
    ("CIFAR10", "", {"train": False}),
    ("CIFAR10", ":train", {"train": True}),
    ("CIFAR100", "", {"train": False}),
    ("SVHN", "", {"split": "test"}),
    ("STL10", "", {"split": "test"}),
    ("OxfordIIITPet", "", {"split": "test"}),
    ("Flowers102", ":val", {"split": "val"}),
    ("DTD", "", {"split": "test"}),
    ("EuroSAT", "", {}),
    ("Imagenette", "", {"split": "val", "size": "160px"}),
]


@pytest.mark.parametrize(
    ("name", "split", "arguments"), SPLITS, ids=[name + split for name, split, _ in SPLITS]
)
def test_they_give_what_torchvision_gives(
    shelf: Path, name: str, split: str, arguments: dict[str, Any]
) -> None:
    found = load_data(f"torchvision:{name}:{shelf}{split}")
    same(found, getattr(sets, name)(str(shelf), **arguments))
    assert found.labelled and found.name.startswith(name)


def test_every_data_set_of_the_table_exists_and_is_in_the_manual() -> None:
    assert all(hasattr(sets, name) for name in DATASETS)
    manual = Path(__file__).parents[2] / "docs" / "data.md"
    assert all(f"`{name}`" in manual.read_text(encoding="utf-8") for name in DATASETS)


def test_imagenet_is_a_folder_whose_classes_have_identifiers(shelf: Path) -> None:
    for name in ("ImageNet", "Imagenette"):
        fitted, how = fit_labels(load_data(f"torchvision:{name}:{shelf}:val"), None, 1000)
        assert sorted(set(fitted.targets() or ())) == [0, 217] and "as in ImageNet" in how
    with pytest.raises(DataError, match=r"There is no folder .*train"):
        load_data(f"torchvision:ImageNet:{shelf}:train")


def test_classes_and_damage_are_known(shelf: Path) -> None:
    assert load_data(f"torchvision:CIFAR10:{shelf}").classes == ("cat", "dog")
    (shelf / "oxford-iiit-pet" / "images" / "great_dane_2.jpg").write_bytes(b"")
    pets = load_data(f"torchvision:OxfordIIITPet:{shelf}")
    assert (len(pets), pets.classes) == (2, ("Abyssinian", "Great Dane"))
    assert [left.reason for left in pets.skipped] == ["it is empty."]
    assert fit_labels(pets, None, 2)[1] == "The 2 classes are numbered as in the data."
    assert not load_data(f"torchvision:STL10:{shelf}:unlabeled").labelled
    assert isinstance(load_data(f"torchvision:EuroSAT:{shelf}"), FolderData)


class Explosive:
    """Leaves a file where it was unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", ["test_batch", "batches.meta", "data_batch_3"])
def test_a_pickle_that_was_not_published_is_not_opened(shelf: Path, file: str) -> None:
    mark = shelf / "mark"
    path = shelf / sets.CIFAR10.base_folder / file
    path.write_bytes(pickle.dumps(Explosive(mark)))
    with pytest.raises(DataError, match=f"{file} is not the one that was published"):
        load_data(f"torchvision:CIFAR10:{shelf}")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("torchvision:CIFAR11:{}", "There is no data set of torchvision 'CIFAR11'.*Did you mean 'CIFAR10'"),
        ("torchvision:LSUN:{}", "There is no data set of torchvision 'LSUN'"),
        ("torchvision:MNIST", "lacks the folder"),
        ("torchvision:MNIST:", "lacks the folder"),
        ("torchvision:MNIST:{}/none", "There is no folder"),
        ("torchvision:MNIST:{}:tset", "There is no split of MNIST 'tset'.*Did you mean 'test'"),
        ("torchvision:MNIST:{}", "torchvision does not find MNIST in"),
        ("torchvision:CIFAR10:{}", "There is no file .*nothing is downloaded"),
        ("torchvision:Flowers102:{}", "torchvision does not find Flowers102"),
        ("torchvision:Imagenette:{}", "There is no folder .*imagenette2/val or"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path: Path, spec: str, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        load_data(spec.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_one_sentence(shelf: Path) -> None:
    (shelf / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 40)
    with pytest.raises(DataError, match=r"Reading MNIST in .* failed"):
        load_data(f"torchvision:MNIST:{shelf}")
