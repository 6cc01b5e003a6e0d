"""Metrics: each entry against an oracle, what is refused, and a session measured by something else than top-1."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, mean_absolute_error, top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn

import explorer as qx
from explorer.cli import main
from explorer.errors import DataError, MetricError, SchemeError
from explorer.graph import Batch
from explorer.sources import load_metric
from explorer.study import METRICS, Metric, as_metric, measures_for
from explorer.study.evaluate import MOST_FLIPS, Examples, Flips, Reference, Scores, mean_score, score_change
from explorer.study.metrics import score_interval, wilson
from explorer.study.scoring import VOID, usual_metric
from explorer.study.trials import Outcome, Trial, differences
from tests.small import CLASSES, images, tiny


def maps(seed: int = 0, count: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    results = torch.randn(count, classes, 6, 7, generator=generator)
    labels = torch.randint(0, classes, (count, 6, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = VOID[0]
    labels[0, 0] = VOID[1]
    return results, labels


def scores_of(name: str, results: Tensor, targets: Tensor | None) -> np.ndarray:
    return METRICS[name].scores(results, targets).numpy()


# -- the table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_explains_itself_and_travels(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == metric.key == name and metric.help and metric.title
    assert metric.called() == metric.title and metric.called(True)
    assert pickle.loads(pickle.dumps(metric)) is metric
    assert load_metric(name) is metric is as_metric(metric)


@pytest.mark.parametrize("name", METRICS)
def test_the_float_result_against_itself_has_the_best_score(name: str) -> None:
    metric = METRICS[name]
    results = maps()[0] if name in ("pixel_accuracy", "image_iou") else torch.randn(9, 6)
    reference = Reference(results, None, metric)
    scores = reference.scores(results)
    assert metric.compared(labelled=False)
    assert np.allclose(scores.score, 0.0 if name == "neg_mae" else 1.0) and scores.noise.max() == 0
    worse = reference.scores(-results)
    assert worse.score.mean() < scores.score.mean()
    assert np.isnan(scores.kl).all() == (not metric.classes)


def test_class_metrics_agree_with_sklearn() -> None:
    generator = torch.Generator().manual_seed(1)
    results, labels = torch.randn(40, 9, generator=generator), torch.randint(0, 9, (40,), generator=generator)
    assert scores_of("top1", results, labels).mean() == accuracy_score(labels, results.argmax(1))
    expected = top_k_accuracy_score(labels, results, k=5, labels=range(9))
    assert scores_of("top5", results, labels).mean() == pytest.approx(expected)


def test_pixel_metrics_agree_with_sklearn() -> None:
    results, labels = maps()
    for at, (found, right) in enumerate(zip(results.argmax(1), labels, strict=True)):
        kept = (right != VOID[0]) & (right != VOID[1])
        accuracy = accuracy_score(right[kept], found[kept])
        overlap = jaccard_score(right[kept], found[kept], average="macro")
        assert scores_of("pixel_accuracy", results, labels)[at] == pytest.approx(accuracy)
        assert scores_of("image_iou", results, labels)[at] == pytest.approx(overlap)


def test_an_image_without_a_pixel_that_counts_is_right() -> None:
    results, labels = maps()
    labels[1] = VOID[0]
    assert scores_of("pixel_accuracy", results, labels)[1] == scores_of("image_iou", results, labels)[1] == 1
    assert Reference(results, labels, METRICS["pixel_accuracy"]).scores(-results).loss[1] == 0


def test_metrics_of_values_agree_with_sklearn() -> None:
    results, targets = torch.randn(8, 3, 2), torch.randn(8, 3, 2)
    expected = np.diag(cosine_similarity(results.flatten(1), targets.flatten(1)))
    assert np.allclose(scores_of("cosine", results, targets), expected)
    each = [-mean_absolute_error(t.flatten(), r.flatten()) for r, t in zip(results, targets, strict=True)]
    assert np.allclose(scores_of("neg_mae", results, targets), each)
    nothing = torch.zeros(2, 3)
    assert scores_of("cosine", nothing, nothing).tolist() == [1, 1]
    assert scores_of("cosine", nothing, torch.ones(2, 3)).tolist() == [0, 0]


def test_pixels_have_the_mean_divergence_and_cross_entropy() -> None:
    results, labels = maps()
    other = results + 0.1 * torch.randn(results.shape, generator=torch.Generator().manual_seed(2))
    scores = Reference(results, labels, METRICS["pixel_accuracy"]).scores(other)
    p, q = results.double().softmax(1), other.double().softmax(1)
    assert np.allclose(scores.kl, (p * (p.log() - q.log())).sum(1).flatten(1).mean(1))
    for at, right in enumerate(labels):
        plain = right.where(right != VOID[0], VOID[1])
        expected = nn.functional.cross_entropy(other[at : at + 1].double(), plain[None])
        assert scores.loss[at] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("shape", "labels", "name"),
    [
        ((4, 10), None, "top1"),
        ((4, 10), torch.zeros(4, dtype=torch.long), "top1"),
        ((4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long), "pixel_accuracy"),
        ((4, 3, 5, 5), None, "cosine"),
        ((4, 3, 5, 5), torch.zeros(4, dtype=torch.long), "cosine"),
        ((4, 1), None, "neg_mae"),
        ((4,), None, "neg_mae"),
        ((4, 3), torch.zeros(4, 3), "neg_mae"),
    ],
)
def test_the_usual_metric_goes_by_the_result(
    shape: tuple[int, ...], labels: Tensor | None, name: str
) -> None:
    assert usual_metric(shape, labels).name == name


# -- what is refused -----------------------------------------------------------------------------------


def drawn(outputs: Tensor, targets: Tensor | None) -> Tensor:
    return torch.rand(len(outputs))


def ranked(outputs: Tensor, targets: Tensor | None) -> Tensor:
    return outputs[:, 0] - outputs[:, 0].mean()


def broken(outputs: Tensor, targets: Tensor | None) -> Tensor:
    raise KeyError("gold")


BAD = {
    "shape": (lambda o, t: o, r"gives a tensor of shape \(6, 4\).*shape \(6,\)"),
    "number": (lambda o, t: 0.5, "gives a float"),
    "nan": (lambda o, t: o[:, 0] * torch.nan, "NaN or infinity for 6 of 6"),
    "complex": (lambda o, t: o[:, 0].to(torch.complex64), "complex"),
    "drawn": (drawn, "'drawn' on the batch of 6 that begins with image 3 is not deterministic"),
    "neighbours": (ranked, "'ranked' .* alone and .* beside others"),
    "raises": (broken, "'broken' on the batch of 6 that begins with image 3 failed: KeyError: 'gold'"),
}


@pytest.mark.parametrize(("function", "message"), BAD.values(), ids=BAD)
def test_a_metric_that_does_not_keep_its_word_is_refused(function, message: str) -> None:  # type: ignore[no-untyped-def]
    results = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    where = Examples(Batch.of(results), None, tuple(range(3, 9))).where
    with pytest.raises(MetricError, match=message):
        Reference(results, None, as_metric(function), where)


def test_names_and_units_are_checked() -> None:
    with pytest.raises(MetricError, match="Did you mean 'top1'"):
        load_metric("top-1")
    with pytest.raises(MetricError, match="not 3"):
        load_metric(3)
    with pytest.raises(MetricError, match="'%' or nothing"):
        Metric(ranked, "x", unit="points")
    with pytest.raises(MetricError, match="There is no file"):
        load_metric("nowhere.py:score")
    with pytest.raises(MetricError, match="takes results of shape"):
        qx.Session(tiny(), images(), metric="pixel_accuracy")


def test_labels_must_be_classes_of_the_result() -> None:
    results, labels = maps()
    with pytest.raises(DataError, match="whole numbers of shape"):
        Reference(results, labels[:, 0], METRICS["pixel_accuracy"])
    labels[0, 0, 0] = 4
    with pytest.raises(DataError, match="reach 4 but the network tells 4 classes"):
        Reference(results, labels, METRICS["pixel_accuracy"])


# -- intervals and flips -------------------------------------------------------------------------------


def test_scores_of_zero_and_one_have_the_intervals_of_shares() -> None:
    right = np.array([1.0] * 30 + [0.0] * 10)
    assert mean_score(right) == (0.75, wilson(30, 40))
    scores = np.array([0.25, 0.5, 1.0, 1.0])
    assert mean_score(scores)[1] == score_interval(scores)
    low, high = score_change(scores, scores[::-1])[1]
    assert low == pytest.approx(-high)


@pytest.mark.parametrize("signs", [(1,), (-1,), (-1, 1)])
def test_intervals_of_scores_hold(signs: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        values = generator.exponential(size=100) * generator.choice(signs, size=100)
        low, high = score_interval(values)
        held += low <= (sum(signs) / len(signs)) <= high
    assert 0.92 <= held / 600 <= 0.98


def test_of_graded_scores_the_largest_changes_are_kept() -> None:
    generator = np.random.default_rng(3)
    before, after = generator.random((2, 200))
    whole, parts = Flips(), Flips()
    for start in range(0, 200, 25):
        place = slice(start, start + 25)
        batch = Examples(Batch.of(torch.zeros(25, 2)), None, tuple(range(start, start + 25)))
        found = Flips()
        found.add(batch, torch.zeros(25, 2), torch.zeros(25, 2), before[place], after[place], classes=False)
        parts.extend(found)
        whole.add(batch, torch.zeros(25, 2), torch.zeros(25, 2), before[place], after[place], classes=False)
    gained = after - before
    expected = np.argsort(-gained)[:MOST_FLIPS].tolist()
    assert [flip.index for flip in parts.won] == expected == [flip.index for flip in whole.won]
    assert [flip.index for flip in parts.lost] == np.argsort(gained)[:MOST_FLIPS].tolist()
    assert all(flip.before is None and flip.label is None for flip in parts.won)


# -- a session -------------------------------------------------------------------------------------------


def closeness(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """One less the largest miss."""
    assert targets is not None
    return 1 - (outputs - targets).abs().amax(1)


@pytest.fixture(scope="module")
def valued() -> qx.Session:
    """A network of values, with targets that it nearly meets."""
    x, _ = images(120)
    with torch.inference_mode():
        targets = tiny()(x) + 0.01 * torch.randn(120, CLASSES, generator=torch.Generator().manual_seed(5))
    return qx.Session(tiny(), (x, targets), metric=closeness)


def test_a_function_measures_a_network_of_values(valued: qx.Session) -> None:
    e = valued.evaluate("w4a8")
    graph, floats, plan = valued.graph, valued.subject.floats, valued.plan(qx.Recipe.preset("w4a8"))
    each, plain = [], []
    for examples in valued.subject.evaluation.batches():
        result = valued.engine.run(plan, examples.batch)[graph.output]
        each += closeness(result, examples.labels).tolist()
        plain += closeness(valued.engine.run(floats, examples.batch)[graph.output], examples.labels).tolist()
    assert e.metric == "closeness" and e.score_name == "closeness" and e.unit == "" and not e.agreement
    assert e.score == e.top1 == pytest.approx(np.mean(each)) and e.score_float == pytest.approx(
        np.mean(plain)
    )
    assert e.delta == pytest.approx(np.mean(each) - np.mean(plain)) and e.scores == tuple(each)
    assert e.score_interval == score_interval(np.array(each))
    assert e.delta_interval == score_interval(np.array(each) - np.array(plain)) == e.delta_at(0.95)
    assert e.kl is e.kl_interval is e.loss is None and 0 < e.won + e.lost <= 120
    saved = json.loads(json.dumps(e.to_dict()))
    assert saved["metric"] == "closeness" and saved["score"] == saved["top1"] and "scores" not in saved
    assert e._repr_html_()


def test_two_recipes_are_compared_by_the_score(valued: qx.Session) -> None:
    c = valued.compare("w8a8", "w2a8")
    one, other = valued.evaluate("w8a8"), valued.evaluate("w2a8")
    gained = np.array(one.scores) - np.array(other.scores)
    assert c.delta == pytest.approx(gained.mean()) and c.delta_interval == score_interval(gained)
    assert c.distinguishable and "closeness is higher under the first" in c.verdict
    assert c.kl_delta is None and c.error_delta < 0 and c.error_interval[1] < 0 and c.images_needed
    outcomes = [Trial(qx.Recipe.preset(name), 1, 1, 1, 1, Outcome.of(e), 0.0) for name, e in
                (("w8a8", one), ("w2a8", other))]  # fmt: skip
    again = [Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) for trial in outcomes]
    pair = differences(again, ["a", "b"], valued.layer_names, valued.subject.evaluation.order).pairs[0]
    assert pair.delta == pytest.approx(c.delta, rel=1e-5) and pair.graded and pair.distinguishable
    assert (pair.won, pair.lost) == (c.won, c.lost) and "scores higher" in pair.verdict


def test_measures_of_values_fall_back_to_the_error(valued: qx.Session) -> None:
    assert measures_for(valued.metric) == ["error", "sqnr", "score"]
    exact = valued.sensitivity(["int4"])
    assert set(exact["measure"]) == {"error"}
    decibels = valued.sensitivity(["int4"], "sqnr")["value"].astype(float)
    assert np.allclose(exact["value"].astype(float), 10 ** (-decibels / 10))
    dropped = valued.sensitivity(["int4"], "score")
    assert dropped["value"].notna().all() and (dropped["low"] <= dropped["value"]).all()
    estimate = valued.sensitivity(["int4"], method="instant")
    assert set(estimate["measure"]) == {"error"} and estimate["value"].notna().all()
    assert valued.sensitivity(["int4"], "score", "instant")["value"].notna().all()
    for name in ("kl", "loss"):
        with pytest.raises(SchemeError, match=f"'{name}' needs scores of classes.*error or sqnr.*score"):
            valued.sensitivity(["int4"], name)
    with pytest.raises(SchemeError, match="use score"):
        valued.sensitivity(["int4"], "top1")
    whole = valued.additivity()
    assert whole.measure == "error" and whole.measured > 0


def test_small_errors_are_told_by_plain_gauss_newton() -> None:
    """Of a linear network the estimate is exact in expectation: it is the mean of d'd over random signs."""
    torch.manual_seed(0)
    net = nn.Sequential(*(part for _ in range(10) for part in (nn.Linear(12, 12), nn.Tanh())))
    session = qx.Session(net.eval(), torch.randn(400, 12), metric="cosine")
    from explorer.study import instant

    least = instant._WORK
    try:
        instant._WORK = 1e5  # otherwise every row of so small a network is run
        found = session.sensitivity(["int6"], method="instant")["value"].astype(float)
    finally:
        instant._WORK = least
    exact = session.sensitivity(["int6"])["value"].astype(float)
    ratio = (found / exact).to_numpy()
    assert 0.8 < ratio.mean() < 1.25 and (ratio != 1).all()


def test_diagnosis_and_ranges_of_values_go_by_the_error(valued: qx.Session) -> None:
    recipe = qx.Recipe.preset("w4a8").with_layer("*", weight={"granularity": "layer", "objective": "minmax"})
    found = valued.diagnose(recipe, 60)
    assert found.kl is None and found.error is not None and found.score_name == "closeness"
    for finding in found.findings:
        assert finding.kl_delta is None and finding.verdict != "not tried"
    by_loss = qx.Recipe.preset("w4a8").with_layer("*", weight={"objective": "cross_entropy"})
    errors = [10 ** (-valued.evaluate(each).output_sqnr_db / 10) for each in (by_loss, "w4a8")]
    assert errors[0] < errors[1]


def test_a_segmentation_network_has_classes_for_every_pixel() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    x = torch.randn(60, 1, 8, 8)
    with torch.inference_mode():
        labels = net(x).argmax(1)
    session = qx.Session(net, (x, labels))
    assert session.metric.name == "pixel_accuracy"
    e = session.evaluate("w2a8")
    assert e.score_float == 1 and 0 < e.score < 1 and e.unit == "%" and e.kl > 0 and e.loss > 0
    plain = qx.Session(net, x, metric="pixel_accuracy").evaluate("w2a8")
    assert plain.score == e.score and plain.agreement and plain.loss is None
    for measure in ("kl", "loss", "score", "error"):
        for method in ("instant", "exact"):
            assert session.sensitivity(["int4"], measure, method)["value"].notna().all()
    by_loss = qx.Recipe.preset("w2a8").with_layer("*", weight={"objective": "cross_entropy"})
    assert session.evaluate(by_loss).loss < e.loss
    assert qx.Session(net, x).metric.name == "cosine"


def test_top1_says_the_same_whether_it_is_named_or_usual() -> None:
    usual, named = qx.Session(tiny(), images()), qx.Session(tiny(), images(), metric="top1")
    assert usual.evaluate("w4a8") == named.evaluate("w4a8") and usual.subject.key == named.subject.key
    five = qx.Session(tiny(), images(), metric="top5")
    assert five.subject.key != usual.subject.key and five.evaluate("w4a8").score == 1
    scores = qx.Session(tiny(), images(), metric=lambda outputs, targets: outputs.argmax(1) == targets)
    e, f = scores.evaluate("w4a8"), usual.evaluate("w4a8")
    assert (e.top1, e.top1_interval, e.delta, e.delta_interval) == (
        f.top1,
        f.top1_interval,
        f.delta,
        f.delta_interval,
    )
    assert Scores.of(torch.eye(3), torch.eye(3), None).won == 0


# -- the command line --------------------------------------------------------------------------------

FILE = '''
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()


def data():
    return torch.randn(40, 6), torch.randn(40, 3)


def near(outputs, targets):
    """How near."""
    return 1 / (1 + (outputs - targets).abs().sum(1))


def wrong(outputs, targets):
    return outputs
'''


def test_the_command_line_takes_a_metric_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    common = ["--model", f"{file}:net", "--data", f"{file}:data"]
    near = [*common, "--metric", f"{file}:near"]
    assert main(["evaluate", *near]) == 0
    told = capsys.readouterr().out
    assert "near" in told and "results are no scores of classes" in told and "better)" in told
    out = tmp_path / "e.json"
    assert main(["evaluate", *near, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["metric"] == "near"
    assert main(["compare", *near, "--against", "w4a8"]) == 0
    assert "error of the result" in capsys.readouterr().out
    assert main(["additivity", *near]) == 0
    assert main(["check", *near, "--max-drop", "5"]) == 0
    assert "a drop of more than 5 in near is excluded" in capsys.readouterr().out
    report = tmp_path / "r.html"
    assert main(["report", *near, "--out", str(report), "--diagnose"]) == 0
    assert "Near" in report.read_text() and "none: results are no scores of classes" in report.read_text()
    capsys.readouterr()
    assert main(["evaluate", *common, "--metric", f"{file}:wrong"]) == 2
    said = capsys.readouterr().err
    assert "The metric 'wrong' on the batch of 40" in said and "one score for each example" in said
    assert main(["evaluate", *common, "--metric", f"{file}:neer"]) == 2
    assert "Did you mean 'near'" in capsys.readouterr().err
    assert main(["sensitivity", *near, "--measure", "kl"]) == 2
    assert "use error or sqnr" in capsys.readouterr().err


def test_a_metric_of_a_file_is_made_anew_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    metric = load_metric(f"{file}:near")
    again = pickle.loads(pickle.dumps(metric))
    assert again is not metric and again.key == metric.key and again.help == "How near."
    outputs, targets = torch.zeros(2, 3), torch.ones(2, 3)
    assert again.scores(outputs, targets).tolist() == metric.scores(outputs, targets).tolist() == [0.25, 0.25]
