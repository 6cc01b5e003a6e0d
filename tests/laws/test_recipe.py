"""Recipes: values that survive files, say one thing one way, and refuse mistakes with their place."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.errors import RecipeError, SchemeError
from explorer.formats import FORMATS
from explorer.recipe import FIELDS, MODES, PRESETS, LayerConfig, Line, Recipe, TensorScheme
from tests import strategies
from tests.strategies import SCHEMES

NAMES = ("stem", "layer1.0.conv1", "layer1.10.conv2", "layer2.0.conv1", "fc")


# --- files and equality -------------------------------------------------------------------------------------


@given(strategies.recipes())
@settings(max_examples=120)
def test_round_trips(recipe: Recipe) -> None:
    for again in (Recipe.from_yaml(recipe.to_yaml()), Recipe.from_json(recipe.to_json())):
        assert again == recipe and hash(again) == hash(recipe) and again.digest == recipe.digest
        assert not again.diff(recipe) and not recipe.diff(again)
    # JSON is YAML; one reader takes both.
    assert Recipe.from_yaml(recipe.to_json()) == recipe


@given(strategies.recipes(), strategies.recipes())
@settings(max_examples=60)
def test_equal_exactly_when_nothing_differs(one: Recipe, other: Recipe) -> None:
    patterns = [line.pattern for line in one.layers], [line.pattern for line in other.layers]
    settings_apart = one.diff(other)
    assert (one == other) == (not settings_apart and patterns[0] == patterns[1])
    back = {(d.where, d.tensor, d.field): (d.after, d.before) for d in other.diff(one)}
    assert back == {(d.where, d.tensor, d.field): (d.before, d.after) for d in settings_apart}
    if one == other:
        assert one.digest == other.digest


@given(strategies.schemes())
@settings(max_examples=60)
def test_schemes_are_rebuilt_from_their_fields(scheme: TensorScheme) -> None:
    assert TensorScheme(**scheme.to_dict()) == scheme
    assert len(scheme.describe()) < 80 and scheme.describe().split()[0] in FORMATS
    assert scheme.off == (scheme.format == "fp32" or scheme.mode == "off")
    assert scheme.bits == (32 if scheme.off else FORMATS[scheme.format].bits)


def test_keys_tell_apart_what_schemes_do() -> None:
    """Equal keys exactly for schemes that do the same: unequal schemes, unless quantization is off or scaleless."""
    for scheme in SCHEMES:
        for other in SCHEMES:
            if scheme.scaled and other.scaled:
                assert (scheme.key == other.key) == (scheme == other)
            else:
                assert (scheme.key == other.key) == (scheme.number == other.number)


def test_one_meaning_has_one_spelling() -> None:
    assert TensorScheme("int4", "group:08") == TensorScheme("int4", "group:8")
    assert TensorScheme(objective="percentile:99.90") == TensorScheme(objective="percentile:99.9")
    recipe = Recipe.preset("w8a8")
    one = recipe.with_layer("fc", weight={"format": "int4", "objective": "mse", "granularity": "group:4"})
    other = recipe.with_layer("fc", weight={"objective": "mse", "granularity": "group:04", "format": "int4"})
    step_by_step = recipe.with_layer("fc", weight={"objective": "mse"}).with_layer(
        "fc", weight={"granularity": "group:4", "format": "int4"}
    )
    assert one == other == step_by_step and one.digest == other.digest == step_by_step.digest


def test_fields_are_explained() -> None:
    """Controls are built from the fields: each has a line of help."""
    assert {f.name for f in fields(TensorScheme)} == set(FIELDS)
    assert all(len(f.metadata["help"]) > 8 for f in fields(TensorScheme))
    assert all(len(text) > 8 for text in MODES.values())


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    recipe = Recipe.preset(name)
    assert Recipe.from_yaml(recipe.to_yaml()) == Recipe.from_json(recipe.to_json()) == recipe
    assert len(PRESETS[name].help) > 10 and recipe.config("any") == recipe.default
    others = [Recipe.preset(other) for other in PRESETS if other != name]
    assert recipe not in others


@pytest.mark.parametrize(("name", "weight", "input_"), [
    ("fp32", 32, 32), ("w8a8", 8, 8), ("w8a16", 8, 16), ("w4a16", 4, 16), ("w4a8", 4, 8), ("w4a4", 4, 4),
    ("w2a8", 2, 8), ("int8_dynamic", 8, 8), ("fp16", 16, 16), ("bf16", 16, 16),
])  # fmt: skip
def test_presets_have_the_bits_of_their_name(name: str, weight: int, input_: int) -> None:
    config = Recipe.preset(name).config("any")
    assert (config.weight.bits, config.input.bits) == (weight, input_)
    assert (config.input.mode == "dynamic") == (name == "int8_dynamic")


# --- lines and patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "matching"), [
    ("*", set(NAMES)),
    ("layer1.*", {"layer1.0.conv1", "layer1.10.conv2"}),
    ("layer?.0.conv1", {"layer1.0.conv1", "layer2.0.conv1"}),
    ("layer1.?.conv?", {"layer1.0.conv1"}),
    ("*.conv1", {"layer1.0.conv1", "layer2.0.conv1"}),
    ("fc", {"fc"}),
    ("f?", {"fc"}),
    ("f??", set()),
    ("layer1", set()),
    ("layer1.0.conv[12]", set()),
    (".*", set()),
])  # fmt: skip
def test_patterns(pattern: str, matching: set[str]) -> None:
    assert {name for name in NAMES if Line(pattern).matches(name)} == matching
    recipe = Recipe.preset("w8a8").with_layer(pattern, weight={"format": "int3"})
    assert {name for name in NAMES if recipe.config(name).weight.bits == 3} == matching


def test_later_lines_win_and_leave_the_rest() -> None:
    recipe = (
        Recipe.preset("w8a8")
        .with_layer("*", weight={"format": "int6", "objective": "mse"})
        .with_layer("layer1.*", weight={"format": "int4"})
        .with_layer("layer1.0.*", input={"format": "uint4"})
    )
    first = recipe.config("layer1.0.conv1")
    assert (first.weight.format, first.weight.objective, first.input.format) == ("int4", "mse", "uint4")
    assert recipe.config("fc").weight.format == "int6"
    # Said again, a line moves to the end and wins; what it said before stays.
    again = recipe.with_layer("*", weight={"format": "int5"})
    assert again.config("layer1.0.conv1").weight == TensorScheme("int5", objective="mse")
    assert len(again.layers) == 3 and again.layers[-1].pattern == "*"
    assert (
        again.without_layer("*").without_layer("layer1.*").without_layer("nothing").config("fc")
        == recipe.default
    )


def test_a_whole_scheme_replaces_all_fields() -> None:
    """Also those that a scheme leaves to its convention."""
    recipe = Recipe.preset("w8a8").with_default(weight={"narrow": False})
    scheme = TensorScheme("int4", "layer")
    assert recipe.with_layer("fc", weight=scheme).config("fc").weight == scheme
    assert recipe.with_default(weight=scheme).default.weight == scheme


def test_recipes_do_not_change() -> None:
    recipe = Recipe.preset("w8a8")
    before = recipe.to_yaml()
    recipe.with_layer("fc", weight={"format": "int4"})
    recipe.with_default(input={"format": "int8", "symmetric": True})
    assert recipe.to_yaml() == before
    with pytest.raises(AttributeError):
        recipe.layers = ()  # type: ignore[misc]


def test_diff_says_what_changes() -> None:
    one = Recipe.preset("w8a8").with_layer("layer1.*", weight={"format": "int4"})
    other = one.with_layer("fc", input={"mode": "off"}).with_default(weight={"objective": "mse"})
    assert [str(d) for d in one.diff(other)] == [
        "default weight.objective: minmax -> mse", "fc input.mode: None -> off",
    ]  # fmt: skip
    effective = one.diff(other, NAMES)
    assert {d.where for d in effective} == set(NAMES)
    assert [str(d) for d in effective if d.where == "fc"] == [
        "fc weight.objective: minmax -> mse", "fc input.mode: static -> off",
    ]  # fmt: skip
    # Two ways to leave a tensor in float are no difference.
    off = Recipe.preset("fp32").with_default(weight={"mode": "off"})
    assert Recipe.preset("fp32").diff(off, NAMES) == ()


def test_patterns_that_name_no_layer_are_refused() -> None:
    recipe = Recipe.preset("w8a8").with_layer("layer1.0.con1", weight={"format": "int4"})
    with pytest.raises(
        RecipeError, match=r"layers.layer1.0.con1: no layer .* Did you mean 'layer1.0.conv1'\?"
    ):
        recipe.check(NAMES)
    Recipe.preset("w8a8").with_layer("layer?.*", weight={"format": "int4"}).check(NAMES)


# --- mistakes -----------------------------------------------------------------------------------------------


def one_sentence(error: BaseException) -> str:
    """The message, which is one or two sentences on one line, without a trace of Python."""
    text = str(error)
    assert "\n" not in text and 15 < len(text) < 500 and text.endswith((".", "?"))
    assert "Traceback" not in text and "Error(" not in text
    return text


HEAD = "version: 1\ndefault:\n"
# ruff: noqa: E501 - a case is a line
BAD_FILES = [
    ("", "The recipe is empty; it needs 'version: 1'"),
    ("- a\n- b\n", "recipe: expected named fields, not ['a', 'b']"),
    ("just words", "expected named fields, not 'just words'"),
    ("version: 2\n", "line 1: version: this program reads recipes of version 1, not 2"),
    ("version: true\n", "of version 1, not True"),
    ("default: {}\n", "version: this program reads recipes of version 1, not None"),
    ("version: 1\ndefalt: {}\n", "line 2: defalt: There is no field 'defalt'; there are version, default, layers. Did you mean 'default'?"),
    (HEAD + "  wieght: {}\n", "line 3: default.wieght: There is no field 'wieght'; there are weight, input. Did you mean 'weight'?"),
    (HEAD + "  weight:\n    fromat: int8\n", "line 4: default.weight.fromat: There is no field 'fromat'; "),
    (HEAD + "  weight:\n    format: int88\n", "line 4: default.weight.format: There is no format 'int88'; "),
    (HEAD + "  weight: {granularity: chanel}\n", "Did you mean 'channel'?"),
    (HEAD + "  weight: {granularity: group}\n", "line 3: default.weight.granularity: The granularity 'group' needs a positive whole number"),
    (HEAD + "  weight: {objective: percentile:20}\n", "A percentile lies above 50"),
    (HEAD + "  weight: {objective: mss}\n", "Did you mean 'mse'?"),
    (HEAD + "  weight: {convention: tourch}\n", "Did you mean 'torch'?"),
    (HEAD + "  weight: {scale: pow3}\n", "Did you mean 'pow2'?"),
    (HEAD + "  input: {mode: dynamik}\n", "Did you mean 'dynamic'?"),
    (HEAD + "  weight: {symmetric: maybe}\n", "default.weight.symmetric: The field 'symmetric' takes true or false, not 'maybe'"),
    (HEAD + "  weight: {symmetric: 1}\n", "takes true or false, not 1"),
    (HEAD + "  weight: {format: 8}\n", "The field 'format' takes a name, not 8"),
    (HEAD + "  weight: {format: [int8]}\n", "takes a name, not ['int8']"),
    (HEAD + "  weight: {format: null}\n", "takes a name, not None"),
    (HEAD + "  weight: int8\n", "line 3: default.weight: expected named fields, not 'int8'"),
    (HEAD + "  weight: {mode: dynamic, granularity: layer}\n", "use mode: static for weights"),
    (HEAD + "  weight: {granularity: token}\n", "A weight has no tokens"),
    (HEAD + "  weight: {narrow: true, symmetric: false}\n", "The field 'narrow' has an effect on symmetric integer formats only"),
    (HEAD + "  input: {granularity: token}\n", "needs mode: dynamic"),
    (HEAD + "  input: {mode: dynamic}\n", "use objective: minmax, or mode: static"),
    (HEAD + "  input: {mode: dynamic, objective: minmax, granularity: channel}\n", "use granularity: layer or token"),
    ("version: 1\nlayers:\n  fc: {wieght: {}}\n", "line 3: layers.fc.wieght: There is no field"),
    ("version: 1\nlayers:\n  a: {}\n  fc:\n    weight: {format: int9000}\n", "line 5: layers.fc.weight.format: There is no format 'int9000'"),
    ("version: 1\nlayers:\n  fc:\n    weight: {mode: dynamic, granularity: layer}\n", "line 3: layers.fc: A weight does not change"),
    ("version: 1\nlayers:\n  1: {}\n", "layers: the name 1 is not a text; put it in quotes"),
    ("version: 1\nlayers: [fc]\n", "layers: expected named fields, not ['fc']"),
    ("version: 1\nlayers:\n  fc: {}\n  fc: {}\n", "line 4: 'layers.fc' stands twice"),
    ("version: 1\nversion: 1\n", "line 2: 'version' stands twice"),
    (HEAD + "  weight: {format: int8, format: int4}\n", "line 3: 'default.weight.format' stands twice"),
    ("version: 1\ndefault: &a {}\nlayers: *a\n", "may not use YAML aliases"),
    ("version: 1\nlayers: &a {x: *a}\n", "may not use YAML aliases"),
    ("version: 1\ndefault: {weight: {format: int8\n", "The recipe is not YAML: line "),
    ("version: 1\n\tdefault: {}\n", "The recipe is not YAML: line 2, column 1"),
    ("version: 1\n---\nversion: 1\n", "The recipe is not YAML: line 2"),
    ("version: !!python/object/apply:os.getcwd []\n", "The recipe is not YAML: line 1"),
    ("version: !!bool perhaps\n", "The recipe is not YAML"),
    ("version: !!timestamp never\n", "The recipe is not YAML"),
    ("version: 2020-99-99\n", "The recipe is not YAML"),
    ("version: " + "9" * 5000 + "\n", "The recipe is not YAML"),
    ("version: 1\nlayers:\n  ? [a, b]\n  : {}\n", "The recipe is not YAML"),
    ("version: 1\x00", "The recipe is not YAML"),
    ("version: " + "[" * 100000, "nested too deeply"),
    ("#" * ((1 << 20) + 1), "A recipe of 1,048,577 characters is too long; 1,048,576 are read at most."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[message[:50] for _, message in BAD_FILES])
def test_bad_files_are_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    assert message in one_sentence(caught.value)


BAD_JSON = [
    ("{", "The recipe is not JSON: line 1, column 2"),
    ("[]", "expected named fields, not []"),
    ("null", "The recipe is empty"),
    ('{"version": 1, "default": {"weight": {"format": "int88"}}}', "default.weight.format: There is no format 'int88'"),
    ('{"version": 1, "layers": {"fc": {}, "fc": {}}}', "'fc' stands twice"),
    ('{"version": %s}' % ("9" * 5000), "The recipe is not JSON"),
    ('{"version": NaN}', "of version 1, not nan"),
    ("[" * 100000, "nested too deeply"),
    (" " * ((1 << 20) + 1), "is too long"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_JSON, ids=[message[:50] for _, message in BAD_JSON])
def test_bad_json_is_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(text)
    assert message in one_sentence(caught.value)


@given(
    st.one_of(st.text(max_size=60), st.text("versiondefaultlayers: 1{}[]&*!?-|>\n\"'#,%@`~.", max_size=80))
)
@settings(max_examples=250)
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    for read in (Recipe.from_yaml, Recipe.from_json):
        try:
            assert isinstance(read(text), Recipe)
        except RecipeError as error:
            one_sentence(error)


plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([*FIELDS, *FORMATS, "x"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["version", "default", "layers", "weight", "input", "fc", *FIELDS]), inner
        ),
    ),
    max_leaves=6,
)


@given(plain, plain, plain)
@settings(max_examples=120)
def test_any_values_are_a_recipe_or_refused(default: object, layers: object, entry: object) -> None:
    for given_layers in (layers, {"fc": entry}, {"fc": {"weight": entry}}):
        text = json.dumps({"version": 1, "default": default, "layers": given_layers})
        try:
            recipe = Recipe.from_json(text)
        except RecipeError as error:
            one_sentence(error)
        else:
            assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Recipe.preset("w8a9"), "There is no preset 'w8a9'"),
    (lambda: Recipe().with_layer("fc", weight={"bits": 4}), "fc.weight: There is no field 'bits'"),
    (lambda: Recipe().with_layer("fc", weight={"format": "int"}), "fc.weight.format: There is no format 'int'"),
    (lambda: Recipe().with_layer("fc", weight="int8"), "fc.weight: expected fields such as {format: int8}, not 'int8'"),
    (lambda: Recipe().with_layer("fc", weight={"mode": "dynamic", "granularity": "layer"}), "fc: A weight does not change"),
    (lambda: Recipe().with_layer("*", weight={"mode": "dynamic", "granularity": "layer"}), "layers.*: A weight does not change"),
    (lambda: Recipe().with_default(input={"mode": "dynamic"}), "default: Dynamic ranges"),
    (lambda: Recipe().with_default(weight={"narrow": 1}), "default.weight.narrow: The field 'narrow' takes true or false"),
    (lambda: Recipe(layers=(Line("fc"), Line("fc"))), "'fc' stands twice"),
])  # fmt: skip
def test_bad_calls_are_refused_in_a_sentence(call: object, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        call()  # type: ignore[operator]
    assert message in one_sentence(caught.value)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [3, 2.5, None, [], {}, "nonsense", b"int8"], ids=repr)
def test_every_field_is_checked(field: str, value: object) -> None:
    if field == "narrow" and value is None:
        assert TensorScheme(narrow=None).narrow is None
        return
    with pytest.raises(SchemeError) as caught:
        TensorScheme(**{field: value})  # type: ignore[arg-type]
    assert repr(value) in one_sentence(caught.value)


def test_lines_that_only_fit_together_are_taken() -> None:
    """A line that needs another one to make sense is judged where they meet."""
    recipe = Recipe.preset("w8a8").with_layer("*", input={"objective": "minmax"})
    recipe = recipe.with_layer("fc", input={"mode": "dynamic"})
    assert recipe.config("fc").input.mode == "dynamic"
    broken = recipe.with_layer("*", input={"objective": "kl"})
    with pytest.raises(RecipeError, match="layer 'fc': Dynamic ranges"):
        broken.config("fc")
    with pytest.raises(RecipeError, match="layer 'fc'"):
        broken.check(NAMES)
    assert isinstance(LayerConfig(), LayerConfig) and hash(LayerConfig()) == hash(LayerConfig())


def test_the_part_that_fits_another_network():
    recipe = Recipe.preset("w8a8")
    for pattern in ("fc", "head", "conv*", "block?"):
        recipe = recipe.with_layer(pattern, weight={"format": "int4"})
    part, left = recipe.fitting(["conv1", "conv2", "fc"])
    assert left == ("head", "block?") and [line.pattern for line in part.layers] == ["fc", "conv*"]
    part.check(["conv1", "conv2", "fc"])
    assert part.default == recipe.default and part.fitting(["fc"])[1] == ("conv*",)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(FORMATS)))
def test_a_preset_where_a_format_is_meant_says_what_to_write(name: str) -> None:
    """MXFP4 is usually called a format; here it is a format, a granularity and a scale rule."""
    with pytest.raises(RecipeError, match="is a preset and no format") as told:
        Recipe.from_yaml(f"version: 1\ndefault:\n  weight: {{format: {name}}}\n")
    assert str(told.value).startswith("line 3: default.weight.format: ")
    words = str(told.value).rpartition("it says ")[2].rstrip(".")
    said = TensorScheme(**dict(word.split(": ") for word in words.split(", ")))
    assert said == PRESETS[name].recipe.default.weight
