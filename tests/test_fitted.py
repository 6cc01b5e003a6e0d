"""Levels that are fitted to each group, in a whole network: evaluation, sizes, views, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import explorer as qx
from explorer.cost import cost
from explorer.errors import RecipeError, SchemeError
from explorer.formats import FORMATS, CodebookFormat
from explorer.graph.engine import params_key
from explorer.recipe import PRESETS, Recipe
from explorer.tensor import fit_tensor
from tests.small import images, tiny

FITTED = {
    "kmeans2": "channel",
    "kmeans3": "layer",
    "basis2": "channel",
    "binary": "channel",
    "ternary": "layer",
}


@pytest.fixture(scope="module")
def session():
    return qx.Session(tiny(), data=images(), recipe="fp32", store_bytes=1 << 24)


def plain(session):
    """The weight of the layer that is looked at."""
    return session.graph.constants[session.graph.by_layer["mid"].weight].float()


@pytest.mark.parametrize("name", FITTED)
def test_the_network_computes_with_the_fitted_weights(session, name):
    """The engine's weight is the tensor's own quantization, and size counts codes and books to the byte."""
    scheme = {"format": name, "granularity": FITTED[name]}
    recipe = Recipe.preset("fp32").with_layer("mid", weight=scheme)
    evaluation = session.evaluate(recipe)
    before, other = tiny(), tiny()
    own = qx.quantize(before.mid.weight, scheme)
    other.mid.weight.data = own.values()
    x, _ = images()
    with torch.no_grad():
        p, q = before(x).log_softmax(1), other(x).log_softmax(1)
    assert evaluation.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3, abs=1e-6)
    found = cost(session.graph, recipe).layers["mid"]
    assert (found.payload, found.metadata) == (len(own.pack()), own.metadata_bytes)
    number = FORMATS[name]
    assert isinstance(number, CodebookFormat)
    assert found.metadata == 4 * number.numbers * own.scale.numel()


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("tensor", ["weight", "input"])
def test_views_show_the_levels(session, name, tensor):
    scheme = {"format": name, "granularity": FITTED[name]}
    shown = session.histogram("mid", tensor, scheme=scheme)
    assert 1 < len(shown.levels) <= FORMATS[name].count and shown.scale == (0.0, 0.0, 0.0)
    line = session.number_line("mid", tensor, scheme, group=0)
    assert (np.diff(line.levels) > 0).all() and line.mass.sum() == pytest.approx(line.elements)
    assert session.number_line("mid", tensor, scheme).error >= line.error * (1 - 1e-9)
    rows = session.channels("mid", tensor, scheme)
    assert np.isnan(rows.scale).all() and (rows.codes <= FORMATS[name].count).all()
    if tensor == "weight":
        assert set(shown.levels.tolist()) <= set(
            qx.quantize(plain(session), scheme).book.double().flatten().tolist()
        )
        assert shown.sqnr_db == pytest.approx(line.sqnr_db) or shown.groups > 1


def test_inputs_with_fitted_levels(session):
    """Static codebooks, and binary and ternary ones for each example, that do not depend on the batch."""
    symmetric = {"symmetric": True, "granularity": "layer"}
    for fields in ({"format": "kmeans4"}, {"format": "ternary", "mode": "dynamic"}, {"format": "basis2"}):
        recipe = Recipe.preset("fp32").with_layer("*", input={**symmetric, **fields})
        found = session.evaluate(recipe)
        assert np.isfinite(found.kl) and found.kl > 0, fields
    with pytest.raises(RecipeError, match="binary or ternary"):
        Recipe.preset("fp32").with_layer(
            "*", input={**symmetric, "format": "kmeans4", "mode": "dynamic"}
        ).config("x")


def test_books_are_part_of_a_key(session):
    weight = plain(session)
    scheme = qx.TensorScheme("kmeans2", "layer")
    one, other = (fit_tensor(weight * factor, scheme, 0) for factor in (1.0, 1.001))
    assert params_key((one,)) != params_key((other,)) and params_key((one,)) == params_key((one,))


def test_codebooks_larger_than_their_groups_are_refused(session):
    before = session.recipe
    with pytest.raises(
        RecipeError, match=r"The weight of 'stem': kmeans4 stores 16 numbers .* 9 values; take kmeans3"
    ):
        session.edit(["stem"], weight={"format": "kmeans4", "granularity": "channel"})
    assert session.recipe == before
    # A sweep goes on: such a weight is exact.
    table = session.sensitivity(["kmeans4"], images=32, layers=["stem"], method="exact")
    assert table["kl"].abs().max() < 1e-6 if "kl" in table else len(table) == 1


def test_no_range_is_looked_for(session):
    with pytest.raises(SchemeError, match="has no range"):
        session.curves("mid", "weight", {"format": "ternary"})
    recipe = Recipe.preset("w8a8").with_layer("mid", weight={"format": "basis2"})
    assert session.diagnose(recipe, images=32) is not None


@pytest.mark.parametrize("name", ["kmeans4", "ternary", "binary"])
def test_presets_evaluate(session, name):
    assert PRESETS[name].recipe.default.weight.format == name
    recipe = Recipe.preset(name).with_layer("fc", weight={"format": "int8"})
    assert 0 <= session.evaluate(recipe).top1 <= 1
