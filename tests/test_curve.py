"""The curves of objectives: the searches' own costs, against loops by hand; and ranges that are moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import explorer as qx
from explorer.calibrate import OBJECTIVES, Sample, objective
from explorer.calibrate.search import Search
from explorer.errors import SchemeError
from explorer.formats import granularity
from explorer.recipe import TensorScheme
from explorer.study.curve import SHARES, costs, curve_steps, effect, usual_objectives
from explorer.study.grouped import grouped_weight
from explorer.study.metrics import ErrorSums
from tests.small import images, tiny

POWERS = {"mse": 2.0, "sqnr": 2.0, "lp:2.4": 2.4}
FORMATS = ["int4", "uint3", "fp4_e2m1"]


def weight(rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 400, generator=generator) * torch.tensor([1.0, 0.1, 30.0])[:rows, None]


def scheme(name: str, goal: str = "minmax", grain: str = "channel") -> TensorScheme:
    return TensorScheme(name, grain, symmetric=name != "uint3", objective=goal)


def last(found):
    *_, curves = curve_steps(found)
    return {curve.objective: curve for curve in curves.curves}


@pytest.fixture(scope="module")
def session() -> qx.Session:
    return qx.Session(tiny(), data=images(), store_bytes=1 << 24)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("goal", POWERS)
def test_costs_are_sums_over_values(name, goal):
    """Against quantizing with the range and adding up, channel by channel."""
    plain = weight()
    found = last(grouped_weight("here", plain, 0, scheme(name)))[goal]
    wanted = []
    for share in (*SHARES, 1.0):
        after = qx.fake_quantize(plain, scheme(name, f"clip:{share:g}"))
        wanted.append(float((plain.double() - after.double()).abs().pow(POWERS[goal]).sum()))
    assert found.cost == pytest.approx(np.array(wanted[:-1]) / wanted[-1], rel=1e-4)
    assert found.cost[-1] == 1


def test_the_divergence_is_what_the_search_sees():
    """For a range at a time, with no other candidate beside it."""
    plain, own = weight(), scheme("int4")
    sample, goal = Sample.of(plain, granularity("channel"), 0), objective("kl")
    bounds = sample.maximum.abs()[:, None] * torch.tensor([0.4, 0.7, 1.0])
    found = costs(goal, sample, own.grid, -bounds, bounds)
    for group in range(3):
        for place in range(3):
            part = sample.part(slice(group, group + 1))
            params = own.grid.params(-bounds[group, place : place + 1], bounds[group, place : place + 1])
            alone = goal.cost(
                goal.prepare(part, own.grid),
                type(params)(
                    params.scale[:, None], params.zero_point[:, None], params.qmin, params.qmax,
                    params.reciprocal, params.levels,
                ),
            )  # fmt: skip
            assert found[group, place] == pytest.approx(float(alone), rel=1e-12)


@pytest.mark.parametrize("name", ["int4", "int8", "nf4"])
@pytest.mark.parametrize("goal", [n for n in usual_objectives() if isinstance(objective(n), Search)])
def test_the_least_of_a_curve_is_where_its_objective_chooses(name, goal):
    """Of one group; a search looks on between the neighbours of the best share of the grid."""
    found = last(grouped_weight("here", weight(1), 0, scheme(name, grain="layer")))[goal]
    best = SHARES[int(found.cost.argmin())]
    assert abs(found.share - best) <= 0.01
    assert found.chosen <= found.cost.min() * (1 + 1e-9) + 1e-12
    assert found.span == (found.share, found.share)


def test_groups_of_their_own_choose_at_least_as_well():
    for curve in last(grouped_weight("here", weight(), 0, scheme("int4"))).values():
        if curve.cost is not None:
            assert curve.chosen <= curve.cost.min() * (1 + 1e-9)
            assert curve.span[0] <= curve.share <= curve.span[1]


def test_every_objective_has_its_place(session):
    session.edit(["mid"], weight={"format": "int4", "objective": "clip:0.8"})
    found = session.curves("mid")
    assert [curve.objective for curve in found.curves] == usual_objectives("clip:0.8")
    assert found.present.share == pytest.approx(0.8)
    families = {name.partition(":")[0] for name in OBJECTIVES} - {"output", "cross_entropy"}
    assert {curve.objective.partition(":")[0] for curve in found.curves} == families
    assert {curve.objective for curve in found.curves if curve.cost is None} == {
        name for name in usual_objectives("clip:0.8") if not isinstance(objective(name), Search)
    }
    # An objective that looks at the layer has a place where the recipe has it.
    session.edit(["mid"], weight={"objective": "output"})
    own = session.curves("mid").present
    assert own.objective == "output" and own.cost is None and 0 < own.span[0] <= own.share <= own.span[1]
    static = session.curves("mid", "input")
    assert static.present.objective == "mse"
    session.edit(["mid"], input={"mode": "dynamic", "objective": "minmax"})
    with pytest.raises(SchemeError, match="takes its ranges from each example"):
        session.curves("mid", "input")
    session.edit(["mid"], weight={"format": "fp16", "objective": "minmax"})
    with pytest.raises(SchemeError, match="has no range"):
        session.curves("mid")


@pytest.mark.parametrize("tensor", ["weight", "input"])
def test_effect_is_the_number_line_in_short(session, tensor):
    own = {"format": "int4", "granularity": "layer", "objective": "clip:0.5"}
    found, line = session.effect("fc", tensor, own), session.number_line("fc", tensor, own)
    assert found.sqnr_db == pytest.approx(line.sqnr_db, abs=1e-3)
    assert found.clipped_fraction == pytest.approx(line.clipped_fraction, abs=1e-6)
    assert found.clipped_fraction > 0


def test_effect_counts_no_padding():
    plain = weight(2)[:, :45]
    found = effect(grouped_weight("here", plain, 0, scheme("int3", "clip:0.6", "subchannel:32")))
    after = qx.fake_quantize(plain, scheme("int3", "clip:0.6", "subchannel:32"))
    assert found.sqnr_db == pytest.approx(ErrorSums.of(plain, after).sqnr_db, abs=1e-3)


def test_output_of_a_layer_alone(session):
    recipe = qx.Recipe.preset("fp32").with_layer("fc", weight={"format": "int4", "granularity": "channel"})
    graph, layer = session.graph, session.graph.by_layer["fc"]
    batch = next(session.subject.calibration_stream.batches()).batch
    values = session.engine.run(session.subject.floats, batch, [layer.node, *layer.inputs])
    plain = graph.constants[layer.weight]
    error = values[layer.inputs[0]][:16] @ (qx.fake_quantize(plain, recipe.config("fc").weight) - plain).T
    wanted = 10 * torch.log10(values[layer.node][:16].square().sum() / error.square().sum())
    assert session.output_sqnr("fc", 16, recipe) == pytest.approx(float(wanted), abs=1e-3)


def test_a_movement_is_one_step_of_history(session):
    session.recipe = qx.Recipe.preset("w8a8")
    before, revision = session.recipe, session.revision
    for share in (0.9, 0.8, 0.7):
        session.edit(["fc"], weight={"objective": f"clip:{share}"}, join="first")
    assert session.revision == revision + 3
    session.undo()
    assert session.recipe == before
    session.redo()
    assert session.recipe.config("fc").weight.objective == "clip:0.7"
    middle = session.recipe
    session.edit(["fc"], weight={"objective": "clip:0.6"}, join="first")
    session.edit(["fc"], weight={"objective": "clip:0.5"}, join="second")
    session.undo()
    assert session.recipe.config("fc").weight.objective == "clip:0.6"
    session.undo()
    assert session.recipe == middle
