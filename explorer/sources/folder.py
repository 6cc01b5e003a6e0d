"""Folders of image files, opened when they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from explorer.errors import DataError
from explorer.sources.factory import describe
from explorer.sources.images import Batch, Data, Skipped, checked_indices, stacked
from explorer.sources.preprocess import Preprocess

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
# What Pillow may take a file for, whatever its suffix says: others of its readers start programs (Ghostscript).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_END_OF_JPEG = b"\xff\xd9"
# Of so many images one may be found damaged only when it is decoded, and be replaced by another of its class.
_REPLACED = 100


FOLDERS = "class folders"
"""What the classes of a folder are, unless somebody else has listed the files."""


class DamagedImage(DataError):
    """A file that is no image, or not a whole one."""


@dataclass(frozen=True, eq=False)
class FolderData(Data):
    """Image files, opened when they are read: colour, unless ``preprocess`` asks for one channel.

    Made by ``FolderData.open``. ``labels`` is one number for each file, or None; ``kind`` says what the classes
    are. An image that passes :meth:`damage` and turns out to be damaged when it is decoded is replaced by the
    next of its class, so that batches stay as they are; ``skipped`` says so, and DataError is raised when
    there are more such than one of a hundred.
    """

    name: str
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    kind: str = FOLDERS
    pixels: bool = field(init=False, default=True)
    labelled: bool = field(init=False)
    _replaced: dict[int, str] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labelled", self.labels is not None)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], preprocess: Preprocess | None = None) -> FolderData:
        """A folder of class folders (labels 0, 1, ... in the order of their names), or of images only.

        Names that begin with a dot are passed over, and so are files that are not images by their suffix,
        unless there is nothing else.  Links are followed: to files anywhere, to folders at the top.  Raises DataError
        when there is no image, or none in one class.
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

    def targets(self) -> Sequence[int] | None:
        return self.labels

    def name_of(self, index: int) -> str:
        file = self.files[index]
        return file.name if self.classes is None else f"{file.parent.name}/{file.name}"

    def damage(self, index: int) -> str:
        return damage(self.files[index])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        found = sorted(self._replaced.items())
        return tuple(Skipped(self.name_of(index), reason, True) for index, reason in found)

    @property
    def _step(self) -> Preprocess:
        step = self.preprocess or Preprocess()
        return replace(step, channels=step.channels or 3)

    def steps(self) -> tuple[str, ...]:
        return self._step.steps(pixels=True)

    def read(self, indices: Sequence[int]) -> Batch:
        chosen = checked_indices(indices, len(self), self.name)
        step = self._step
        images = [self._image(index, step) for index in chosen]
        labels = None if self.labels is None else torch.tensor([self.labels[index] for index in chosen])
        return Batch(stacked(images, [str(self.files[index]) for index in chosen]), labels)

    def _image(self, index: int, step: Preprocess) -> Tensor:
        for place in self._from(index):
            if place in self._replaced:
                continue
            file = self.files[place]
            try:
                pixels = decoded(file)
            except DamagedImage as problem:
                self._replace(place, problem)
                continue
            except DataError as problem:
                raise DataError(f"{file}: {problem}") from problem
            try:
                return step.apply(pixels[None])[0]
            except DataError as problem:
                raise DataError(f"{file}: {problem}") from problem
        raise DataError(f"{self.files[index]}: {self._replaced[index]}")

    def _from(self, index: int) -> Iterator[int]:
        """The image itself, then those that may stand in its place: the next ones, in a circle, of its class."""
        for place in (*range(index, len(self)), *range(index)):
            if self.labels is None or self.labels[place] == self.labels[index]:
                yield place

    def _replace(self, index: int, problem: DamagedImage) -> None:
        self._replaced[index] = str(problem)
        if len(self._replaced) > max(1, len(self) // _REPLACED):
            raise DataError(
                f"{len(self._replaced)} of the {len(self)} images of {self.name} begin like images and cannot be "
                f"decoded, the last being {self.files[index]}: {problem} Remove them from the folder."
            ) from problem


def damage(file: Path) -> str:
    """Why an image file cannot be read, or nothing.

    A JPEG is whole when it has a header and an end, a PNG when its checksums are right; what looks wrong, and other
    formats, are decoded.
    """
    try:
        with file.open("rb") as stream, _opened(stream) as image:
            if _is_whole(image, stream):
                return ""
    except Exception:  # whatever it is, decoding says below what is wrong, if anything is
        pass
    try:
        decoded(file)
    except DataError as problem:
        return str(problem)
    return ""


def _is_whole(image: Image.Image, stream: IO[bytes]) -> bool:
    if image.mode in ("I", "F"):
        return False
    if image.format == "PNG":
        image.verify()
        return True
    if image.format in ("JPEG", "MPO"):
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 4096))
        return _END_OF_JPEG in stream.read()
    return False


# A larger image of one colour has a few thousand pixels in a byte, a picture a hundred at most.
_SMALL, _DENSEST = 1 << 22, 4096


def _opened(stream: IO[bytes]) -> Image.Image:
    image = Image.open(stream, formats=_FORMATS)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise DamagedImage(_too_large())
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if image.width * image.height > max(_SMALL, _DENSEST * size):
        raise DamagedImage(f"it claims {image.width:,} x {image.height:,} pixels in {size:,} bytes.")
    return image


def _too_large() -> str:
    return f"it has more than the {Image.MAX_IMAGE_PIXELS or 0:,} pixels up to which images are read."


def decoded(file: Path) -> Tensor:
    """An image file as uint8 (C, H, W): one channel where it is grey, three otherwise.

    Raises:
        DamagedImage: for what is no whole image.
        DataError: for a file that is gone or may not be read.
    """
    try:
        with file.open("rb") as stream, _opened(stream) as image:
            mode = image.mode
            if mode.startswith("I;16"):
                pixels = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            elif mode in ("I", "F"):
                raise DamagedImage(f"its pixels have 32 bits (mode {mode}); save it with 8 or 16 bits.")
            else:
                pixels = np.array(image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB"))
    except DataError:
        raise
    except FileNotFoundError as problem:
        raise DataError("the file is gone.") from problem
    except UnidentifiedImageError as problem:
        empty = file.stat().st_size == 0
        raise DamagedImage("it is empty." if empty else "it is no image that can be read.") from problem
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        raise DamagedImage(_too_large()) from problem
    except Exception as problem:  # what a damaged file raises is anybody's guess
        if isinstance(problem, OSError) and problem.errno is not None:
            raise DataError(f"it cannot be read: {problem.strerror}.") from problem
        kind, _, words = describe(problem).partition(": ")
        raise DamagedImage(f"it is damaged ({words or kind}).") from problem
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def _is_image(path: Path) -> bool:
    # A link that leads nowhere counts as well: as an image that cannot be read.
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or not path.exists())


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
