"""A store of intermediate results: the least recently used go when a budget of bytes is reached."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from explorer.errors import JobError


@dataclass(frozen=True)
class StoreFacts:
    """What a store holds and how it has served."""

    entries: int
    bytes: int
    budget: int
    hits: int
    misses: int
    evicted: int


class Store:
    """Results by key.  Keys name contents, so one store serves any number of sessions and threads.

    Args:
        budget: how many bytes the tensors may take together.

    Raises:
        JobError: for a budget below one byte.

    >>> import torch
    >>> store = Store(100)
    >>> store.put("a", torch.zeros(20))
    >>> store.put("b", torch.zeros(20))
    >>> store.get("a") is None, store.get("b").shape
    (True, torch.Size([20]))
    """

    def __init__(self, budget: int) -> None:
        if budget < 1:
            raise JobError(f"The store needs a budget of at least one byte, not {budget}.")
        self.budget = budget
        self._entries: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evicted = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """The result stored under ``key``, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def has(self, key: str) -> bool:
        """Whether there is a result under ``key``; does not count as use."""
        with self._lock:
            return key in self._entries

    def put(self, key: str, value: Any) -> None:
        """Keep ``value``; one that is larger than the whole budget is not kept."""
        size = value.numel() * value.element_size() if isinstance(value, Tensor) else 256
        if size > self.budget:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            self._bytes += size - (old[1] if old else 0)
            self._entries[key] = (value, size)
            while self._bytes > self.budget:
                _, (_, gone) = self._entries.popitem(last=False)
                self._bytes -= gone
                self._evicted += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    @property
    def facts(self) -> StoreFacts:
        with self._lock:
            return StoreFacts(
                len(self._entries), self._bytes, self.budget, self._hits, self._misses, self._evicted
            )
