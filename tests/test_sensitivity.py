"""The tiers of sensitivity: laws over the table of methods, and each tier against what it stands for."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import explorer as qx
from explorer.errors import SchemeError
from explorer.study import MEASURES, METHODS, TENSOR_CHOICES
from explorer.study import instant as instant_tier
from explorer.study.evaluate import Scores
from explorer.study.instant import Draw, _fisher_root
from explorer.study.sensitivity import _decided
from explorer.study.sweep import Board, Row
from explorer.subject import Subject, make_subject
from tests.small import images, tiny

COLUMNS = [
    "layer", "format", "tensor", "method", "measure", "value", "low", "high", "images", "complete",
    "weight_sqnr_db", "output_sqnr_db", "reason",
]  # fmt: skip
WIDTH, DEPTH, CLASSES = 16, 10, 4


class Chain(nn.Module):
    """More layers than the instant tier runs one by one, with skips, so that errors do not die on the way."""

    def __init__(self, step: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        if self.step:
            x = torch.round(x * 8) / 8
        return self.head(x) * 2


def chain(step: bool = False) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net = Chain(step).eval()
    x = torch.randn(300, WIDTH)
    with torch.no_grad():
        labels = net(x).argmax(1)
    labels[::7] = torch.randint(0, CLASSES, (len(labels[::7]),))
    return net, (x, labels)


@pytest.fixture(scope="module")
def deep() -> Subject:
    net, data = chain()
    return make_subject(net, data=data, store_bytes=1 << 26)


@pytest.fixture(scope="module")
def small() -> Subject:
    return make_subject(tiny(), data=images(), store_bytes=1 << 24)


def asked(method: str) -> dict:
    """What a call of ``method`` says of formats."""
    return {"formats": ["int6", "int3"]} if METHODS[method].formats else {}


@pytest.mark.parametrize("tensor", TENSOR_CHOICES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_with_a_complete_table_for_each_of_its_measures(deep, method, tensor):
    if (method, tensor) == ("weight", "input"):
        return
    session = qx.Session(subject=deep, recipe="w4a8")
    for measure in METHODS[method].measures:
        tables = list(
            session.sensitivity_steps(**asked(method), measure=measure, method=method, tensor=tensor)
        )
        for table in tables:
            assert list(table.columns) == COLUMNS
            assert len(table) == (2 if METHODS[method].formats else 1) * (DEPTH + 1)
        last = tables[-1]
        assert last["complete"].all()
        assert last["value"].notna().all() and (last["low"] <= last["high"]).all()
        assert (last["value"] >= last["low"] - 1e-12).all() and (last["value"] <= last["high"] + 1e-12).all()
        assert set(last["measure"]) == {measure} and set(last["tensor"]) == {tensor}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_question_has_the_same_answer(deep, method):
    first = qx.Session(subject=deep, recipe="w4a8").sensitivity(**asked(method), method=method)
    deep.engine.store.clear()
    again = qx.Session(subject=deep, recipe="w4a8").sensitivity(**asked(method), method=method)
    assert first.equals(again)


@pytest.fixture
def sampled(monkeypatch):
    """The instant tier as in a network that is too large to be run for every row and image."""
    monkeypatch.setattr(instant_tier, "_WORK", 0)
    monkeypatch.setattr(instant_tier, "_LEAST", 150)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_instant_tier_ranks_as_the_exact_one(deep, sampled, measure):
    session = qx.Session(subject=deep)
    formats = ["int8", "int4", "int2"]
    instant = session.sensitivity(formats, measure=measure, method="instant")
    exact = session.sensitivity(formats, measure=measure)
    assert set(instant["method"]) == {"instant"} and set(exact["method"]) == {"exact"}
    for name in formats:
        ours, truth = (t[t["format"] == name]["value"] for t in (instant, exact))
        # Of 300 images top-1 tells nothing at many bits, and a mean of losses that rise and fall little more.
        if measure in ("kl", "sqnr") or name == "int2":
            assert spearmanr(ours, truth)[0] >= (0.85 if measure in ("kl", "sqnr") else 0.6), (measure, name)


def test_small_steps_are_estimated_to_scale(deep, sampled):
    session = qx.Session(subject=deep)
    instant = session.sensitivity(["int8"], method="instant")["value"].to_numpy()
    exact = session.sensitivity(["int8"])["value"].to_numpy()
    assert np.median(np.abs(np.log(instant / exact))) < math.log(1.3)
    decibels = session.sensitivity(["int8"], measure="sqnr", method="instant")["value"]
    truth = session.sensitivity(["int8"], measure="sqnr")["value"]
    assert np.abs(decibels - truth).max() < 3


def test_a_network_without_gradients_is_run_instead(sampled):
    net, data = chain(step=True)
    session = qx.Session(net, data=data, store_bytes=1 << 26)
    instant = session.sensitivity(["int4"], method="instant")["value"]
    exact = session.sensitivity(["int4"])["value"]
    assert (instant > 0).all()
    assert spearmanr(instant, exact)[0] > 0.8


def test_few_layers_and_few_images_are_exact_at_once(small):
    session = qx.Session(subject=small)
    instant = session.sensitivity(["int4", "int2"], method="instant")
    exact = session.sensitivity(["int4", "int2"])
    assert set(instant["method"]) == {"exact"}
    assert instant["value"].tolist() == exact["value"].tolist()
    assert instant["output_sqnr_db"].notna().all()


def test_ranks_of_a_shipped_transformer():
    session = qx.Session("fashion-vit", store_bytes=1 << 29)
    instant = session.sensitivity(["int4", "int2"], method="instant", images=400)
    exact = session.sensitivity(["int4", "int2"], images=400)
    for name in ("int4", "int2"):
        ours, truth = (t[t["format"] == name]["value"] for t in (instant, exact))
        assert spearmanr(ours, truth)[0] >= 0.9


@pytest.mark.parametrize("classes", [3, 40])
def test_a_fisher_root_has_the_fisher_matrix_as_its_second_moment(classes):
    torch.manual_seed(0)
    chances = torch.softmax(2 * torch.randn(1, classes, dtype=torch.float64), 1)
    roots = _fisher_root(chances.expand(50_000, -1), torch.Generator().manual_seed(1))
    found = roots.T @ roots / len(roots)
    expected = torch.diag(chances[0]) - chances.T @ chances
    assert (found - expected).abs().max() < 0.03 * float(expected.diagonal().max())
    assert float(roots.sum(1).abs().max()) < 1e-6  # a shift of all class scores changes nothing


def test_a_draw_is_unbiased_and_prefers_what_is_unsure():
    rng = np.random.default_rng(0)
    unsure = rng.gamma(0.1, size=200)
    values = unsure + rng.normal(0, 0.1, 200) ** 2
    drawn, evenly = [], []
    for _ in range(3000):
        order = rng.permutation(200)
        draw = Draw.of(unsure[order], 30)
        assert len(draw.places) == len(set(draw.places)) <= 30
        drawn.append((values[order][draw.places] * draw.weights).mean())
        evenly.append(values[order][:30].mean())
    assert abs(np.mean(drawn) - values.mean()) < 4 * np.std(drawn) / math.sqrt(3000) + 0.01 * values.mean()
    assert np.std(drawn) < np.std(evenly) / 2
    assert Draw.of(np.zeros(10), 4).weights == pytest.approx(np.ones(4))


def test_output_tier_is_the_error_of_the_layers_own_output(small):
    session = qx.Session(subject=small)
    table = session.sensitivity(["int4"], method="output").set_index("layer")
    x = torch.cat([e.batch.images for e in small.evaluation.batches()])
    with torch.no_grad():
        scheme = {"format": "int4", "granularity": "channel", "symmetric": True, "objective": "minmax"}
        weight = session.graph.constants[session.graph.by_layer["stem"].weight]
        plain = torch.conv2d(x, weight, padding=1)
        error = torch.conv2d(x, qx.fake_quantize(weight, scheme), padding=1) - plain
        bias = session.graph.constants[
            session.graph.by_name[session.graph.by_layer["stem"].node].args[2].node
        ]
        signal = (plain + bias[:, None, None]).square().sum()
    expected = 10 * math.log10(float(signal / error.square().sum()))
    assert table.loc["stem", "value"] == pytest.approx(expected, abs=1e-3)


def test_weight_tier_is_what_the_layer_table_says(small):
    session = qx.Session(subject=small, recipe="w4a16")
    table = session.sensitivity("recipe", method="weight")
    assert table["value"].tolist() == session.layers()["weight_sqnr_db"].tolist()
    assert set(table["images"]) == {0}


def scores(session: qx.Session, recipe: qx.Recipe) -> Scores:
    graph, engine = session.graph, session.engine
    parts = []
    for examples in session.subject.evaluation.batches():
        result, reference = (
            engine.run(plan, examples.batch)[graph.output]
            for plan in (session.plan(recipe), session.subject.floats)
        )
        parts.append(Scores.of(result, reference, examples.labels))
    return Scores.join(parts)


@pytest.mark.parametrize("measure", MEASURES)
def test_leave_one_out_takes_one_layer_back_to_float(small, measure):
    session = qx.Session(subject=small, recipe="w2a8")
    table = session.sensitivity(measure=measure, method="leave_one_out", tensor="both").set_index("layer")
    off = {"format": "fp32"}
    whole, _ = MEASURES[measure].estimate(scores(session, session.recipe))
    for name in session.layer_names:
        without = session.recipe.with_layer(name, weight=off, input=off)
        expected = whole - MEASURES[measure].estimate(scores(session, without))[0]
        assert table.loc[name, "value"] == pytest.approx(expected, abs=1e-9)


def test_leave_one_out_starts_from_what_the_recipe_has_computed(deep):
    session = qx.Session(subject=deep, recipe="w4a8")
    deep.engine.store.clear()
    session.evaluate()
    deep.engine.computed.clear()
    session.sensitivity(method="leave_one_out", layers=["head"])
    batches = -(-300 // deep.engine.batch_size())
    descendants = deep.graph.descendants("head")
    # Nothing upstream of the head is computed again.
    assert {name for name, times in deep.engine.computed.items() if times} == set(descendants)
    assert all(deep.engine.computed[name] == batches for name in descendants)


def test_what_costs_little_is_not_estimated(deep):
    """Nor computed twice: where the instant tier has seen every image, nothing is left."""
    session = qx.Session(subject=deep)
    *_, live = session.sensitivity_steps(["int4", "int2"], method="live", tensor="weight")
    instant = session.sensitivity(["int4", "int2"], method="instant", tensor="weight")
    exact = session.sensitivity(["int4", "int2"], tensor="weight")
    assert set(instant["method"]) == {"exact"} and live["complete"].all()
    for table in (live, instant):
        assert table["value"].to_numpy() == pytest.approx(exact["value"].to_numpy(), rel=1e-9)
        assert table["low"].to_numpy() == pytest.approx(exact["low"].to_numpy(), rel=1e-6)


def test_live_goes_from_estimates_to_exact_values(deep, sampled):
    session = qx.Session(subject=deep)
    tables = list(session.sensitivity_steps(["int4", "int2"], method="live"))
    exact = session.sensitivity(["int4", "int2"])
    assert tables[0]["value"].isna().all() and tables[0]["weight_sqnr_db"].notna().all()
    assert set(tables[1]["method"]) == {"instant"} and tables[1]["value"].notna().all()
    assert not tables[1]["complete"].any()
    kinds = [table["method"].eq("exact").sum() for table in tables]
    assert kinds == sorted(kinds)
    # The first exact value is that of the worst estimate.
    first = next(t for t in tables if t["method"].eq("exact").any())
    before = (
        tables[tables.index(first) - 1] if False else tables[[t is first for t in tables].index(True) - 1]
    )
    assert int(before["value"].argmax()) == int(first["method"].eq("exact").argmax())
    last = tables[-1]
    done = last["images"] == 300
    assert last["complete"].all() and set(last["method"]) == {"exact"}
    assert last[done]["value"].tolist() == exact[done]["value"].tolist()


def test_a_race_stops_where_the_place_is_clear():
    rows = [Row(str(i), "int4", qx.Recipe.preset("fp32")) for i in range(4)]
    board = Board(SimpleNamespace(rows=rows, total=1000), "exact")
    for index, (value, half) in enumerate([(1.0, 0.4), (1.5, 0.4), (3.0, 0.5), (9.0, 0.4)]):
        board.put(index, "exact", (value, (value - half, value + half)), 400)
    assert _decided(board, rows).tolist() == [False, False, True, True]
    board.images[:] = 100
    assert not _decided(board, rows).any()


def test_shares_add_up_beside_the_measured_total(deep):
    session = qx.Session(subject=deep, recipe="w4a8")
    for measure in MEASURES:
        found = session.additivity(measure=measure, method="exact")
        rows = session.sensitivity("recipe", measure=measure, tensor="both")["value"].to_numpy()
        evaluation = scores(session, session.recipe)
        assert found.measured == pytest.approx(MEASURES[measure].estimate(evaluation)[0])
        assert dict(found.layers) == dict(zip(session.layer_names, rows, strict=True))
        if measure == "sqnr":
            assert 10 ** (-found.predicted / 10) == pytest.approx(float((10 ** (-rows / 10)).sum()))
        else:
            assert found.predicted == pytest.approx(rows.sum())
    assert session.additivity().to_dict()["method"] == "instant"
    # Of one layer there is nothing to interact with.
    session.recipe = qx.Recipe.preset("fp32").with_layer("head", weight={"format": "int4"})
    alone = session.additivity(method="exact")
    assert alone.predicted == alone.measured and alone.ratio == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"method": "weight", "measure": "kl"}, "looks at one layer alone"),
        ({"method": "output", "measure": "top1"}, "looks at one layer alone"),
        ({"method": "weight", "tensor": "input"}, "use the method output for inputs"),
        ({"method": "leave_one_out", "formats": ["int4"]}, "formats have no effect"),
        ({"method": "instnat"}, "Did you mean 'instant'"),
        ({"measure": "klx"}, "Did you mean 'kl'"),
        ({"formats": ["int44"]}, "Did you mean 'int4'"),
        ({"formats": []}, "at least one format"),
        ({"tensor": "weights"}, "Did you mean 'weight'"),
    ],
)
def test_what_makes_no_sense_is_refused(small, call, sentence):
    with pytest.raises(SchemeError, match=sentence):
        qx.Session(subject=small).sensitivity(**call)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if "loss" in m.measures])
def test_a_loss_without_labels_is_refused_and_agreement_offered(method):
    session = qx.Session(tiny(), data=images()[0], store_bytes=1 << 24, recipe="w4a8")
    with pytest.raises(SchemeError, match="needs labels and these images have none; use kl, sqnr, or top1"):
        session.sensitivity(measure="loss", method=method)
    assert session.sensitivity(measure="top1", method=method)["value"].notna().all()


def test_nothing_quantized_has_no_shares(small):
    session = qx.Session(subject=small, recipe="fp32")
    with pytest.raises(SchemeError, match="nothing to add up"):
        session.additivity()
    assert session.sensitivity(method="leave_one_out").empty
