"""Workers beyond this process: the same answers to the last bit, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import explorer as qx
from explorer.cli import main
from explorer.errors import DataError, JobError, ModelError, TensorError
from explorer.formats import FORMATS, QParams
from explorer.graph import Engine, Store
from explorer.graph.ir import Graph
from explorer.graph.wire import _header, graph_from_bytes, graph_to_bytes
from explorer.recipe import PRESETS
from explorer.sources import load_data
from explorer.study import METHODS
from explorer.study.shown import Told
from explorer.subject import Stream
from explorer.workers import Crew, Hands, cluster, connect, hands_of
from explorer.workers.packing import pack, plan_for, unpack
from tests.nets import SHAPES, captured
from tests.small import images, tiny

# What differs from report to report: the names of the places of its figures, and the minute.
REPORTED = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\bp\d+\b|\d{4}-\d\d-\d\d \d\d:\d\d UTC")

COUNT = 90


# -- what goes over the wire ----------------------------------------------------------------------


@pytest.mark.parametrize("build", SHAPES)
def test_a_graph_arrives_as_it_was(build):
    graph = captured(build)
    there = graph_from_bytes(graph_to_bytes(graph), graph.digest)
    assert there.layers == graph.layers and there.sources == graph.sources
    for one, other in zip(graph.nodes, there.nodes, strict=True):
        assert vars(one) | {"kwargs": dict(one.kwargs)} == vars(other) | {"kwargs": dict(other.kwargs)} or (
            one.target is other.target and one.args == other.args and one.signature == other.signature
        )
    for name, tensor in graph.constants.items():
        other = there.constants[name]
        assert (
            torch.equal(tensor, other) and tensor.stride() == other.stride() and tensor.dtype == other.dtype
        )


def changed(graph: Graph, **fields: Any) -> Graph:
    """The graph with another first node."""
    return replace(graph, nodes=(replace(graph.nodes[0], **fields), *graph.nodes[1:]))


def test_what_has_no_name_is_not_sent():
    graph = captured(next(iter(SHAPES)))
    with pytest.raises(ModelError, match="is no operator of torch that has a name"):
        graph_to_bytes(changed(graph, target=lambda x: x))
    with pytest.raises(ModelError, match="which cannot go to another process"):
        graph_to_bytes(changed(graph, args=(object(),)))


def test_bytes_that_are_damaged_or_ask_for_something_else_are_refused():
    graph = captured(next(iter(SHAPES)))
    content = graph_to_bytes(graph)
    with pytest.raises(ModelError, match="did not arrive whole: its digest is another one"):
        graph_from_bytes(content, "another")
    for damaged in (content[:-4], content[:40], b"", content[:8] + b"[" + content[9:]):
        with pytest.raises(ModelError, match="did not arrive whole"):
            graph_from_bytes(damaged, graph.digest)
    # A name that is no operator is looked up nowhere else.
    tensors, head = safetensors.torch.load(content), json.loads(_header(content)["graph"])
    for name in (
        "plain:eval",
        "torch:os.system.default",
        "torch:aten.nothing.default",
        "os:system",
        "torch:aten",
    ):
        head["nodes"][0]["target"] = name
        wrong = safetensors.torch.save(tensors, {"graph": json.dumps(head)})
        with pytest.raises(ModelError, match="is not known in the process"):
            graph_from_bytes(wrong, graph.digest)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]
)
def test_tensors_arrive_with_their_layout(dtype):
    plain = torch.arange(24).reshape(2, 3, 4) % 2
    for tensor in (plain, plain.permute(2, 0, 1), plain[:, 1:], plain[:0], plain[0, 0, 0]):
        tensor = tensor.to(dtype)
        found = unpack(pack(tensor))
        assert found.dtype == dtype and torch.equal(found.float(), tensor.float())
        if tensor.is_contiguous() or tensor.shape == (4, 2, 3):
            assert found.stride() == tensor.stride()


def test_formats_arrive_as_themselves():
    for number in FORMATS.values():
        assert unpack(pack(number)) is number
    params = QParams.of_levels(torch.tensor([[0.0, 1.0]]))
    assert torch.equal(unpack(pack(params)).book.levels, params.book.levels)


@pytest.fixture(scope="module")
def data():
    return images(COUNT)


@pytest.fixture(scope="module")
def small_batches():
    """Batches of ten images, so that there is something to share out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "batch_size", lambda self: 10)
        yield


@pytest.fixture(scope="module")
def local(data, small_batches):
    return qx.Session(tiny(), data=data, store_bytes=1 << 24)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_plan_is_worked_out_the_same_from_what_is_sent_of_it(local, preset):
    plan = local.plan(qx.Recipe.preset(preset))
    graph = local.graph
    made = []

    def planner(key: str, parts: Any) -> Any:
        made.append(key)
        return plan_for(graph, parts)

    there = unpack(pack((plan, plan)), planner)[0]
    assert there.keys == plan.keys and made[0] == plan.keys[graph.output]
    assert set(there.params) == set(plan.params) and set(there.weights) == set(plan.weights)


def beside(session: qx.Session, executor: Executor, data: Any = None) -> qx.Session:
    """A session on the same network with workers, which has computed nothing yet."""
    subject = session.subject
    engine = Engine(subject.graph, Store(1 << 24))
    stream = subject.evaluation if data is None else Stream(data, 10, 0)
    crew = None if executor is None else Crew(hands_of(executor), engine, stream)
    return qx.Session(subject=replace(subject, engine=engine, evaluation=stream, elsewhere=crew))


# -- the same answers -----------------------------------------------------------------------------

QUESTIONS: dict[str, Callable[[qx.Session], Iterator[Any]]] = {
    "evaluate": lambda s: s.evaluate_steps("w4a4"),
    "narrow": lambda s: s.evaluate_steps("w4a8", interval=1.5),
    "compare": lambda s: s.compare_steps("w4a4", "w8a8"),
    "diagnose": lambda s: s.diagnose_steps("w4a4"),
    **{
        name: lambda s, name=name: s.sensitivity_steps(
            ["int6", "int3", "int2"] if METHODS[name].formats else None, method=name
        )
        for name in METHODS
    },
}


def same(one: Any, other: Any) -> bool:
    return bool(one == other) if isinstance(one, Told) else one.equals(other)


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def answers(local):
    """What the local session says to each question, asked once."""
    return {name: list(question(local)) for name, question in QUESTIONS.items()}


@pytest.fixture(scope="module")
def far(local, processes):
    return beside(local, processes)


@pytest.mark.parametrize("name", QUESTIONS)
def test_other_processes_give_the_same_answers_to_the_last_bit(answers, far, name):
    found = list(QUESTIONS[name](far))
    assert same(found[-1], answers[name][-1])
    if name in ("evaluate", "narrow", "compare"):
        assert len(found) == len(answers[name]) and all(map(same, found, answers[name]))
    assert not far.subject.elsewhere.lost


def among_two(outputs, targets):
    """A metric of one's own, which workers import from here."""
    return (outputs.topk(2).indices == targets[:, None]).any(1).float()


def test_a_metric_of_ones_own_is_measured_by_workers(data, processes, small_batches):
    alone = qx.Session(tiny(), data=data, metric=among_two)
    session = qx.Session(tiny(), data=data, metric=among_two, executor=processes)
    assert same(session.evaluate("w4a4"), alone.evaluate("w4a4"))
    assert session.sensitivity(["int4"]).equals(alone.sensitivity(["int4"]))
    lost = qx.Session(tiny(), data=data, metric=lambda o, t: among_two(o, t), executor=processes)
    with pytest.raises(JobError, match="in a module that the workers can import"):
        lost.evaluate("w4a4")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_give_the_same_answers_to_the_last_bit(local, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ThreadPoolExecutor(3) as pool:
            near, alone = beside(local, pool), beside(local, None)
            for name in ("evaluate", "live", "leave_one_out"):
                assert same(list(QUESTIONS[name](near))[-1], list(QUESTIONS[name](alone))[-1])
            assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


def test_a_network_is_sent_once_and_images_that_a_worker_can_open_are_not(tmp_path, processes, monkeypatch):
    """Of a folder and of a file the numbers of images go out, of arrays the images themselves."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 6, 6), dtype=np.uint8)
    labels = np.arange(40) % 4
    for index, image in enumerate(pixels):
        folder = tmp_path / "folder" / str(labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:02}.png")
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    arrays = (torch.from_numpy(pixels)[:, None] / 255.0, torch.from_numpy(labels))
    sizes = {}
    for name, where in {
        "folder": tmp_path / "folder",
        "file": tmp_path / "images.npz",
        "arrays": arrays,
    }.items():
        sent = []
        spent = {"preprocess": "channels=1"} if name == "folder" else {}
        session = qx.Session(tiny(), data=where, executor=processes, **spent)
        alone = qx.Session(subject=replace(session.subject, elsewhere=None))
        hands = session.subject.elsewhere.hands
        submit = hands.submit
        monkeypatch.setattr(
            hands, "submit", lambda *a, submit=submit, sent=sent: sent.append((len(a[2]), a[3])) or submit(*a)
        )
        for recipe in ("w4a8", "w8a8"):
            assert session.evaluate(recipe) == alone.evaluate(recipe)
        assert all(content is None for _, content in sent), "a file is enough on one machine"
        sizes[name] = min(size for size, _ in sent)
    assert sizes["folder"] == sizes["file"] < sizes["arrays"] - 4 * 36


def test_images_that_workers_cannot_open_are_sent(tmp_path, processes):
    pixels = np.random.default_rng(1).integers(0, 255, (40, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(40) % 4)
    session = qx.Session(tiny(), data=tmp_path / "images.npz", executor=processes)
    alone = qx.Session(subject=replace(session.subject, elsewhere=None))
    np.savez(tmp_path / "images.npz", images=pixels[::-1], labels=np.arange(40) % 4)
    with pytest.warns(
        RuntimeWarning, match="cannot open the images by themselves, so these are sent to them: The"
    ):
        found = session.evaluate("w4a8")
    assert found == alone.evaluate("w4a8")


# -- calling back, closing, failing ----------------------------------------------------------------


class ByHand(Executor):
    """Does the oldest task when somebody has waited a moment, in a thread of its own; knows what it was asked."""

    def __init__(self, workers: int = 2) -> None:
        self._max_workers = workers
        self.futures: list[Future] = []
        self.done = 0
        self.go = threading.Event()
        self.over, self.pause = False, 0.0
        self._tasks: list[tuple] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.futures.append(future)
        self._tasks.append((future, fn, args))
        return future

    def _work(self) -> None:
        while not self.over:
            self.go.wait(0.05)
            if not (self.go.is_set() and self._tasks):
                time.sleep(0.001)  # else it would take all of the other threads' time
                continue
            time.sleep(self.pause)
            future, fn, args = self._tasks.pop(0)
            if future.set_running_or_notify_cancel():
                self.done += 1
                try:
                    future.set_result(fn(*args))
                except BaseException as error:
                    future.set_exception(error)

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.over = True
        self.go.set()
        self._thread.join()


@pytest.fixture
def by_hand():
    with ByHand() as executor:
        executor.go.set()
        yield executor


def test_a_question_that_is_dropped_calls_its_tasks_back(local, by_hand):
    session = beside(local, by_hand)
    by_hand.pause = 0.05  # all may not be done before the question is dropped
    for steps in (session.evaluate_steps("w4a4"), session.sensitivity_steps(["int4"])):
        by_hand.futures.clear()
        next(steps)
        by_hand.go.clear()
        steps.close()
        waiting = [future for future in by_hand.futures if not future.done()]
        assert all(future.running() for future in waiting) and len(waiting) <= 1
        assert any(future.cancelled() for future in by_hand.futures)
        by_hand.go.set()


def test_rows_that_are_settled_are_called_back(local, by_hand, monkeypatch):
    # Otherwise nothing of so small a network is estimated.
    monkeypatch.setattr("explorer.study.instant._WORK", 0)
    data = load_data(images(600))
    want = beside(local, None, data).sensitivity(["int8", "int2"], method="live")
    found = beside(local, by_hand, data).sensitivity(["int8", "int2"], method="live")
    assert found.equals(want) and (found["images"] < 600).any()
    assert any(future.cancelled() for future in by_hand.futures)


def test_what_is_wrong_is_said_as_here(local, data, by_hand):
    x, labels = data
    beyond = {"format": "fp8_e4m3", "overflow": "infinity", "objective": "clip:0.01"}
    for recipe, wrong, kind in (
        (qx.Recipe.preset("w8a8"), load_data((x, labels + 3)), DataError),
        (qx.Recipe.preset("w8a8").with_layer("*", weight=beyond), None, TensorError),
    ):
        texts = []
        for executor in (None, by_hand):
            with pytest.raises(kind) as told:
                beside(local, executor, wrong).evaluate(recipe)
            texts.append(str(told.value))
        assert texts[0] == texts[1]


def test_a_task_that_fails_otherwise_is_an_error_of_ours(local, by_hand):
    session = beside(local, by_hand)
    session.subject.elsewhere.hands.submit = lambda *a: by_hand.submit(lambda: 1 // 0)
    with pytest.raises(JobError, match="A worker has failed: ZeroDivisionError"):
        session.evaluate("w8a8")


def test_a_worker_of_another_version_is_refused_and_one_of_another_processor_is_said(local, by_hand):
    session = beside(local, by_hand)
    crew = session.subject.elsewhere
    here = crew._here
    for field, text in (("torch", "has torch"), ("program", "another version of this program")):
        crew._here = replace(here, **{field: "other"})
        with pytest.raises(JobError, match=text):
            session.evaluate("w8a8")
    crew._here = replace(here, environment="other")
    with pytest.warns(RuntimeWarning, match="another processor"):
        session.evaluate("w8a8")


def test_executors_that_do_not_fit_are_refused(data):
    with pytest.raises(JobError, match=r"one of concurrent\.futures or a Dask client, not int"):
        qx.Session(tiny(), data=data, executor=2)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
        pytest.raises(JobError, match="Processes that are forked hang"),
    ):
        hands_of(pool)
    hands = Hands(ThreadPoolExecutor(3), count=5, budget=7)
    assert (hands.count, hands.budget) == (5, 7) and hands_of(hands) is hands


def test_an_executor_that_was_shut_down_leaves_the_work_to_this_process(local, answers):
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    session = beside(local, pool)
    with pytest.warns(RuntimeWarning, match=r"The workers are gone .*this process computes the rest"):
        found = session.evaluate("w4a4")
    assert found == answers["evaluate"][-1] and session.evaluate("w8a8").complete


def test_a_killed_process_loses_nothing(local, answers):
    """What it has finished stays, the rest is computed here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        session = beside(local, pool)
        steps = session.evaluate_steps("w4a4")
        found = [next(steps), next(steps)]
        for process in multiprocessing.active_children():
            if process.pid in pool._processes:
                os.kill(process.pid, signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="The workers are gone"):
            found += list(steps)
        assert len(found) == len(answers["evaluate"]) and all(map(same, found, answers["evaluate"]))
        assert same(list(QUESTIONS["exact"](session))[-1], answers["exact"][-1])


# -- a Dask cluster --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dask():
    """A scheduler and two workers with a process each; killed ones are started again."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_cluster_gives_the_same_answers_to_the_last_bit(answers, local, dask):
    for name, executor in (("evaluate", dask), ("live", dask), ("leave_one_out", dask.get_executor())):
        session = beside(local, executor)
        assert same(list(QUESTIONS[name](session))[-1], answers[name][-1])
        assert not session.subject.elsewhere.lost


def test_the_command_line_takes_a_cluster(dask, tmp_path, capsys):
    asked = ["evaluate", "--model", "fashion-lenet300", "--recipe", "w4a4", "--limit", "400", "--json"]
    assert main([*asked, str(tmp_path / "far.json"), "--cluster", dask.scheduler.address]) == 0
    assert main([*asked, str(tmp_path / "near.json")]) == 0
    assert (tmp_path / "far.json").read_text() == (tmp_path / "near.json").read_text()
    asked = ["report", *asked[1:-1], "--sensitivity", "exact", "--out"]
    assert main([*asked, str(tmp_path / "far.html"), "--cluster", dask.scheduler.address]) == 0
    assert main([*asked, str(tmp_path / "near.html")]) == 0
    far, near = (REPORTED.sub("", (tmp_path / f"{name}.html").read_text()) for name in ("far", "near"))
    assert far == near
    assert main(["layers", "--model", "fashion-lenet300", "--json", "-"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--cluster", "tcp://127.0.0.1:1"]) == 2
    assert "No Dask scheduler answers at 'tcp://127.0.0.1:1'" in capsys.readouterr().err


def test_a_killed_worker_of_a_cluster_loses_nothing(local, dask):
    """The scheduler gives its tasks to another one."""
    data = load_data(images(300))
    session = beside(local, dask, data)
    hands, sent = session.subject.elsewhere.hands, []
    submit = hands.submit
    hands.submit = lambda *task: sent.append(task) or submit(*task)
    steps = session.sensitivity_steps(["int8", "int4", "int2"])
    next(steps)
    assert len(sent) < 10, "most of the thirty batches are still to come"
    os.kill(next(iter(dask.run(os.getpid).values())), signal.SIGKILL)
    *_, found = steps
    assert found.equals(beside(local, None, data).sensitivity(["int8", "int4", "int2"]))
    assert not session.subject.elsewhere.lost


def test_a_cluster_that_cannot_be_used_is_said(monkeypatch):
    distributed = pytest.importorskip("distributed")
    for address in ("tcp://127.0.0.1:1", "somewhere", ""):
        with pytest.raises(JobError, match=f"No Dask scheduler answers at '{address}'"):
            connect(address, patience=0.3)
    monkeypatch.setattr(cluster, "PATIENCE", 0.2)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(JobError, match=r"has no worker; start some: dask worker"),
    ):
        connect(empty.scheduler_address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(JobError, match=r"install quantization-explorer\[cluster\]"):
        connect("tcp://127.0.0.1:1")
