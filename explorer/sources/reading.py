"""Reading images of which anything may be wrong, since they may be a user's own."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.errors import DataError
from explorer.sources.images import Batch, Data


def read_images(data: Data, indices: Sequence[int]) -> Batch:
    """The images at ``indices``.

    Raises:
        DataError: whatever a user's own data raise, with the image's number.
    """
    try:
        return data.read(indices)
    except DataError:
        raise
    except Exception as error:
        for index in indices if len(indices) > 1 else ():
            read_images(data, [index])
        # Each by itself could be read, or there is one only.
        which = f"image {indices[0]}" if len(indices) == 1 else f"images {min(indices)} to {max(indices)}"
        raise DataError(f"Reading {which} of {data.name} failed: {type(error).__name__}: {error}.") from error
