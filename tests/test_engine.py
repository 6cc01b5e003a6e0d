"""The engine: warm is cold, bit for bit; an edit computes what lies below it and nothing else."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from torch import Tensor, nn

from explorer.calibrate import Sample, fit
from explorer.errors import DataError, SchemeError, TensorError
from explorer.formats import CONVENTIONS, granularity
from explorer.graph import Batch, Calibration, Engine, Graph, Layer, Store, plan
from explorer.graph.engine import Plan
from explorer.graph.fakequant import quantize_activation
from explorer.graph.walk import run
from explorer.recipe import Recipe, TensorScheme
from explorer.tensor import apply, fake_quantize
from tests import strategies
from tests.nets import SHAPES, Attention, Perceptron, Residual, captured, images
from tests.strategies import INPUT_EDITS, WEIGHT_EDITS, Fields

NETS = pytest.mark.parametrize("build", SHAPES, ids=lambda build: build.__name__)
Build = Callable[[], nn.Module]
LARGE = 1 << 28
W8A8 = Recipe.preset("w8a8")


def none_needed(layer: Layer, index: int, scheme: TensorScheme) -> None:
    raise AssertionError("the float network asks for no parameters")


CALIBRATIONS: dict[Build, Calibration] = {}


def calibration(build: Build) -> Calibration:
    """Statistics of two batches, gathered once for each network."""
    if build not in CALIBRATIONS:
        graph = captured(build)
        batches = [Batch.of(images(SHAPES[build], 6, seed)) for seed in (21, 22)]
        float_plan = plan(graph, Recipe.preset("fp32"), none_needed)  # type: ignore[arg-type]
        CALIBRATIONS[build] = Calibration(Engine(graph, Store(LARGE)), float_plan, lambda: batches)
    return CALIBRATIONS[build]


def planned(build: Build, recipe: Recipe) -> Plan:
    return plan(captured(build), recipe, calibration(build).params, calibration(build).weight_params)


def batch_of(build: Build, seed: int = 3) -> Batch:
    return Batch.of(images(SHAPES[build], 4, seed))


def cold(build: Build, recipe: Recipe, batch: Batch) -> Tensor:
    """The result without any store to speak of, all layers computed."""
    graph = captured(build)
    return Engine(graph, Store(1)).run(planned(build, recipe), batch)[graph.output]


def edited(recipe: Recipe, edits: Iterable[tuple[str, str, Fields]]) -> list[Recipe]:
    """The recipe after each edit; an edit that does not go with the rest is left out, as the page does."""
    recipes = []
    for layer, tensor, fields in edits:
        try:
            recipe = recipe.with_layer(layer, **{tensor: fields})
        except SchemeError:
            continue
        recipes.append(recipe)
    return recipes


def layer_names(build: Build) -> list[str]:
    return [layer.name for layer in captured(build).layers if layer.quantizable]


# --- right ------------------------------------------------------------------------------------------------


@NETS
def test_a_float_network_is_the_module(build: Build) -> None:
    graph, batch = captured(build), batch_of(build)
    found = Engine(graph, Store(LARGE)).run(planned(build, Recipe.preset("fp32")), batch)[graph.output]
    assert torch.equal(found, run(graph, batch.images)[graph.output])


def by_hand(graph: Graph, configs: Plan, batch: Batch) -> Tensor:
    """The network node by node, each layer's tensors quantized in place by the public functions."""
    values: dict[str, Tensor] = {**graph.constants, graph.input: batch.images}

    def filled(value: object) -> object:
        if hasattr(value, "node"):
            return values[value.node]
        if isinstance(value, list | tuple):
            return [filled(item) for item in value]
        return value

    for node in graph.nodes:
        layer = graph.layer_at.get(node.name)
        kept = dict(values)
        if layer is not None:
            config = configs.configs[layer.name]
            if layer.weight and not config.weight.off:
                values[layer.weight] = fake_quantize(values[layer.weight], config.weight, layer.axis)
            for index, name in enumerate(dict.fromkeys(layer.inputs)):
                if not config.input.off:
                    value = values[name]
                    params = configs.params[layer.name][index] if config.input.scaled else None
                    values[name] = apply(value, config.input, params, layer.channel % value.dim())
        with torch.inference_mode():
            result = node.target(*filled(node.args), **{k: filled(v) for k, v in node.kwargs.items()})  # type: ignore[misc]
        values = {**kept, node.name: result}
    return values[graph.output]


@NETS
@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w2a8", "fp16", "w8a16"])
def test_a_quantized_network_is_what_its_recipe_says(build: Build, name: str) -> None:
    """Weights and the inputs of layers, and nothing else, are quantized, with static ranges."""
    graph, batch = captured(build), batch_of(build)
    recipe = Recipe.preset(name).with_layer(
        layer_names(build)[0], weight={"format": "int3"}, input={"mode": "off"}
    )
    worked_out = planned(build, recipe)
    found = Engine(graph, Store(LARGE)).run(worked_out, batch)[graph.output]
    assert torch.equal(found, by_hand(graph, worked_out, batch))
    assert not torch.equal(found, run(graph, batch.images)[graph.output])


@NETS
@given(data=st.data())
@settings(max_examples=12)
def test_warm_is_cold(build: Build, data: st.DataObject) -> None:
    """After any edits, with any batches between, every result equals the one computed from nothing."""
    names = layer_names(build)
    recipes = [W8A8, *edited(W8A8, data.draw(strategies.edits(names, most=5)))]
    graph = captured(build)
    warm = Engine(graph, Store(LARGE))
    small = Engine(graph, Store(data.draw(st.sampled_from([1, 700, 3000, 20000]))))
    for recipe in recipes:
        batch = batch_of(build, data.draw(st.integers(3, 4)))
        expected = cold(build, recipe, batch)
        for engine in (warm, small):
            assert torch.equal(engine.run(planned(build, recipe), batch)[graph.output], expected)
            assert engine.store.facts.bytes <= engine.store.budget


@NETS
def test_an_edit_computes_its_descendants_and_nothing_else(build: Build) -> None:
    """Each layer, each edit: exactly the nodes whose value changes are computed, each once; going back, none."""
    graph, batch = captured(build), batch_of(build)
    engine = Engine(graph, Store(LARGE))
    base = planned(build, W8A8)
    engine.run(base, batch)
    assert engine.computed == Counter(node.name for node in graph.nodes)
    seen = {base.keys[graph.output]}
    for name in layer_names(build):
        layer, before = graph.by_layer[name], W8A8.config(name)
        for tensor, edits in (("weight", WEIGHT_EDITS), ("input", INPUT_EDITS)):
            acts = layer.weight is not None if tensor == "weight" else bool(layer.inputs)
            for fields in edits:
                for recipe in edited(W8A8, [(name, tensor, fields)]):
                    changed, after = planned(build, recipe), recipe.config(name)
                    key = changed.keys[graph.output]
                    differs = acts and getattr(before, tensor).key != getattr(after, tensor).key
                    assert (key != base.keys[graph.output]) == differs
                    engine.computed.clear()
                    engine.run(changed, batch)
                    # Two edits may say the same in other words; the second finds all there.
                    assert engine.computed == Counter(() if key in seen else graph.descendants(name))
                    seen.add(key)
                    engine.computed.clear()
                    engine.run(base, batch)
                    engine.run(changed, batch)
                    assert not engine.computed


@NETS
def test_leaving_out_and_adding_up_compute_descendants_only(build: Build) -> None:
    """Each layer put back to float from a recipe that is there; and layer 1, then 1 and 2, ...: batch by batch."""
    graph, names = captured(build), layer_names(build)
    batches = [batch_of(build, seed) for seed in (3, 4, 5)]
    off = {"weight": {"format": "fp32"}, "input": {"mode": "off"}}

    def counts(engine: Engine, recipe: Recipe) -> list[Counter[str]]:
        found = []
        for batch in batches:
            engine.computed.clear()
            result = engine.run(planned(build, recipe), batch)[graph.output]
            found.append(Counter(engine.computed))
            assert torch.equal(result, cold(build, recipe, batch))
        return found

    engine = Engine(graph, Store(LARGE))
    counts(engine, W8A8)
    for name in names:
        assert counts(engine, W8A8.with_layer(name, **off)) == [Counter(graph.descendants(name))] * 3
    engine = Engine(graph, Store(LARGE))
    cumulative = Recipe.preset("fp32")
    counts(engine, cumulative)
    for name in names:
        config = W8A8.config(name)
        cumulative = cumulative.with_layer(name, weight=config.weight, input=config.input)
        assert counts(engine, cumulative) == [Counter(graph.descendants(name))] * 3
    # All layers one by one are the recipe for all.
    assert counts(engine, W8A8) == [Counter()] * 3


def test_values_come_one_by_one() -> None:
    """Whoever goes through many values holds one at a time; those that are there come as they are."""
    graph, batch = captured(Residual), batch_of(Residual)
    base = planned(Residual, W8A8)
    names = [graph.input, *(node.name for node in graph.nodes)]
    for engine in (Engine(graph, Store(1)), Engine(graph, Store(LARGE))):
        expected = engine.run(base, batch, names)
        for _ in range(2):
            found = dict(engine.values(base, batch, names))
            assert set(found) == set(names) and all(torch.equal(found[n], expected[n]) for n in names)
    held: list[weakref.ref[Tensor]] = []
    most = 0
    for _, value in Engine(graph, Store(1)).values(base, batch, names):
        held.append(weakref.ref(value))
        del value
        most = max(most, sum(reference() is not None for reference in held))
    assert most <= 5


@NETS
@given(data=st.data())
@settings(max_examples=10)
def test_keys_name_what_a_value_depends_on(build: Build, data: st.DataObject) -> None:
    """Two recipes give a node the same key exactly when no layer above it (or it itself) is quantized differently."""
    names = layer_names(build)
    one, other = (
        ([W8A8, *edited(W8A8, data.draw(strategies.edits(names)))])[-1] for _ in range(2)
    )  # fmt: skip
    graph = captured(build)
    a, b = planned(build, one), planned(build, other)
    different = set()
    for name in names:
        layer, mine, theirs = graph.by_layer[name], one.config(name), other.config(name)
        if (layer.weight and mine.weight.key != theirs.weight.key) or (
            layer.inputs and mine.input.key != theirs.input.key
        ):
            different.add(name)
    for node in graph.nodes:
        assert (a.keys[node.name] == b.keys[node.name]) == (not graph.upstream(node.name) & different)


def test_other_images_are_other_values() -> None:
    graph = captured(Residual)
    engine = Engine(graph, Store(LARGE))
    base = planned(Residual, W8A8)
    one, other = batch_of(Residual, 3), batch_of(Residual, 4)
    assert one.key != other.key and one.key == Batch.of(one.images.clone()).key
    first = engine.run(base, one)[graph.output]
    assert not torch.equal(engine.run(base, other)[graph.output], first)
    assert torch.equal(engine.run(base, one)[graph.output], first)


def test_networks_may_share_a_store() -> None:
    store = Store(LARGE)
    for _ in range(2):
        for build in SHAPES:
            graph, batch = captured(build), batch_of(build)
            found = Engine(graph, store).run(planned(build, W8A8), batch)[graph.output]
            assert torch.equal(found, cold(build, W8A8, batch))


def test_values_that_are_asked_for_are_given() -> None:
    """Any node, the input too; without keeping them if so wished."""
    graph, batch = captured(Residual), batch_of(Residual)
    engine = Engine(graph, Store(LARGE))
    values = run(graph, batch.images)
    float_plan = planned(Residual, Recipe.preset("fp32"))
    wanted = [graph.input, *(node.name for node in graph.nodes if isinstance(values[node.name], Tensor))]
    found = engine.run(float_plan, batch, wanted, keep=False)
    assert list(found) == wanted and engine.store.facts.entries == 0
    assert all(torch.equal(found[name], values[name]) for name in wanted)


def test_results_do_not_share_memory_with_what_is_kept() -> None:
    """Layers that write in place were made pure: what is kept stays what it was."""
    graph, batch = captured(Residual), batch_of(Residual)
    engine = Engine(graph, Store(LARGE))
    base = planned(Residual, W8A8)
    engine.run(base, batch)
    kept = {n: engine.store.get(f"{base.keys[n]}:{batch.key}").clone() for n in graph.worth_keeping}
    constants = {name: tensor.clone() for name, tensor in graph.constants.items()}
    for name in layer_names(Residual):
        for recipe in edited(
            W8A8, [(name, "weight", {"format": "int2"}), (name, "input", {"format": "fp16"})]
        ):
            engine.run(planned(Residual, recipe), batch)
    for name, value in kept.items():
        assert torch.equal(engine.store.get(f"{base.keys[name]}:{batch.key}"), value), name
    assert all(torch.equal(graph.constants[name], tensor) for name, tensor in constants.items())


def test_batch_size_is_bounded() -> None:
    for build in SHAPES:
        assert 8 <= Engine(captured(build), Store(1)).batch_size() <= 500


class Editing(RuleBasedStateMachine):
    """Any sequence of what a session does: warm is cold, and only what nobody has computed yet is computed.

    The model of the store is a set of nodes with the schemes of all layers upstream, without keys or digests.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Recipe] = []
        self.held: set[tuple[str, tuple[str, ...]]] = set()

    @initialize(build=st.sampled_from([Residual, Attention]))
    def begin(self, build: Build) -> None:
        self.build, self.graph, self.batch = build, captured(build), batch_of(build)
        self.engine = Engine(self.graph, Store(LARGE))
        self.history = [W8A8]
        self.look(W8A8)

    def made_under(self, node: str, recipe: Recipe) -> tuple[str, tuple[str, ...]]:
        """A node and all that its value depends on besides the images."""
        layers = [self.graph.by_layer[name] for name in sorted(self.graph.upstream(node))]
        schemes = (
            f"{config.weight.key if layer.weight else ''}/{config.input.key}"
            for layer in layers
            for config in [recipe.config(layer.name)]
        )
        return node, tuple(schemes)

    def look(self, recipe: Recipe, keep: bool = True) -> None:
        """Evaluate a recipe: the value is the cold one, and nothing that is held was computed."""
        missing, pending = set(), [self.graph.output]
        while pending:
            node = pending.pop()
            new = node in self.graph.by_name and node not in missing
            if new and self.made_under(node, recipe) not in self.held:
                missing.add(node)
                pending += self.graph.by_name[node].inputs
        self.engine.computed.clear()
        result = self.engine.run(planned(self.build, recipe), self.batch, keep=keep)[self.graph.output]
        assert torch.equal(result, cold(self.build, recipe, self.batch))
        assert self.engine.computed == Counter(missing)
        if keep:
            self.held |= {self.made_under(node, recipe) for node in missing & self.graph.worth_keeping}

    @rule(data=st.data(), tensor=st.sampled_from(["weight", "input"]))
    def edit(self, data: st.DataObject, tensor: str) -> None:
        """One layer is changed; below it all is computed, but for what was there before."""
        layer = data.draw(st.sampled_from(layer_names(self.build)))
        fields = data.draw(st.sampled_from(WEIGHT_EDITS if tensor == "weight" else INPUT_EDITS))
        for recipe in edited(self.history[-1], [(layer, tensor, fields)]):
            self.look(recipe)
            assert set(self.engine.computed) <= self.graph.descendants(layer)
            self.history.append(recipe)

    @rule()
    def undo(self) -> None:
        """The recipe before is there; after an eviction it is computed again."""
        if len(self.history) > 1:
            self.history.pop()
            self.look(self.history[-1])

    @rule(data=st.data())
    def leave_one_out(self, data: st.DataObject) -> None:
        layer = data.draw(st.sampled_from(layer_names(self.build)))
        self.look(
            self.history[-1].with_layer(layer, weight={"format": "fp32"}, input={"format": "fp32"}), False
        )

    @rule(format=st.sampled_from(["int8", "int4", "int2"]))
    def sweep(self, format: str) -> None:
        """One layer at a time in the float network, nothing kept."""
        floats = Recipe.preset("fp32")
        self.look(floats)
        for layer in layer_names(self.build):
            self.look(floats.with_layer(layer, weight={"format": format, "mode": "static"}), False)

    @rule()
    def evict(self) -> None:
        """Everything goes; the next look computes it all."""
        self.engine.store.clear()
        self.held.clear()
        self.look(self.history[-1])


TestEditing = Editing.TestCase
TestEditing.settings = settings(max_examples=6, stateful_step_count=8, deadline=None)


# --- activations --------------------------------------------------------------------------------------------

DYNAMIC = [
    TensorScheme("int8", grain, symmetric, mode="dynamic", convention=convention)
    for grain in ("layer", "token", "subchannel:3")
    for symmetric in (True, False)
    for convention in CONVENTIONS
]


@pytest.mark.parametrize("scheme", DYNAMIC, ids=strategies.label)
@pytest.mark.parametrize(("shape", "channel"), [((4, 3, 3), 1), ((5, 4), -1), ((6,), -1)], ids=str)
def test_dynamic_ranges_do_not_depend_on_the_batch(
    scheme: TensorScheme, shape: tuple[int, ...], channel: int
) -> None:
    """An example's result alone is its result among others: larger, smaller, never negative, all zero."""
    x = images(shape, 6, seed=5)
    x[1] *= 1000
    x[2] *= 1e-4
    x[3] = x[3].abs()
    x[4] = 0
    together = quantize_activation(x, scheme, None, channel)
    assert together.shape == x.shape and not torch.equal(together, x)
    for index in range(len(x)):
        alone = quantize_activation(x[index : index + 1], scheme, None, channel)
        assert torch.equal(together[index : index + 1], alone), index
    assert torch.equal(quantize_activation(x.flip(0), scheme, None, channel), together.flip(0))


@pytest.mark.parametrize("build", [Residual, Attention, Perceptron], ids=lambda build: build.__name__)
def test_dynamic_networks_do_not_depend_on_the_batch(build: Build) -> None:
    graph = captured(build)
    recipe = Recipe.preset("int8_dynamic")
    x = images(SHAPES[build], 5, seed=8)
    x[0] *= 100
    worked_out = plan(graph, recipe, none_needed)  # type: ignore[arg-type]
    engine = Engine(graph, Store(LARGE))
    together = engine.run(worked_out, Batch.of(x))[graph.output]
    for index in range(len(x)):
        alone = engine.run(worked_out, Batch.of(x[index : index + 1]))[graph.output]
        # Sums of products may be taken in another order for another batch size; a code off by one would show.
        torch.testing.assert_close(alone, together[index : index + 1], rtol=1e-4, atol=1e-4)


def test_static_ranges_are_those_of_all_calibration_images() -> None:
    """Cut into batches or not; from the float network, whatever the recipe."""
    graph = captured(Residual)
    joined = torch.cat([images((2, 8, 8), 6, seed) for seed in (21, 22)])
    layer = graph.by_layer["layer1.0.conv2"]
    value = run(graph, joined)[layer.inputs[0]]
    for scheme in (
        TensorScheme("uint8", "layer", False),
        TensorScheme("int8", "channel"),
        TensorScheme("int4", "group:2", objective="minmax"),
    ):
        params = calibration(Residual).params(layer, 0, scheme)
        exact = fit(Sample.of(value, granularity(scheme.granularity), 1), scheme.grid, scheme.goal)
        # Convolutions of other batch sizes may sum in another order.
        torch.testing.assert_close(params.scale, exact.scale, rtol=1e-5, atol=0)
        assert torch.equal(params.zero_point, exact.zero_point)
    scheme = TensorScheme("uint8", "layer", False, "mse")
    params = calibration(Residual).params(layer, 0, scheme)
    exact = fit(Sample.of(value, granularity("layer"), 1), scheme.grid, scheme.goal)
    # A histogram of 16,384 bins stands in for the values: a search may stop one fine step away.
    torch.testing.assert_close(params.scale, exact.scale, rtol=5e-3, atol=0)


def test_calibration_is_gathered_once_and_in_one_pass() -> None:
    graph = captured(Perceptron)
    passes = []

    def batches() -> list[Batch]:
        passes.append(1)
        return [batch_of(Perceptron)]

    float_plan = plan(graph, Recipe.preset("fp32"), none_needed)  # type: ignore[arg-type]
    ranges = Calibration(Engine(graph, Store(LARGE)), float_plan, batches)
    ranges.prepare(W8A8)
    assert len(passes) == 1
    plan(graph, W8A8, ranges.params)
    plan(graph, W8A8.with_default(input={"format": "int4", "objective": "kl"}), ranges.params)
    assert len(passes) == 1, "another format or objective asks for no other statistics"
    ranges.prepare(W8A8.with_default(input={"granularity": "channel"}))
    assert len(passes) == 2


def test_calibration_without_images_is_refused() -> None:
    graph = captured(Perceptron)
    float_plan = plan(graph, Recipe.preset("fp32"), none_needed)  # type: ignore[arg-type]
    ranges = Calibration(Engine(graph, Store(LARGE)), float_plan, list)
    with pytest.raises(DataError, match="no calibration images"):
        plan(graph, W8A8, ranges.params)


def test_activations_that_are_no_numbers_are_refused() -> None:
    graph = captured(Perceptron)
    bad = images((2, 3), 4)
    bad[0, 0, 0] = float("nan")
    float_plan = plan(graph, Recipe.preset("fp32"), none_needed)  # type: ignore[arg-type]
    ranges = Calibration(Engine(graph, Store(LARGE)), float_plan, lambda: [Batch.of(bad)])
    with pytest.raises(TensorError, match=r"activation '\w+' holds .* NaN"):
        plan(graph, W8A8, ranges.params)


def test_whole_numbers_are_not_quantized() -> None:
    indices = torch.arange(6).reshape(2, 3)
    assert quantize_activation(indices, TensorScheme("int8", "layer"), None, -1) is indices
