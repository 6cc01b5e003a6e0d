"""Images from everywhere: the same pixels give the same tensors, and bad ones one sentence."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from explorer.errors import DataError
from explorer.sources import (
    ArrayData,
    Batch,
    Data,
    FolderData,
    Preprocess,
    check_shape,
    data,
    from_loader,
    load_data,
)
from explorer.sources.zoo import CLASSES


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def refused(spec: Any, part: str, **options: Any) -> str:
    """The one sentence with which ``spec`` is refused, at loading or at reading."""
    with pytest.raises(DataError, match=part) as caught:
        found = load_data(spec, **options)
        found.read(range(len(found)))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


# --- what ships


@pytest.mark.parametrize(("name", "count"), [("fashion-mnist", 10_000), ("fashion-mnist-calibration", 2_000)])
def test_the_images_that_ship(name: str, count: int) -> None:
    shipped = load_data(name)
    assert (shipped.name, len(shipped), shipped.classes, shipped.labelled) == (name, count, CLASSES, True)
    batch = shipped.read(range(count))
    assert batch.images.shape == (count, 1, 28, 28)
    assert batch.images.dtype == torch.float32
    assert batch.labels is not None
    assert batch.labels.bincount().tolist() == [count // 10] * 10
    assert abs(float(batch.images.mean())) < 0.02  # normalised with the statistics of the training set
    assert abs(float(batch.images.std()) - 1) < 0.02


def test_no_calibration_image_is_a_test_image() -> None:
    test, calibration = (load_data(name, Preprocess()) for name in data.ZOO_DATA)
    seen = {image.numpy().tobytes() for image in test.read(range(len(test))).images}
    assert not any(image.numpy().tobytes() in seen for image in calibration.read(range(2_000)).images)


# --- the same pixels by any road


@given(st.integers(1, 5), st.integers(1, 9), st.integers(4, 9), st.sampled_from((1, 3)))
@settings(max_examples=30)
def test_channels_last_and_first_are_the_same(count: int, height: int, width: int, channels: int) -> None:
    last = pixels(count, height + 3, width, channels)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    a, b = (load_data((array, None)).read(range(count)).images for array in (last, first))
    assert torch.equal(a, b)
    assert torch.equal(a, torch.from_numpy(first).float() / 255)


def test_a_folder_gives_what_an_npz_gives(tmp_path: Path) -> None:
    images = pixels(6, 30, 40, 3)
    for index, image in enumerate(images):
        save(tmp_path / "images" / "ab"[index % 2] / f"{index}.png", image)
    order = [0, 2, 4, 1, 3, 5]  # class by class
    file = npz(tmp_path / "x.npz", images=images[order], labels=np.array([0, 0, 0, 1, 1, 1]))
    for text in ("", "resize=20 crop=16", "channels=1 resize=20 crop=16 mean=0.5 std=0.2"):
        folder, array = (load_data(spec, Preprocess.parse(text)) for spec in (tmp_path / "images", file))
        one, two = folder.read(range(6)), array.read(range(6))
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
    assert (folder.name, folder.classes, folder.labelled) == ("images", ("a", "b"), True)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_reading_is_in_the_order_asked_and_always_the_same(chosen: list[int]) -> None:
    found = load_data((pixels(10, 5, 5), np.arange(10)))
    whole, some, again = found.read(range(10)), found.read(chosen), found.read(chosen)
    assert torch.equal(some.images, whole.images[chosen])
    assert torch.equal(some.images, again.images)
    assert some.labels.tolist() == chosen
    assert len(some) == len(chosen)


def test_reading_from_many_threads_is_the_same(tmp_path: Path) -> None:
    for index, image in enumerate(pixels(12, 20, 20, 3)):
        save(tmp_path / f"{index:02}.png", image)
    found = load_data(tmp_path)
    whole = found.read(range(12)).images
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda index: found.read([index % 12]).images[0], range(96)))
    assert all(torch.equal(part, whole[index % 12]) for index, part in enumerate(parts))


def test_every_road_from_memory_gives_the_same() -> None:
    x, y = torch.randn(10, 3, 4, 4), torch.arange(10)
    roads: list[Any] = [
        (x, y),
        (x.numpy(), y.numpy()),
        (x, y.tolist()),
        (x.double().numpy(), y.numpy().astype(np.uint8)),
        DataLoader(TensorDataset(x, y), batch_size=4),
        TensorDataset(x, y),
        [(x[:3], y[:3]), (x[3:], y[3:])],
        iter([[x[:3], y[:3]], [x[3:], y[3:]]]),
        ArrayData("a", x, y),
    ]
    for road in roads:
        batch = load_data(road).read(range(10))
        assert torch.equal(batch.images, x), road
        assert torch.equal(batch.labels, y), road
        assert batch.labels.dtype == torch.int64
    for road in (x, x.numpy(), [x[:3], x[3:]], (x, None), DataLoader(x, batch_size=4)):
        found = load_data(road)
        assert torch.equal(found.read(range(10)).images, x)
        assert not found.labelled
        assert found.read([0]).labels is None


def test_inputs_that_are_no_images_are_taken_as_they_are() -> None:
    tokens = torch.arange(12).reshape(3, 4)
    assert torch.equal(load_data(tokens).read([2, 0]).images, tokens[[2, 0]])
    signals = torch.randn(3, 7)
    assert torch.equal(load_data((signals, None)).read([1]).images, signals[1:2])
    refused(tokens, "tokens", preprocess=Preprocess(resize=4))


# --- preprocessing


def test_whose_preprocessing_applies() -> None:
    wish, own = Preprocess((0.5,), (0.5,)), Preprocess((0.25,), (0.25,))
    whole, ready = pixels(2, 4, 4), np.random.default_rng(0).random((2, 1, 4, 4), np.float32)
    unit = torch.from_numpy(whole)[:, None].float() / 255

    def read(spec: Any, **options: Any) -> torch.Tensor:
        return load_data(spec, **options).read([0, 1]).images

    for spec in (whole, [whole]):
        assert torch.equal(read(spec), unit)
        assert torch.equal(read(spec, default=own), own.apply(unit))
        assert torch.equal(read(spec, preprocess=wish, default=own), wish.apply(unit))
    floats = torch.from_numpy(ready)
    for spec in (ready, [ready]):
        assert torch.equal(read(spec, default=own), floats)
        assert torch.equal(read(spec, preprocess=wish, default=own), wish.apply(floats))
    assert torch.equal(read(ArrayData("a", floats), preprocess=wish), wish.apply(floats))


def test_a_narrow_image_keeps_its_channels_when_the_preprocessing_changes() -> None:
    narrow = ArrayData("narrow", torch.from_numpy(pixels(2, 9, 5, 3)))
    changed = load_data(narrow, Preprocess((0.5,)))
    assert changed.read([0]).images.shape == (1, 3, 9, 5)


def test_grey_pictures_run_on_a_colour_network_and_the_reverse(tmp_path: Path) -> None:
    save(tmp_path / "grey.png", pixels(30, 34))
    save(tmp_path / "rgb.png", pixels(34, 30, 3))
    assert load_data(tmp_path, Preprocess(resize=28, crop=28)).read([0, 1]).images.shape == (2, 3, 28, 28)
    assert load_data(tmp_path, default=data.FASHION).read([0, 1]).images.shape == (2, 1, 28, 28)


def test_pictures_of_every_kind_are_eight_bits_a_channel(tmp_path: Path) -> None:
    level = np.full((4, 4), 0x8042, np.uint16)
    Image.fromarray(level).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 4), 0x80, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 4, 4), 0x80, np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(np.full((4, 4), 0x80, np.uint8)).convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(np.full((4, 4), 0x80, np.uint8)).convert("LA").save(tmp_path / "both.png")
    images = load_data(tmp_path).read(range(5)).images
    assert torch.equal(images, torch.full((5, 3, 4, 4), 0x80 / 255))


# --- limits


@given(st.integers(1, 30), st.integers(1, 40))
def test_a_limit_spreads_evenly(count: int, limit: int) -> None:
    found = load_data((np.zeros((count, 1, 2, 2), np.float32), np.arange(count)), limit=limit)
    labels = found.read(range(len(found))).labels
    assert len(labels) == min(count, limit)
    assert labels[0] == 0
    steps = labels.diff()
    if len(steps):
        assert steps.min() >= 1
        assert steps.max() - steps.min() <= 1


def test_a_limit_ends_what_has_no_end() -> None:
    def forever() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in itertools.count():
            yield torch.full((3, 1, 2, 2), float(index)), torch.full((3,), index)

    found = load_data(forever(), limit=7)
    assert found.read(range(7)).labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert len(from_loader(forever(), 2)) == 2


def test_a_limit_on_a_sorted_dataset_keeps_its_classes() -> None:
    dataset = TensorDataset(torch.zeros(90, 1, 2, 2), torch.arange(3).repeat_interleave(30))
    dataset.classes = ["a", "b", "c"]
    found = load_data(dataset, limit=9)
    assert found.read(range(9)).labels.bincount().tolist() == [3, 3, 3]
    assert found.classes == ("a", "b", "c")


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
def test_a_limit_that_makes_no_sense(limit: Any) -> None:
    refused(torch.zeros(4, 1, 2, 2), "limit", limit=limit)


def test_images_are_numbered_from_zero() -> None:
    for found in (load_data(torch.zeros(4, 1, 2, 2)), load_data(torch.zeros(8, 1, 2, 2), limit=4)):
        for bad in ([4], [-1], []):
            with pytest.raises(DataError, match=r"numbered 0 to 3|at least one"):
                found.read(bad)


# --- factories


FACTORY = """
import torch
from helper import SIZE

def good(): return torch.zeros(3, 1, SIZE, SIZE), torch.arange(3)
def pictures(): return {folder!r}
def nothing(): return None
def bad(): raise KeyError("no such split")
def again(): return "other.py:good"
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*good()))
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    save(tmp_path / "pictures" / "a.png", pixels(4, 4, 3))
    (tmp_path / "helper.py").write_text("SIZE = 5")
    (tmp_path / "own.py").write_text(FACTORY.format(folder=str(tmp_path / "pictures")))
    (tmp_path / "broken.py").write_text("def good(:\n")
    return str(tmp_path / "own.py")


def test_a_factory_gives_anything_that_can_be_loaded(factory: str) -> None:
    for name in ("good", "loader"):
        found = load_data(f"{factory}:{name}")
        assert (len(found), found.labelled, found.name) == (3, True, f"{factory}:{name}")
    assert isinstance(load_data(f"{factory}:pictures"), FolderData)


def test_what_goes_wrong_in_a_factory_is_one_sentence(factory: str) -> None:
    refused(f"{factory}:nothing", "returned None")
    refused(f"{factory}:goood", "Did you mean 'good'")
    refused(f"{factory}:again", "There is no")
    refused(factory.replace("own.py", "owm.py:good"), "Did you mean 'own.py'")
    refused(factory.replace("own.py", "broken.py:good"), "SyntaxError")
    refused("no_such_module_here:good", "No module named")
    refused(f"{factory}:bad", "no such split")
    with pytest.raises(DataError) as caught:
        load_data(f"{factory}:bad")
    assert isinstance(caught.value.__cause__, KeyError)


def test_data_of_the_users_own() -> None:
    class Ramp(Data):
        name, classes, labelled = "ramp", None, False

        def __len__(self) -> int:
            return 5

        def read(self, indices: Sequence[int]) -> Batch:
            return Batch(torch.tensor(indices).float()[:, None], None)

    ramp = Ramp()
    assert load_data(ramp) is ramp
    assert load_data(ramp, limit=2).read([0, 1]).images.flatten().tolist() == [0, 2]
    refused(ramp, "prepares its own", preprocess=Preprocess())


# --- bad input


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    refused("fashion-mnits", "Did you mean 'fashion-mnist'")
    npz(tmp_path / "images.npz", images=pixels(1, 2, 2))
    refused(str(tmp_path / "image.npz"), "Did you mean 'images.npz'")
    save(tmp_path / "one.png", pixels(2, 2))
    refused(str(tmp_path / "one.png"), "neither a folder")
    refused(3, "an int")
    refused(None, "None")


def test_bad_folders(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    refused(root, "holds no images")
    (root / "notes.txt").write_text("x")
    refused(root, r"notes\.txt is not one")
    save(root / "cat" / "1.png", pixels(4, 4, 3))
    save(root / "cat" / ".hidden" / "2.png", pixels(4, 4, 3))
    assert len(load_data(root)) == 1
    (root / "dog").mkdir()
    assert "dog" in refused(root, "class folder .* holds no images")
    save(root / "dog" / "1.png", pixels(5, 4, 3))
    assert "dog" in refused(root, "5 x 4 pixels and 1.png 4 x 4")
    save(root / "loose.png", pixels(4, 4))
    refused(root, "side by side")


def test_a_file_that_goes_after_it_was_found_is_named(tmp_path: Path) -> None:
    good = save(tmp_path / "a.png", pixels(40, 40, 3))
    found = load_data(tmp_path)
    found.read([0])
    good.unlink()
    with pytest.raises(DataError, match=r"a\.png: the file is gone"):
        found.read([0])


X = pixels(4, 6, 6)
Y = np.arange(4)


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"images": pixels(4, 36)}, r"\(N, H, W\)"),
        ({"images": pixels(4)}, "first axis"),
        ({"images": pixels(4, 6, 6, 2)}, "1 or 3 channels"),
        ({"images": pixels(2, 2, 3, 6, 6)}, "1 or 3 channels"),
        ({"images": np.zeros((0, 6, 6), np.uint8)}, "no images"),
        ({"images": np.float32(3)}, "first axis"),
        ({"images": X.astype(np.int64)}, "int64"),
        ({"images": X > 3}, "bool"),
        ({"images": X.astype(str)}, "no array of numbers"),
        ({"images": X.astype(object)}, "Python objects"),
        ({"images": X, "labels": np.array([{}] * 4)}, "Python objects"),
        ({"image": X}, "Did you mean 'image'"),
        ({}, "it holds nothing"),
        ({"images": X, "labels": Y[:3]}, "give one for each"),
        ({"images": X, "labels": Y[:, None]}, "give one for each"),
        ({"images": X, "labels": Y / 2}, "whole numbers"),
        ({"images": X, "labels": Y > 1}, "whole numbers"),
        ({"images": X, "labels": Y - 1}, "from -1 to 2"),
        ({"images": X, "labels": np.array(list("abcd"))}, "no array of numbers"),
        ({"images": np.array([[[[0, np.nan, np.inf]]]])}, r"2 NaN or infinite values \(of 3\)"),
        ({"images": np.full((1, 1, 1, 1), 1e300)}, "1 NaN or infinite"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], part: str) -> None:
    refused(npz(tmp_path / "bad.npz", **arrays), part)


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=pixels(40, 28, 28))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for bad in (b"", b"PK\x03\x04", content[: len(content) // 2], bytes(flipped), b"\x80\x04N.", b"hello"):
        path.write_bytes(bad)
        refused(str(path), "damaged or no .npz")
    np.save(tmp_path / "single.npy", X)
    path.write_bytes((tmp_path / "single.npy").read_bytes())
    refused(str(path), "damaged or no .npz")


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 21, 1 << 21), (-1, 28, 28), (1 << 62, 1 << 62)])
def test_an_array_that_claims_more_than_it_holds(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """What the header says is looked at before memory is taken for it."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", head.getvalue() + b"\0" * 100)
    refused(str(tmp_path / "x.npz"), "images.npy claims|damaged or no .npz")


class Explosive:
    """Leaves a file where it was unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_no_code_in_an_archive_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    refused(npz(tmp_path / "x.npz", images=np.array([Explosive(mark)], dtype=object)), "Python objects")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("batches", "part"),
    [
        ([], "no images"),
        (
            [
                (torch.zeros(2, 1, 3, 3), torch.zeros(2).long()),
                (torch.zeros(2, 1, 4, 4), torch.zeros(2).long()),
            ],
            "Batch 1",
        ),
        ([(torch.zeros(2, 1, 3, 3), torch.zeros(2).long()), torch.zeros(2, 1, 3, 3)], "only 1 have labels"),
        ([(torch.zeros(2, 1, 3, 3), torch.zeros(3).long())], "give one for each"),
        ([(torch.zeros(1, 3, 3), 4)], "one axis"),
        ([{"image": 3}], "no array of numbers"),
        ([torch.tensor(3.0)], "Batch 0"),
        ((1 / zero for zero in [0]), "ZeroDivisionError"),
    ],
)
def test_bad_batches(batches: Any, part: str) -> None:
    refused(batches, part)


def test_images_of_another_shape_than_the_network_takes() -> None:
    found = load_data(torch.zeros(2, 3, 8, 8))
    check_shape(found, torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match=r"\(3, 8, 8\) and the network takes \(1, 28, 28\)"):
        check_shape(found, torch.zeros(1, 1, 28, 28))
