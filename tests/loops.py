"""Loops of events for tests that may run while a browser is driven: Playwright holds the main thread's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def elsewhere(work: Callable[[], T]) -> T:
    """What ``work`` gives, in a thread of its own: ``elsewhere(lambda: asyncio.run(main()))``."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
