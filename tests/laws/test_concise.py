"""Recipes in fewer lines: the same schemes for every layer, never longer, and nothing left to shorten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from explorer import Recipe
from explorer.concise import concise

NAMES = (
    "stem",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer1.1.conv1",
    "layer1.1.conv2",
    "layer2.0.conv1",
    "fc",
)
FIELDS = (
    {"weight": {"format": "int4"}},
    {"weight": {"format": "int8"}},
    {"weight": {"format": "fp32"}},
    {"weight": {"granularity": "subchannel:16"}},
    {"weight": {"scale": "pow2"}},
    {"input": {"format": "int8", "symmetric": True}},
    {"input": {"mode": "dynamic"}},
    {"input": {"mode": "static"}},
    {"weight": {"objective": "mse"}, "input": {"objective": "percentile:99.9"}},
)
edits = st.tuples(
    st.one_of(st.sampled_from([*NAMES, "layer1.*", "*.conv1", "*"]), st.just(NAMES)), st.sampled_from(FIELDS)
)


def written(recipe: Recipe, changes: list) -> Recipe:
    for where, fields in changes:
        for pattern in [where] if isinstance(where, str) else where:
            recipe = recipe.with_layer(pattern, **fields)
    return recipe


@given(st.sampled_from(["w8a8", "w4a16", "fp32", "int8_dynamic", "mxfp4"]), st.lists(edits, max_size=6))
def test_the_same_in_fewer_lines(preset, changes):
    try:
        recipe = written(Recipe.preset(preset), changes)
        before = [recipe.config(name) for name in NAMES]
    except ValueError:  # settings that do not go together
        return
    found = concise(recipe, NAMES)
    assert [found.config(name) for name in NAMES] == before
    assert found == recipe or len(found.layers) < len(recipe.layers)
    assert concise(found, NAMES) == found
    assert Recipe.from_yaml(found.to_yaml()) == found


def test_what_all_layers_have_becomes_the_default():
    recipe = written(Recipe.preset("w8a8"), [(NAMES, {"weight": {"format": "int4"}})])
    assert len(recipe.layers) == len(NAMES)
    assert concise(recipe, NAMES) == Recipe.preset("w4a8")


def test_a_pattern_names_just_the_layers_that_are_alike():
    inner = tuple(name for name in NAMES if name.startswith("layer1."))
    recipe = written(
        Recipe.preset("w8a8"),
        [(inner, {"weight": {"format": "int4"}}), ("fc", {"input": {"format": "int8"}})],
    )
    assert [line.pattern for line in concise(recipe, NAMES).layers] == ["layer1.*", "fc"]
