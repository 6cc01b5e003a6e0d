"""A worker's side: a network with an engine of its own, and tasks done on it.

A process keeps the networks that it has worked on last.  One that is not there comes as a file, where both sides see
the same disk, or else with the next task.
"""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import explorer
from explorer.errors import ExplorerError, JobError
from explorer.graph import Batch, Engine, Graph, Plan, Store
from explorer.graph.engine import environment
from explorer.graph.wire import graph_from_bytes, graph_to_bytes
from explorer.sources.reading import read_images
from explorer.study.tasks import Answer, Examples, Task
from explorer.workers.images import Opening
from explorer.workers.packing import pack, plan_for, unpack

# So many networks are kept, plans of each, and bytes of images.
_NETWORKS, _PLANS, _IMAGES = 2, 4096, 1 << 28
# What results depend on besides torch: a worker with other code is told apart by it.
_PARTS = ("formats", "calibrate", "graph", "study", "workers", "scheme.py", "tensor.py")


@dataclass(frozen=True)
class Network:
    """Which network and images a task is about, and where they are if a worker does not have them.

    Args:
        key: a digest of both.
        file: has what :func:`luggage` gives, for those who see the same disk; or nothing.
        budget: bytes of the worker's store for it.
    """

    key: str
    file: str
    budget: int


def luggage(graph: Graph, opening: Opening | None) -> bytes:
    """All that a worker needs once: the network, and where the images are.

    Raises:
        ModelError: for a network with an operator that has no name.
    """
    return pack((graph.digest, graph_to_bytes(graph), opening))


@dataclass(frozen=True, eq=False)
class Portion:
    """One batch for a worker: its images by number, and as they are where the worker cannot open them itself."""

    indices: tuple[int, ...]
    images: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Order:
    """A task for a worker: what is to be computed of some batches.

    Args:
        task: the same for all batches.
        portions: the batches.
        threads: of torch, as many as whoever asks has: a long sum may be cut by their number.
    """

    task: Task[Any]
    portions: tuple[Portion, ...]
    threads: int


@dataclass(frozen=True)
class Here:
    """What results may depend on besides the task: this program, torch, the processor and its kernels."""

    program: str
    torch: str
    environment: str

    @staticmethod
    def now() -> Here:
        """Of this process."""
        return Here(_program(), torch.__version__, environment())

    def check(self, mine: Here, who: str) -> None:
        """Whether what is computed there is what would be computed here.

        Args:
            mine: of the process that asks.
            who: begins the sentence.

        Raises:
            JobError: for another version of this program or of torch.
        """
        if self.torch != mine.torch:
            raise JobError(
                f"{who} has torch {self.torch} and this process {mine.torch}; install the same version there and here."
            )
        if self.program != mine.program:
            raise JobError(f"{who} has another version of this program; install the same one there and here.")


@cache
def _program() -> str:
    root = Path(explorer.__file__).parent
    found = hashlib.blake2b(digest_size=16)
    for part in _PARTS:
        for file in sorted([root / part] if part.endswith(".py") else (root / part).rglob("*.py")):
            found.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Reply:
    """What a worker says.

    Args:
        here: about itself.
        answers: one for each batch, as far as it came.
        error: what went wrong then: a class of error and its sentence.
        closed: why it cannot open the images by itself.
        seconds: that the answers took.
    """

    here: Here
    answers: tuple[Answer, ...] = ()
    error: tuple[type[ExplorerError], str] | None = None
    closed: str = ""
    seconds: float = 0.0


class Bench:
    """A network in this process, with what belongs to it.

    Args:
        engine: with the graph and a store.
        opening: its images; None where they come along.
    """

    def __init__(self, engine: Engine, opening: Opening | None) -> None:
        self.engine, self._opening, self._open = engine, opening, False
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._held: dict[tuple[int, ...], Examples] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def plan(self, key: str, parts: Any) -> Plan:
        """A plan of what was sent of it, worked out once."""
        with self._lock:
            found = self._plans.get(key)
            if found is None:
                found = self._plans[key] = plan_for(self.engine.graph, parts)
            self._plans.move_to_end(key)
            while len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
            return found

    def open(self) -> None:
        """Open the images.

        Raises:
            DataError: when they are not there, or are others.
        """
        with self._lock:
            if self._opening is not None and not self._open:
                self._opening.check()
                self._open = True

    def examples(self, portion: Portion) -> Examples:
        """A batch; those that were read last are kept while they are few.

        Raises:
            DataError: when an image cannot be read.
        """
        indices = portion.indices
        if portion.images is not None:
            return Examples(Batch.of(portion.images), portion.labels, indices)
        with self._lock:
            if indices in self._held:
                return self._held[indices]
        assert self._opening is not None
        read = read_images(self._opening.data, indices)
        found = Examples(Batch.of(read.images), read.labels, indices)
        size = read.images.numel() * read.images.element_size()
        with self._lock:
            if self._bytes + size <= _IMAGES:
                self._held[indices] = found
                self._bytes += size
        return found


# Of this process: networks that it has as a worker, and those of sessions in it.
_kept: OrderedDict[str, Bench] = OrderedDict()
_present: weakref.WeakValueDictionary[str, Bench] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def offer(key: str, bench: Bench) -> None:
    """Let workers that are threads of this process use the network that is already here."""
    _present[key] = bench


def _bench(network: Network, content: bytes | None) -> Bench | None:
    """The network, or None where it is nowhere to be had."""
    with _lock:
        found = _present.get(network.key) or _kept.get(network.key)
        if found is not None:
            return found
        if content is None:
            try:
                content = Path(network.file).read_bytes() if network.file else None
            except OSError:
                content = None
        if content is None:
            return None
        name, graph, opening = unpack(content)
        engine = Engine(graph_from_bytes(graph, name), Store(network.budget))
        found = _kept[network.key] = Bench(engine, opening)
        while len(_kept) > _NETWORKS:
            _kept.popitem(last=False)
        return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def work(network: Network, order: bytes, content: bytes | None = None) -> bytes | None:
    """Do a task: the one function that executors are given.

    Args:
        network: which it is about.
        order: a packed :class:`Order`.
        content: the network, for a worker that may not have it.

    Returns:
        A packed :class:`Reply`; None where the worker lacks the network.
    """
    bench = _bench(network, content)
    if bench is None:
        return None
    asked: Order = unpack(order, bench.plan)
    with _threads(asked.threads):
        return pack(_reply(bench, asked))


def _reply(bench: Bench, order: Order) -> Reply:
    begun = time.perf_counter()
    if order.portions[0].images is None:
        try:
            bench.open()
        except ExplorerError as error:
            return Reply(Here.now(), closed=str(error))
    answers: list[Answer] = []
    problem = None
    try:
        for portion in order.portions:
            answers.append(order.task.answer(bench.engine, bench.examples(portion)).settled())
    except ExplorerError as error:
        problem = type(error), str(error)
    return Reply(Here.now(), tuple(answers), problem, seconds=time.perf_counter() - begun)
