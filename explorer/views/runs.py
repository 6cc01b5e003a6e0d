"""Work in the background, and its results on the page: at most ten a second, never to a page that is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import panel as pn
from tornado.ioloop import IOLoop

from explorer.jobs import Worker

# Seconds between two results that are shown.
INTERVAL = 0.1


class Publisher:
    """Runs functions where the page may be changed: in the server's loop, or in the notebook's.

    ``panes`` are those with Bokeh figures, of whose changes a notebook has to be told.
    """

    def __init__(self) -> None:
        self.document = pn.state.curdoc if pn.state.curdoc and pn.state.curdoc.session_context else None
        self.loop = IOLoop.current()
        self.closed = False
        self.panes: list[pn.viewable.Viewable] = []

    def later(self, function: Callable[[], None]) -> None:
        """Call ``function()`` on the page's next turn; from any thread."""
        if self.closed:
            return
        try:
            if self.document is not None:
                self.document.add_next_tick_callback(lambda: self._run(function))
            else:
                self.loop.add_callback(lambda: self._run(function))
        except (AttributeError, RuntimeError):
            # The document was destroyed between the check and the call: nobody is looking any more.
            self.closed = True

    def hold(self) -> AbstractContextManager[None]:
        """Send what changes inside as one message; a notebook does so by itself, and would lose it here."""
        return pn.io.hold() if self.document is not None else nullcontext()

    def _run(self, function: Callable[[], None]) -> None:
        if self.closed:
            return
        with self.hold():
            function()
        if self.document is None and self.panes:
            pn.io.push_notebook(*self.panes)


class Runner:
    """One kind of background work: the latest request wins, the latest result is shown.

    Args:
        name: of the worker.
        publisher: where results go.
    """

    def __init__(self, name: str, publisher: Publisher) -> None:
        self.worker = Worker(name)
        self.publisher = publisher
        self._request = 0

    def start(
        self,
        factory: Callable[[], Iterator[Any]],
        show: Callable[[Any], None],
        done: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Run ``factory()`` and show its results on the page, unless a newer request has come."""
        self._request += 1
        request = self._request
        gate = threading.Lock()
        latest: list[Any] = []
        last = 0.0

        def current(action: Callable[[], None]) -> None:
            self.publisher.later(lambda: action() if request == self._request else None)

        def flush() -> None:
            with gate:
                found = latest[-1:]
                latest.clear()
            if found:
                show(found[0])

        def on_result(result: Any) -> None:
            nonlocal last
            with gate:
                latest[:] = [result]
            if time.monotonic() - last >= INTERVAL:
                last = time.monotonic()
                current(flush)

        def finish() -> None:
            flush()
            done()

        self.worker.submit(
            factory, on_result, lambda: current(finish), lambda error: current(lambda: failed(error))
        )

    def cancel(self) -> None:
        """Stop, and forget what has not been shown."""
        self._request += 1
        self.worker.cancel()

    def close(self) -> None:
        """Stop for good."""
        self._request += 1
        self.worker.close()
