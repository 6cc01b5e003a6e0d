"""Configurations that were tried: noted, named, brought back, compared; by brute force where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import explorer as qx
from explorer.errors import ProjectError, RecipeError
from explorer.recipe import PRESETS, TENSORS, Recipe
from explorer.sources import Data, load_data
from explorer.study.evaluate import MINIMUM_IMAGES
from explorer.study.trials import COSTS, Outcome, Trial, Trials, front, rows_of, won_and_lost
from explorer.subject import Stream, Subject, make_subject
from tests.small import images, tiny

TAB = "e" * 32


def balanced() -> nn.Module:
    """A network that takes each class now and then, so that recipes win and lose images."""
    net = tiny()
    with torch.no_grad():
        scores = net(images(600)[0])
        net.fc.weight /= scores.std(0)[:, None]
        net.fc.bias.copy_((net.fc.bias - scores.mean(0)) / scores.std(0))
    return net


def labelled(count: int = 600, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = images(count, seed)[0]
    with torch.no_grad():
        labels = balanced()(x).argmax(1)
    labels[::5] = labels[::5].flip(0)
    return x, labels


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(balanced(), data=labelled(), store_bytes=1 << 24)


@pytest.fixture
def session(subject: Subject) -> qx.Session:
    return qx.Session(subject=subject)


def outcome(top1: float, won: tuple[int, ...] = (), lost: tuple[int, ...] = (), images: int = 100) -> Outcome:
    return Outcome(images, images, False, top1, (0.0, 1.0), 0.5, top1 - 0.5, (-1.0, 1.0), 0.0, won, lost)


def trial(number: int, size: int, bops: int, found: Outcome | None) -> Trial:
    recipe = Recipe.preset("w8a8").with_layer(f"l{number}", weight={"format": "int4"})
    return Trial(recipe, size, 100, bops, 100, found, float(number))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int, int]]) -> None:
    trials = [trial(i, size, bops, outcome(right / 5)) for i, (size, bops, right) in enumerate(points)]
    trials.append(trial(99, 1, 1, None))

    def beaten(one: Trial, by: str) -> bool:
        cost, right = getattr(one, by), one.outcome.top1
        return any(
            getattr(t, by) <= cost
            and t.outcome.top1 >= right
            and (getattr(t, by), t.outcome.top1) != (cost, right)
            for t in trials
            if t.outcome
        )

    for by in COSTS:
        places = {(getattr(t, by), t.outcome.top1) for t in front(trials, by)}
        assert places == {(getattr(t, by), t.outcome.top1) for t in trials if t.outcome and not beaten(t, by)}
        assert len(front(trials, by)) == len(places)


@given(st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=40), st.data())
def test_two_outcomes_are_compared_image_by_image(
    right: list[tuple[bool, bool, bool]], data: st.DataObject
) -> None:
    """Against right and wrong themselves: of the float network and of two others."""

    def of(which: int) -> Outcome:
        won = tuple(i for i, r in enumerate(right) if r[which] and not r[0])
        lost = tuple(i for i, r in enumerate(right) if r[0] and not r[which])
        return outcome(0.5, won, lost, len(right))

    among = data.draw(st.sets(st.sampled_from(range(len(right)))))
    only = [sum(right[i][a] and not right[i][b] for i in among) for a, b in ((1, 2), (2, 1))]
    assert won_and_lost(of(1), of(2), among) == tuple(only)


CONFIGS = ["w8a8", "w4a8", "fp32", "mxfp4", "binary", "int8_dynamic"]
EDITS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "*"]), st.sampled_from(["int8", "int4", "fp16", "fp32"])), max_size=3
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CONFIGS), EDITS), min_size=1, max_size=4))
def test_rows_of_many_recipes_by_brute_force(made: list[tuple[str, list[tuple[str, str]]]]) -> None:
    recipes = []
    for preset, edits in made:
        recipe = Recipe.preset(preset)
        for pattern, name in edits:
            try:
                recipe = recipe.with_layer(pattern, weight={"format": name})
            except RecipeError:
                continue
        recipes.append(recipe)
    names = ["a", "b", "c"]
    found = {(row.layer, row.tensor): row.schemes for row in rows_of(recipes, names)}
    for name in names:
        for tensor in TENSORS:
            schemes = [getattr(recipe.config(name), tensor) for recipe in recipes]
            alike = all(one.key == other.key for one in schemes for other in schemes)
            assert ((name, tensor) in found) != alike
            if not alike:
                assert found[name, tensor] == tuple(scheme.describe() for scheme in schemes)
    for one in recipes:
        for other in recipes:
            changed = {d.where for d in one.diff(other, names)}
            assert changed == {row.layer for row in rows_of((one, other), names)}


def test_a_configuration_is_noted_once_it_counts(session: qx.Session) -> None:
    steps = session.evaluate_steps("w4a8", images=600)
    early = next(steps)
    assert early.images < MINIMUM_IMAGES or len(session.tried) == 1
    for found in steps:
        assert (len(session.tried) == 1) == (found.images >= MINIMUM_IMAGES or bool(found.stopped))
        if found.images >= MINIMUM_IMAGES:
            break
    steps.close()
    row = session.trials().iloc[0]
    assert row["images"] == found.images and row["label"] == "w4a8" and not row["present"]
    whole = session.evaluate("w4a8")
    session.evaluate("w4a8", images=250)  # from fewer images: nothing that was not known
    row = session.trials().iloc[0]
    assert (row["images"], row["top1"], row["delta_low"]) == (600, whole.top1, whole.delta_interval[0])
    assert row["size_ratio"] == pytest.approx(whole.size_bytes / whole.size_bytes_float)
    assert "weight int8 → int4 in all 3 layers" in row["changes"]


def test_names_are_labels(session: qx.Session) -> None:
    session.name("../etc/passwd")
    session.recipe = Recipe.preset("w4a8")
    for wrong, why in (
        ("../etc/passwd", "called '../etc/passwd' already"), ("w8a8", "name of a preset"), ("x" * 61, "at most 60"),
        ("a\nb", "one line"), (7, "is a text"),
    ):  # fmt: skip
        with pytest.raises(ProjectError, match=why):
            session.name(wrong)
    session.name(" four bits ")
    assert list(session.trials()["label"]) == ["../etc/passwd", "four bits"]
    session.restore("../etc/passwd")
    assert session.recipe == Recipe.preset("w8a8")
    session.undo()
    assert session.recipe == Recipe.preset("w4a8")
    with pytest.raises(ProjectError, match="Did you mean 'four bits'"):
        session.restore("for bits")
    session.name("")
    assert session.trials()["label"].iloc[1] == "w4a8"
    session.restore(session.trials()["digest"].iloc[0])
    session.restore("w4a8")
    assert session.recipe == Recipe.preset("w4a8")


def test_differences_agree_with_a_comparison(session: qx.Session) -> None:
    mixed = Recipe.preset("w8a8").with_layer("mid", weight={"format": "int2"})
    found = session.differences(["w8a8", mixed, "w4a4"], images=400)
    assert found.labels == ("w8a8", f"#{mixed.digest[:6]}", "w4a4") and len(found.pairs) == 3
    assert ("mid", "weight") in {(row.layer, row.tensor) for row in found.rows}
    recipes = [Recipe.preset("w8a8"), mixed, Recipe.preset("w4a4")]
    pairs = iter(found.pairs)
    for i in range(3):
        for j in range(i + 1, 3):
            pair, same = next(pairs), session.compare(recipes[i], recipes[j], images=400)
            assert (pair.images, pair.won, pair.lost) == (400, same.won, same.lost)
            assert pair.delta == pytest.approx(same.delta) and pair.delta_interval == same.delta_interval
            assert (pair.size_delta, pair.bops_delta) == (same.size_delta, same.bops_delta)
            assert pair.distinguishable == same.distinguishable and pair.images_needed == same.images_needed
            assert pair.layers == len(same.layers)
            assert pair.won and pair.lost
    assert list(found.layers.columns) == ["layer", "tensor", *found.labels]
    assert list(found.table["verdict"]) == [pair.verdict for pair in found.pairs]


def test_differences_say_what_cannot_be_told(session: qx.Session) -> None:
    a, close = Recipe.preset("w8a16"), Recipe.preset("w8a8")
    pair = session.differences([a, close], images=100).pairs[0]
    assert pair.verdict.startswith("not distinguishable on 100 images")
    same = session.differences(["w8a8", "w8a8"], images=100)
    assert same.labels == ("w8a8 (1)", "w8a8 (2)") and same.pairs[0].verdict == "the same for this network"
    bad = session.differences(["w8a8", "binary"], images=600).pairs[0]
    assert bad.distinguishable and bad.verdict == "w8a8 is more accurate"
    with pytest.raises(ProjectError, match="two configurations or more, not 1"):
        session.differences(["w8a8"])
    unseen = [session._trial(Recipe.preset(name)) for name in ("fp16", "bf16")]
    assert session.differences_of(unseen).pairs[0].verdict == "not both evaluated"


def test_a_project_is_found_again_and_belongs_to_network_and_images(tmp_path: Path, subject: Subject) -> None:
    first = qx.Session(subject=subject, project=tmp_path)
    first.evaluate("w4a8")
    first.name("four bits", "w4a8")
    again = qx.Session(subject=replace(subject), project=tmp_path)
    assert again.trials().drop(columns="changes").equals(first.trials().drop(columns="changes"))
    again.restore("four bits")
    x, labels = labelled()
    for other in (
        make_subject(tiny(1), data=(x, labels)),
        seen(subject, load_data((x[:500], labels[:500]))),
        seen(subject, load_data(labelled(seed=2))),
        seen(subject, load_data((x, labels.flip(0)))),
        seen(subject, load_data((x, labels)), seed=1),
        replace(subject, calibration_stream=Stream(load_data(labelled(seed=3)), 64, 0)),
    ):
        assert len(qx.Session(subject=other, project=tmp_path).trials()) == 0
    assert seen(subject, load_data((x, labels))).key == subject.key


def seen(subject: Subject, data: Data, seed: int = 0) -> Subject:
    """The network with other images."""
    return replace(subject, evaluation=Stream(data, 64, seed))


def test_steps_are_resumed_by_their_tab_only(tmp_path: Path, subject: Subject) -> None:
    def open_one() -> qx.Session:
        return qx.Session(subject=subject, project=tmp_path)

    one, other = open_one(), open_one()
    assert not one.resume(TAB) and not other.resume("d" * 32)
    first = one.recipe
    one.edit(["fc"], weight={"format": "int4"})
    second = one.recipe
    one.edit(["mid"], weight={"format": "int2"})
    one.undo()
    assert other.recipe == first
    again = open_one()
    heard: list[int] = []
    again.subscribe(lambda: heard.append(again.revision))
    assert again.resume(TAB) and heard == [1] and again.recipe == second
    assert again.can_redo and again.can_undo
    again.undo()
    assert again.recipe == first and other.recipe == first
    assert not open_one().resume("c" * 32)
    assert not qx.Session(subject=subject).resume(TAB)


def test_trials_are_told_from_any_order_of_news() -> None:
    kept: list[Trial] = []

    def keep(one: Trial) -> Trial:
        kept.append(one)
        return one

    trials = Trials([trial(1, 1, 1, outcome(0.5, images=50))], keep)
    trials.add(trial(1, 1, 1, outcome(0.6, images=40)))
    assert not kept
    trials.add(trial(1, 1, 1, outcome(0.7, images=60)))
    trials.name(trial(1, 1, 1, None), "one")
    assert [each.name for each in kept] == ["", "one"] and kept[-1].outcome.images == 60
    with pytest.raises(ValueError, match="two configurations"):
        trial(1, 1, 1, None).merged(trial(2, 1, 1, None))
    later = replace(trial(1, 1, 1, None), name="two", named=kept[-1].named + 1)
    assert kept[-1].merged(later).name == later.merged(kept[-1]).name == "two"


@pytest.mark.parametrize("make", [lambda t: t, lambda t: Trial.from_dict(t.to_dict())])
def test_a_trial_is_its_values(make: Callable[[Trial], Trial]) -> None:
    for number, preset in enumerate(PRESETS):
        one = replace(trial(number, 1, 1, outcome(0.5, (1,), (2, 3))), recipe=Recipe.preset(preset))
        assert make(one) == one and one.label == preset
