"""Writing files so that a reader never sees half of one, and reading the files that ship."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path

from explorer.errors import ExplorerError

_PACKAGE = Path(__file__).resolve().parents[1]


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write ``content`` to ``path`` all at once: whoever reads sees the old file or the new one.

    Text is written as UTF-8 with its line ends untouched.  If anything fails the old file stays and
    nothing is left beside it.  Raises OSError as ``open`` does.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> atomic_write(Path(folder.name, "a.txt"), "one line")
    >>> Path(folder.name, "a.txt").read_text(), len(os.listdir(folder.name))
    ('one line', 1)
    >>> folder.cleanup()
    """
    target = Path(os.path.realpath(path))  # a link stays a link to the new content
    data = content.encode() if isinstance(content, str) else content
    # In the same folder, because os.replace is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # whatever ends the writing leaves nothing behind
        temporary.unlink(missing_ok=True)
        raise


def data_folder() -> Path:
    """The folder of what ships: inside the installed package, or beside it in a clone."""
    inside = _PACKAGE / "data"
    return inside if inside.is_dir() else _PACKAGE.parent / "data"


def shipped(name: str, error: type[ExplorerError]) -> bytes:
    """The content of the shipped file ``name``, checked against the sha256 recorded for it.

    The bytes returned are the ones that were checked.  Raises ``error`` when the file or its record is
    missing, or when they disagree.
    """
    folder = data_folder()
    try:
        content = (folder / name).read_bytes()
    except OSError as problem:
        raise error(
            f"The shipped file {folder / name} cannot be read ({problem.strerror}); "
            "install the package again."
        ) from problem
    try:
        known = json.loads((folder / "sha256.json").read_text())[name]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise error(f"There is no recorded sha256 for {name} in {folder / 'sha256.json'}.") from problem
    found = hashlib.sha256(content).hexdigest()
    if found != known:
        raise error(
            f"The shipped file {folder / name} is damaged: its sha256 begins with {found[:12]} "
            f"where {str(known)[:12]} was recorded; install the package again."
        )
    return content
