"""The objective ``output``: moments against other ways to find them, ranges never worse than their start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import explorer as qx
from explorer.calibrate import Moments, OutputOfWeight, Sample, fit
from explorer.errors import DataError, SchemeError
from explorer.formats import QParams
from explorer.graph import Batch, Calibration, Engine, Graph, Layer, Store, capture, plan
from explorer.graph import moments as moments_module
from explorer.graph.fakequant import quantize_activation
from explorer.graph.moments import gather, passes
from explorer.graph.walk import run
from explorer.recipe import Recipe, TensorScheme
from explorer.tensor import apply, fit_tensor
from tests.nets import SHAPES, Attention, Residual, captured, images, ready
from tests.strategies import valid

# Of an even kernel and "same" borders, of which one kind has one more on the right.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


class Kernels(nn.Module):
    """Convolutions of every kind on (N, 4, 7, 7): strides, spaces, borders, groups, one axis, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2))
        self.spaced = nn.Conv2d(6, 4, 2, dilation=(1, 2), groups=2)
        self.same = nn.Conv2d(4, 4, (2, 3), padding="same", groups=4)
        self.line = nn.Conv1d(4, 3, 3, stride=2, padding=1, bias=False)
        self.up = nn.ConvTranspose1d(3, 2, 2, stride=2)
        self.fc = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.spaced(self.plain(x).relu()).relu()).relu()
        return self.fc(self.up(self.line(x.flatten(2)).relu()).mean(2))


class Tokens(nn.Module):
    """A table of values on whole numbers (N, 5), and a product with a parameter: ``x @ W``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.out = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.table(x.clamp(0, 6).long()) @ self.out).mean(1)


ALL: dict[Callable[[], nn.Module], tuple[int, ...]] = {**SHAPES, Kernels: (4, 7, 7), Tokens: (5,)}
NETS = pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
GRAPHS: dict[Callable[[], nn.Module], Graph] = {}


def graph_of(build: Callable[[], nn.Module]) -> Graph:
    if build in SHAPES:
        return captured(build)
    if build not in GRAPHS:
        GRAPHS[build] = capture(ready(build), images(ALL[build]))
    return GRAPHS[build]


def calibration(build: Callable[[], nn.Module], *sizes: int) -> Calibration:
    """Statistics of some images, cut into batches of ``sizes``."""
    parts = images(ALL[build], sum(sizes), seed=5).split(list(sizes))
    graph = graph_of(build)
    floats = plan(graph, Recipe.preset("fp32"), lambda *_: pytest.fail("no parameters are needed"))
    return Calibration(Engine(graph, Store(1 << 26)), floats, lambda: [Batch.of(part) for part in parts])


def moments(found: Calibration, layers: list[Layer]) -> dict[str, Moments]:
    return gather(found.engine, found.plan, found._batches(), layers)


def weighted(graph: Graph) -> list[Layer]:
    return [layer for layer in graph.layer_at.values() if layer.weight is not None]


def dense(found: Moments) -> Tensor:
    """The moments in full, float64 ``(parts, columns, columns)``."""
    parts, _, size, _ = found.blocks.shape
    whole = torch.zeros(parts, found.columns, found.columns, dtype=torch.float64)
    for index, start in enumerate(range(0, found.columns, size)):
        stop = min(start + size, found.columns)
        whole[:, start:stop, start:stop] = found.blocks[:, index, : stop - start, : stop - start].double()
    return whole


def rows_of(weight: Tensor, axis: int) -> Tensor:
    return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)


def output_error(graph: Graph, layer: Layer, values: dict[str, Tensor], **changed: Tensor) -> float:
    """The mean squared change of a layer's output when some of its inputs are others; its own operator computes it."""
    node = graph.by_name[layer.node]
    plain, other = node.call(values).double(), node.call({**values, **changed}).double()
    return float((plain - other).square().mean())


@NETS
def test_moments_give_the_error_of_the_output(build) -> None:
    """For any error of the weight d'Hd is what the layer's own operator makes of it, where H is taken in full."""
    graph, found = graph_of(build), calibration(build, 6)
    values = run(graph, images(ALL[build], 6, seed=5))
    known = moments(found, weighted(graph))
    full = 0
    for layer in weighted(graph):
        weight = graph.constants[layer.weight]
        error = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        if moments_module.kind_of(graph, layer) != "full":
            continue
        full += 1
        energy = known[layer.name].energy(rows_of(error, layer.axis))
        wanted = output_error(graph, layer, values, **{layer.weight: weight + error})
        assert float(energy.mean()) == pytest.approx(wanted, rel=1e-4)
    assert full >= 1


def test_moments_are_those_of_the_unfolded_input() -> None:
    """Against torch's own unfolding, element by element."""
    graph, found = captured(Residual), calibration(Residual, 5)
    layer = graph.by_layer["layer2.0.conv1"]
    x = run(graph, images(SHAPES[Residual], 5, seed=5))[layer.inputs[0]]
    unfolded = nn.functional.unfold(x, 3, padding=1, stride=2).movedim(1, 2).reshape(-1, 36).double()
    wanted = unfolded.T @ unfolded / len(unfolded)
    torch.testing.assert_close(dense(moments(found, [layer])[layer.name])[0], wanted, rtol=1e-4, atol=1e-5)


def test_other_layers_have_the_stated_stand_ins() -> None:
    graph, found = graph_of(Kernels), calibration(Kernels, 4)
    up = graph.by_layer["up"]
    x = run(graph, images(ALL[Kernels], 4, seed=5))[up.inputs[0]].double()
    diagonal = dense(moments(found, [up])["up"])[0].diagonal()
    torch.testing.assert_close(diagonal, x.square().mean((0, 2)).repeat_interleave(2), rtol=1e-5, atol=1e-6)
    graph = graph_of(Tokens)
    table = graph.by_layer["table"]
    plain = moments(calibration(Tokens, 4), [table])["table"]
    assert torch.equal(dense(plain)[0], torch.eye(4).double())


@NETS
def test_moments_do_not_depend_on_batches(build, monkeypatch) -> None:
    """Also where some positions are left out: which ones depends on the image alone."""
    monkeypatch.setattr(moments_module, "POSITIONS", 5)
    monkeypatch.setattr(moments_module, "_CHUNK", 200)
    layers = weighted(graph_of(build))
    one, other = (moments(calibration(build, *sizes), layers) for sizes in ([7], [2, 4, 1]))
    for name, found in one.items():
        torch.testing.assert_close(found.blocks, other[name].blocks, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("most", [1, 40, 200])
def test_large_moments_are_cut_to_blocks(most: int, monkeypatch) -> None:
    graph = graph_of(Kernels)
    layers = weighted(graph)
    whole = moments(calibration(Kernels, 5), layers)
    monkeypatch.setattr(moments_module, "MOST_NUMBERS", most)
    generator = torch.Generator().manual_seed(0)
    for name, found in moments(calibration(Kernels, 5), layers).items():
        size, columns = found.blocks.shape[2], found.columns
        inside = torch.arange(columns) // size
        wanted = dense(whole[name]) * (inside[:, None] == inside)
        torch.testing.assert_close(dense(found), wanted, rtol=1e-4, atol=1e-6)
        # Any columns times any others.
        start, first = columns // 3, columns // 4
        error = torch.randn(len(wanted) * 2, columns - start, generator=generator)
        padded = nn.functional.pad(error, (start, 0)).double().reshape(len(wanted), 2, columns)
        expected = (padded @ dense(found)).reshape(-1, columns)[:, first:-1]
        torch.testing.assert_close(
            found.times(error, start, first, columns - 1).double(), expected, rtol=1e-4, atol=1e-5
        )


def test_layers_are_gathered_a_bounded_number_at_a_time(monkeypatch) -> None:
    graph = graph_of(Kernels)
    layers = weighted(graph)
    sizes = {layer.name: moments_module.numbers_of(graph, layer) for layer in layers}
    monkeypatch.setattr(moments_module, "PASS_NUMBERS", max(sizes.values()))
    runs = list(passes(graph, layers))
    assert [layer for run_ in runs for layer in run_] == layers and len(runs) > 1
    assert all(sum(sizes[layer.name] for layer in run_) <= max(sizes.values()) for run_ in runs)
    for layer in layers:
        assert moments(calibration(Kernels, 2), [layer])[layer.name].blocks.numel() == sizes[layer.name]


# --- weights --------------------------------------------------------------------------------------------------

WEIGHTS = [
    {"format": name, "granularity": grain, "symmetric": symmetric, "convention": rules, "scale": scale}
    for name, grain in product(("int2", "int4", "fp4_e2m1"), ("layer", "channel", "group:2", "subchannel:4"))
    for symmetric, rules, scale in [
        (True, "onnx", "float"), (False, "onnx", "float"), (True, "onnx", "pow2"), (False, "nncf", "float"),
        (True, "torch", "float"),
    ]
]  # fmt: skip
WEIGHTS = [fields for fields in WEIGHTS if valid(TensorScheme, fields)]


def correlated(channels: int, columns: int, parts: int, seed: int) -> tuple[Tensor, Moments]:
    """A weight, and moments of inputs that go together and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(parts, columns, columns, generator=generator) * torch.logspace(-1, 1, columns)
    blocks = mix.transpose(1, 2) @ mix
    weight = torch.randn(channels, columns, generator=generator) ** 3
    return weight, Moments(blocks[:, None], columns)


def energy(weight: Tensor, scheme: TensorScheme, params: QParams, found: Moments) -> Tensor:
    """The error of each channel's output in float64, from the moments in full."""
    error = (apply(weight, scheme, params, 0) - weight).double()
    grouped = error.reshape(len(found.blocks), -1, found.columns)
    return ((grouped @ dense(found)) * grouped).sum(2).reshape(-1)


def bands(costs: Tensor, grain: str) -> Tensor:
    """The costs of those channels together that share a scale."""
    if grain == "layer":
        return costs.sum()[None]
    return torch.stack([part.sum() for part in costs.split(2)]) if grain == "group:2" else costs


@pytest.mark.parametrize("fields", WEIGHTS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_weights_are_never_worse_than_minmax_and_mse(fields) -> None:
    """Each scale, or each channel where it has several, on its own measure; nor than any of 20 shares of the range."""
    for parts in (1, 2):
        weight, found = correlated(6, 10, parts, seed=parts)
        scheme = TensorScheme(**fields)
        # One channel is zero and one is constant: these are reproduced whatever the range, but for the convention
        # that gives every range a least width, in terms of what the others have become.
        if scheme.convention != "nncf":
            weight[-1], weight[-2] = 0, 0.3
        goal = OutputOfWeight(weight, scheme.grain, found)
        chosen = fit(Sample.of(weight, scheme.grain, 0), scheme.grid, goal)
        now = bands(energy(weight, scheme, chosen, found), scheme.granularity)
        rivals = ["minmax", "mse"]
        # Of a channel with several scales, each found given the others, no more than that is promised.
        rivals += (
            [f"clip:{share / 20}" for share in range(1, 20)] if scheme.granularity != "subchannel:4" else []
        )
        for rival in rivals:
            own = TensorScheme(**{**fields, "objective": rival})
            other = bands(energy(weight, own, fit_tensor(weight, own, 0), found), scheme.granularity)
            assert bool((now <= other * (1 + 1e-4) + 1e-9).all()), rival


FEW = ("kmeans2", "basis2", "binary", "ternary")


@pytest.mark.parametrize("grain", ["layer", "channel", "group:4", "subchannel:4"])
@pytest.mark.parametrize("name", FEW)
def test_fitted_levels_are_never_worse_than_those_of_the_weight_alone(name: str, grain: str) -> None:
    gained = False
    for parts in (1, 2):
        weight, found = correlated(6, 10, parts, seed=parts)
        weight[-1], weight[-2] = 0, 0.3
        found.blocks[-1, :, :3] = found.blocks[-1, :, :, :3] = 0
        scheme = TensorScheme(name, grain, objective="output")
        goal = OutputOfWeight(weight, scheme.grain, found)
        chosen = fit(Sample.of(weight, scheme.grain, 0), scheme.grid, goal)
        alone = fit_tensor(weight, TensorScheme(name, grain), 0)
        size = {"layer": 6, "group:4": 4}.get(grain, 1)
        now, before = (
            torch.stack([part.sum() for part in energy(weight, scheme, params, found).split(size)])
            for params in (chosen, alone)
        )
        assert bool((now <= before * (1 + 1e-4) + 1e-9).all())
        gained |= bool((now < 0.99 * before).any())
    assert gained or grain != "channel"


@pytest.mark.parametrize("name", FEW)
def test_importance_counts_as_repetition(name: str) -> None:
    """Independent inputs with mean squares 1 to 5: as if each value of the weight stood there so many times."""
    times = torch.tensor([3, 1, 5, 1, 2, 4, 1, 1])
    weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(3)) ** 3
    scheme = TensorScheme(name, "channel", objective="output")
    goal = OutputOfWeight(weight, scheme.grain, Moments(times.float()[None, :, None, None], 8))
    chosen = fit(Sample.of(weight, scheme.grain, 0), scheme.grid, goal)
    repeated = fit_tensor(weight.repeat_interleave(times, 1), TensorScheme(name, "channel"), 0)
    torch.testing.assert_close(chosen.book.levels, repeated.book.levels)


def test_levels_of_dead_inputs_are_those_of_the_weight_alone() -> None:
    weight = torch.randn(2, 9)
    for grain in ("channel", "subchannel:4"):
        scheme = TensorScheme("kmeans2", grain, objective="output")
        goal = OutputOfWeight(weight, scheme.grain, Moments(torch.zeros(1, 9, 1, 1), 9))
        chosen = fit(Sample.of(weight, scheme.grain, 0), scheme.grid, goal)
        alone = fit_tensor(weight, TensorScheme("kmeans2", grain), 0)
        assert torch.equal(chosen.book.levels, alone.book.levels)


@pytest.mark.parametrize("seed", range(6))
def test_two_blocks_of_a_channel_come_near_the_best_pair(seed: int) -> None:
    """Against all pairs of a hundred shares each."""
    weight, found = correlated(3, 6, 1, seed)
    weight, scheme = weight[:1], TensorScheme("int3", "subchannel:3")
    goal = OutputOfWeight(weight, scheme.grain, found)
    sample = Sample.of(weight, scheme.grain, 0)
    now = float(energy(weight, scheme, fit(sample, scheme.grid, goal), found))
    share = torch.arange(1, 101) / 100
    pairs = torch.cartesian_prod(share, share)
    many = weight.expand(len(pairs), -1)
    high = (sample.maximum.maximum(-sample.minimum) * pairs).reshape(-1)
    all_costs = energy(many, scheme, scheme.grid.params(-high, high), found)
    assert now <= 1.15 * float(all_costs.min())


# --- inputs ---------------------------------------------------------------------------------------------------


def change_of_output(
    graph: Graph,
    found: Calibration,
    layer: Layer,
    index: int,
    values: dict[str, Tensor],
    fields: dict[str, object],
    objective: str,
) -> float:
    """What quantizing one input by ``objective`` does to the layer's output."""
    scheme, source = TensorScheme(**fields, objective=objective), layer.inputs[index]
    params = found.params(layer, index, scheme)
    after = quantize_activation(values[source], scheme, params, layer.channel)
    return output_error(graph, layer, values, **{source: after})


@pytest.mark.parametrize("name", ["uint4", "int3"])
@pytest.mark.parametrize("grain", ["layer", "channel"])
@NETS
def test_inputs_are_never_worse_than_minmax_and_mse(build, grain: str, name: str) -> None:
    """Every input of every layer, its other input in float; nor than any of 20 shares of the full range."""
    graph, found = graph_of(build), calibration(build, 5)
    values = run(graph, images(ALL[build], 5, seed=5))
    fields = {"format": name, "granularity": grain, "symmetric": name == "int3"}
    for layer in graph.layer_at.values():
        for index, source in enumerate(layer.inputs):
            change = partial(change_of_output, graph, found, layer, index, values, fields)
            now = change("output")
            for rival in ("minmax", "mse", *(f"clip:{share / 20}" for share in range(4, 20, 3))):
                assert now <= change(rival) * (1 + 1e-4) + 1e-12, (layer.name, rival, source)


def test_inputs_do_not_depend_on_batches() -> None:
    scheme = TensorScheme("uint4", "layer", False, "output")
    one, other = calibration(Attention, 7), calibration(Attention, 2, 4, 1)
    for layer in captured(Attention).layer_at.values():
        for index in range(len(layer.inputs)):
            a, b = (each.params(layer, index, scheme) for each in (one, other))
            torch.testing.assert_close(a.scale, b.scale, rtol=1e-4, atol=0)


# --- in plans -------------------------------------------------------------------------------------------------


@NETS
def test_weights_of_a_plan_keep_the_layers_output(build) -> None:
    """The layer's own operator with the weight that the engine uses; full moments, 36 positions or fewer an image."""
    graph, found = graph_of(build), calibration(build, 6)
    values = run(graph, images(ALL[build], 6, seed=5))
    errors = {}
    for goal in ("minmax", "mse", "output"):
        recipe = Recipe.preset("fp32").with_default(weight={"format": "int3", "objective": goal})
        worked_out = plan(graph, recipe, found.params, found.weight_params)
        for layer in weighted(graph):
            if moments_module.kind_of(graph, layer) == "full":
                given = worked_out.weights.get(layer.name)
                assert (given is None) == (goal != "output")
                weight = found.engine.weight(layer, recipe.config(layer.name).weight, given)
                errors[layer.name, goal] = output_error(graph, layer, values, **{layer.weight: weight})
    for name in {name for name, _ in errors}:
        assert errors[name, "output"] <= 1.0001 * min(errors[name, "minmax"], errors[name, "mse"]), name
    assert any(errors[name, "output"] < 0.99 * errors[name, "mse"] for name, _ in errors)


def test_keys_tell_calibration_images_apart() -> None:
    """Weights are results of the images, so other images have other keys and the same ones the same."""
    recipe = Recipe.preset("fp32").with_default(weight={"format": "int3", "objective": "output"})
    graph = captured(Residual)
    plans = [
        plan(graph, recipe, c.params, c.weight_params) for c in (calibration(Residual, n) for n in (3, 3, 2))
    ]
    assert plans[0].keys == plans[1].keys != plans[2].keys


def test_moments_come_back_from_the_store() -> None:
    """A second scheme for the same layers asks the network nothing."""
    found = calibration(Residual, 4)
    recipe = Recipe.preset("fp32").with_default(weight={"format": "int3", "objective": "output"})
    assert [*found.prepare_steps(recipe)][-1] == (7, 7)
    before = dict(found.engine.computed)
    found.prepare(recipe.with_default(weight={"format": "int5"}))
    assert dict(found.engine.computed) == before and not [*found.prepare_steps(recipe)]
    assert len(found.weights(recipe)) == 7


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", ["output", "cross_entropy"])
def test_refusals_name_what_to_do(goal: str) -> None:
    with pytest.raises(SchemeError, match=f"'{goal}' looks at the (layer|network).*use objective: mse"):
        qx.quantize(torch.randn(3, 4), {"format": "int4", "objective": goal})
    with pytest.raises(SchemeError, match=f"'fp16' has no scale.*'{goal}'"):
        TensorScheme("fp16", objective=goal)
    with pytest.raises(SchemeError, match=f"'{goal}' has nothing to search"):
        TensorScheme("uint8", "layer", False, goal, "dynamic")
    with pytest.raises(SchemeError, match=f"'{goal}' looks at|no range for the objective '{goal}'"):
        qx.quantize(torch.randn(3, 4), {"format": "ternary", "objective": goal})
    with pytest.raises(SchemeError, match=r"weighs those of weights only.*|no range for the objective"):
        Recipe().with_default(input={"format": "ternary", "symmetric": True, "objective": goal})
    assert TensorScheme("fp32", objective=goal).off


def test_no_images_is_an_error() -> None:
    found = Calibration(Engine(captured(Residual), Store(1 << 20)), calibration(Residual, 1).plan, list)
    for tensor in ("weight", "input"):
        recipe = Recipe.preset("fp32").with_default(**{tensor: {"format": "int4", "objective": "output"}})
        with pytest.raises(DataError, match="no calibration images"):
            found.prepare(recipe)
