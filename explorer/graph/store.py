"""A store of intermediate results within a budget of bytes, in memory and, if wished, in a folder as well."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from explorer.errors import JobError
from explorer.graph.device import CPU, moved
from explorer.graph.disk import Disk
from explorer.graph.eviction import Ranking

# What Python needs for an entry besides the numbers: key, tensor, places in tables.
ENTRY_BYTES = 1024
# What computing a value again takes where nobody has measured it: a pass over a small tensor.
DEFAULT_SECONDS = 1e-3


@dataclass(frozen=True)
class StoreFacts:
    """What a store holds and how it has served."""

    entries: int
    bytes: int
    budget: int
    hits: int
    misses: int
    evicted: int
    refused: int = 0
    read: int = 0


def owned(value: Any) -> Any:
    """The value, a tensor without the memory of others: a small view keeps the whole of its storage alive."""
    if not isinstance(value, Tensor):
        return value
    own = value.numel() * value.element_size()
    return value.clone() if value.untyped_storage().nbytes() > 2 * own else value


def size_of(value: Any) -> int:
    """The bytes that an entry keeps alive."""
    return ENTRY_BYTES + (value.untyped_storage().nbytes() if isinstance(value, Tensor) else 0)


class Store:
    """Results by key.  Keys name contents, so one store serves any number of sessions and threads.

    What takes long to compute again, for each byte, stays longest
    (:class:`explorer.graph.eviction.Ranking`); what is in use is renewed.

    Args:
        budget: how many bytes the entries may take together.
        disk: a second level that survives the process.

    Raises:
        JobError: for a budget below one byte.

    >>> import torch
    >>> store = Store(2 * ENTRY_BYTES)
    >>> store.put("cheap", torch.zeros(200), seconds=0.1)
    >>> store.put("dear", torch.zeros(200), seconds=0.9)
    >>> store.get("cheap") is None, store.get("dear").shape
    (True, torch.Size([200]))
    """

    def __init__(self, budget: int, disk: Disk | None = None) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise JobError(f"The store needs a budget of at least one byte, a whole number, not {budget!r}.")
        self.budget = budget
        self.disk = disk
        self._values: dict[str, Any] = {}
        self._ranking = Ranking(budget)
        self._hits = self._misses = self._evicted = self._refused = self._read = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """The result stored under ``key``, or None."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._hits += 1
                self._ranking.touch(key)
                return value
        read = self.disk.get(key) if self.disk is not None else None
        if read is None:
            with self._lock:
                self._misses += 1
            return None
        value, seconds = read
        self._keep(key, value, seconds)
        with self._lock:
            self._hits += 1
            self._read += 1
        return value

    def has(self, key: str) -> bool:
        """Whether there is a result under ``key`` in memory; does not count as use."""
        with self._lock:
            return key in self._values

    def put(self, key: str, value: Any, seconds: float = DEFAULT_SECONDS) -> None:
        """Offer ``value``, which took ``seconds`` to compute; it is kept if it is worth its place."""
        value = owned(value)
        self._keep(key, value, seconds)
        if self.disk is not None:
            self.disk.put(key, moved(value, CPU), seconds)

    def touch(self, keys: Iterable[str]) -> None:
        """Renew entries that are in use though nobody has asked for them just now."""
        with self._lock:
            for key in keys:
                self._ranking.touch(key)

    def _keep(self, key: str, value: Any, seconds: float) -> None:
        with self._lock:
            gone = self._ranking.add(key, size_of(value), seconds)
            if gone is None:
                self._values.pop(key, None)
                self._refused += 1
                return
            for victim in gone:
                del self._values[victim]
            self._evicted += len(gone)
            self._values[key] = value

    def clear(self) -> None:
        """Forget everything in memory."""
        with self._lock:
            self._values.clear()
            self._ranking = Ranking(self.budget)

    @property
    def facts(self) -> StoreFacts:
        with self._lock:
            return StoreFacts(
                len(self._values), self._ranking.bytes, self.budget, self._hits, self._misses,
                self._evicted, self._refused, self._read,
            )  # fmt: skip
