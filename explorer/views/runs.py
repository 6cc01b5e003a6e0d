"""Work in the background, and its results on the page: at most ten a second, never to a page that is gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import wraps
from typing import Any

import panel as pn
from bokeh.server.connection import ServerConnection
from bokeh.server.views.ws import WSHandler
from panel.io import document as writing
from panel.reactive import Syncable
from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketClosedError

from explorer.jobs import Job, Progress, Worker
from explorer.recipe import Recipe
from explorer.session import Session
from explorer.study import Resolving

# Seconds between two results that are shown.
INTERVAL = 0.1
# Milliseconds between two ticks of the page's clock.
TICK = 300


def ignore_departures(loop: asyncio.AbstractEventLoop) -> None:
    """Let a browser leave while a message is on its way, without a traceback in the server's log.

    A message is written in parts.  When the browser goes between two of them the next one is refused at
    once, and Panel loses the first, whose failure asyncio then reports.  Nothing else is kept quiet.
    """
    before = loop.get_exception_handler()
    if isinstance(before, _Departures):
        return
    loop.set_exception_handler(_Departures(before))


class _Departures:
    def __init__(self, before: Callable[[asyncio.AbstractEventLoop, Any], Any] | None) -> None:
        self.before = before

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), WebSocketClosedError):
            return
        if self.before is not None:
            self.before(loop, context)
        else:
            loop.default_exception_handler(context)


def lock_events() -> None:
    """Let what a click in a table or a key does hold the document, for figures are Bokeh's own and change only so.

    Panel 1.9 runs the handlers of such events without the document's lock when it is held at the moment, as with
    two clicks in a row; a change of a figure then fails in the middle, and the page is left half as it was.
    """
    if not getattr(Syncable._event_coroutine, "lock", False):
        Syncable._event_coroutine = pn.io.with_lock(Syncable._event_coroutine)  # type: ignore[method-assign]


def send_at_once() -> None:
    """Let no message to a browser wait for the next one.

    Bokeh writes each message in parts, and Tornado leaves Nagle's algorithm on: a part waits until the browser has
    acknowledged the one before, which takes it 40 ms.  Of connections that are opened from now on.
    """
    opens = WSHandler.open
    if getattr(opens, "at_once", False):
        return

    @wraps(opens)
    def open_at_once(self: WSHandler) -> None:
        self.set_nodelay(True)
        opens(self)

    open_at_once.at_once = True  # type: ignore[attr-defined]
    WSHandler.open = open_at_once  # type: ignore[method-assign]


def send_in_order() -> None:
    """Let messages go out in the order in which they were made, for what one defines the next ones only name.

    Bokeh writes those of its own once the handler that has made them is over.  Panel 1.9 writes its own at once, or,
    while the connection is taken, puts them by for a task, which comes too late or does nothing when another one has
    ended in between.  Here each message takes its place in one line when it is made.
    """
    sends, schedule = WSHandler.send_message, writing.schedule_write_events
    if getattr(sends, "in_order", False):
        return

    under_way: set[asyncio.Future[None]] = set()

    async def write(connection: ServerConnection, turn: Any, message: Any) -> None:
        with await turn, suppress(WebSocketClosedError):
            await asyncio.gather(*writing.dispatch_tornado(connection, msg=message))

    def in_line(connection: Any, message: Any) -> Awaitable[None]:
        # The connection is taken from now on, and what comes later waits behind.
        task = asyncio.ensure_future(write(connection, connection._socket.write_lock.acquire(), message))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        return task

    @wraps(sends)
    def send(self: WSHandler, message: Any) -> Awaitable[None]:
        return sends(self, message) if self.connection is None else in_line(self.connection, message)

    @wraps(schedule)
    def send_later(document: Any, connections: Iterable[Any], events: list[Any]) -> None:
        others = []
        for connection in connections:
            if isinstance(connection._socket, WSHandler):
                in_line(connection, connection.protocol.create("PATCH-DOC", events))
            else:
                others.append(connection)
        if others:
            schedule(document, others, events)

    send.in_order = True  # type: ignore[attr-defined]
    WSHandler.send_message = send  # type: ignore[method-assign,assignment]
    writing.schedule_write_events = send_later  # type: ignore[assignment]


class Publisher:
    """Runs functions where the page may be changed: in the server's loop, or in the notebook's.

    ``panes`` are those with Bokeh figures, of whose changes a notebook has to be told.
    """

    def __init__(self) -> None:
        self.document = pn.state.curdoc if pn.state.curdoc and pn.state.curdoc.session_context else None
        self.loop = IOLoop.current()
        if self.document is not None:
            lock_events()
            send_at_once()
            send_in_order()
            ignore_departures(self.loop.asyncio_loop)  # type: ignore[attr-defined]
            self.document.add_periodic_callback(self._tick, TICK)
        self._ticks = 0
        self.closed = False
        self.panes: list[pn.viewable.Viewable] = []

    def _tick(self) -> None:
        self._ticks += 1

    def clock(self) -> float:
        """Seconds in which the page could answer, from any beginning: time that it was busy for does not count.

        Each tick waits its turn like a message of the browser's, so a message that has waited for long comes not
        long after the one before.
        """
        return self._ticks * TICK / 1000 if self.document is not None else time.monotonic()

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

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call ``function()`` on the page after a while; from the page."""
        self.loop.call_later(seconds, lambda: self.later(function))

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


def settled(
    session: Session, recipe: Recipe, steps: Callable[[], Iterator[Any]]
) -> Callable[[], Iterator[Any]]:
    """Steps that begin with the search for ranges that take the whole network, so that they can be stopped in it."""

    def both() -> Iterator[Any]:
        if session.subject.resolver.coordinates(recipe):
            yield from session.resolve_steps(recipe)
        yield from steps()

    return both


def _count(result: Any, measure: Callable[[Any], tuple[int, int]]) -> tuple[int, int]:
    return (result.done, result.total) if isinstance(result, Resolving) else measure(result)


class Runner:
    """One kind of background work: the latest request wins, the latest result is shown.

    Args:
        name: of the worker.
        publisher: where results go.
        background: whether the work gives way to what a hand waits for.
    """

    def __init__(self, name: str, publisher: Publisher, background: bool = True) -> None:
        self.worker = Worker(name, background)
        self.publisher = publisher
        self._request = 0
        self._job: Job | None = None

    @property
    def progress(self) -> Progress | None:
        """How far the latest request is, with the time left; None before that is known."""
        return self._job.progress if self._job is not None else None

    def start(
        self,
        factory: Callable[[], Iterator[Any]],
        show: Callable[[Any], None],
        done: Callable[[], None],
        failed: Callable[[Exception], None],
        measure: Callable[[Any], tuple[int, int]] | None = None,
    ) -> None:
        """Run ``factory()`` and show its results on the page, unless a newer request has come.

        ``measure`` reads how much is done, and of how much, off a result; for ``progress``.
        """
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
            if isinstance(result, Resolving):
                return
            with gate:
                latest[:] = [result]
            if time.monotonic() - last >= INTERVAL:
                last = time.monotonic()
                current(flush)

        def finish() -> None:
            flush()
            done()

        self._job = self.worker.submit(
            factory,
            on_result,
            lambda: current(finish),
            lambda error: current(lambda: failed(error)),
            None if measure is None else lambda result: _count(result, measure),
        )

    def cancel(self) -> None:
        """Stop, and forget what has not been shown."""
        self._request += 1
        self.worker.cancel()

    def close(self) -> None:
        """Stop for good."""
        self._request += 1
        self.worker.close()
