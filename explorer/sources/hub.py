"""Weights in torch.hub's cache on this machine, and fetching them when the user asks for it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch

from explorer.errors import CheckpointError
from explorer.sources.checkpoint import read_checkpoint
from explorer.sources.factory import describe


def place(url: str) -> Path:
    """Where torch.hub keeps the file of ``url``, whether it is there or not."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(url).name)


def cached(url: str, what: str, download: bool) -> Path:
    """The file of ``url`` in torch.hub's cache, after a look at what it holds; ``what`` names it in messages.

    It is fetched where it is not there and ``download`` is true.  A name that ends in a part of the file's
    sha256, as torch.hub's names do, is checked against it.  Raises CheckpointError.
    """
    file = place(url)
    wanted = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if not file.is_file():
        if not download:
            raise CheckpointError(
                f"{what} are not on this machine, and nothing is downloaded unless asked for; "
                f"add --download (download=True), put {url} into {file.parent}, or give the file as checkpoint."
            )
        fetch(url, file, wanted[1] if wanted else None, what)
    if wanted:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not digest.startswith(wanted[1]):
            raise CheckpointError(
                f"The file {file} is damaged: its sha256 should begin with {wanted[1]}; fetch it again."
            )
    read_checkpoint(file)  # the library itself might run code that the file holds; this refuses such a file
    return file


def fetch(url: str, file: Path, digest: str | None, what: str) -> None:
    """Write ``url`` to ``file``, whole or not at all.  Raises CheckpointError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), digest, progress=False)
    except (OSError, URLError, RuntimeError, ValueError) as problem:
        raise CheckpointError(f"{what} could not be fetched from {url}: {describe(problem)}.") from problem
