"""Whoever computes elsewhere, seen from here: tasks go out ahead, answers come back in order.

The executor comes from outside.  All rows of a batch go to one worker, as long as there are batches enough: what the
rows start from is then computed once.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from explorer.errors import JobError
from explorer.graph import Engine
from explorer.graph.ir import digest
from explorer.graph.memory import free_bytes
from explorer.sources import Data
from explorer.study.tasks import Answer, Divisible, Examples, Pieces, Task
from explorer.workers.bench import (
    Bench,
    Here,
    Network,
    Order,
    Portion,
    Reply,
    luggage,
    offer,
    work,
)
from explorer.workers.images import Opening
from explorer.workers.packing import pack, unpack

A = TypeVar("A", bound=Answer)
Span = tuple[int, int]
# A task for a worker should take so many seconds; of rows, one should have so many at least.
_SECONDS, _ROWS = 0.25, 16
# Tasks that are out for each worker, so that it does not wait for the next.
_AHEAD = 2
# Seconds between two looks at whether there is anybody left, and those after which there is not.
_LOOK, _ALONE = 1.0, 30.0
# So often a task is sent again.
_TRIES = 4
LEAST_STORE = 1 << 28


class Promise(Protocol):
    """What becomes of a task; as :class:`concurrent.futures.Future`."""

    def result(self, timeout: float | None = None) -> Any: ...
    def cancel(self) -> Any: ...
    def done(self) -> bool: ...


class Hands:
    """An executor of ``concurrent.futures``, and what must be known of it.

    Args:
        executor: any; its workers may be threads, processes, or other machines.
        count: how many workers there are; None asks the executor.
        budget: bytes for results in each worker; None shares a quarter of what is free among them.

    Raises:
        JobError: for processes that are forked, which hang in torch's threads.
    """

    def __init__(self, executor: Executor, count: int | None = None, budget: int | None = None) -> None:
        context = getattr(executor, "_mp_context", None)
        if context is not None and context.get_start_method() == "fork":
            raise JobError(
                "Processes that are forked hang in torch's threads; give the executor the argument "
                'mp_context=get_context("spawn").'
            )
        self._executor = executor
        self._count = count or getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        self.budget = budget or max(LEAST_STORE, free_bytes() // (4 * self._count))

    @property
    def count(self) -> int:
        """How many workers there are now."""
        return self._count

    @property
    def anybody(self) -> bool:
        """Whether there is anybody to work; where nobody knows, whoever works says when that ends."""
        return True

    def close(self) -> None:
        """Say goodbye; what runs is left to whoever made the executor."""

    # Whether what all workers need can be spread among them.
    spreads = False

    def spread(self, content: bytes) -> Any:
        """Give all workers what they need once; stands for it in later tasks."""
        raise NotImplementedError

    def submit(self, place: int, network: Network, order: bytes, content: Any) -> Promise:
        """Hand out a task.

        Args:
            place: the same number for the same images, where workers have names.
            network: which it is about.
            order: a packed :class:`explorer.workers.bench.Order`.
            content: what workers need once, if that must come along, or what stands for it.
        """
        return self._executor.submit(work, network, order, content)


class Batches(Protocol):
    """Images in a fixed order, batch by batch."""

    size: int
    data: Data

    @property
    def order(self) -> Sequence[int]: ...

    def read(self, start: int, stop: int) -> Examples: ...


class _NobodyError(Exception):
    """There is nobody left who could compute."""


@dataclass(eq=False)
class _Piece:
    """A task that is out.

    Args:
        spans: the batches that it is about.
        rows: which of many networks; none where the question is in one.
        task: what is asked.
        promise: what becomes of it; None where it is left to this process.
        lacks: how many workers that had it lack the network.
        tries: how often it has come to nothing.
    """

    spans: tuple[Span, ...]
    rows: tuple[int, ...]
    task: Task[Any]
    promise: Promise | None = None
    lacks: int = 0
    tries: int = 0


class Crew:
    """Computes tasks about one network with the help of others; what they lose is computed here.

    Args:
        hands: the workers.
        engine: of this process.
        batches: the images.
        opening: how workers get at the images; None sends them along.
        threads: of torch for each task; None as many as whoever asks has.
    """

    def __init__(
        self,
        hands: Hands,
        engine: Engine,
        batches: Batches,
        opening: Opening | None = None,
        threads: int | None = None,
    ) -> None:
        self.hands, self.engine, self.batches, self.threads = hands, engine, batches, threads
        self.opening, self.lost = opening, False
        key = digest(engine.graph.digest, opening.fingerprint if opening is not None else "")
        self.network = Network(key, "", hands.budget)
        self._content: bytes | None = None
        self._shared: Any = None
        self._here = Here.now()
        self._told: set[str] = set()
        # For threads of this process, as long as there is somebody who asks.
        own = replace(opening, data=batches.data) if opening is not None else None
        self._bench = Bench(engine, own)
        offer(key, self._bench)
        self._lock = threading.Lock()

    # -- what is asked ------------------------------------------------------------------------------

    def each(self, task: Task[A], total: int) -> Iterator[A]:
        """The answer of each batch; see :class:`explorer.study.tasks.Elsewhere`."""
        run = _Run(self, total, lambda rows: task, None)
        for group in run.groups():
            for piece in group:
                yield from run.answers(piece)

    def divided(self, question: Divisible, total: int) -> Iterator[Pieces]:
        """The same of a question about many networks."""
        run = _Run(self, total, lambda rows: question.task(rows).settled(), question.open)
        for group in run.groups():
            if len(group) == 1:
                for answer in run.answers(group[0]):
                    yield _only(answer, question.open())
            else:
                parts = (answer for piece in group for answer in run.answers(piece))
                first = next(parts)
                pieces = chain(first.pieces, chain.from_iterable(part.pieces for part in parts))
                yield _only(replace(first, pieces=pieces), question.open())

    # -- what workers need, and what is wrong with them -----------------------------------------------

    def submit(self, piece: _Piece, anew: bool = False) -> None:
        """Hand out a task, or leave it to this process where nobody takes it.

        Args:
            piece: the task.
            anew: what workers have been given is lost, and is given once more.

        Raises:
            JobError: for a task that cannot be sent.
        """
        if self.lost:
            return
        portions = tuple(self._portion(span) for span in piece.spans)
        order = Order(piece.task, portions, self.threads or torch.get_num_threads())
        try:
            packed = pack(order)
        except Exception as error:
            raise JobError(
                f"This question cannot be sent to another process ({type(error).__name__}: {error}); functions and "
                "classes of your own must be in a module that the workers can import."
            ) from error
        place = piece.spans[0][0] // self.batches.size
        if anew:
            self._shared = None
        content = self._shared if self._shared is not None else self._content if piece.lacks > 1 else None
        try:
            if self.hands.spreads and content is None:
                content = self._shared = self.hands.spread(luggage(self.engine.graph, self.opening))
            piece.promise = self.hands.submit(place, self.network, packed, content)
        except Exception as error:  # whatever executors say when they have come to an end
            self.lose(error)

    def _portion(self, span: Span) -> Portion:
        if self.opening is not None:
            return Portion(tuple(self.batches.order[slice(*span)]))
        examples = self.batches.read(*span)
        return Portion(examples.indices, examples.batch.images, examples.labels)

    def supply(self) -> None:
        """Let those have the network who lack it: in a file, and with their next task."""
        with self._lock:
            if self._content is None:
                self._content = luggage(self.engine.graph, self.opening)
                handle, file = tempfile.mkstemp(prefix="explorer-network-")
                with os.fdopen(handle, "wb") as stream:
                    stream.write(self._content)
                weakref.finalize(self, Path(file).unlink, missing_ok=True)
                self.network = replace(self.network, file=file)

    def closed(self, reason: str) -> None:
        """Workers cannot open the images: these come along from now on."""
        self.opening = None
        self._tell(f"The workers cannot open the images by themselves, so these are sent to them: {reason}")

    def lose(self, error: BaseException) -> None:
        """The workers are gone: from now on this process computes."""
        self.lost = True
        why = str(error).rstrip(".") or type(error).__name__
        self._tell(
            f"The workers are gone ({why}). What they have finished stays; this process computes the rest."
        )

    def check(self, here: Here) -> None:
        """Whether what a worker computes is what would be computed here.

        Raises:
            JobError: for a worker with another version of this program or of torch.
        """
        here.check(self._here, "A worker")
        if here.environment != self._here.environment:
            self._tell(
                "A worker has another processor than this one, so that last digits may differ from local runs."
            )

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=3)


def _only(answer: Pieces, open: Iterable[int]) -> Pieces:
    """The answer without the pieces that nobody waits for any more."""
    wanted = set(open)
    return replace(answer, pieces=((number, found) for number, found in answer.pieces if number in wanted))


class _Run:
    """One question on its way: some tasks ahead of what is looked at.

    Args:
        crew: who computes.
        total: how many images the question is about.
        task: what is asked, about some rows where the question is about many.
        open: those rows; None for a question in one.
    """

    def __init__(
        self,
        crew: Crew,
        total: int,
        task: Callable[[Sequence[int]], Task[Any]],
        open: Callable[[], Sequence[int]] | None,
    ) -> None:
        self._crew, self._task, self._open = crew, task, open
        size = crew.batches.size
        self._left = deque((start, min(start + size, total)) for start in range(0, total, size))
        self._out: deque[list[_Piece]] = deque()
        self._now: list[_Piece] = []
        self._seconds: float | None = None
        self._rows: tuple[int, ...] = ()

    def groups(self) -> Iterator[list[_Piece]]:
        """The pieces that belong together, those of the next batches first."""
        try:
            while self._left or self._out:
                self._ahead()
                self._now = self._out.popleft()
                yield self._now
        finally:
            for piece in (*self._now, *chain.from_iterable(self._out)):
                if piece.promise is not None:
                    piece.promise.cancel()

    def _ahead(self) -> None:
        """Hand out tasks until there are enough; what is about rows that are settled is called back."""
        crew = self._crew
        rows = tuple(self._open()) if self._open is not None else ()
        if len(rows) < len(self._rows):
            self._narrow(set(rows))
        self._rows = rows
        while self._left and (not self._out or len(self._pieces) < _AHEAD * crew.hands.count):
            spans = tuple(self._left.popleft() for _ in range(self._bundle()))
            parts = self._parts(rows, len(spans))
            self._out.append([self._send(spans, part) for part in parts])

    @property
    def _pieces(self) -> list[_Piece]:
        return list(chain.from_iterable(self._out))

    def _bundle(self) -> int:
        """How many batches a task takes, so that it is worth its way."""
        if self._seconds is None:
            return 1
        most = len(self._left) // (_AHEAD * self._crew.hands.count)
        return max(1, min(most, int(_SECONDS / max(self._seconds, 1e-6))))

    def _parts(self, rows: tuple[int, ...], batches: int) -> list[tuple[int, ...]]:
        """The rows, cut up where there are more workers than batches, or where nobody has seen anything yet."""
        count, left = self._crew.hands.count, len(self._left) + 1
        wanted = count if self._seconds is None and not self._out else -(-count // left)
        parts = min(wanted, len(rows) // _ROWS) if batches == 1 else 1
        if parts <= 1:
            return [rows]
        return [rows[len(rows) * i // parts : len(rows) * (i + 1) // parts] for i in range(parts)]

    def _send(self, spans: tuple[Span, ...], rows: tuple[int, ...]) -> _Piece:
        piece = _Piece(spans, rows, self._task(rows))
        self._crew.submit(piece)
        return piece

    def _narrow(self, rows: set[int]) -> None:
        """Call back what is not begun and holds rows that are settled, and ask about the others only."""
        waiting = self._pieces[self._crew.hands.count :]
        for piece in waiting:
            kept = tuple(row for row in piece.rows if row in rows)
            promise = piece.promise
            if len(kept) == len(piece.rows) or promise is None or promise.done() or not promise.cancel():
                continue
            piece.rows, piece.task, piece.promise = kept, self._task(kept), None
            self._crew.submit(piece)

    # -- what comes back ------------------------------------------------------------------------------

    def answers(self, piece: _Piece) -> Iterator[Any]:
        """What a task has found, batch by batch; computed here where nobody else does."""
        reply = self._wait(piece)
        if reply is None:
            for span in piece.spans:
                yield piece.task.answer(self._crew.engine, self._crew.batches.read(*span))
            return
        self._seconds = reply.seconds / len(piece.spans)
        yield from reply.answers
        if reply.error is not None:
            kind, text = reply.error
            raise kind(text)

    def _wait(self, piece: _Piece) -> Reply | None:
        """The reply to a task; None where it is left to this process."""
        crew = self._crew
        while piece.promise is not None:
            try:
                content = self._patiently(piece.promise)
            except (BrokenExecutor, CancelledError, _NobodyError) as error:
                piece.promise, piece.tries = None, piece.tries + 1
                if piece.tries < _TRIES and not crew.lost and crew.hands.anybody and crew.hands.spreads:
                    crew.submit(piece, anew=True)
                else:
                    crew.lose(error)
                continue
            except Exception as error:
                raise JobError(f"A worker has failed: {type(error).__name__}: {error}") from error
            if content is None:
                crew.supply()
                self._resend(piece)
                for other in self._lacking():
                    self._resend(other)
                continue
            reply: Reply = unpack(content)
            crew.check(reply.here)
            if not reply.closed:
                return reply
            crew.closed(reply.closed)
            crew.submit(piece)
        return None

    def _resend(self, piece: _Piece) -> None:
        piece.lacks += 1
        self._crew.submit(piece)

    def _lacking(self) -> Iterator[_Piece]:
        """Tasks that came back without the network or have not begun, from before it could be had; called back."""
        if self._crew.hands.spreads:
            return
        for piece in (*self._now, *self._pieces):
            promise = piece.promise
            if promise is None or piece.lacks:
                continue
            with suppress(Exception):  # which is told when its turn comes
                if promise.cancel() or (promise.done() and promise.result(timeout=0) is None):
                    yield piece

    def _patiently(self, promise: Promise) -> Any:
        """The result, waited for as long as there is somebody to give it."""
        alone = 0.0
        while True:
            try:
                return promise.result(timeout=_LOOK)
            except TimeoutError:
                if promise.done():
                    raise
                alone = 0.0 if self._crew.hands.anybody else alone + _LOOK
                if alone >= _ALONE:
                    raise _NobodyError(f"none for {_ALONE:.0f} seconds") from None
