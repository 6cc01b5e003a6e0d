"""Arrays in .npz files: what they claim is looked at before any memory is taken, and no code in them is run."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from explorer.errors import DataError, nearest
from explorer.sources.collect import budget, in_words
from explorer.sources.factory import describe
from explorer.sources.images import as_tensor


def read_npz(source: Path | bytes, name: str) -> tuple[Tensor, Tensor | None]:
    """The arrays ``images`` and, if it is there, ``labels``.

    Args:
        source: the file, or its content.
        name: of the file, for messages.

    Raises:
        DataError: for what is damaged, no .npz, holds Python objects, claims more than it holds, or needs more memory
            than :func:`explorer.sources.collect.budget`.
    """
    try:
        with open(source, "rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
            return _read(stream, name)
    except DataError:
        raise
    except OSError as problem:
        if problem.errno is not None:
            raise DataError(f"The file {name} cannot be read: {problem.strerror}.") from problem
        raise DataError(f"The file {name} is damaged or no .npz archive: {describe(problem)}.") from problem
    except Exception as problem:  # what a damaged file raises is anybody's guess: zip, zlib, struct, ...
        raise DataError(f"The file {name} is damaged or no .npz archive: {describe(problem)}.") from problem


def _read(stream: IO[bytes], name: str) -> tuple[Tensor, Tensor | None]:
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if "images" not in members:
            held = ", ".join(members) or "nothing"
            raise DataError(
                f"There is no array 'images' in {name}; it holds {held}.{nearest('images', members)}"
            )
        wanted = [key for key in ("images", "labels") if key in members]
        needed = sum(_claimed(archive, members[key], name) for key in wanted)
        if needed > budget():
            raise DataError(
                f"The arrays in {name} take {in_words(needed)} in memory, more than the {in_words(budget())} that "
                "may be taken (half of what is free); give a folder of images, which is read file by file."
            )
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as arrays:
        found = [as_tensor(arrays[key], name) for key in wanted]
    return found[0], found[1] if len(found) > 1 else None


def _claimed(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> int:
    """The bytes that an array takes in memory, by its header; DataError where the archive does not hold as many."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(
            f"An array in {name} holds Python objects, which are not read because that could run code; "
            "save plain arrays of numbers."
        )
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > member.file_size:
        raise DataError(
            f"The file {name} is damaged or no .npz archive: {member.filename} claims {in_words(size)} and holds "
            f"{in_words(member.file_size)}."
        )
    return size
