"""AIMET encodings: JSON files of the versions 0.x (dictionaries), 1.x (lists) and 2.x (as QuantizeLinear has them).

Up to version 1 a real number is ``scale * (code + offset)`` with codes from 0, so that the offset is the lowest
real value in steps, and zero or negative; from version 2 on there is a zero point as in ONNX.  Source: AIMET,
"Encoding Format Specification".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from explorer.errors import ParametersError
from explorer.sources.foreign.common import BIAS, RANGES, Contents, numbers
from explorer.study.naming import module_path

LARGEST = 1 << 26
FLOAT = "kept as floating-point numbers"


def read_aimet(content: bytes, name: str) -> Contents:
    """The encodings in a file.

    Raises:
        ParametersError: when it is no file of encodings, or of a version that is not known.
    """
    if len(content) > LARGEST:
        raise ParametersError(f"{name}: {len(content):,} bytes; encodings of up to {LARGEST:,} are read.")
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ParametersError(f"{name} is no JSON: {error}.") from None
    if not isinstance(data, dict) or not {"encodings", "param_encodings", "activation_encodings"} & set(data):
        raise ParametersError(
            f"{name} holds no encodings: AIMET writes 'param_encodings' and 'activation_encodings', or 'encodings'."
        )
    major = str(data.get("version", "0")).partition(".")[0]
    if major not in ("0", "1", "2"):
        raise ParametersError(
            f"{name}: encodings of version {data['version']!r} are not known; 0.6.1, 1.0.0 and 2.0.0 are."
        )
    contents = Contents("aimet")
    for role, tensor, hints, encoding in _entries(data):
        try:
            read = _second(tensor, encoding) if major == "2" else _first(tensor, encoding, role)
        except ParametersError as error:
            contents.left.append((tensor, str(error)))
            continue
        except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
            contents.left.append((tensor, f"its encoding cannot be read: {type(error).__name__}: {error}"))
            continue
        if isinstance(read, str):
            contents.left.append((tensor, read))
        elif role == "weight" and tensor.endswith("bias"):
            contents.left.append((tensor, BIAS))
        else:
            index = int(encoding["index"]) if isinstance(encoding, dict) and "index" in encoding else 0
            contents.add(role, hints, tensor, index=index, outward=major != "2", **read)
    return contents


def _entries(data: dict[str, Any]) -> Iterator[tuple[str, str, tuple[str, ...], Any]]:
    """Role, name, hints and encoding of everything in a file."""
    for key, role in (("param_encodings", "weight"), ("activation_encodings", "output"), ("encodings", "")):
        group = data.get(key) or {}
        if isinstance(group, list):
            pairs = [(str(e.get("name", "")) if isinstance(e, dict) else "", e) for e in group]
        else:
            pairs = list(group.items()) if isinstance(group, dict) else [(key, group)]
        for name, encoding in pairs:
            part = role or ("weight" if name.endswith((".weight", ".bias", "_weight")) else "output")
            if isinstance(encoding, dict) and {"input", "output"} & set(encoding):
                yield from _of_module(name, encoding)
            else:
                yield part, name, (module_path(name),), encoding


def _of_module(name: str, sides: dict[str, Any]) -> Iterator[tuple[str, str, tuple[str, ...], Any]]:
    """Activations by module: ``{"input": {"0": ...}, "output": {"0": ...}}``."""
    for side in ("input", "output"):
        entries = sides.get(side) or {}
        for number, encoding in entries.items() if isinstance(entries, dict) else ():
            if isinstance(encoding, dict) and number.isdigit():
                encoding = {**encoding, "index": int(number)}
            yield side, f"{name}.{side}.{number}", (name,), encoding


def _first(name: str, encoding: Any, role: str) -> dict[str, Any] | str:
    """Parameters up to version 1; a reason where there are none."""
    parts = encoding if isinstance(encoding, list) else [encoding]
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise ParametersError(f"{name!r} has no encoding.")
    head = parts[0]
    if str(head.get("dtype", "int")).lower() != "int":
        return FLOAT
    kind = str(head.get("enc_type", ""))
    if kind in ("LPBQ", "VECTOR") or head.get("zero_point_shift"):
        return f"an encoding of the kind {kind or 'with a shifted zero point'}, which is not compared"
    bits = int(head["bw"] if "bw" in head else head["bitwidth"])
    symmetric = str(head.get("is_sym", head.get("is_symmetric", False))).lower() == "true"
    if len(parts) > 1 or not isinstance(head["scale"], list):
        scale = numbers([part["scale"] for part in parts], name)
        offset = numbers([part["offset"] for part in parts], name, whole=True)
    else:
        scale, offset = numbers(head["scale"], name), numbers(head["offset"], name, whole=True)
    scale, offset = scale.reshape(-1), offset.reshape(-1)
    if not 2 <= bits <= 32:
        raise ParametersError(f"{name!r} has codes of {bits} bits.")
    if not scale.numel() or offset.numel() != scale.numel():
        raise ParametersError(f"{name!r} has {scale.numel()} scales and {offset.numel()} offsets.")
    steps = _steps(head, bits)
    if role == "weight" and name.endswith("bias"):
        return BIAS
    if symmetric and scale.numel() and bool((offset == offset[0]).all()) and int(offset[0]) < 0:
        # Counted from zero: the offset is then the lowest code.
        lowest = int(offset[0])
        found = {"zero_point": torch.zeros_like(offset), "qmin": lowest, "qmax": lowest + steps}
    else:
        found = {"zero_point": -offset, "qmin": 0, "qmax": steps}
    return {"scale": scale, **found, **_grid(head, kind, scale)}


def _steps(head: dict[str, Any], bits: int) -> int:
    """How many steps there are: strictly symmetric codes are one fewer, which shows in the range."""
    full = (1 << bits) - 1
    if "min" in head and "max" in head and not isinstance(head["scale"], list) and float(head["scale"]) > 0:
        steps = round((float(head["max"]) - float(head["min"])) / float(head["scale"]))
        return steps if steps in (full, full - 1) else full
    return full


def _grid(head: dict[str, Any], kind: str, scale: Any) -> dict[str, Any]:
    if kind == "PER_BLOCK":
        # Which is the output channel's axis is for whoever knows the tensor: see `Found.turned`.
        raise ParametersError("blocks of version 1 are a flat list that does not say the tensor's shape")
    return {"axis": 0 if scale.numel() > 1 or kind == "PER_CHANNEL" else None}


def _second(name: str, encoding: Any) -> dict[str, Any] | str:
    """Parameters from version 2 on; a reason where there are none."""
    if not isinstance(encoding, dict):
        raise ParametersError(f"{name!r} has no encoding.")
    dtype = str(encoding.get("output_dtype", ""))
    if dtype == "int32":
        return BIAS
    if dtype.startswith("float"):
        return FLOAT
    if dtype not in RANGES:
        return f"codes of the type {dtype!r}, which is not compared"
    if "per_block_int_scale" in encoding or isinstance(encoding.get("y_scale"), dict):
        return "scales that are quantized themselves, which are not compared"
    scale = numbers(encoding["y_scale"], name)
    given = encoding.get("y_zero_point")
    zero_point = (
        torch.zeros_like(scale, dtype=torch.int32) if given is None else numbers(given, name, whole=True)
    )
    axis, block = encoding.get("axis"), int(encoding.get("block_size") or 0)
    low, high = RANGES[dtype]
    return {
        "scale": scale,
        "zero_point": zero_point,
        "qmin": low,
        "qmax": high,
        "axis": None if axis is None else int(axis),
        "block": block,
    }
