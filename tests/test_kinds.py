"""Each kind of layer that users have: found under its name, equal to eager, quantized where the table says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import explorer as qx
from explorer.cost import cost
from explorer.graph import Batch, Calibration, Engine, Graph, Plan, Store, plan
from explorer.graph.capture import run
from explorer.graph.ir import Node
from explorer.graph.wire import graph_from_bytes, graph_to_bytes
from explorer.recipe import Recipe
from tests.kinds import KINDS, graph_of, kind, module_of
from tests.nets import images, ready

FLOAT = Recipe.preset("fp32")
ALL = pytest.mark.parametrize("name", KINDS)
# torch says by which of its ways it computes these.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
WEIGHT = {"format": "int4", "granularity": "layer", "symmetric": True, "objective": "minmax"}
INPUT = {
    "format": "int8",
    "granularity": "layer",
    "symmetric": True,
    "mode": "dynamic",
    "objective": "minmax",
}


def names_of(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers if layer.quantizable]


def calibration_of(graph: Graph, batch: Batch) -> Calibration:
    def none_needed(*_: object) -> None:
        raise AssertionError("the float network asks for no parameters")

    floats = plan(graph, FLOAT, none_needed)  # type: ignore[arg-type]
    return Calibration(Engine(graph, Store(1 << 24)), floats, lambda: [batch])


def planned(graph: Graph, recipe: Recipe, calibration: Calibration) -> Plan:
    return plan(graph, recipe, calibration.params, calibration.weight_params)


@ALL
def test_values_and_names_are_the_modules(name: str) -> None:
    kind, module, graph = KINDS[name], module_of(name), graph_of(name)
    found = {layer.name: layer.op for layer in graph.layers if layer.quantizable}
    assert found == kind.layers
    reasons = {layer.name: layer.reason for layer in graph.layers if not layer.quantizable}
    assert tuple(reasons) == kind.others and all(len(reason) > 15 for reason in reasons.values())
    for count in (1, 3):
        x = kind.examples(count, seed=2)
        result, expected = run(graph, x)[graph.output], module(x)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        assert not kind.exact or torch.equal(result, expected)


@ALL
def test_warm_is_cold_after_an_edit_of_each_layer(name: str) -> None:
    graph = graph_of(name)
    batch, calibration = (
        Batch.of(KINDS[name].examples(3, 5)),
        calibration_of(graph, Batch.of(KINDS[name].examples(4, 6))),
    )
    warm, recipe = Engine(graph, Store(1 << 24)), Recipe.preset("w8a8")
    warm.run(planned(graph, recipe, calibration), batch)
    plain = warm.run(planned(graph, FLOAT, calibration), batch)[graph.output]
    for layer in names_of(graph):
        recipe = recipe.with_layer(layer, weight={"format": "int3"}, input={"format": "uint4"})
        working = planned(graph, recipe, calibration)
        warm.computed.clear()
        found = warm.run(working, batch)[graph.output]
        assert set(warm.computed) <= graph.descendants(layer) and max(warm.computed.values()) == 1
        assert torch.equal(found, Engine(graph, Store(1)).run(working, batch)[graph.output])
        alone = planned(graph, FLOAT.with_layer(layer, weight=WEIGHT, input=INPUT), calibration)
        changed = warm.run(alone, batch)[graph.output]
        assert not torch.equal(changed, plain), f"{layer}: no scheme reaches it"


@pytest.mark.parametrize(
    "name", ["lstm, two ways", "lstm, cells", "gru cells", "rnn, relu", "sdpa, masked", "sdpa, causal"]
)
def test_a_graph_arrives_whole_in_another_process(name: str) -> None:
    graph = graph_of(name)
    there = graph_from_bytes(graph_to_bytes(graph), graph.digest)
    assert there.layers == graph.layers
    for mine, theirs in zip(graph.nodes, there.nodes, strict=True):
        assert all(getattr(mine, field.name) == getattr(theirs, field.name) for field in fields(Node))


def int4(weight: Tensor) -> Tensor:
    """The plain formula: 15 codes, one scale for the whole tensor, half to even."""
    scale = weight.abs().max() / 7
    return (weight / scale).round().clamp(-7, 7) * scale


def tensors_of(module: nn.Module, layer: str) -> Tensor:
    """The eager module's own weight behind a layer's name."""
    head, _, last = layer.split("@")[0].rpartition(".")
    owner = module.get_submodule(head)
    if (
        hasattr(owner, "in_proj_weight")
        and owner.in_proj_weight is not None
        and last in ("q_proj", "k_proj", "v_proj")
    ):
        return owner.in_proj_weight.chunk(3)["qkv".index(last[0])]  # type: ignore[union-attr, operator]
    names = (f"weight_{last}", f"{last}_weight", last)
    found = next(getattr(owner, name) for name in names if hasattr(owner, name))
    return found if isinstance(found, Tensor) else found.weight  # type: ignore[return-value]


def plain_module(name: str) -> nn.Module:
    """The module made anew, without parametrizations, so that its weights can be written to."""
    module = ready(KINDS[name].build)
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            parametrize.remove_parametrizations(part, "weight")
    return module


@ALL
def test_a_weight_is_quantized_where_its_name_says(name: str) -> None:
    """The module itself, its weight replaced by the plain formula, for each layer by itself and for all together."""
    kind, graph = KINDS[name], graph_of(name)
    batch = Batch.of(kind.examples(3, 5))
    layers = [layer for layer in graph.layers if layer.quantizable and layer.weight]
    # What is shared is one tensor in the module: it is quantized in all places at once.
    uses = {
        weight: [each.name for each in layers if each.weight == weight]
        for weight in {each.weight for each in layers}
    }
    for chosen in (*uses.values(), [layer.name for layer in layers]):
        recipe, module = FLOAT, plain_module(name)
        for layer in chosen:
            recipe = recipe.with_layer(layer, weight=WEIGHT)
        with torch.no_grad():
            for tensor in {id(t): t for t in (tensors_of(module, layer) for layer in chosen)}.values():
                if "@" not in chosen[0]:
                    tensor.copy_(int4(tensor))
            expected = module(batch.images)
        result = Engine(graph, Store(1 << 24)).run(
            planned(graph, recipe, calibration_of(graph, batch)), batch
        )
        torch.testing.assert_close(result[graph.output], expected, rtol=1e-4, atol=1e-5)


def int8(x: Tensor) -> Tensor:
    """Symmetric, one scale for each example; unsigned codes only where the convention looks at all of the values."""
    scale = x.abs().flatten(1).amax(1).view(-1, *[1] * (x.dim() - 1)) / 127
    return torch.where(scale > 0, (x / scale).round().clamp(-127, 127) * scale, x)


@pytest.mark.parametrize("which", ["matmul", "matmul@2"])
def test_inputs_of_attention_are_quantized_where_they_are_multiplied(which: str) -> None:
    graph, module = graph_of("sdpa"), module_of("sdpa")
    batch = Batch.of(KINDS["sdpa"].examples(3, 5))
    recipe = FLOAT.with_layer(which, input=INPUT)
    found = Engine(graph, Store(1 << 24)).run(planned(graph, recipe, calibration_of(graph, batch)), batch)
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in module.qkv(batch.images).chunk(3, -1))  # type: ignore[operator]
    if which == "matmul":
        q, k = int8(q), int8(k)
    chances = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    if which == "matmul@2":
        chances, v = int8(chances), int8(v)
    expected = (chances @ v).transpose(1, 2).flatten(1)
    torch.testing.assert_close(found[graph.output], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_state_of_a_recurrent_layer_is_quantized_before_each_product(mode: str) -> None:
    graph, lstm = graph_of("lstm"), module_of("lstm").part
    batch = Batch.of(KINDS["lstm"].examples(3, 5))
    recipe = FLOAT.with_layer("part.hh_l0", input=INPUT | {"mode": mode})
    found = Engine(graph, Store(1 << 24)).run(planned(graph, recipe, calibration_of(graph, batch)), batch)
    # A fixed range is that of the states that are read in the float network: all but the last.
    states = lstm(batch.images)[0][:, :-1]  # type: ignore[operator]
    scale = states.abs().max() / 127

    def quantized(state: Tensor) -> Tensor:
        return int8(state) if mode == "dynamic" else (state / scale).round().clamp(-127, 127) * scale

    outer, inner = (lstm.weight_ih_l0, lstm.bias_ih_l0), (lstm.weight_hh_l0, lstm.bias_hh_l0)
    h = c = torch.zeros(3, 4)
    outputs = []
    for x in batch.images.unbind(1):
        gates = F.linear(x, *outer) + F.linear(quantized(h), *inner)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    torch.testing.assert_close(found[graph.output], torch.stack(outputs, 1).flatten(1), rtol=1e-5, atol=1e-6)


def test_a_long_sequence_is_one_layer() -> None:
    graph = graph_of("lstm")
    layer = graph.by_layer["part.hh_l0"]
    assert layer.macs == 5 * 16 * 4 and layer.shape == (16, 4) and layer.parameters == 16 * 4 + 16
    assert sum(node.op == "lstm_states" for node in graph.nodes) == 1 and len(graph.nodes) < 20


def test_a_shared_weight_is_stored_once_and_used_twice() -> None:
    """Under one scheme it is one tensor, under two it is two."""
    graph = graph_of("tied decoder")
    embed, decoder = graph.by_layer["embed"], graph.by_layer["decoder"]
    assert (embed.shares, decoder.shares, embed.weight) == ("", "embed", decoder.weight)
    same = cost(graph, FLOAT.with_layer("*", weight=WEIGHT))
    codes = (11 * 4 + 1) // 2 + 4
    assert same.size == same.layers["embed"].size == codes and same.layers["decoder"].size == 0
    mixed = cost(graph, FLOAT.with_layer("embed", weight=WEIGHT))
    assert mixed.size == codes + 11 * 4 * 4
    assert same.layers["decoder"].bops == 3 * 11 * 4 * 4 * 32
    store = Store(1 << 24)
    engine = Engine(graph, store)
    batch = Batch.of(KINDS["tied decoder"].examples())
    engine.run(planned(graph, FLOAT.with_layer("*", weight=WEIGHT), calibration_of(graph, batch)), batch)
    scheme = FLOAT.with_layer("*", weight=WEIGHT).config("embed").weight
    assert engine.weight(embed, scheme) is engine.weight(decoder, scheme)


def test_a_layer_says_whose_weight_it_shares() -> None:
    session = qx.Session(
        module_of("tied decoder"), data=KINDS["tied decoder"].examples(8), store_bytes=1 << 24
    )
    assert session.layers().set_index("name")["shares"].to_dict() == {"embed": "", "decoder": "embed"}


def test_torchs_encoder_in_one_operator_is_opened() -> None:
    """Without gradients torch takes its encoder layer in one step; capturing does not."""
    before = torch.backends.mha.get_fastpath_enabled()
    graph = graph_of("encoder")
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert not [node.op for node in graph.nodes if "transformer" in node.op or "multi_head" in node.op]


def every_state(graph: Graph) -> Iterator[str]:
    return (node.reads for node in graph.nodes if node.reads)


@pytest.mark.parametrize("name", ["lstm, two ways", "lstm, cells", "gru", "rnn"])
def test_what_a_recurrent_layer_reads_can_be_observed(name: str) -> None:
    graph = graph_of(name)
    x = KINDS[name].examples(3, 5)
    values = run(graph, x)
    for reads in every_state(graph):
        assert (
            values[reads].shape == (3, 5, 4) and not values[reads][:, 0].any() and values[reads][:, 1:].any()
        )


def test_windows_are_counted_with_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that sees several rows of each image: the instant tier adds them up and finds the exact order of size."""
    monkeypatch.setattr("explorer.study.instant._WORK", 0)
    parts = {f"part{place}": (lambda: nn.Linear(4, 4)) for place in range(9)}

    def way(m: Any, x: Tensor) -> Tensor:
        rows = x.reshape(len(x) * 3, 2, 4)
        for name in parts:
            rows = rows + getattr(m, name)(rows).relu()
        return rows.reshape(len(x), -1)[:, :3]

    module = ready(kind(way, (3, 2, 4), {}, **parts).build)
    session = qx.Session(module, data=images((3, 2, 4), 400), store_bytes=1 << 24)
    found = session.sensitivity(["int4"], method="instant")["value"]
    exact = session.sensitivity(["int4"], method="exact")["value"]
    assert (found / exact).between(1 / 3, 3).all()
