"""Small damage to valid files, made so that it goes past the first check: inside a zip, a JSON tree, a protobuf.

Every mutator takes bytes and a generator of random numbers and gives bytes.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[bytes, Random], bytes]

# Values that readers stumble over.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 1 << 31, -(1 << 31), 1 << 63, 1 << 64, 10**30, 0.5, -0.0, 1e38, 1e308,
    float("inf"), float("nan"), "", "a", "\0", "\x1b[2J", "é\u2028", "a" * 3000, "*", "__class__", "../../x",
    "/etc/passwd", "int8", "fp32", "nan", "1e999", [], {}, [[]], [None], {"": None}, [0] * 300, {"a": {"b": {"c": []}}},
)  # fmt: skip
_TOKENS = (
    b"-1", b"0", b"999999999999", b"1e999", b"NaN", b"null", b"[", b"]", b"{", b"}", b":", b",", b'"', b"'", b"\\",
    b"\n", b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"&a ", b"*a", b"!!python/object:os.system ",
    b"!!int ", b"<<: ", b"- ", b"? ", b"|", b"(", b")", b"cos\nsystem\n", b"PK\x03\x04", b"%s%n", b"\xf0\x9f\x98\x80",
)  # fmt: skip


def plain(data: bytes, rng: Random) -> bytes:
    """Bytes flipped, cut, doubled, overwritten by what means something somewhere."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(found) + 1)
        end = min(len(found), at + rng.choice((1, 1, 2, 4, 8, 32, 256)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[at:end] = rng.randbytes(end - at)
        elif kind == 2:
            del found[at:end]
        elif kind == 3:
            found[at:at] = found[at:end]
        elif kind == 4:
            token = rng.choice(_TOKENS)
            found[at : at + rng.choice((0, len(token)))] = token
        elif kind == 5:
            width, order = rng.choice("BHIQ"), rng.choice("<>")
            size = struct.calcsize(width)
            number = rng.choice((0, 1, (1 << (8 * size)) - 1, 1 << (8 * size - 1), rng.getrandbits(8 * size)))
            found[at : at + size] = struct.pack(order + width, number)
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)


def tree(value: Any, rng: Random) -> Any:
    """A tree of plain values with one place in it changed, whose parts are not the original's."""
    places: list[tuple[Any, Any]] = []
    value = json.loads(json.dumps(value))

    def walk(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in pairs:
            places.append((node, key))
            walk(child)

    walk(value)
    if not places:
        return rng.choice(ODD)
    for _ in range(rng.choice((1, 1, 2, 4))):
        node, key = rng.choice(places)
        if (isinstance(node, dict) and key not in node) or (isinstance(node, list) and key >= len(node)):
            continue
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1:
            other, there = rng.choice(places)
            found = other.get(there) if isinstance(other, dict) else other[there] if there < len(other) else 0
            node[key] = json.loads(json.dumps(found))
        elif kind == 2 and isinstance(node, dict):
            node[str(rng.choice(ODD))[:40]] = node[key]
        elif kind == 3 and isinstance(node, list):
            node.insert(key, node[key])
        elif kind == 4 and isinstance(node[key], str):
            node[key] = plain(node[key].encode(), rng).decode("utf-8", "replace")
        elif kind == 4 and isinstance(node[key], int):
            node[key] += rng.choice((-1, 1, 7, 1 << 20, 1 << 40))
        else:
            node[key] = rng.choice(ODD)
    return value


def as_json(data: bytes, rng: Random) -> bytes:
    """A JSON file with a value changed, or its bytes."""
    if rng.random() < 0.2:
        return plain(data, rng)
    try:
        return json.dumps(tree(json.loads(data), rng)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return plain(data, rng)


def as_yaml(data: bytes, rng: Random) -> bytes:
    """A YAML file with a value changed, or its bytes."""
    import yaml

    if rng.random() < 0.5:
        return plain(data, rng)
    try:
        text = yaml.safe_dump(tree(yaml.safe_load(data), rng), sort_keys=False, allow_unicode=True)
        return text.encode("utf-8", "surrogatepass")
    except Exception:  # it was damaged before
        return plain(data, rng)


def as_link(data: bytes, rng: Random) -> bytes:
    """A page's state with a value changed inside it, or its letters."""
    if rng.random() < 0.2:
        return plain(data, rng)
    try:
        version, _, packed = data.partition(b".")
        inside = zlib.decompress(base64.urlsafe_b64decode(packed + b"=" * (-len(packed) % 4)))
        found = base64.urlsafe_b64encode(zlib.compress(as_json(inside, rng))).rstrip(b"=")
        return version + b"." + found
    except Exception:
        return plain(data, rng)


def as_entry(data: bytes, rng: Random) -> bytes:
    """A project's entry with its body changed and its check made anew, or its bytes."""
    from explorer.sources.project import pack

    if rng.random() < 0.2:
        return as_json(data, rng)
    try:
        return pack(tree(json.loads(data)["body"], rng)).encode("utf-8", "surrogatepass")
    except Exception:
        return plain(data, rng)


def as_safetensors(data: bytes, rng: Random) -> bytes:
    """A header with a value changed and its length put right, or the bytes."""
    if rng.random() < 0.4 or len(data) < 8:
        return plain(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    header = as_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def as_zip(data: bytes, rng: Random) -> bytes:
    """An archive with one member changed and its checksums put right, or its bytes."""
    if rng.random() < 0.2:
        return plain(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        at = rng.randrange(len(members))
        # A large member would otherwise be hit no more often than a small one, and most are tensors.
        texts = [n for n, (name, _) in enumerate(members) if name.endswith((".json", ".pkl", ".npy"))]
        at = rng.choice(texts) if texts and rng.random() < 0.7 else at
        name, content = members[at]
        kind = rng.randrange(12)
        if kind == 0:
            del members[at]
        elif kind == 1:
            members[at] = (plain(name.encode(), rng).decode("utf-8", "replace") or "x", content)
        elif kind == 2:
            members.append((rng.choice(members)[0], content))
        elif kind == 3:
            members.append((name.partition("/")[0] + "/data/aotinductor/model/x.so", content))
        elif name.endswith(".json"):
            members[at] = (name, as_json(content, rng))
        elif zipfile.is_zipfile(io.BytesIO(content)):
            members[at] = (name, as_zip(content, rng))
        else:
            members[at] = (name, plain(content, rng))
        method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        return zipped(members, method)
    except Exception:
        return plain(data, rng)


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these members, in this order, even when two have one name."""
    import warnings

    whole = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(whole, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)
    return whole.getvalue()


def as_onnx(data: bytes, rng: Random) -> bytes:
    """A model with a field of one of its messages changed, or its bytes."""
    import onnx

    if rng.random() < 0.2:
        return plain(data, rng)
    try:
        model = onnx.load_model_from_string(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change(model, rng)
        return model.SerializeToString()
    except Exception:
        return plain(data, rng)


def _change(message: Any, rng: Random) -> None:
    """One field of a message or of one inside it."""
    fields = [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = rng.choice(fields)
    value = getattr(message, field.name)
    repeated = hasattr(value, "append") and hasattr(value, "__len__") and not isinstance(value, str | bytes)
    if repeated and len(value):
        at = rng.randrange(len(value))
        kind = rng.randrange(8)
        if kind == 0:
            del value[at]
        elif kind == 1:
            value.append(value[rng.randrange(len(value))])
        elif field.message_type is not None:
            _change(value[at], rng)
        else:
            value[at] = _other(value[at], rng)
    elif not repeated and field.message_type is not None:
        message.ClearField(field.name) if rng.random() < 0.1 else _change(value, rng)
    elif not repeated:
        setattr(message, field.name, _other(value, rng))


def _other(value: Any, rng: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((0, 1, -1, 2, 3, 7, 16, 1 << 20, (1 << 31) - 1, (1 << 62), value + 1))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), value * 2))
    if isinstance(value, bytes):
        return plain(value, rng)
    return rng.choice(
        (plain(value.encode(), rng).decode("utf-8", "replace"), "", "../../x", "Relu", "Loop", "x")
    )
