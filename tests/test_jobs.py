"""Jobs under many hands: the last request is answered, one at a time, the cancelled are silent, threads shared."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import explorer as qx
from explorer import hand
from explorer.errors import JobError
from explorer.hand import HAND, Hand
from explorer.jobs import SHARE, Pace, Progress, Worker
from tests.loops import elsewhere
from tests.small import images, tiny

SECONDS = 30


class Told:
    """A request that notes what it is told, and when two run at once in its worker."""

    def __init__(self, busy: list[int], fails: bool = False) -> None:
        self.busy, self.fails = busy, fails
        self.heard: list[str] = []
        self.silent = False
        self.broken: list[str] = []

    def __call__(self):
        self.busy.append(1)
        if len(self.busy) > 1:
            self.broken.append("two jobs at once")
        try:
            yield from range(3)
            if self.fails:
                raise ValueError("no more")
        finally:
            self.busy.pop()

    def hear(self, what: str) -> None:
        if self.silent:
            self.broken.append(f"{what} after cancel() has returned True")
        self.heard.append(what)

    def submit(self, worker: Worker):
        return worker.submit(
            self, lambda n: self.hear("result"), lambda: self.hear("done"), lambda e: self.hear("error")
        )


@pytest.mark.parametrize("seed", range(8))
def test_the_last_request_of_every_worker_is_answered_whoever_asks(seed):
    draw = random.Random(seed)
    workers = [Worker(f"worker {number}") for number in range(4)]
    busy: list[list[int]] = [[] for _ in workers]
    asked: list[list[Told]] = [[] for _ in workers]
    last: list = [None] * len(workers)
    order = [threading.Lock() for _ in workers]

    def user(draw: random.Random) -> None:
        for _ in range(40):
            at = draw.randrange(len(workers))
            told = Told(busy[at], fails=draw.random() < 0.3)
            with order[at]:  # so that it is known which request was the last
                job = told.submit(workers[at])
                asked[at].append(told)
                last[at] = (told, job)
            if draw.random() < 0.3:
                told.silent = job.cancel()

    users = [threading.Thread(target=user, args=(random.Random(draw.random()),)) for _ in range(5)]
    for each in users:
        each.start()
    for each in users:
        each.join(SECONDS)
    for worker, (told, job) in zip(workers, last, strict=True):
        assert job.wait(SECONDS)
        assert job.cancelled or told.heard[-1] == ("error" if told.fails else "done")
        worker.close()
    for told in (each for requests in asked for each in requests):
        assert not told.broken
        assert sum(what != "result" for what in told.heard) <= 1


def test_a_callback_may_ask_for_the_next_job():
    worker, heard, over = Worker("test"), [], threading.Event()

    def again() -> None:
        worker.submit(lambda: iter([2]), heard.append, over.set)

    worker.submit(lambda: iter([1]), heard.append, again)
    assert over.wait(SECONDS) and heard == [1, 2]
    worker.close()


def test_cancel_tells_whether_a_callback_is_running():
    worker, inside, go = Worker("test"), threading.Event(), threading.Event()
    heard = []

    def slow(number: int) -> None:
        inside.set()
        assert go.wait(SECONDS)
        heard.append(number)

    job = worker.submit(lambda: iter([1, 2]), slow, lambda: heard.append("done"))
    assert inside.wait(SECONDS)
    assert worker.cancel() is False and not worker.busy
    go.set()
    assert job.wait(SECONDS) and heard == [1] and job.cancel() is True
    worker.close()


def test_a_generator_that_is_left_ends_at_once():
    worker, ended, first = Worker("test"), threading.Event(), threading.Event()
    go = threading.Event()

    def steps():
        try:
            yield 1
            go.wait(SECONDS)
            yield 2
        finally:
            ended.set()

    job = worker.submit(steps, lambda n: first.set())
    assert first.wait(SECONDS)
    job.cancel()
    go.set()
    assert ended.wait(SECONDS) and job.wait(SECONDS)
    worker.close()


class StillHand(Hand):
    """One that is at it for as long as the test says, and notes who rests."""

    def __init__(self) -> None:
        super().__init__()
        self.at_it = threading.Event()
        self.rested: list[str] = []

    def breathe(self) -> None:
        cancelled = self._here.cancelled
        if cancelled is None:
            return
        self.rested.append(threading.current_thread().name)
        while self.at_it.is_set() and not cancelled():
            threading.Event().wait(0.001)


def test_work_in_the_background_rests_while_a_hand_moves_and_what_the_hand_waits_for_does_not(monkeypatch):
    still = StillHand()
    monkeypatch.setattr("explorer.jobs.HAND", still)
    still.at_it.set()
    patient, prompt = Worker("patient", background=True), Worker("prompt")
    seen, first = [], threading.Event()
    waiting = patient.submit(lambda: iter(range(3)), lambda n: (seen.append(n), first.set()))
    assert first.wait(SECONDS)
    assert prompt.submit(lambda: iter([7, 8]), seen.append).wait(SECONDS)
    assert seen == [0, 7, 8] and still.rested == ["patient"]
    # A newer request does not wait for the hand either: the one that rests is over.
    still.rested.clear()
    newer = patient.submit(lambda: iter([9]), seen.append)
    assert waiting.wait(SECONDS) and waiting.cancelled and not newer.cancelled
    still.at_it.clear()
    assert newer.wait(SECONDS) and seen == [0, 7, 8, 9]
    patient.close()
    prompt.close()


class Clock:
    """Time that passes in sleep only."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, 0.0
        self.woken = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        self.woken()

    def spent(self) -> float:
        """Seconds slept since this was asked."""
        slept, self.slept = self.slept, 0.0
        return slept


def test_only_work_in_the_background_stops_when_the_process_ends():
    one = Hand()
    one.leave()
    one.breathe()
    with one.background(lambda: False), pytest.raises(hand.Leaving):
        one.breathe()


def test_a_rest_ends_when_the_hand_does_and_never_lasts(monkeypatch):
    clock, one = Clock(), Hand()
    monkeypatch.setattr(hand, "time", clock)
    one.moves()
    one.breathe()
    assert clock.spent() == 0, "somebody waits for this thread"
    with one.background(lambda: clock.slept > limit):
        limit = math.inf
        one.breathe()
        assert clock.spent() == pytest.approx(hand.QUIET, abs=0.05)
        one.breathe()
        assert clock.spent() == 0, "it is still"
        one.moves()
        limit = 0.1
        one.breathe()
        assert clock.spent() == pytest.approx(0.1, abs=0.05)
        limit, clock.woken = math.inf, one.moves
        one.breathe()
        assert clock.spent() == pytest.approx(hand.REST, abs=0.05)
        one.breathe()
        assert clock.spent() == 0, "it works for as long as it has rested"
        clock.now += hand.REST
        one.moves()
        one.breathe()
        assert clock.spent() == pytest.approx(hand.REST, abs=0.05)
    one.moves()
    one.breathe()
    assert clock.spent() == 0


@pytest.mark.parametrize("study", ["evaluate", "sensitivity"])
def test_work_in_the_background_rests_in_the_middle_of_a_batch(monkeypatch, study):
    session = qx.Session(tiny(), data=images(), store_bytes=1 << 24)
    steps = {
        "evaluate": lambda: session.evaluate_steps("int8_dynamic"),
        "sensitivity": lambda: session.sensitivity_steps(method="instant"),
    }[study]
    clock = Clock()
    monkeypatch.setattr(hand, "time", clock)
    with HAND.background(lambda: False):
        HAND.moves()
        next(iter(steps()))
    assert clock.spent() == pytest.approx(hand.QUIET, abs=0.05)


def test_nothing_that_a_job_does_ends_the_worker(caplog):
    worker, errors, seen = Worker("test"), [], []

    def leaves():
        yield 1
        raise SystemExit(3)

    def refuses(error: Exception) -> None:
        raise RuntimeError("nobody listens")

    assert worker.submit(leaves, seen.append, on_error=errors.append).wait(SECONDS)
    assert isinstance(errors[0], JobError) and "SystemExit(3)" in str(errors[0])
    assert worker.submit(leaves, seen.append, on_error=refuses).wait(SECONDS)
    assert "could not be reported" in caplog.text
    assert worker.submit(lambda: iter([2]), seen.append).wait(SECONDS)
    assert seen == [1, 1, 2]
    worker.close()


def test_pace_is_the_median_of_the_latest_steps():
    clock = iter([100.0, 130.0, 132.0, 134.0, 154.0, 156.0])
    pace = Pace(lambda: next(clock))
    assert pace.step(10, 100) == Progress(10, 100, 30.0, None)
    assert pace.step(20, 100).left == pytest.approx(16)
    assert pace.step(30, 100).left == pytest.approx(14)
    assert pace.step(40, 100).left == pytest.approx(12), "one slow step changes little"
    assert pace.step(100, 100) == Progress(100, 100, 56.0, 0.0)


def test_a_job_tells_how_far_it_is():
    session = qx.Session(tiny(), data=images(), store_bytes=1 << 24)
    worker, seen = Worker("test"), []
    job = worker.submit(session.evaluate_steps, seen.append, measure=lambda e: (e.images, e.total_images))
    assert job.wait(SECONDS)
    assert (job.progress.done, job.progress.total, job.progress.left) == (90, 90, 0.0)
    worker.close()


@pytest.fixture
def four_threads():
    """torch with four threads in this one, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_threads_are_shared_and_given_back(four_threads):
    workers = [Worker(f"worker {number}") for number in range(3)]
    turns = [threading.Semaphore(0) for _ in workers]
    found: list[list[int]] = [[] for _ in workers]
    stepped = [threading.Semaphore(0) for _ in workers]

    def steps(at: int):
        while True:
            turns[at].acquire(timeout=SECONDS)
            yield torch.get_num_threads()

    def turn(at: int) -> int:
        # What a job was given shows at the batch after the border.
        for _ in range(2):
            turns[at].release()
            assert stepped[at].acquire(timeout=SECONDS)
        return found[at][-1]

    def hear(at: int, threads: int) -> None:
        found[at].append(threads)
        stepped[at].release()

    def start(at: int):
        return workers[at].submit(lambda: steps(at), lambda n: hear(at, n))

    jobs = [start(0)]
    assert turn(0) == 4
    jobs.append(start(1))
    assert (turn(1), turn(0)) == (2, 2)
    jobs.append(start(2))
    assert (turn(2), turn(1), turn(0)) == (1, 1, 1)
    for at in (1, 2):
        jobs[at].cancel()
        turns[at].release()
        assert jobs[at].wait(SECONDS)
    assert turn(0) == 4 and SHARE.threads == 4
    jobs[0].cancel()
    turns[0].release()
    assert jobs[0].wait(SECONDS)
    assert torch.get_num_threads() == 4
    fresh: list[int] = []
    reader = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    reader.start()
    reader.join(SECONDS)
    assert fresh == [4]
    for worker in workers:
        worker.close()


def test_numbers_do_not_depend_on_the_number_of_threads(four_threads):
    """Sums are split otherwise, so the last digits differ; all that is counted is the same."""
    subject = qx.Session(tiny(), data=images(), store_bytes=1 << 24).subject
    found = []
    for threads in (4, 1):
        torch.set_num_threads(threads)
        subject.engine.store.clear()
        found.append(qx.Session(subject=subject).evaluate("int8_dynamic"))
    many, one = found
    assert (many.top1, many.won, many.lost, many.bops) == (one.top1, one.won, one.lost, one.bops)
    assert many.kl == pytest.approx(one.kl, rel=1e-3)
    assert many.output_sqnr_db == pytest.approx(one.output_sqnr_db, abs=1e-2)


def test_a_browser_that_leaves_is_no_error(caplog):
    """A write that failed because the browser has gone is not reported; anything else is."""
    runs = pytest.importorskip("explorer.views.runs")
    from tornado.websocket import WebSocketClosedError

    async def fails(error: Exception) -> None:
        raise error

    async def lose(error: Exception) -> None:
        asyncio.ensure_future(fails(error))  # noqa: RUF006 - to be lost is what it is for
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    for _ in range(2):
        runs.ignore_departures(loop)
    elsewhere(lambda: loop.run_until_complete(lose(WebSocketClosedError())))
    gc.collect()
    assert "never retrieved" not in caplog.text
    elsewhere(lambda: loop.run_until_complete(lose(ValueError("a mistake"))))
    gc.collect()
    assert "a mistake" in caplog.text
    loop.close()


def test_messages_go_out_in_the_order_in_which_they_were_made() -> None:
    runs = pytest.importorskip("explorer.views.runs")
    from bokeh.document import Document
    from bokeh.protocol import Protocol
    from panel.io import document as panels
    from tornado.locks import Lock

    class Wire:
        """The browser's end of a connection."""

        def __init__(self) -> None:
            self.got: list[str] = []

        def is_closing(self) -> bool:
            return False

        def write_message(self, message: str, binary: bool = False) -> asyncio.Future[None]:
            self.got.append(message)
            return asyncio.ensure_future(asyncio.sleep(0))

    class Browser:
        def __init__(self, page: Document) -> None:
            self.session, self._socket, self.protocol = (
                SimpleNamespace(document=page),
                runs.WSHandler.__new__(runs.WSHandler),
                self,
            )
            self._socket.__dict__.update(connection=self, write_lock=Lock(), ws_connection=Wire())
            self.made: list[str] = []

        def create(self, kind: str, events: list[Any]) -> Any:
            message = Protocol().create("ACK")
            self.made.append(message.header_json)
            return message

        def bokehs(self) -> Any:
            # As the handler that it is in: it is not waited for yet.
            return self._socket.send_message(self.create("", []))

        def panels(self, page: Document) -> None:
            # When the connection is taken; else it writes at once.
            if self._socket.write_lock._block._value:
                panels.write_events(page, [self], [None])
                return
            panels.schedule_write_events(page, [self], [None])

    async def race() -> tuple[list[str], list[str]]:
        page = Document()
        browser = Browser(page)
        # As a handler does it: what is Bokeh's is waited for at its end, what is Panel's is not.
        pending = [browser.bokehs()]
        browser.panels(page)
        pending.append(browser.bokehs())
        browser.panels(page)
        browser.panels(page)
        for each in pending:
            await each
        browser.panels(page)
        last = browser.bokehs()
        await last
        for _ in range(20):
            await asyncio.sleep(0.005)
        got = [text for text in browser._socket.ws_connection.got if "msgid" in text]
        return browser.made, got

    runs.send_in_order()
    sends = runs.WSHandler.send_message
    runs.send_in_order()
    assert runs.WSHandler.send_message is sends
    made, got = elsewhere(lambda: asyncio.run(race()))
    assert len(made) == 7 and got == made


LEAVES = """
import time, torch
from explorer.jobs import Worker

def steps():
    try:
        while True:
            torch.nn.functional.conv2d(torch.ones(8, 16, 64, 64), torch.ones(16, 16, 3, 3))
            yield
    finally:
        print("ended", flush=True)

begun = []
Worker("left").submit(steps, begun.append)
while not begun:
    time.sleep(0.01)
"""


def test_a_process_that_ends_ends_its_jobs_first() -> None:
    """A thread in the middle of torch's code would end the process with an abort."""
    run = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "ended\n", "")
