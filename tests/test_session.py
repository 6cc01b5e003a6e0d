"""The session: history, edits, refusals; and jobs, of which the latest wins."""

from __future__ import annotations

import math
import threading
import time

import pytest

import explorer as qx
from explorer.errors import DataError, LayerError, ModelError, RecipeError, SchemeError
from explorer.jobs import Worker
from explorer.sources import LoadedModel
from explorer.subject import Subject, make_subject
from tests import nets
from tests.nets import Attention, ready
from tests.small import images, tiny


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(tiny(), data=images(), store_bytes=1 << 24)


@pytest.fixture
def session(subject: Subject) -> qx.Session:
    return qx.Session(subject=subject)


@pytest.mark.parametrize(
    "scheme", ["int4", "fp16", {"format": "fp4_e2m1", "granularity": "subchannel:4", "scale": "fp8"}]
)
def test_a_histogram_tells_the_entropy_of_the_codes(session, scheme):
    layer = session.graph.by_layer["mid"]
    weight = session.graph.constants[layer.weight]
    assert session.histogram("mid", scheme=scheme).entropy_bits == qx.quantize(weight, scheme).entropy_bits
    assert session.histogram("mid", scheme="fp32").entropy_bits is None


def test_layers_lists_all_in_order(session):
    table = session.layers()
    assert list(table["name"]) == ["stem", "mid", "fc"]
    assert list(table["shape"]) == ["4x1x3x3", "4x4x3x3", "4x4"]
    assert list(table["macs"]) == [36 * 9 * 4, 36 * 9 * 16, 16]
    assert list(table["weight_bits"]) == [8, 8, 8]
    # One float32 scale for each output channel.
    inputs = [math.prod(shape[1:]) for shape in (layer.shape for layer in session.graph.layers)]
    assert list(table["weight_bits_per_value"]) == [pytest.approx(8 + 32 / count) for count in inputs]
    assert (table["weight_sqnr_db"] > 30).all()


def test_edit_undo_redo(session):
    first = session.recipe
    session.edit(["stem", "mid"], weight={"format": "int4"})
    second = session.recipe
    assert (second.config("mid").weight.bits, second.config("fc").weight.bits) == (4, 8)
    assert session.revision == 1 and session.can_undo and not session.can_redo
    session.undo()
    assert session.recipe == first and session.can_redo
    session.redo()
    assert session.recipe == second
    session.undo()
    session.edit(["fc"], weight={"format": "int2"})
    assert not session.can_redo
    session.undo()
    session.undo()
    assert session.recipe == first


def test_a_refused_edit_changes_nothing(session):
    before = session.recipe, session.revision
    for wrong in ({"format": "int99"}, {"granularity": "token"}, {"mode": "dynamic"}, {"colour": 1}):
        with pytest.raises(SchemeError):
            session.edit(["stem", "mid"], weight=wrong)
    with pytest.raises(LayerError, match="Did you mean 'stem'"):
        session.edit(["mid", "steam"], weight={"format": "int4"})
    assert (session.recipe, session.revision) == before


def test_a_recipe_that_names_no_layer_is_refused(session):
    with pytest.raises(RecipeError, match="no layer of this network"):
        session.recipe = qx.Recipe.preset("w8a8").with_layer("layer9.*", weight={"format": "int4"})


def test_listeners_hear_of_changes_until_they_leave(session):
    heard = []
    leave = session.subscribe(lambda: heard.append(session.revision))
    session.edit(["fc"], weight={"format": "int4"})
    session.edit(["fc"], weight={"format": "int4"})  # changes nothing
    session.undo()
    leave()
    session.redo()
    assert heard == [1, 2]


def test_sessions_share_the_network_and_not_the_recipe(subject):
    one, other = qx.Session(subject=subject), qx.Session(subject=subject)
    one.edit(["fc"], weight={"format": "int2"})
    assert other.recipe.config("fc").weight.bits == 8


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "many"])
def test_a_number_of_images_is_a_number_of_images(session, wrong):
    with pytest.raises(DataError, match="at least 1"):
        session.evaluate(images=wrong)
    with pytest.raises(DataError, match="at least 1"):
        session.output_sqnr("mid", images=wrong)


def test_layer_questions_are_answered_or_refused(session):
    with pytest.raises(LayerError, match="Did you mean 'mid'"):
        session.histogram("midd")
    with pytest.raises(LayerError, match="Did you mean 'weight'"):
        session.histogram("mid", "weigth")
    with pytest.raises(SchemeError, match="bins"):
        session.histogram("mid", bins=0)
    with pytest.raises(LayerError, match="1 inputs"):
        session.histogram("mid", "input", index=1)


@pytest.mark.parametrize("question", ["histogram", "number_line", "channels", "effect", "lens"])
def test_a_scheme_that_a_tensor_cannot_have_is_refused_by_every_view(session, question):
    for tensor, fields, message in (
        ("weight", {"mode": "dynamic", "granularity": "layer"}, "mode: static for weights"),
        ("weight", {"granularity": "token"}, "has no tokens"),
        ("input", {"granularity": "token"}, "needs mode: dynamic"),
        ("input", {"granularity": "subchannel:4"}, "needs mode: dynamic"),
        ("input", {"fromat": "int8"}, "^There is no field 'fromat'.*'format'"),
    ):
        with pytest.raises(SchemeError, match=message):
            getattr(session, question)("fc", tensor, scheme=fields)


def test_a_product_of_activations_has_no_weight_to_look_at():
    """Nor has it one where the recipe's default would choose its range by the layer's output or by the loss."""
    subject = make_subject(ready(Attention), data=nets.images((6, 5)), store_bytes=1 << 22)
    for goal in ("minmax", "output", "cross_entropy"):
        recipe = qx.Recipe.preset("fp32").with_default(weight={"format": "int8", "objective": goal})
        session = qx.Session(subject=subject, recipe=recipe)
        name = next(layer.name for layer in session.graph.layers if layer.weight is None)
        for question in ("histogram", "number_line", "channels", "effect", "lens", "formats", "curves"):
            with pytest.raises(LayerError, match="has no weight"):
                getattr(session, question)(name, "weight")


@pytest.mark.parametrize("given", [{"checkpoint": "net.safetensors"}, {"download": True}])
def test_a_network_that_is_loaded_takes_no_weights(given):
    with pytest.raises(ModelError, match="tiny is loaded already"):
        qx.Session(LoadedModel("tiny", tiny()), data=images(), **given)


def test_images_may_be_given_once_only():
    with pytest.raises(DataError, match="not both"):
        qx.Session(tiny(), data=images(), evaluation=images())


class Steps:
    """A generator that waits for a word before each result."""

    def __init__(self, count: int = 3) -> None:
        self.count, self.go, self.made = count, threading.Semaphore(0), 0

    def __call__(self):
        for number in range(self.count):
            self.go.acquire(timeout=5)
            self.made += 1
            yield number


def test_a_job_gives_all_its_results_and_then_is_done():
    worker, seen, done = Worker("test"), [], threading.Event()
    steps = Steps()
    steps.go.release(3)
    worker.submit(steps, seen.append, done.set)
    assert done.wait(5) and seen == [0, 1, 2]
    worker.close()


def test_the_latest_request_wins_and_is_never_dropped():
    worker, seen = Worker("test"), []
    first, waiting, last = Steps(), Steps(), Steps(1)
    worker.submit(first, lambda n: seen.append(("first", n)))
    first.go.release()
    while first.made < 1:
        time.sleep(0.001)
    dropped = worker.submit(waiting, lambda n: seen.append(("waiting", n)))
    job = worker.submit(last, lambda n: seen.append(("last", n)))
    first.go.release(2)
    last.go.release()
    assert job.wait(5) and dropped.wait(5)
    assert ("last", 0) in seen and waiting.made == 0 and first.made <= 2
    worker.close()


def test_a_failing_job_reports_and_the_next_one_runs():
    worker, errors, seen = Worker("test"), [], []

    def fails():
        yield 1
        raise ValueError("no more")

    worker.submit(fails, seen.append, on_error=errors.append).wait(5)
    worker.submit(lambda: iter([2]), seen.append).wait(5)
    assert [str(error) for error in errors] == ["no more"] and seen == [1, 2]
    worker.close()


def test_a_cancelled_job_stops_at_the_next_result_and_is_silent():
    worker, seen, done = Worker("test"), [], threading.Event()
    steps = Steps()
    job = worker.submit(steps, seen.append, done.set)
    steps.go.release()
    while steps.made < 1:
        time.sleep(0.001)
    worker.cancel()
    steps.go.release(2)
    assert job.wait(5) and not done.is_set() and len(seen) <= 1
    worker.close()
    assert worker.submit(lambda: iter([1]), seen.append).cancelled
