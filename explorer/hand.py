"""A hand at work on a page: what runs in the background rests meanwhile.

All pages of a server share one process and its processors, and what a hand moves must be drawn while it moves.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Seconds that work in the background rests for a hand after each of its movements, and at most in one go; then it works
# for as long before it rests again.
QUIET, REST = 0.5, 10.0


class Leaving(BaseException):
    """The process ends, and work in the background with it."""


class _Here(threading.local):
    """Of a thread: whether its work is over, None for work that somebody waits for; until when it does not rest."""

    cancelled: Callable[[], bool] | None = None
    works_until = -math.inf


class Hand:
    """A hand at work somewhere on this machine.

    >>> hand = Hand()
    >>> hand.moves()
    >>> hand.breathe()  # returns at once: somebody waits for what this thread does
    """

    def __init__(self) -> None:
        self._until = -math.inf
        self._here = _Here()
        self._left = False

    def moves(self) -> None:
        """Somebody has moved something a moment ago."""
        self._until = time.monotonic() + QUIET

    @contextmanager
    def background(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """What this thread does from here on is work in the background, until it is ``cancelled``."""
        self._here.cancelled = cancelled
        try:
            yield
        finally:
            self._here.cancelled = None

    def leave(self) -> None:
        """The process ends: what works in the background is to stop where it is."""
        self._left = True

    def breathe(self) -> None:
        """Rest while the hand moves, if this thread works in the background; to be called every few milliseconds.

        Raises:
            Leaving: in the background, when the process ends.
        """
        thread, now = self._here, time.monotonic()
        if self._left and thread.cancelled is not None:
            raise Leaving
        if thread.cancelled is None or now >= self._until or now < thread.works_until:
            return
        end = now + REST
        while time.monotonic() < min(self._until, end) and not thread.cancelled():
            time.sleep(0.02)
        if time.monotonic() >= end:
            thread.works_until = time.monotonic() + REST


HAND = Hand()
