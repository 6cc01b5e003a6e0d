"""Tables for other programs: CSV always, Parquet where a library for it is installed."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pandas as pd

from explorer.errors import ExplorerError

PARQUET = (
    "Parquet needs pyarrow or fastparquet: pip install 'quantization-explorer[parquet]'; CSV needs nothing."
)


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A table as CSV (RFC 4180, UTF-8, ends of lines as ``\\n``); a missing number is an empty field.

    Numbers have as many digits as it takes to read the same number again.

    >>> csv_bytes(pd.DataFrame({"name": ["a", "b,c"], "sqnr": [1 / 3, None]})).decode().splitlines()
    ['name,sqnr', 'a,0.3333333333333333', '"b,c",']
    """
    return table.to_csv(index=False, lineterminator="\n").encode()


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """A table as Parquet, with the types of its columns.

    Raises:
        ExplorerError: when neither pyarrow nor fastparquet is installed.
    """
    out = BytesIO()
    try:
        table.to_parquet(out, index=False)
    except ImportError:
        raise ExplorerError(PARQUET) from None
    return out.getvalue()


# How a table is written, by the end of the file's name.
TABLE_FORMATS: dict[str, Callable[[pd.DataFrame], bytes]] = {"csv": csv_bytes, "parquet": parquet_bytes}
