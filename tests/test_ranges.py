"""The objective ``cross_entropy``: a search on the network's loss that everything sees alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import explorer as qx
from explorer.cli import main
from explorer.errors import DataError
from explorer.recipe import Recipe
from explorer.study import Resolving
from explorer.study import ranges as ranges_module
from explorer.study.ranges import with_objectives
from explorer.subject import make_subject
from tests.small import images, tiny

LOW = Recipe.preset("fp32").with_default(
    weight={"format": "int3", "granularity": "channel", "objective": "cross_entropy"},
    input={"format": "uint3", "granularity": "layer", "symmetric": False, "objective": "cross_entropy"},
)
WEIGHTS = LOW.with_default(input={"format": "fp32"})


def session(recipe: Recipe = LOW, store: int = 1 << 24, labels: bool = True, size: int = 0) -> qx.Session:
    x, y = images(60, seed=3)
    calibration = (x, y) if labels else [x]
    subject = make_subject(tiny(), data=images(), calibration=calibration, store_bytes=store)
    if size:
        subject.calibration_stream.size = size
    return qx.Session(subject=subject, recipe=recipe)


@pytest.fixture(scope="module")
def shared() -> qx.Session:
    return session()


def loss(of: qx.Session, recipe: Recipe) -> float:
    """The cross-entropy on the calibration images, from the results alone."""
    plan, total, count = of.plan(recipe), 0.0, 0
    for examples in of.subject.calibration_stream.batches(60):
        result = of.engine.run(plan, examples.batch)[of.graph.output].double()
        target = examples.labels
        if target is None:
            target = of.engine.run(of.subject.floats, examples.batch)[of.graph.output].double().softmax(1)
        total += float(F.cross_entropy(result, target, reduction="sum"))
        count += len(result)
    return total / count


def objectives(recipe: Recipe, of: qx.Session) -> dict[tuple[str, str], str]:
    return {
        (name, tensor): getattr(recipe.config(name), tensor).objective
        for name in of.layer_names
        for tensor in ("weight", "input")
    }


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "float classes"])
@pytest.mark.parametrize("recipe", [LOW, WEIGHTS], ids=["both", "weights"])
def test_the_loss_is_never_above_that_of_mse(labels: bool, recipe: Recipe) -> None:
    """On its own images; and the loss that it tells is the loss."""
    own = session(recipe, labels=labels)
    steps = list(own.resolve_steps())
    explicit, start = steps[-1].recipe, recipe.with_default(weight={"objective": "mse"})
    if recipe is LOW:
        start = start.with_default(input={"objective": "mse"})
    told = [step.loss for step in steps if step.loss is not None]
    assert told[0] == pytest.approx(loss(own, start), rel=1e-9)
    assert told == sorted(told, reverse=True)
    assert loss(own, explicit) <= told[-1] * (1 + 1e-9) < loss(own, start)
    done = [step.done / step.total for step in steps if step.total]
    assert done[-1] == 1 and steps[-1].recipe == own.resolve()


def test_one_tensor_gets_the_best_of_what_is_tried() -> None:
    """Against the loss of each share by itself; one tensor, so that nothing else moves."""
    own = session()
    recipe = Recipe.preset("fp32").with_layer(
        "mid", weight={"format": "int2", "granularity": "layer", "objective": "cross_entropy"}
    )
    explicit = own.resolve(recipe)
    at = ("mid", "weight")
    usual = own.subject.resolver._usual_share(with_objectives(recipe, {at: "mse"}), at)
    shares = [ranges_module._rounded(usual * factor) for factor in ranges_module.FACTORS]
    losses = [loss(own, with_objectives(recipe, {at: f"clip:{share:g}"})) for share in shares]
    best = min(*losses, loss(own, with_objectives(recipe, {at: "mse"})))
    assert loss(own, explicit) <= best * (1 + 1e-12)
    # The second round tries the neighbours of the best.
    near = {
        f"clip:{ranges_module._rounded(share * f):g}"
        for share in shares
        for f in (1, *ranges_module.NEIGHBOURS)
    }
    assert explicit.config("mid").weight.objective in near | {"mse"}


def test_a_few_tensors_come_near_the_best_of_all_combinations() -> None:
    """Three weights, all combinations of the shares of the first round: within a small part of what there is to win."""
    own = session(WEIGHTS.with_default(weight={"format": "int2", "granularity": "layer"}))
    recipe = own.recipe
    start = with_objectives(recipe, {(name, "weight"): "mse" for name in own.layer_names})
    tries = {}
    for name in own.layer_names:
        usual = own.subject.resolver._usual_share(start, (name, "weight"))
        tries[name, "weight"] = [
            "mse",
            *(f"clip:{ranges_module._rounded(usual * f):g}" for f in ranges_module.FACTORS),
        ]
    every = [
        loss(own, with_objectives(recipe, dict(zip(tries, c, strict=True)))) for c in product(*tries.values())
    ]
    found, first = loss(own, own.resolve()), loss(own, start)
    assert found <= min(every) + 0.25 * (first - min(every))


def test_the_search_is_deterministic(shared) -> None:
    """Also with a store that keeps next to nothing."""
    assert session(store=5 << 17).resolve(LOW) == shared.resolve(LOW) == session().resolve(LOW)


def test_the_loss_is_of_the_images_however_they_are_cut(shared) -> None:
    """But for sums in another order, which now and then take a value over the middle between two levels."""
    told = [
        [step.loss for step in own.resolve_steps(LOW) if step.loss] for own in (session(), session(size=7))
    ]
    assert told[0][0] == pytest.approx(told[1][0], rel=0.01)
    assert told[0][-1] == pytest.approx(told[1][-1], rel=0.1)


def test_the_result_is_kept_and_other_images_have_their_own(shared) -> None:
    shared.resolve()
    shared.engine.computed.clear()
    again = shared.resolve(LOW.with_layer("*", weight={"mode": "static"}))
    assert objectives(again, shared) == objectives(shared.resolve(), shared)
    assert not shared.engine.computed
    keys = {shared.subject.resolver._key(LOW), session(labels=False).subject.resolver._key(LOW)}
    assert len(keys) == 2
    other = LOW.with_layer("mid", weight={"format": "int4"})
    assert shared.subject.resolver._key(other) not in keys


def test_everything_sees_the_same_ranges(shared) -> None:
    """Evaluation, layers, histograms and sweeps under the recipe are those under the explicit one."""
    shared.recipe = LOW
    explicit = shared.resolve()
    found = set(objectives(explicit, shared).values())
    assert "cross_entropy" not in found and any(name.startswith("clip:") for name in found)
    assert set(objectives(shared.recipe, shared).values()) == {"cross_entropy"}
    assert shared.resolve(explicit) is explicit
    a, b = shared.evaluate(LOW), shared.evaluate(explicit)
    assert (a.kl, a.top1, a.layers) == (b.kl, b.top1, b.layers) and a.recipe == LOW.digest
    assert shared.plan(LOW).keys == shared.plan(explicit).keys
    assert shared.layers(LOW).equals(shared.layers(explicit))
    for tensor in ("weight", "input"):
        mine, scheme = shared.histogram("mid", tensor), getattr(explicit.config("mid"), tensor)
        assert np.array_equal(mine.levels, shared.histogram("mid", tensor, scheme=scheme).levels)
    out, left = shared.sensitivity(method="leave_one_out", measure="kl", tensor="both"), shared.recipe
    shared.recipe = explicit
    other = shared.sensitivity(method="leave_one_out", measure="kl", tensor="both")
    shared.recipe = left
    assert out["value"].tolist() == other["value"].tolist()


def test_rows_of_a_sweep_find_their_own_ranges(shared) -> None:
    """One layer at a time in a float network: each row as if it were the recipe."""
    shared.recipe = LOW
    tables = list(shared.sensitivity_steps(["int3"], "kl", "exact", "weight"))
    for row in tables[-1].itertuples():
        alone = Recipe.preset("fp32").with_layer(row.layer, weight=LOW.config(row.layer).weight)
        assert row.value == pytest.approx(shared.evaluate(alone).kl, rel=1e-9)


def test_a_search_that_is_left_can_be_taken_up_again() -> None:
    """Whoever stops in the middle holds nobody up; who asks for the same meanwhile waits and may stop."""
    own = session()
    steps: Iterator[Resolving] = own.resolve_steps()
    for _ in range(20):
        next(steps)
    waiting = own.resolve_steps()
    assert [next(waiting).recipe for _ in range(2)] == [None, None]
    waiting.close()
    steps.close()
    assert own.resolve() == session().resolve()


def test_explicit_recipes_say_the_same_whatever_lines_there_were() -> None:
    """A line that comes before another one for the same layer stays before it."""
    recipe = Recipe.preset("w4a8").with_layer("mid", weight={"format": "int2"}, input={"format": "uint4"})
    recipe = recipe.with_layer("m*", weight={"format": "int6"}, input={"format": "uint7"})
    changed = with_objectives(recipe, {("mid", "weight"): "clip:0.5"})
    config = changed.config("mid")
    assert (config.weight.describe(), config.input.format) == ("int6 channel sym clip:0.5", "uint7")
    assert changed.config("fc") == recipe.config("fc")
    assert Recipe.from_yaml(changed.to_yaml()) == changed


def test_recipes_without_it_are_left_alone(shared) -> None:
    recipe = Recipe.preset("w8a8")
    steps = list(shared.resolve_steps(recipe))
    assert shared.resolve(recipe) is recipe and steps[-1].recipe is recipe and not steps[-1].total
    off = LOW.with_layer("*", weight={"mode": "off"}, input={"mode": "off"})
    assert shared.resolve(off) is off


def test_labels_beyond_the_classes_are_refused() -> None:
    x, y = images(20, seed=3)
    subject = make_subject(tiny(), data=images(), calibration=(x, y + 3), store_bytes=1 << 22)
    with pytest.raises(DataError, match="labels reach"):
        qx.Session(subject=subject, recipe=LOW).resolve()


def test_usual_share_is_that_of_least_error(shared) -> None:
    recipe = with_objectives(LOW, {("fc", "weight"): "mse", ("fc", "input"): "mse"})
    for tensor in ("weight", "input"):
        share = shared.subject.resolver._usual_share(recipe, ("fc", tensor))
        assert 0 < share <= 1 and not math.isnan(share)
        assert torch.isfinite(torch.tensor(share))


def test_a_page_opens_before_the_search() -> None:
    """What is there at once knows nothing of tensors that the search is about; a job can be stopped in it."""
    pytest.importorskip("panel")
    from explorer.views.runs import settled
    from explorer.views.state import PageState

    own = session()
    state = PageState(own)
    assert not own.subject.resolver._found and state.layers_recipe != own.recipe
    assert all(math.isnan(row["weight_sqnr_db"]) for row in state.rows())
    steps = settled(own, own.recipe, state.read_layers)()
    assert isinstance(next(steps), Resolving)
    *_, (recipe, table) = steps
    assert recipe == own.recipe and table.equals(own.layers())


def test_the_command_line_writes_the_explicit_recipe(tmp_path) -> None:
    x, y = images(40, seed=3)
    np.savez(tmp_path / "data.npz", images=x.numpy(), labels=y.numpy())
    (tmp_path / "net.py").write_text("from tests.small import tiny\n")
    (tmp_path / "low.yaml").write_text(WEIGHTS.to_yaml())
    out = tmp_path / "out.yaml"
    arguments = ["resolve", "--model", f"{tmp_path / 'net.py'}:tiny", "--data", str(tmp_path / "data.npz")]
    assert main([*arguments, "--recipe", str(tmp_path / "low.yaml"), "--yaml", str(out)]) == 0
    written = Recipe.from_yaml(out.read_text())
    assert {written.config(name).weight.objective.split(":")[0] for name in ("stem", "mid", "fc")} <= {
        "clip",
        "mse",
    }
