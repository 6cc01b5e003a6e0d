"""Networks that return several tensors: which one is meant, under which names they are listed."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import explorer as qx
from explorer.errors import ModelError
from explorer.graph import capture
from explorer.graph.capture import run
from explorer.sources import LoadedModel
from tests.nets import images, ready

Pair = namedtuple("Pair", "scores features")


@dataclass
class Answer:
    """What transformers' networks return looks so."""

    scores: Tensor
    states: tuple[Tensor, ...] | None = None


class Heads(nn.Module):
    """Two heads on one stem, returned in a given shape."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 4)
        self.network = nn.Linear(4, 3)  # a name that the capture itself uses, too
        self.side = nn.Linear(4, 2)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).relu()
        return self.pack(self.network(x), self.side(x))


# How the two results are returned, what they are called, and words that mean the first and the second.
PACKS: dict[str, tuple[Any, str, list[Any], list[Any]]] = {
    "tuple": (lambda a, b: (a, b), "0 (4, 3), 1 (4, 2)", [0, "0"], [1, "1"]),
    "list": (lambda a, b: [a, b], "0 (4, 3), 1 (4, 2)", [0], [1]),
    "dict": (lambda a, b: OrderedDict(out=a, aux=b), "out (4, 3), aux (4, 2)", ["out", 0, "0"], ["aux", 1]),
    "namedtuple": (Pair, "scores (4, 3), features (4, 2)", ["scores"], ["features", 1]),
    "dataclass": (lambda a, b: Answer(a, (b,)), "scores (4, 3), states.0 (4, 2)", ["scores"], ["states", "states.0"]),
    "nested": (lambda a, b: {"a": (a, None), "b": {"c": [b]}}, "a.0 (4, 3), b.c.0 (4, 2)", ["a"], ["b", "b.c.0", 1]),
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKS)
def test_a_result_is_chosen_by_name_or_index(kind: str) -> None:
    pack, listed, first, second = PACKS[kind]
    module = ready(lambda: Heads(pack))
    with pytest.raises(ModelError) as caught:
        capture(module, images((5,)))
    assert str(caught.value).startswith(f"The network has 2 results: {listed}. Say with output=")
    x = images((5,), 3, seed=2)
    stem = module.stem(x).relu()  # type: ignore[operator]
    for words, expected, head in (
        (first, module.network(stem), "network"),
        (second, module.side(stem), "side"),
    ):  # type: ignore[operator]
        graphs = [capture(module, images((5,)), output=word) for word in words]
        assert torch.equal(run(graphs[0], x)[graphs[0].output], expected)
        # The other head is nobody's, and left out.
        assert [layer.name for layer in graphs[0].layers] == ["stem", head]
        assert len({graph.digest for graph in graphs}) == 1


@pytest.mark.parametrize(("output", "message"), [
    ("oud", "no result 'oud'; it has out (4, 3), aux.0 (4, 2), aux.1 (4, 2). Did you mean 'out'?"),
    (7, "no result '7'; it has out (4, 3)"),
    ("", "The name of the wanted result is empty."),
    ("aux", "The result 'aux' holds 2: aux.0 (4, 2), aux.1 (4, 2). Say which one is meant."),
])  # fmt: skip
def test_a_wrong_result_is_refused(output: Any, message: str) -> None:
    module = ready(lambda: Heads(lambda a, b: {"out": a, "aux": (b, b * 2)}))
    with pytest.raises(ModelError) as caught:
        capture(module, images((5,)), output=output)
    assert message in str(caught.value)


def test_one_result_is_taken_without_a_word() -> None:
    plain, packed = ready(lambda: Heads(lambda a, b: a)), ready(lambda: Heads(lambda a, b: {"out": (a,)}))
    x = images((5,))
    graphs = [
        capture(plain, x),
        capture(plain, x, output=0),
        capture(packed, x),
        capture(packed, x, output="out"),
    ]
    assert all(torch.equal(run(graph, x)[graph.output], plain(x)) for graph in graphs)
    assert all([layer.name for layer in graph.layers] == ["stem", "network"] for graph in graphs)
    with pytest.raises(ModelError, match="has one result without a name, not 'out'; leave output= out"):
        capture(plain, x, output="out")


def test_a_session_takes_the_wish_or_the_models_own() -> None:
    module = ready(lambda: Heads(PACKS["dict"][0]))
    data = (images((5,), 8), torch.arange(8) % 2)
    loaded = LoadedModel("two heads", module, output="out")
    for model, output, last in ((module, "aux", "side"), (loaded, None, "network"), (loaded, "aux", "side")):
        session = qx.Session(model, data=data, output=output, store_bytes=1 << 22)  # type: ignore[arg-type]
        assert session.layer_names == ("stem", last)
    with pytest.raises(ModelError, match="has 2 results: out"):
        qx.Session(module, data=data)
