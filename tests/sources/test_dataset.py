"""Datasets are read image by image, the same every time, and collected only where there is no other way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from explorer.errors import DataError
from explorer.sources import DatasetData, Preprocess, collect, load_data

X, Y = torch.arange(40.0).reshape(10, 1, 2, 2), torch.arange(10) % 3


class Counting(Dataset[Any]):
    """Says which images were read."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return X[index], int(Y[index])


def refused(spec: Any, part: str, **options: Any) -> None:
    with pytest.raises(DataError, match=part) as caught:
        found = load_data(spec, **options)
        found.read(range(len(found)))
    assert "\n" not in str(caught.value)


def test_only_what_is_asked_for_is_read() -> None:
    dataset = Counting()
    found = load_data(dataset)
    assert isinstance(found, DatasetData) and (len(found), found.labelled) == (10, True)
    assert set(dataset.asked) <= {0}
    dataset.asked.clear()
    batch = found.read([7, 2])
    assert dataset.asked == [7, 2]
    assert (
        torch.equal(batch.images, X[[7, 2]]) and batch.labels is not None and batch.labels.tolist() == [1, 2]
    )


def test_a_loader_is_read_through_its_dataset() -> None:
    dataset = TensorDataset(X, Y)
    for loader in (DataLoader(dataset, batch_size=3), DataLoader(dataset, batch_size=4, shuffle=True)):
        found = load_data(loader)
        assert isinstance(found, DatasetData)
        assert torch.equal(found.read(range(10)).images, X)
    chosen = load_data(DataLoader(dataset, batch_size=2, sampler=SubsetRandomSampler([8, 1, 5])))
    assert torch.equal(chosen.read([0, 1, 2]).images, X[[8, 1, 5]])
    doubled = DataLoader(
        dataset, batch_size=4, collate_fn=lambda items: torch.stack([2 * x for x, _ in items])
    )
    found = load_data(doubled)
    assert torch.equal(found.read([3]).images, 2 * X[3:4]) and not found.labelled


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(X, Y), batch_size=4, drop_last=True),
        DataLoader(
            TensorDataset(X, Y), batch_size=4, sampler=RandomSampler(X, replacement=True, num_samples=8)
        ),
        DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [2, 3], [4, 5, 6, 7]]),
    ],
    ids=["drop_last", "with replacement", "own batches"],
)
def test_a_loader_that_says_itself_which_images_are_there_is_collected(loader: DataLoader[Any]) -> None:
    found = load_data(loader)
    assert not isinstance(found, DatasetData) and len(found) == 8


def test_an_iterable_dataset_is_collected() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from zip(X, Y, strict=True)

    for spec in (Stream(), DataLoader(Stream(), batch_size=3)):
        assert torch.equal(load_data(spec).read(range(10)).images, X)


def test_what_has_a_length_and_numbers_needs_no_class_of_torch() -> None:
    class Plain:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return np.full((1, 2, 2), index, np.float32), index

    assert load_data(Plain()).read([2, 0]).images[:, 0, 0, 0].tolist() == [2, 0]


def test_augmentation_is_the_same_every_time() -> None:
    class Noisy(Counting):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(1, 2, 2) + np.random.random() + random.random(), index

    found = load_data(Noisy())
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = (random.random(), np.random.random(), float(torch.rand(())))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    one = found.read([4, 5]).images
    assert (random.random(), np.random.random(), float(torch.rand(()))) == before
    assert torch.equal(found.read([5, 4]).images, one[[1, 0]]) and not torch.equal(one[0], one[1])


def test_pictures_of_all_sizes_are_made_to_fit() -> None:
    class Pictures(Counting):
        def __getitem__(self, index: int) -> Any:
            pixels = np.full((20 + index, 30, 3), 10 * index, np.uint8)
            picture = Image.fromarray(pixels)
            return (picture.convert("L") if index == 3 else picture), index

    step = Preprocess(resize=16, crop=16, channels=3)
    batch = load_data(Pictures(), default=step).read([1, 3, 9])
    assert batch.images.shape == (3, 3, 16, 16)
    assert torch.allclose(batch.images[:, 0, 0, 0] * 255, torch.tensor([10.0, 30.0, 90.0]))
    refused(Pictures(), "image 1 of Pictures is 21 x 30 pixels and image 0 of Pictures 20 x 30")
    refused(Pictures(), "channels", preprocess=Preprocess(resize=16, crop=16))


def test_names_of_classes_come_along() -> None:
    dataset = Counting()
    dataset.classes = ["a", "b", "c"]
    assert load_data(dataset).classes == load_data(DataLoader(dataset)).classes == ("a", "b", "c")


class Failing(Counting):
    def __getitem__(self, index: int) -> Any:
        if index == 4:
            raise KeyError("no such row")
        return super().__getitem__(index)


class Uneven(Counting):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(1, 2 + (index == 4), 2), index


class Unlabelled(Counting):
    def __getitem__(self, index: int) -> Any:
        return X[index] if index == 4 else (X[index], 1)


class Spread(Counting):
    def __getitem__(self, index: int) -> Any:
        return X[index], [1, 2]


class Empty(Counting):
    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (Failing(), "Reading image 4 of Failing failed: KeyError"),
        (Uneven(), "image 4 of Uneven is 3 x 2 pixels"),
        (Unlabelled(), "only 9 have labels"),
        (Spread(), "one whole number"),
        (Empty(), "no images"),
        (TensorDataset(X / 0, Y), "NaN or infinite"),
        (TensorDataset(X, Y / 2), "whole numbers"),
        (
            DataLoader(Counting(), collate_fn=lambda items: 1 / 0),
            "collate_fn of DataLoader failed: ZeroDivision",
        ),
        (DataLoader(Counting(), collate_fn=lambda items: X[:1]), "makes 1 images of 10"),
    ],
)
def test_bad_datasets(spec: Any, part: str) -> None:
    refused(spec, part)


def test_what_exceeds_the_memory_is_refused_while_it_is_collected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(collect, "budget", lambda: 1000)
    monkeypatch.setattr("explorer.sources.npz.budget", lambda: 1000)

    def forever() -> Iterator[torch.Tensor]:
        while True:
            yield torch.zeros(2, 1, 4, 4)

    refused(forever(), r"take 1,024 bytes, more than the 1,000 bytes that may be collected")
    assert len(load_data(forever(), limit=15)) == 15
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((2000, 1, 1), np.uint8))
    refused(str(tmp_path / "x.npz"), "take 2,000 bytes in memory")
