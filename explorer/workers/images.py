"""Images that a worker opens by itself, so that only their numbers go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from explorer.errors import DataError
from explorer.graph.ir import digest, tensor_digest
from explorer.sources import ZOO_DATA, ArrayData, Data, FolderData, Preprocess, Subset, load_data
from explorer.sources.images import Batch
from explorer.sources.labels import Renumbered
from explorer.sources.reading import read_images


@dataclass(frozen=True)
class Place:
    """Where arrays of images come from.

    Args:
        spec: an ``.npz`` or the name of images that ship.
        wish: the user's preprocessing.
        usual: the network's own.
    """

    spec: str
    wish: Preprocess | None
    usual: Preprocess | None


@dataclass(frozen=True, eq=False)
class Placed(Data):
    """Arrays of images that are opened when the first is read."""

    place: Place
    count: int
    name: str
    classes: tuple[str, ...] | None
    labelled: bool

    @cached_property
    def _opened(self) -> Data:
        return load_data(self.place.spec, self.place.wish, default=self.place.usual)

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> Batch:
        return self._opened.read(indices)


def portable(data: Data, place: Place) -> Data | None:
    """Data that mean the same in another process that sees the same files; None where there is no such thing.

    Folders have been listed and looked through already; what goes out is the list.

    Args:
        data: as they were loaded.
        place: where they were loaded from.
    """
    if isinstance(data, FolderData):
        return replace(data, files=tuple(file.absolute() for file in data.files))
    if isinstance(data, Subset | Renumbered):
        inner = portable(data.data, place)
        return None if inner is None else replace(data, data=inner)
    if not isinstance(data, ArrayData):
        return None
    if place.spec not in ZOO_DATA:
        path = Path(place.spec).expanduser()
        if path.suffix != ".npz" or not path.is_file():
            return None
        place = replace(place, spec=str(path.absolute()))
    return Placed(place, len(data), data.name, data.classes, data.labelled)


@dataclass(frozen=True, eq=False)
class Opening:
    """Images that a worker can open by itself.

    Args:
        data: the images.
        looked_at: some of them by number,
        fingerprint: and the digest of these with their labels.
    """

    data: Data
    looked_at: tuple[int, ...]
    fingerprint: str

    @staticmethod
    def of(data: Data, place: Place, looked_at: Sequence[int]) -> Opening | None:
        """How a worker gets at images that have been loaded here; None where it cannot.

        Args:
            data: the images.
            place: where they were loaded from.
            looked_at: which of them tell them apart from others.
        """
        found = portable(data, place)
        return None if found is None else Opening(found, tuple(looked_at), fingerprint(data, looked_at))

    def check(self) -> None:
        """Open the images.

        Raises:
            DataError: when they are not there, or are others.
        """
        if fingerprint(self.data, self.looked_at) != self.fingerprint:
            raise DataError(f"The images of {self.data.name} are others there.")


def fingerprint(data: Data, indices: Sequence[int]) -> str:
    """A digest of how many images there are, and of some of them with their labels."""
    read = read_images(data, indices)
    labels = "" if read.labels is None else tensor_digest(read.labels)
    return digest(str(len(data)), tensor_digest(read.images), labels)
