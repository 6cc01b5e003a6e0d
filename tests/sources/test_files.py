"""Files are written whole or not at all, and what ships is checked before it is used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from explorer.errors import DataError
from explorer.sources import ZOO, ZOO_DATA, atomic_write, files


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    atomic_write(path, "é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_every_shipped_file_is_the_recorded_one() -> None:
    folder = files.data_folder()
    known = json.loads((folder / "sha256.json").read_text())
    assert set(known) <= {f"{name}.safetensors" for name in ZOO} | set(ZOO_DATA.values()) | {
        "imagenet-wnids.txt"
    }
    kinds = (".npz", ".safetensors", ".txt")
    assert set(known) == {path.name for path in folder.iterdir() if path.suffix in kinds}
    for name in known:
        assert files.shipped(name, DataError)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "data_folder", lambda: tmp_path)
    (tmp_path / "a.npz").write_bytes(b"content")
    return tmp_path


def test_a_shipped_file_that_was_changed_is_refused(folder: Path) -> None:
    (folder / "sha256.json").write_text(json.dumps({"a.npz": "0" * 64, "gone.npz": "0" * 64}))
    with pytest.raises(DataError, match=r"a\.npz is damaged"):
        files.shipped("a.npz", DataError)
    with pytest.raises(DataError, match=r"gone\.npz cannot be read"):
        files.shipped("gone.npz", DataError)


@pytest.mark.parametrize("record", [None, "not json", "{}", "[]"])
def test_a_shipped_file_without_a_record_is_refused(folder: Path, record: str | None) -> None:
    if record is not None:
        (folder / "sha256.json").write_text(record)
    with pytest.raises(DataError, match="no recorded sha256"):
        files.shipped("a.npz", DataError)
