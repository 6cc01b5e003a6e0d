"""The store's second level: a folder of results that survives a restart and a kill.

A file is a *pack* of one or more entries in the safetensors format: tensors under their key digests, and in the
metadata, for each entry, the digest of its contents.  A pack is written under a temporary name, synced and renamed,
so that there is a whole file or none.  What fails a check is dropped with a warning and computed again.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from explorer.errors import JobError
from explorer.graph.eviction import Ranking

_FORMAT = "explorer-store-1"
_PACK = re.compile(r"[0-9a-f]{32}\.safetensors")
_TEMPORARY = re.compile(r"\.([0-9]+)\.[0-9a-f]{32}\.tmp")
# Checking and copying a byte takes about 3 ns; what is computed as fast as that is not worth reading.
_WORTH_READING = 6e-9
# Small entries wait for company until their pack has this size, or their number, or their age in seconds.
_PACK_BYTES, _PACK_ENTRIES, _PACK_SECONDS = 1 << 20, 512, 2.0
# Writing may take this share of the time that computing has taken.
_SHARE = 0.05
# A guess at writing before anything was written: to sync a file, and for each byte.
_SYNC_SECONDS, _BYTE_SECONDS = 4e-3, 4e-9


class Disk:
    """Results by key in a folder that several processes may share.

    Args:
        folder: made if it is not there.
        budget: how many bytes the files may take together; None takes 8 GiB or half of what is free.
        kinds: frozen dataclasses of numbers that may be stored besides tensors.

    Raises:
        JobError: for a folder that cannot be written to, or a budget below one byte.
    """

    def __init__(
        self, folder: str | os.PathLike[str], budget: int | None = None, kinds: Sequence[type] = ()
    ) -> None:
        self.folder = Path(folder)
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._lock = threading.RLock()
        self._where: dict[str, str] = {}
        self._members: dict[str, list[str]] = {}
        self._pending: dict[str, tuple[Any, float]] = {}
        self._pending_bytes = 0
        self._oldest = 0.0
        self._earned = self._spent = 0.0
        self._last: tuple[str, dict[str, tuple[Any, float]]] = ("", {})
        self._stopped = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self._temporary()
            probe.write_bytes(b"")
            probe.unlink()
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise JobError(
                f"The store cannot use the folder {os.fspath(folder)!r}: {error.strerror or error}."
            ) from None
        budget = min(8 << 30, free // 2) if budget is None else budget
        if budget < 1:
            raise JobError(f"The store's folder needs a budget of at least one byte, not {budget}.")
        self._ranking = Ranking(budget)
        self._open()
        # Entries that wait for company are written when the process ends in good order.
        atexit.register(_flush, weakref.ref(self))

    # -- reading --------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[Any, float] | None:
        """The result stored under ``key`` and the seconds it took to compute, or None."""
        name = _name(key)
        with self._lock:
            if name in self._pending:
                return self._pending[name]
            pack = self._where.get(name)
            if pack is None:
                return None
            entries = self._last[1] if self._last[0] == pack else self._load(pack)
            found = entries.get(name)
            if found is None:
                return None
            # Small entries are asked for one after another; large ones would only take up memory.
            self._last = (pack, entries) if len(entries) > 1 else ("", {})
            self._ranking.touch(pack)
            return found

    def _load(self, pack: str) -> dict[str, tuple[Any, float]]:
        """All entries of a pack that pass the check; a pack with one that does not is dropped after this."""
        found: dict[str, tuple[Any, float]] = {}
        try:
            data = self._path(pack).read_bytes()
            records = _records(data[8 : 8 + int.from_bytes(data[:8], "little")])
            tensors = safetensors.torch.load(data)  # no code in it; each entry is checked by its digest below
            for name, record in records.items():
                value = tensors[name] if "values" not in record else self._number(record)
                if _check(name, value, record["seconds"]) != record["digest"]:
                    raise ValueError("its contents are not what was written")
                found[name] = value, float(record["seconds"])
        except FileNotFoundError:
            self._forget(pack)  # another process made room
        except Exception as error:  # what damage raises is anybody's guess; it is told, and the pack goes
            self._damaged(pack, error)
        return found

    def _number(self, record: Mapping[str, Any]) -> Any:
        return self._kinds[record["kind"]](*record["values"])

    def _open(self) -> None:
        """Learn what the folder holds, and clear away what killed processes have left."""
        for path in sorted(self.folder.iterdir(), key=_age, reverse=True):
            temporary = _TEMPORARY.fullmatch(path.name)
            if temporary and not _alive(int(temporary[1])):
                _unlink(path)
            elif _PACK.fullmatch(path.name):
                pack = path.name.removesuffix(".safetensors")
                try:
                    with open(path, "rb") as file:
                        length = int.from_bytes(file.read(8), "little")
                        size = os.fstat(file.fileno()).st_size
                        if length > size:
                            raise ValueError("it has been cut off")
                        records = _records(file.read(length))
                    self._admit(pack, size, {name: record["seconds"] for name, record in records.items()})
                except FileNotFoundError:
                    continue
                except Exception as error:
                    self._damaged(pack, error)

    # -- writing --------------------------------------------------------------------------------------

    def put(self, key: str, value: Any, seconds: float) -> None:
        """Offer a result; it is written if reading it takes less than computing it again."""
        kind = type(value).__name__
        if not isinstance(value, Tensor) and (kind not in self._kinds or not is_dataclass(value)):
            return
        size = value.numel() * value.element_size() if isinstance(value, Tensor) else 256
        name = _name(key)
        with self._lock:
            self._earned += seconds
            known = name in self._where or name in self._pending
            if self._stopped or known or seconds < size * _WORTH_READING:
                return
            if size > _PACK_BYTES:
                if self._affordable(size):
                    self._write({name: (value, seconds)})
                return
            if not self._pending:
                self._oldest = time.monotonic()
            self._pending[name] = value, seconds
            self._pending_bytes += size
            full = (
                self._pending_bytes >= _PACK_BYTES
                or len(self._pending) >= _PACK_ENTRIES
                or time.monotonic() - self._oldest > _PACK_SECONDS
            )
            # Without the time for it they wait on, and few enough wait to cost no memory to speak of.
            if full and (self._affordable(self._pending_bytes) or self._pending_bytes > 4 * _PACK_BYTES):
                self.flush()

    def flush(self) -> None:
        """Write what still waits."""
        with self._lock:
            if self._pending:
                entries, self._pending, self._pending_bytes = self._pending, {}, 0
                self._write(entries)

    def _affordable(self, size: int) -> bool:
        return self._spent + _SYNC_SECONDS + size * _BYTE_SECONDS <= _SHARE * self._earned

    def _write(self, entries: Mapping[str, tuple[Any, float]]) -> None:
        begun = time.perf_counter()
        tensors, records = {}, {}
        for name, (value, seconds) in entries.items():
            record: dict[str, Any] = {"seconds": seconds, "digest": _check(name, value, seconds)}
            if isinstance(value, Tensor):
                tensors[name] = value.detach().contiguous()
            else:
                record |= {"kind": type(value).__name__, "values": list(asdict(value).values())}
            records[name] = record
        metadata = {"format": _FORMAT, "entries": json.dumps(records)}
        pack = hashlib.blake2b("".join(sorted(entries)).encode(), digest_size=16).hexdigest()
        temporary = self._temporary()
        try:
            data = safetensors.torch.save(tensors, metadata)
            if not self._admit(pack, len(data), {name: seconds for name, (_, seconds) in entries.items()}):
                return
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path(pack))
        except OSError as error:
            _unlink(temporary)
            self._forget(pack)
            self._stopped = True
            warnings.warn(
                f"The store writes no more to {str(self.folder)!r}: {error.strerror or error}.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._spent += time.perf_counter() - begun

    # -- the table of packs ---------------------------------------------------------------------------

    def _admit(self, pack: str, size: int, seconds: Mapping[str, float]) -> bool:
        """Take a pack into the tables, and remove the files of those that go for it."""
        gone = self._ranking.add(pack, size, sum(seconds.values()))
        if gone is None:
            _unlink(self._path(pack))
            return False
        for victim in gone:
            self._forget(victim)
            _unlink(self._path(victim))
        self._members[pack] = list(seconds)
        self._where.update(dict.fromkeys(seconds, pack))
        return True

    def _forget(self, pack: str) -> None:
        self._ranking.drop(pack)
        for name in self._members.pop(pack, ()):
            if self._where.get(name) == pack:
                del self._where[name]

    def _damaged(self, pack: str, error: Exception) -> None:
        self._forget(pack)
        path = self._path(pack)
        _unlink(path)
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(
            f"The stored result {str(path)!r} is damaged ({reason}); it was dropped and is computed again.",
            RuntimeWarning,
            stacklevel=2,
        )

    @property
    def bytes(self) -> int:
        """How many bytes the files take together."""
        return self._ranking.bytes

    def __len__(self) -> int:
        return len(self._where) + len(self._pending)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._where, *self._pending])

    def _path(self, pack: str) -> Path:
        return self.folder / f"{pack}.safetensors"

    def _temporary(self) -> Path:
        return self.folder / f".{os.getpid()}.{uuid.uuid4().hex}.tmp"


def _flush(reference: weakref.ref[Disk]) -> None:
    disk = reference()
    if disk is not None:
        disk.flush()


def _name(key: str) -> str:
    """What stands for a key in files; keys themselves may hold any text."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _check(name: str, value: Any, seconds: float) -> str:
    """The digest of an entry: whose it is and what it holds, to the last bit."""
    found = hashlib.blake2b(digest_size=16)
    if isinstance(value, Tensor):
        found.update(f"{name}{seconds!r}{value.dtype}{tuple(value.shape)}".encode())
        if value.numel():
            found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        found.update(f"{name}{seconds!r}{type(value).__name__}{list(asdict(value).values())!r}".encode())
    return found.hexdigest()


def _records(header: bytes) -> dict[str, dict[str, Any]]:
    """What a pack's header says of its entries."""
    metadata = json.loads(header)["__metadata__"]
    if metadata.get("format") != _FORMAT:
        raise ValueError("it was not written by this store")
    records = json.loads(metadata["entries"])
    for record in records.values():
        record["seconds"] = float(record["seconds"])
    return records


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return -path.stat().st_mtime
    return 0.0


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
