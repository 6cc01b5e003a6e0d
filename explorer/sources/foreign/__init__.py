"""Parameters that other tools have chosen: ONNX models, AIMET encodings, PyTorch state_dicts.

Each reader gives everything it found and everything it left, with the reason.  Nothing in a file is executed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from explorer.errors import ParametersError, nearest
from explorer.graph import Graph
from explorer.sources.factory import describe_type
from explorer.sources.foreign.aimet import read_aimet
from explorer.sources.foreign.common import Contents
from explorer.sources.foreign.onnx_model import read_onnx
from explorer.sources.foreign.torch_state import read_memory, read_state
from explorer.study.foreign import ForeignParameters
from explorer.study.naming import place

__all__ = ["FOREIGN_SUFFIXES", "read_foreign"]

LARGEST = 1 << 30
# The readers by the end of a file's name.
FOREIGN_SUFFIXES: dict[str, Callable[[bytes, str], Contents]] = {
    ".onnx": read_onnx,
    ".encodings": read_aimet,
    ".json": read_aimet,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".safetensors"), read_state),
}


def read_foreign(
    source: str | os.PathLike[str] | Mapping[str, Any], graph: Graph, content: bytes | None = None
) -> ForeignParameters:
    """The parameters in a file, or in memory, at their places in a network.

    Args:
        source: a file; or a state_dict; or ``{layer: {"weight": p, "input": p}}``, where each p is a quantized
            torch tensor or a dictionary of ``scale, zero_point, qmin, qmax`` and perhaps ``axis``.
        graph: the network.
        content: of the file, where it has been read already; ``source`` is then its name only.

    Raises:
        ParametersError: when the file cannot be read, is damaged, too large or of another kind, or holds
            nothing that is quantized; the message begins with its name.
    """
    if isinstance(source, Mapping):
        found = read_memory(source)
        return place(graph, found.found, found.left, "memory", found.tool)
    if not isinstance(cast(object, source), str | os.PathLike):
        what = describe_type(source)
        raise ParametersError(
            f"The parameters are {what}; give a file, a state_dict or a dictionary of layers."
        )
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in FOREIGN_SUFFIXES:
        known = ", ".join(FOREIGN_SUFFIXES)
        raise ParametersError(
            f"{path.name}: parameters are read from {known}, not from {suffix or 'a file without ending'}."
            f"{nearest(suffix, FOREIGN_SUFFIXES)}"
        )
    read = FOREIGN_SUFFIXES[suffix](_content(path) if content is None else content, path.name)
    if not read.found and not read.left:
        raise ParametersError(f"{path.name}: nothing in it is quantized.")
    return place(graph, read.found, read.left, path.name, read.tool)


def _content(path: Path) -> bytes:
    path = path.expanduser()
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ParametersError(f"{path.name}: {size:,} bytes; files of up to {LARGEST:,} are read.")
        return path.read_bytes()
    except FileNotFoundError:
        names = [p.name for p in path.parent.glob("*") if p.suffix.lower() in FOREIGN_SUFFIXES]
        raise ParametersError(f"There is no file {str(path)!r}.{nearest(path.name, names)}") from None
    except OSError as error:
        raise ParametersError(f"{path.name} cannot be read: {error.strerror or error}.") from None
