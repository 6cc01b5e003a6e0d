"""Workers: what a sweep gains by a second one, what the first one loses, and what goes over the wire.

Every process computes with one thread, the asking one too, so a machine with two cores and nothing else to do has room
for two workers; the asking process waits meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import pandas as pd
import torch

import explorer as qx
from benchmarks.table import Line, timed
from explorer.sources import ZOO
from explorer.subject import make_subject
from explorer.workers import Hands
from explorer.workers.bench import luggage

MODELS = ("fashion-resnet20", "fashion-mobilenet")
FORMATS = ("int8", "int4", "int2")
EFFICIENT = 0.9
ROUNDS = 2


class Counting(Hands):
    """Workers of which it is known what went to them and what came back."""

    def __init__(self, executor: Executor, count: int) -> None:
        super().__init__(executor, count)
        self.tasks = self.sent = self.received = 0

    def submit(self, place: int, network: Any, order: bytes, content: Any) -> Any:
        self.tasks += 1
        self.sent += len(order)
        promise = super().submit(place, network, order, content)
        assert isinstance(promise, Future)
        promise.add_done_callback(self._came)
        return promise

    def _came(self, promise: Future[Any]) -> None:
        if not promise.cancelled() and promise.exception() is None:
            self.received += len(promise.result() or b"")


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """For each network: efficiency of two workers, of one against this process, and bytes for each task."""
    models = MODELS if options.models == list(ZOO) else options.models
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    try:
        with ExitStack() as stack:
            pools = {n: stack.enter_context(ProcessPoolExecutor(n, mp_context=context)) for n in (1, 2)}
            for model in models:
                yield from _lines(model, options.images, pools)
    finally:
        torch.set_num_threads(before)


def _lines(model: str, images: int, pools: dict[int, ProcessPoolExecutor]) -> Iterator[Line]:
    _sweep(model, 0, 50, None)  # warms up this process
    seconds, tables, hands = dict[int, float](), dict[int, pd.DataFrame](), dict[int, Counting]()
    for count, pool in pools.items():
        _sweep(model, 0, 200 * count, Counting(pool, count))  # starts and warms up the workers
    # Another order of images in each round, so that no store holds what is asked for.
    for seed in range(1, ROUNDS + 1):
        for count in (0, *pools):
            hands[count] = Counting(pools[count], count) if count else None  # type: ignore[assignment]
            took, tables[count] = _sweep(model, seed, images, hands[count])
            seconds[count] = min(took, seconds.get(count, took))
        assert all(table.equals(tables[0]) for table in tables.values()), "workers give other results"
    rows = len(tables[0])
    rate = {count: images * rows / took for count, took in seconds.items()}
    two = hands[2]
    yield Line(
        f"{model}: efficiency of two workers",
        seconds[1] / (2 * seconds[2]),
        f">{EFFICIENT:g}",
        f"{rows} rows, {images:,} images; images/s of rows: here {rate[0]:,.0f}, one {rate[1]:,.0f}, "
        f"two {rate[2]:,.0f}",
    )
    yield Line(
        f"{model}: one worker, times as long as here", seconds[1] / seconds[0], None, f"{seconds[1]:.1f} s"
    )
    session = qx.Session(subject=make_subject(model, store_bytes=1 << 28))
    network = len(luggage(session.graph, None))
    yield Line(
        f"{model}: bytes to a worker for each task",
        f"{two.sent // two.tasks:,}",
        None,
        f"{two.tasks} tasks; back {two.received // two.tasks:,}; the network, once a worker, {network:,}",
    )


def _sweep(model: str, seed: int, images: int, hands: Counting | None) -> tuple[float, pd.DataFrame]:
    """The seconds of an exact sweep with nothing in any store, and its table."""
    session = qx.Session(
        subject=make_subject(model, store_bytes=1 << 30, seed=seed, executor=hands), recipe="w8a8"
    )
    session.plan()
    return timed(lambda: session.sensitivity(FORMATS, images=images))
