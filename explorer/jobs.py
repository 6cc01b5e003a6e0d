"""Jobs: one worker a session; the latest request wins and is never dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Job:
    """One request: a generator of partial results and who wants to know of them."""

    factory: Callable[[], Iterator[Any]]
    on_result: Callable[[Any], None]
    on_done: Callable[[], None]
    on_error: Callable[[Exception], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stop before the next partial result; neither ``on_done`` nor ``on_error`` will be called."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job is over, for whatever reason; False if it is not within ``timeout`` seconds."""
        return self._over.wait(timeout)

    def _run(self) -> None:
        try:
            steps = self.factory() if not self.cancelled else iter(())
            for result in steps:
                if self.cancelled:
                    break
                self.on_result(result)
            if not self.cancelled:
                self.on_done()
        except Exception as error:
            # Whatever goes wrong in a job is the page's to show; the worker lives on.
            if not self.cancelled:
                self.on_error(error)
        finally:
            self._over.set()


class Worker:
    """Runs one job at a time in a thread of its own.

    A newer request cancels the running one, which stops at its next partial result, and replaces one that
    is still waiting.  Callbacks run in the worker's thread.

    >>> worker, seen = Worker("example"), []
    >>> job = worker.submit(lambda: iter([1, 2]), seen.append)
    >>> job.wait(5), seen
    (True, [1, 2])
    >>> worker.close()
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._wake = threading.Condition()
        self._waiting: Job | None = None
        self._running: Job | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(
        self,
        factory: Callable[[], Iterator[Any]],
        on_result: Callable[[Any], None],
        on_done: Callable[[], None] = lambda: None,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> Job:
        """Ask for ``factory()`` to be run through; what was asked before is cancelled."""
        job = Job(factory, on_result, on_done, on_error)
        with self._wake:
            if self._closed:
                job.cancel()
                job._over.set()
                return job
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting._over.set()
            if self._running is not None:
                self._running.cancel()
            self._waiting = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=self.name, daemon=True)
                self._thread.start()
            self._wake.notify()
        return job

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        with self._wake:
            return self._waiting is not None or (self._running is not None and not self._running.cancelled)

    def cancel(self) -> None:
        """Cancel what runs and what waits."""
        with self._wake:
            for job in (self._waiting, self._running):
                if job is not None:
                    job.cancel()

    def close(self) -> None:
        """Cancel everything and let the thread end; later requests are ignored."""
        with self._wake:
            self._closed = True
            for job in (self._waiting, self._running):
                if job is not None:
                    job.cancel()
            self._wake.notify()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while self._waiting is None and not self._closed:
                    self._wake.wait()
                if self._waiting is None:
                    return
                job, self._waiting = self._waiting, None
                self._running = job
            job._run()
            with self._wake:
                self._running = None
