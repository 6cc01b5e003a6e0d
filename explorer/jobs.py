"""Jobs: one worker a session; the latest request wins and is never dropped; all share torch's threads."""

from __future__ import annotations

import atexit
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch

from explorer.errors import JobError
from explorer.hand import HAND

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        done: of what is counted, so much.
        total: how much there is.
        elapsed: seconds since it began.
        left: about so many seconds more; None before it is known.
    """

    done: int
    total: int
    elapsed: float
    left: float | None = None


class Pace:
    """Tells how long the rest will take, from the median pace of the latest steps.

    The first step is left out of it, for it has the preparations in it.

    Args:
        clock: seconds, from any beginning.

    >>> now = iter([0.0, 9.0, 10.0, 11.0])
    >>> pace = Pace(lambda: next(now))
    >>> [pace.step(done, 100).left for done in (10, 20, 30)]
    [None, 8.0, 7.0]
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._last: tuple[int, float] | None = None
        self._paces: deque[float] = deque(maxlen=9)

    def step(self, done: int, total: int) -> Progress:
        """Note that ``done`` of ``total`` are done now."""
        now = self._clock()
        if self._last is not None and done > self._last[0]:
            self._paces.append((now - self._last[1]) / (done - self._last[0]))
        if self._last is None or done != self._last[0]:
            self._last = (done, now)
        left = statistics.median(self._paces) * max(0, total - done) if self._paces else None
        return Progress(done, total, now - self._begun, 0.0 if done >= total else left)


class Share:
    """Deals torch's threads out to the jobs that run: each gets as many, at least one.

    torch keeps the number of threads for each calling thread (OpenMP), so a job's thread sets its own, at
    its beginning and after each partial result, when others may have come or gone.  A thread that has not
    used torch yet starts with the number that any thread has set last; hence what there is to share is asked
    of the thread that submits, when no job runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._threads: int | None = None

    def learn(self) -> None:
        """Note how many threads there are to share: what the calling thread may use, if no job runs."""
        with self._lock:
            mine = torch.get_num_threads()
            if not self._running or self._threads is None:
                self._threads = mine

    @property
    def threads(self) -> int:
        """How many threads a running job has now."""
        with self._lock:
            return max(1, (self._threads or 1) // max(1, self._running))

    def begin(self) -> None:
        """A job begins in the calling thread."""
        with self._lock:
            self._running += 1
        self.take()

    def take(self) -> None:
        """Let the calling thread have as many threads as its share is now."""
        wanted = self.threads
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    def end(self) -> None:
        """The calling thread's job is over: the number of threads is what it was before all jobs."""
        with self._lock:
            self._running -= 1
            before = self._threads or 1
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


SHARE = Share()


@dataclass(eq=False)
class Job:
    """One request: a generator of partial results and who wants to know of them."""

    factory: Callable[[], Iterator[Any]]
    on_result: Callable[[Any], None]
    on_done: Callable[[], None]
    on_error: Callable[[Exception], None]
    measure: Callable[[Any], tuple[int, int]] | None = None
    background: bool = False
    _gate: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)
    _stopped: bool = False
    _calling: bool = False
    _progress: Progress | None = None

    def cancel(self) -> bool:
        """Stop before the next partial result, and call back no more.

        Returns whether it is silent from now on.  False says that one callback is running at this moment; it
        is the last.
        """
        with self._gate:
            self._stopped = True
            return not self._calling

    @property
    def cancelled(self) -> bool:
        return self._stopped

    @property
    def progress(self) -> Progress | None:
        """How far it is; None before the first partial result, or where nothing is counted."""
        return self._progress

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job is over, for whatever reason; False if it is not within ``timeout`` seconds."""
        return self._over.wait(timeout)

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        with self._gate:
            if self._stopped:
                return
            self._calling = True
        try:
            callback(*arguments)
        finally:
            with self._gate:
                self._calling = False

    def _run(self) -> None:
        try:
            if not self.cancelled:
                with HAND.background(lambda: self.cancelled) if self.background else nullcontext():
                    self._steps()
        except BaseException as error:
            # Whatever goes wrong in a job is the page's to show; the worker lives on.
            known = (
                error if isinstance(error, Exception) else JobError(f"The computation ended with {error!r}.")
            )
            try:
                self._call(self.on_error, known)
            except Exception:  # of whoever listens: the worker lives on all the same
                log.exception("A job's error could not be reported.")
        finally:
            self._over.set()

    def _steps(self) -> None:
        pace = Pace()
        SHARE.begin()
        try:
            steps = iter(self.factory())
            try:
                for result in steps:
                    if self.cancelled:
                        return
                    if self.measure is not None:
                        self._progress = pace.step(*self.measure(result))
                    self._call(self.on_result, result)
                    HAND.breathe()
                    SHARE.take()
            finally:
                # A generator that is left in the middle ends here, in its own thread.
                getattr(steps, "close", lambda: None)()
        finally:
            SHARE.end()
        self._call(self.on_done)


# Those that have a thread.
_WORKERS: WeakSet[Worker] = WeakSet()
# Seconds that jobs have to end when the process does.
_LAST = 5.0


@atexit.register
def _end_all() -> None:
    """End what runs: a thread that is in the middle of torch's code when Python goes takes the process down with it."""
    HAND.leave()
    end, workers = time.monotonic() + _LAST, list(_WORKERS)
    for worker in workers:
        worker.close()
    for worker in workers:
        if worker._thread is not None:
            worker._thread.join(max(0.0, end - time.monotonic()))


class Worker:
    """Runs one job at a time in a thread of its own.

    A newer request cancels the running one, which stops at its next partial result, and replaces one that
    is still waiting.  Callbacks run in the worker's thread.  One in the ``background`` rests while a hand moves.

    >>> worker, seen = Worker("example"), []
    >>> job = worker.submit(lambda: iter([1, 2]), seen.append)
    >>> job.wait(5), seen
    (True, [1, 2])
    >>> worker.close()
    """

    def __init__(self, name: str, background: bool = False) -> None:
        self.name, self.background = name, background
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
        measure: Callable[[Any], tuple[int, int]] | None = None,
    ) -> Job:
        """Ask for ``factory()`` to be run through; what was asked before is cancelled.

        Args:
            factory: makes the generator of partial results.
            on_result: called with each of them.
            on_done: called after the last.
            on_error: called with what went wrong, instead.
            measure: reads how much is done, and of how much, off a partial result; for ``Job.progress``.
        """
        job = Job(factory, on_result, on_done, on_error, measure, self.background)
        SHARE.learn()
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
                _WORKERS.add(self)
                self._thread.start()
            self._wake.notify()
        return job

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        with self._wake:
            return any(job is not None and not job.cancelled for job in (self._waiting, self._running))

    def cancel(self) -> bool:
        """Cancel what runs and what waits; whether both are silent from now on (see :meth:`Job.cancel`)."""
        with self._wake:
            return self._cancel()

    def close(self) -> None:
        """Cancel everything and let the thread end; later requests are ignored."""
        with self._wake:
            self._closed = True
            self._cancel()
            self._wake.notify()

    def _cancel(self) -> bool:
        return all([job.cancel() for job in (self._waiting, self._running) if job is not None])

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
