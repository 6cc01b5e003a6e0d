"""Evaluation and sensitivity against loops written by hand, and sizes against counting."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import explorer as qx
from explorer.errors import DataError, SchemeError
from explorer.formats import pack
from explorer.graph import Batch
from explorer.graph.capture import run
from explorer.graph.ir import fill
from explorer.graph.store import ENTRY_BYTES
from explorer.recipe import PRESETS
from explorer.sources import ArrayData
from explorer.study import MEASURES, TENSOR_CHOICES, histogram_of
from explorer.study.evaluate import MINIMUM_IMAGES, ScoreList, Scores
from explorer.subject import Stream, Subject, make_subject
from explorer.tensor import fit_tensor
from tests.small import images, tiny


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(tiny(), data=images(), store_bytes=1 << 24)


@pytest.fixture
def session(subject: Subject) -> qx.Session:
    """A session of its own on the one captured network; nothing stored."""
    subject.engine.store.clear()
    return qx.Session(subject=subject)


def by_hand(session: qx.Session, recipe: qx.Recipe) -> torch.Tensor:
    """The network under a recipe, from the captured graph, with every step written out."""
    graph = session.graph
    calibration = torch.cat([e.batch.images for e in session.subject.calibration_stream.batches(512)])
    floats = run(graph, calibration)
    x = torch.cat([e.batch.images for e in session.subject.evaluation.batches()])
    values: dict = {**graph.constants, graph.input: x}
    floats[graph.input] = calibration
    with torch.inference_mode():
        for node in graph.nodes:
            inputs = {name: values[name] for name in node.inputs}
            layer = graph.layer_at.get(node.name)
            if layer is not None:
                config = recipe.config(layer.name)
                inputs[layer.weight] = qx.fake_quantize(values[layer.weight], config.weight, layer.axis)
                if not config.input.off:
                    seen = floats[layer.inputs[0]]
                    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
                    steps = 2**config.input.bits - 1
                    scale = torch.tensor((high - low) / steps, dtype=torch.float32)
                    zero = round(-low / float(scale))
                    codes = torch.clamp(torch.round(inputs[layer.inputs[0]] / scale) + zero, 0, steps)
                    inputs[layer.inputs[0]] = (codes - zero) * scale
            values[node.name] = node.target(*fill(node.args, inputs), **fill(dict(node.kwargs), inputs))
    return values[graph.output]


def test_evaluation_equals_the_loop_by_hand(session):
    recipe = qx.Recipe.preset("w4a8").with_default(input={"objective": "minmax"})
    labels = torch.cat([e.labels for e in session.subject.evaluation.batches()])
    result = by_hand(session, recipe)
    reference = by_hand(session, qx.Recipe.preset("fp32"))
    found = session.evaluate(recipe)
    assert found.images == 90 and found.complete
    assert found.top1 == pytest.approx(float((result.argmax(1) == labels).double().mean()))
    assert found.top1_float == pytest.approx(float((reference.argmax(1) == labels).double().mean()))
    assert found.delta == pytest.approx(found.top1 - found.top1_float)
    assert found.delta_interval[0] <= found.delta <= found.delta_interval[1]
    assert found.loss == pytest.approx(float(F.cross_entropy(result, labels)), rel=1e-5)
    divergence = F.kl_div(
        F.log_softmax(result.double(), 1),
        F.log_softmax(reference.double(), 1),
        log_target=True,
        reduction="batchmean",
    )
    assert found.kl == pytest.approx(float(divergence), rel=1e-4)
    noise = float((reference - result).double().square().sum())
    expected = 10 * math.log10(float(reference.double().square().sum()) / noise)
    assert found.output_sqnr_db == pytest.approx(expected, abs=1e-3)


def test_float_recipe_changes_nothing(session):
    found = session.evaluate("fp32")
    assert (found.delta, found.kl, found.output_sqnr_db) == (0.0, 0.0, math.inf)
    assert found.size_bytes == found.size_bytes_float
    assert found.to_dict()["output_sqnr_db"] is None
    assert all(layer.weight_sqnr_db is None for layer in found.layers)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_evaluates(session, name):
    found = session.evaluate(name)
    assert found.complete and 0 <= found.top1 <= 1
    assert found.size_bytes <= found.size_bytes_float + 64


def test_steps_sharpen_and_end_with_the_whole(session):
    steps = list(session.evaluate_steps())
    assert [s.complete for s in steps] == [False] * (len(steps) - 1) + [True] if len(steps) > 1 else True
    assert steps[-1].images == session.total_images
    assert session.evaluate(images=30).images == 30


@pytest.fixture(scope="module")
def large() -> qx.Session:
    """A network whose classes are near each other, so that images flip."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    )
    x, _ = images(1000)
    labels = net(x).argmax(1)
    labels[::5] = 0
    return qx.Session(net.eval(), data=(x, labels), store_bytes=1 << 24)


def test_flips_name_the_images_of_the_data_set(large):
    session, found = large, large.evaluate("w2a8", images=150)
    data = session.subject.evaluation.data
    assert len(found.won_images) == found.won and len(found.lost_images) == found.lost > 0
    recipe, floats = qx.Recipe.preset("w2a8"), qx.Recipe.preset("fp32")
    for flip in (*found.won_images, *found.lost_images):
        batch = Batch.of(data.read([flip.index]).images)
        for chosen, label, confidence in (
            (floats, flip.before, flip.confidence_before),
            (recipe, flip.after, flip.confidence_after),
        ):
            result = session.engine.run(session.plan(chosen), batch)[session.graph.output][0]
            assert int(result.argmax()) == label
            assert float(result.softmax(0).max()) == pytest.approx(confidence, abs=1e-5)
        assert int(data.read([flip.index]).labels[0]) == flip.label
    assert all(flip.label == flip.after != flip.before for flip in found.won_images)
    assert all(flip.label == flip.before != flip.after for flip in found.lost_images)


def test_an_evaluation_stops_when_its_interval_is_narrow(large):
    steps = list(large.evaluate_steps("w8a8", interval=0.1))
    last, widths = steps[-1], [s.delta_interval[1] - s.delta_interval[0] for s in steps]
    assert last.stopped == "narrow enough" and not last.complete and last.images >= MINIMUM_IMAGES
    assert widths[-1] <= 0.1 and all(s.stopped == "" for s in steps[:-1])
    assert all(w > 0.1 or s.images < MINIMUM_IMAGES for w, s in zip(widths[:-1], steps[:-1], strict=True))
    whole = large.evaluate("w8a8", interval=0.0001)
    assert whole.stopped == "all images" and whole.complete
    assert whole.loss_interval[0] <= whole.loss_delta <= whole.loss_interval[1]
    assert whole.output_sqnr_interval[0] <= whole.output_sqnr_db <= whole.output_sqnr_interval[1]


@pytest.mark.parametrize("wrong", [0, -0.1, math.nan, math.inf, 2.5, True, "narrow"])
def test_an_interval_is_a_width(session, wrong):
    for question in (session.evaluate_steps, lambda **k: session.compare_steps("w8a8", **k)):
        with pytest.raises(DataError, match=r"0\.02 \(two points\) is a sensible one"):
            next(question(interval=wrong))


class Fragile(ArrayData):
    """Images of which one cannot be read."""

    broken, problem = 7, OSError("the disk is gone")

    def read(self, indices):
        if self.broken in indices:
            raise self.problem
        return super().read(indices)


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (OSError("the disk is gone"), r"Reading image \d+ of fragile failed: OSError: the disk is gone\."),
        (DataError("cat.png is damaged."), r"cat\.png is damaged\."),
    ],
)
def test_an_image_that_cannot_be_read_leaves_what_was_finished(session, problem, sentence):
    x, y = images()
    data = Fragile("fragile", x, y)
    stream = Stream(data, 20, seed=0)
    data.broken = stream._order[50]  # in the third batch
    data.problem = problem
    stepping = qx.Session(subject=replace(session.subject, evaluation=stream)).evaluate_steps()
    finished = [next(stepping), next(stepping)]
    with pytest.raises(DataError, match=sentence + " 40 of 90 images were finished") as raised:
        next(stepping)
    assert [e.images for e in finished] == [20, 40]
    assert isinstance(problem, DataError) or f"image {data.broken} " in str(raised.value)


@pytest.mark.parametrize("labelled", [True, False])
def test_arrays_of_numpy_are_data(labelled):
    x, y = (part.numpy() for part in images())
    found = qx.Session(tiny(), data=(x, y) if labelled else x, store_bytes=1 << 24).evaluate("w4a8")
    expected = qx.Session(tiny(), data=images() if labelled else images()[0], store_bytes=1 << 24)
    assert found.agreement != labelled and found.images == 90
    assert (found.top1, found.kl) == (expected.evaluate("w4a8").top1, expected.evaluate("w4a8").kl)


def test_scores_grow_as_they_would_be_joined():
    draw = np.random.default_rng(0)
    parts = [Scores(*draw.random((7, n))) for n in (3, 300, 1, 700)]
    grown = ScoreList()
    before = []
    for part in parts:
        grown.append(part)
        before.append(grown.all)
    for at in range(len(parts)):
        for name in Scores.__dataclass_fields__:
            expected = getattr(Scores.join(parts[: at + 1]), name)
            assert np.array_equal(getattr(before[at], name), expected)


def test_a_comparison_is_the_difference_of_two_evaluations(large):
    found, a, b = large.compare("w4a8", "w8a8"), large.evaluate("w4a8"), large.evaluate("w8a8")
    assert found.delta == pytest.approx(a.top1 - b.top1) and found.complete
    assert found.kl_delta == pytest.approx(a.kl - b.kl)
    assert found.loss_delta == pytest.approx(a.loss - b.loss)
    assert found.kl_interval[0] <= found.kl_delta <= found.kl_interval[1]
    assert (found.size_delta, found.bops_delta) == (a.size_bytes - b.size_bytes, a.bops - b.bops)
    assert found.won - found.lost == round(1000 * found.delta)
    assert found.layers == large.layer_names
    other = large.compare("w8a8", "w4a8")
    assert other.delta_interval == pytest.approx((-found.delta_interval[1], -found.delta_interval[0]))
    assert (other.won, other.lost, other.images_needed) == (found.lost, found.won, found.images_needed)


def test_what_a_comparison_says(large):
    clear = large.compare("w2a8", "w8a8")
    assert clear.distinguishable and "tell the two apart: top-1 is lower" in clear.verdict
    assert clear.images_needed <= 1000 and math.isfinite(clear.images_needed_interval[1])
    same = large.compare("w8a8", large.recipe)
    assert same.images_needed is None and same.differences == () and "the same" in same.verdict
    assert same.to_dict()["images_needed_interval"][1] is None
    few = large.compare("w8a8", "fp32", images=40)
    assert not few.distinguishable and "do not tell the two apart" in few.verdict


def test_without_labels_accuracy_is_agreement():
    x, _ = images()
    found = qx.Session(tiny(), data=x, store_bytes=1 << 24).evaluate("w2a8")
    assert found.agreement and found.top1_float == 1.0 and found.loss is None
    assert found.delta == pytest.approx(found.top1 - 1)


def test_results_do_not_depend_on_the_batch_size(session):
    whole = session.evaluate("int8_dynamic")
    sevens = replace(session.subject, evaluation=Stream(session.subject.evaluation.data, 7, seed=0))
    again = qx.Session(subject=sevens).evaluate("int8_dynamic")
    assert again.kl == pytest.approx(whole.kl, rel=1e-3)
    assert again.top1 == whole.top1


def test_labels_beyond_the_classes_are_refused():
    x, y = images()
    y[3] = 7
    with pytest.raises(DataError, match="labels reach 7"):
        qx.Session(tiny(), data=(x, y), store_bytes=1 << 24).evaluate()


def test_weight_size_is_the_length_of_the_packed_codes(session):
    recipe = qx.Recipe.preset("w4a8").with_layer(
        "fc", weight={"format": "int3", "granularity": "subchannel:3"}
    )
    found = {layer.name: layer for layer in session.evaluate(recipe).layers}
    graph = session.graph
    for layer in graph.layers:
        q = qx.quantize(graph.constants[layer.weight], recipe.config(layer.name).weight, layer.axis)
        codes = len(pack(q.codes.numpy(), q.scheme.bits, q.scheme.number.lowest))
        bias = graph.constants[graph.by_name[layer.node].args[2].node].numel() * 4
        incoming = 4 + 1  # one float32 scale and one 8-bit zero point
        assert found[layer.name].size_bytes == codes + 4 * q.scale.numel() + bias + incoming
    assert session.evaluate(recipe).size_bytes == sum(layer.size_bytes for layer in found.values())


def test_bit_operations_are_macs_times_bits(session):
    macs = 36 * 9 * 4 + 36 * 9 * 16 + 16
    assert session.evaluate("w4a8").bops == macs * 4 * 8
    assert session.evaluate("fp32").bops == macs * 32 * 32


def test_layer_sqnr_is_of_weight_and_local_input(session):
    found = {layer.name: layer for layer in session.evaluate("w8a8").layers}
    weight = session.graph.constants[session.graph.by_layer["mid"].weight]
    after = qx.fake_quantize(weight, session.recipe.config("mid").weight)
    expected = 10 * math.log10(float(weight.square().sum() / (weight - after).square().sum()))
    assert found["mid"].weight_sqnr_db == pytest.approx(expected, abs=1e-3)
    assert 20 < found["mid"].input_sqnr_db < 70


@pytest.mark.parametrize("tensor", TENSOR_CHOICES)
@pytest.mark.parametrize("measure", MEASURES)
def test_sensitivity_is_one_layer_at_a_time(session, measure, tensor):
    table = session.sensitivity(["int4", "int2"], measure=measure, tensor=tensor)
    assert len(table) == 2 * 3 and bool(table["complete"].all())
    assert (table["low"] <= table["value"] + 1e-9).all() and (table["value"] <= table["high"] + 1e-9).all()
    if tensor == "weight" and measure == "kl":
        for row in table.itertuples():
            recipe = qx.Recipe.preset("fp32").with_layer(
                row.layer, weight={"format": row.format, "granularity": "channel", "mode": "static"}
            )
            assert session.evaluate(recipe).kl == pytest.approx(row.value, rel=1e-6)


def test_sensitivity_streams_row_by_row(session):
    tables = list(session.sensitivity_steps(["int8", "int2"]))
    known = [int(t["value"].notna().sum()) for t in tables]
    assert known[0] == 1 and known[-1] == 6 and known == sorted(known)


def test_a_sweep_leaves_the_store_to_the_float_network(session):
    list(session.evaluate_steps("fp32"))
    store = session.engine.store
    before = store.facts.bytes
    session.sensitivity(["int8"])
    weights = sum(session.graph.constants[layer.weight].numel() * 4 for layer in session.graph.layers)
    # Beside the quantized weights, a few numbers for each.
    assert store.facts.bytes - before <= weights + 2 * ENTRY_BYTES * len(session.layer_names)


def test_measures_that_need_labels_say_so():
    x, _ = images()
    session = qx.Session(tiny(), data=x, store_bytes=1 << 24)
    with pytest.raises(SchemeError, match="needs labels"):
        session.sensitivity(["int4"], measure="loss")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"formats": ["int44"]}, "Did you mean 'int4'"),
        ({"measure": "kll"}, "Did you mean 'kl'"),
        ({"method": "exacty"}, "Did you mean 'exact'"),
        ({"tensor": "wight"}, "Did you mean 'weight'"),
        ({"formats": []}, "at least one format"),
    ],
)
def test_bad_questions_get_a_sentence(session, wrong, sentence):
    with pytest.raises(SchemeError, match=sentence):
        session.sensitivity(**wrong)


def test_histogram_counts_every_element(session):
    h = session.histogram("mid", bins=64)
    assert h.counts.sum() == h.quantized_counts.sum() == h.elements == 144
    assert len(h.edges) == 65 and h.exact
    assert h.minimum == pytest.approx(
        float(session.graph.constants[session.graph.by_layer["mid"].weight].min())
    )
    assert h.groups == 4 and h.clipped_fraction == 0


def test_histogram_levels_are_the_codes_of_one_scale(session):
    h = session.histogram("mid", scheme={"format": "int3", "granularity": "layer"})
    assert len(h.levels) == 7 and h.levels[3] == 0
    assert np.allclose(np.diff(h.levels), h.scale[1])
    assert h.clip == pytest.approx((h.levels[0], h.levels[-1]))
    assert h.used_levels <= 7


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_counts_of_a_histogram_are_those_between_its_edges(bits, weighted):
    draw = torch.Generator().manual_seed(bits)
    x = torch.cat([torch.randn(70_000, generator=draw), torch.arange(-64, 65) / 16])
    scheme = qx.TensorScheme(f"int{bits}", objective="clip:0.7")
    after, params = qx.fake_quantize(x, scheme), fit_tensor(x, scheme, 0)
    weights = torch.randint(0, 4, x.shape, generator=draw).float() if weighted else None
    for bins in (1, 7, 256):
        found = histogram_of("fc", "weight", scheme, x, after, params, weights, bins=bins)
        for counts, values in ((found.counts, x), (found.quantized_counts, after)):
            expected = np.histogram(
                values.double().numpy(),
                found.edges,
                weights=None if weights is None else weights.double().numpy(),
            )[0]
            np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(
    "scheme",
    [
        {"format": "uint8", "granularity": "layer", "symmetric": False, "objective": "mse"},
        {"format": "int8", "granularity": "layer", "mode": "dynamic"},
        {"format": "int8", "granularity": "channel"},
        {"format": "fp16"},
        {"format": "fp32"},
    ],
)
def test_histogram_of_an_input(session, scheme):
    h = session.histogram("mid", "input", scheme=scheme)
    assert h.counts.sum() == pytest.approx(h.elements) == pytest.approx(h.quantized_counts.sum())
    assert not h.exact


def test_the_module_that_was_given_stays_as_it_was():
    net = tiny()
    before = copy.deepcopy(net.state_dict())
    qx.Session(net, data=images(), store_bytes=1 << 24).evaluate("w2a8")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
