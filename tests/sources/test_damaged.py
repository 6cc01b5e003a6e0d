"""Damaged images are left out and counted; what is left is read the same every time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from explorer.errors import DataError
from explorer.sources import FolderData, Preprocess, load_data
from explorer.sources import folder as folders
from explorer.sources.folder import damage, decoded
from explorer.subject import Stream

KINDS = ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm")


def content(kind: str, seed: int = 0, size: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda whole: b"", "empty"),
    "cut in half": (lambda whole: whole[: len(whole) // 2], ""),
    "without its last quarter": (lambda whole: whole[: 3 * len(whole) // 4], "damaged"),
    "only a header": (lambda whole: whole[:20], ""),
    "a page of text": (lambda whole: b"<html>not found</html>", "no image"),
    "a PostScript program": (
        lambda whole: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
        "no image",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_image_is_left_out_and_named(tmp_path: Path, kind: str, how: str) -> None:
    change, reason = DAMAGE[how]
    for name in ("a", "c"):
        (tmp_path / f"{name}.{kind}").write_bytes(content(kind))
    (tmp_path / f"b.{kind}").write_bytes(change(content(kind)))
    found = load_data(tmp_path)
    assert len(found) == 2
    assert found.read([0, 1]).images.shape == (2, 3, 24, 24)
    [left] = found.skipped
    assert (left.name, left.replaced) == (f"b.{kind}", False)
    assert reason in left.reason and "\n" not in left.reason


@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_are_kept(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(content(kind))
    (tmp_path / f"b.{kind}").write_bytes(content(kind, seed=1) + b"\0" * 9000)  # camera makers append things
    found = load_data(tmp_path)
    assert (len(found), found.skipped) == (2, ())


@given(st.sampled_from(KINDS), st.data())
@settings(max_examples=150)
def test_what_is_not_found_damaged_can_be_decoded(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Whatever is cut off or changed: either a reason in one line, or pixels, or the decoder's own reason."""
    whole = bytearray(content(kind, size=8))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("one") / f"x.{kind}"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    reason = damage(file)
    if reason:
        assert reason.endswith(".") and "\n" not in reason
        with pytest.raises(DataError):
            decoded(file)
    else:
        try:
            assert decoded(file).dtype == torch.uint8
        except folders.DamagedImage as problem:
            assert kind in ("jpeg", "png"), problem  # the others were decoded already


def test_a_bomb_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for size in (40, 33, 30, 60):
        (tmp_path / f"{size}.png").write_bytes(content("png", size=size))
    found = load_data(tmp_path)
    assert len(found) == 1
    assert [left.name for left in found.skipped] == ["33.png", "40.png", "60.png"]
    assert all("more than the 1,000 pixels" in left.reason for left in found.skipped)


def test_a_link_that_leads_nowhere_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").write_bytes(content("png"))
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "gone.png")
    found = load_data(tmp_path / "in")
    assert len(found) == 1
    assert [(left.name, left.reason) for left in found.skipped] == [("b.png", "the file is gone.")]


def test_links_are_followed_at_the_top_only(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "a.png").write_bytes(content("png"))
    (tmp_path / "far" / "deep" / "b.png").write_bytes(content("png", 1))
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat").symlink_to(tmp_path / "far", target_is_directory=True)
    assert sorted(file.name for file in FolderData.open(tmp_path / "in").files) == ["a.png", "b.png"]


def test_nothing_but_damage_is_one_sentence(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"None of the 2 images .* can be read; a\.png: it is empty\."):
        load_data(tmp_path)


def test_a_subset_looks_at_the_images_it_takes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(folders, "damage", lambda file: looked.append(file) or "")
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(20):
            (tmp_path / label / f"{number}.png").write_bytes(b"")
    assert len(load_data(tmp_path, subset=6)) == len(looked) == 6


def test_a_subset_takes_another_image_for_a_damaged_one(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(8):
            bad = label == "a" and number % 2
            (tmp_path / label / f"{number}.png").write_bytes(b"" if bad else content("png"))
    found = load_data(tmp_path, subset=8, seed=1)
    labels = found.read(range(8)).labels
    assert labels is not None and labels.bincount().tolist() == [4, 4]
    assert all(left.name.startswith("a/") for left in found.skipped)


def late(file: Path) -> None:
    """A picture whose parts are all there with right checksums, and whose pixels end half way."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 24, 24, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def folder_with_a_late_one(folder: Path) -> FolderData:
    """Of eight images in two classes the second passes for an image and cannot be decoded."""
    for label in "ab":
        (folder / label).mkdir()
        for number in range(4):
            (folder / label / f"{number}.png").write_bytes(content("png", 10 * number + ord(label)))
    late(folder / "a" / "1.png")
    return FolderData.open(folder)


def test_what_is_damaged_when_decoded_is_replaced_by_one_of_its_class(tmp_path: Path) -> None:
    data = load_data(folder_with_a_late_one(tmp_path))
    assert (len(data), data.skipped) == (8, ())
    batch = data.read(range(8))
    assert torch.equal(batch.images[1], batch.images[2]) and batch.labels is not None
    assert batch.labels.tolist() == [0] * 4 + [1] * 4
    [replaced] = data.skipped
    assert (replaced.name, replaced.replaced) == ("a/1.png", True) and "damaged" in replaced.reason
    stream = Stream(load_data(FolderData.open(tmp_path)), 3, 0)
    seen = list(stream.batches())
    assert sum(len(examples.indices) for examples in seen) == 8
    for examples in seen:
        assert torch.equal(examples.batch.images, batch.images[list(examples.indices)])


def test_too_much_that_is_damaged_when_decoded_is_an_error(tmp_path: Path) -> None:
    found = folder_with_a_late_one(tmp_path)
    late(tmp_path / "b" / "2.png")
    with pytest.raises(DataError, match=r"2 of the 8 images .* cannot be decoded"):
        found.read(range(8))


def test_preprocessing_that_does_not_fit_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content("png"))
    found = load_data(tmp_path, Preprocess(crop=100))
    with pytest.raises(DataError, match=r"a\.png: .* smaller than crop=100"):
        found.read([0])
