"""Capturing a network: the same numbers, the user's names, honest counts, and a sentence for what cannot be."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explorer.errors import ModelError, TensorError
from explorer.graph import Graph, Layer, capture
from explorer.graph.capture import run
from explorer.graph.ops import LAYER_OPS, REASONS, reason_for
from explorer.graph.recurrent import LOOPS
from explorer.graph.repeat import check_repeatable
from tests.nets import SHAPES, Attention, Perceptron, Residual, captured, images, ready


class Made(nn.Module):
    """A module with the given parts and the given way through them."""

    def __init__(self, way, **parts: nn.Module | nn.Parameter) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.way = way
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def made(way, **parts) -> nn.Module:  # type: ignore[no-untyped-def]
    return ready(lambda: Made(way, **parts))


def result(graph: Graph, x: Tensor) -> Tensor:
    return run(graph, x)[graph.output]


def operators(graph: Graph) -> set[str]:
    return {node.op.split(".")[1] for node in graph.nodes if "." in node.op}


def layer_of(module: nn.Module, shape: tuple[int, ...], name: str, fold: bool = True) -> Layer:
    return capture(module, images(shape), fold).by_layer[name]


# --- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", SHAPES, ids=lambda build: build.__name__)
def test_captured_networks_give_the_modules_results(build: type[nn.Module]) -> None:
    """For any batch size; bit for bit where nothing was folded."""
    module = ready(build)
    plain, folded = captured(build, fold=False), captured(build)
    for count in (1, 3, 7):
        x = images(SHAPES[build], count, seed=count)
        before = x.clone()
        assert torch.equal(result(plain, x), module(x))
        torch.testing.assert_close(result(folded, x), module(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(x, before)
    assert not [op for op in operators(plain) | operators(folded) if op.endswith("_")], "an operator in place"


def test_the_module_is_not_touched() -> None:
    module = ready(Residual)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    graph = capture(module, images((2, 8, 8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not module.training and set(graph.digests) == set(graph.constants)


def test_capturing_twice_gives_the_same_network() -> None:
    again = capture(ready(Perceptron), images((2, 3), 1, seed=5))
    assert again.digest == captured(Perceptron).digest != captured(Perceptron, fold=False).digest
    assert again.digest != capture(ready(Perceptron, seed=1), images((2, 3))).digest


# --- names and counts ---------------------------------------------------------------------------------------


def test_names_and_macs_of_a_residual_network() -> None:
    graph = captured(Residual)
    found = {layer.name: (layer.op, layer.shape, layer.parameters, layer.macs) for layer in graph.layers}
    assert found == {
        "stem": ("conv2d", (4, 2, 3, 3), 4 * 2 * 9 + 4, 8 * 8 * 4 * 2 * 9),
        "layer1.0.conv1": ("conv2d", (4, 4, 3, 3), 4 * 4 * 9 + 4, 8 * 8 * 4 * 4 * 9),
        "layer1.0.conv2": ("conv2d", (4, 4, 3, 3), 4 * 4 * 9 + 4, 8 * 8 * 4 * 4 * 9),
        "layer2.0.conv1": ("conv2d", (6, 4, 3, 3), 6 * 4 * 9 + 6, 4 * 4 * 6 * 4 * 9),
        "layer2.0.conv2": ("conv2d", (6, 6, 3, 3), 6 * 6 * 9 + 6, 4 * 4 * 6 * 6 * 9),
        "layer2.0.downsample.0": ("conv2d", (6, 4, 1, 1), 6 * 4 + 6, 4 * 4 * 6 * 4),
        "fc": ("linear", (5, 6), 5 * 6 + 5, 5 * 6),
    }
    assert all(layer.quantizable and layer.axis == 0 for layer in graph.layers)


def test_names_and_macs_of_attention() -> None:
    """Products of activations are layers without a weight; parameters that are no layer stand with their reason."""
    graph = captured(Attention)
    found = {layer.name: (layer.op, layer.shape, layer.macs) for layer in graph.layers if layer.quantizable}
    assert found == {
        "embed": ("linear", (8, 5), 6 * 8 * 5),
        "qkv": ("linear", (24, 8), 7 * 24 * 8),
        "matmul": ("matmul", (2, 7, 4), 2 * 7 * 7 * 4),
        "matmul@2": ("matmul", (2, 7, 7), 2 * 7 * 7 * 4),
        "proj": ("linear", (8, 8), 7 * 8 * 8),
        "head": ("linear", (5, 8), 5 * 8),
    }
    others = {layer.name: layer.reason for layer in graph.layers if not layer.quantizable}
    assert set(others) == {"cls", "pos", "norm"}
    assert "LayerNorm" in others["norm"] and "added" in others["pos"] and "repeated" in others["cls"]
    assert [len(graph.by_layer[name].inputs) for name in ("matmul", "matmul@2", "proj")] == [2, 2, 1]


def test_every_parameter_is_shown_once() -> None:
    """Nothing is silently missing: the layers hold all parameters that matter to the result."""
    for build in SHAPES:
        module = ready(build)
        graph = captured(build, fold=False)
        owned = {layer.name.split("@")[0] for layer in graph.layers if layer.parameters}
        for name, _ in module.named_parameters():
            assert name.rpartition(".")[0] in owned or name in owned, name
        total = sum(layer.parameters for layer in graph.layers if "@" not in layer.name)
        buffers = sum(b.numel() for n, b in module.named_buffers() if "num_batches" not in n)
        assert total == sum(p.numel() for p in module.parameters()) + buffers


def test_a_weight_used_twice_is_two_layers() -> None:
    graph = captured(Perceptron)
    assert [layer.name for layer in graph.layers] == ["first", "shared", "shared@2", "last", "side"]
    assert graph.by_layer["shared"].weight == graph.by_layer["shared@2"].weight


def test_tied_weights_have_the_names_of_their_modules() -> None:
    """An embedding whose weight is the head's too."""
    table = nn.Embedding(11, 6)
    head = nn.Linear(6, 11, bias=False)
    head.weight = table.weight
    module = made(lambda m, x: m.head(m.table(x).mean(1)), table=table, head=head)
    graph = capture(module, torch.randint(0, 11, (3, 4)))
    first, second = graph.layers
    assert (first.op, second.op) == ("embedding", "linear")
    assert (first.name, second.name, second.shares) == ("table", "head", "table")
    assert (first.macs, second.macs) == (0, 66)


MACS = [
    (nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 9), 4 * 6 * 2 * 3, 0),
    (nn.Conv1d(4, 6, 3, padding="same"), (4, 9), 9 * 6 * 4 * 3, 0),
    (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (4, 7, 7), 3 * 3 * 4 * 9, 0),
    (nn.Conv2d(4, 6, (1, 3), padding="valid"), (4, 5, 5), 5 * 3 * 6 * 4 * 3, 0),
    (nn.Conv3d(2, 3, 2), (2, 3, 3, 3), 8 * 3 * 2 * 8, 0),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 5), 5 * 4 * 6 * 3, 1),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 3, 3), 9 * 4 * 3 * 9, 1),
    (nn.ConvTranspose3d(2, 3, 2), (2, 2, 2, 2), 8 * 2 * 3 * 8, 1),
    (nn.Linear(5, 7), (3, 5), 3 * 5 * 7, 0),
]  # fmt: skip


@pytest.mark.parametrize(("part", "shape", "macs", "axis"), MACS, ids=lambda v: str(v)[:24])
def test_multiply_adds_of_each_layer(part: nn.Module, shape: tuple[int, ...], macs: int, axis: int) -> None:
    """Closed forms: output positions x channels x what each sums over (input positions for transposed ones)."""
    module = made(lambda m, x: m.part(x).flatten(1), part=part)
    layer = layer_of(module, shape, "part")
    assert (layer.macs, layer.axis, layer.parameters) == (
        macs,
        axis,
        sum(p.numel() for p in part.parameters()),
    )
    assert layer.shape == tuple(part.weight.shape)


def test_multiply_adds_of_fused_attention() -> None:
    def way(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).flatten(1)

    graph = capture(made(way, qkv=nn.Linear(4, 12)), images((6, 4)))
    products = [graph.by_layer[name] for name in ("matmul", "matmul@2")]
    assert [layer.macs for layer in products] == [6 * 6 * 4] * 2
    assert [len(layer.inputs) for layer in products] == [2, 2]


def test_multihead_attention_is_open() -> None:
    """The projections inside torch's own attention module are layers, by the names of its parameters."""
    module = made(
        lambda m, x: m.attn(x, x, x, need_weights=False)[0].mean(1),
        attn=nn.MultiheadAttention(8, 2, batch_first=True),
    )
    graph = capture(module, images((5, 8)))
    assert {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"} <= set(graph.by_layer)
    assert graph.by_layer["attn.k_proj"].macs == 5 * 8 * 8


def test_a_product_with_a_parameter_is_a_linear_layer() -> None:
    module = made(lambda m, x: x @ m.weight_of_mine, weight_of_mine=nn.Parameter(torch.randn(5, 3)))
    layer = capture(module, images((5,))).layers[0]
    assert (layer.op, layer.axis, layer.macs, layer.name) == ("linear", 1, 15, "weight_of_mine")
    # From the left it is one for the turned activation.
    module = made(lambda m, x: (m.left @ x).flatten(1), left=nn.Parameter(torch.randn(3, 5)))
    layer = capture(module, images((5, 2))).layers[0]
    assert (layer.op, layer.axis, layer.macs, layer.name) == ("linear", 0, 30, "left")


@pytest.mark.parametrize(("part", "shape", "words"), [
    (nn.GroupNorm(2, 4), (4, 3, 3), "GroupNorm"),
    (nn.LayerNorm(4), (3, 4), "LayerNorm"),
    (nn.BatchNorm2d(4), (4, 3, 3), "BatchNorm with no convolution"),
    (nn.PReLU(4), (4, 3), "PReLU"),
    (nn.InstanceNorm1d(4, affine=True), (4, 3), "Norm"),
    (nn.RMSNorm(4), (3, 4), "RMSNorm"),
], ids=lambda v: str(v)[:16])  # fmt: skip
def test_what_is_not_quantized_says_why(part: nn.Module, shape: tuple[int, ...], words: str) -> None:
    graph = capture(made(lambda m, x: m.part(x).flatten(1), part=part), images(shape))
    layers = [layer for layer in graph.layers if not layer.quantizable]
    assert layers and all(layer.name.split("@")[0] == "part" for layer in layers)
    assert any(words in layer.reason for layer in layers), [layer.reason for layer in layers]
    assert all(not layer.inputs and layer.macs == 0 and layer.node in graph.by_name for layer in layers)


def test_tensors_that_the_code_makes_are_no_parameters() -> None:
    module = made(lambda m, x: m.part(x) + torch.tensor([1.0, 2.0]), part=nn.Linear(3, 2))
    graph = capture(module, images((3,)))
    assert [layer.name for layer in graph.layers] == ["part"]
    assert torch.equal(result(graph, images((3,))), module(images((3,))))


@pytest.mark.parametrize(
    "op", ["aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.addmm.default"]
)
def test_reasons_of_products_do_not_deny_them(op: str) -> None:
    assert (
        "product" in reason_for(op)
        and "not a" not in reason_for(op)
        and "element by element" not in reason_for(op)
    )


def test_reasons_and_layer_operators_are_tables() -> None:
    assert all(len(reason) > 15 for reason in REASONS.values())
    assert "'frobnicate'" in reason_for("aten.frobnicate.default")
    for name, kind in LAYER_OPS.items():
        if name.endswith("_states"):
            arguments = list(signature(LOOPS[name.removesuffix("_states")]).parameters)
            assert (arguments[kind.weight or 0], arguments[kind.bias or 0]) == ("weight", "bias")
            continue
        packet, overload = name.removeprefix("aten.").rsplit(".", 1)
        arguments = [a.name for a in getattr(getattr(torch.ops.aten, packet), overload)._schema.arguments]
        if kind.weight is not None:
            assert arguments[kind.weight] == "weight"
        if kind.bias is not None:
            assert arguments[kind.bias] in ("bias", "self")
        assert all(0 <= index < len(arguments) for index in kind.inputs)


# --- folding ------------------------------------------------------------------------------------------------


FOLDS = [
    ("conv", nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (3, 6, 6)),
    ("conv with bias", nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (3, 6, 6)),
    ("conv same", nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), (3, 6, 6)),
    ("depthwise", nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (4, 6, 6)),
    ("conv1d", nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (3, 6)),
    ("conv3d", nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (2, 3, 3, 3)),
    ("transposed", nn.ConvTranspose2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (3, 4, 4)),
    ("transposed with bias", nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (3, 4, 4)),
    ("transposed 1d", nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4), (3, 4)),
    ("linear", nn.Linear(5, 4), nn.BatchNorm1d(4), (5,)),
    ("not affine", nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), (3, 6, 6)),
]  # fmt: skip


@pytest.mark.parametrize(("part", "norm", "shape"), [f[1:] for f in FOLDS], ids=[f[0] for f in FOLDS])
def test_a_batch_norm_is_folded(part: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    affine = bool(norm.affine)
    module = made(lambda m, x: m.norm(m.part(x)).flatten(1), part=part, norm=norm)
    if not affine:
        module.norm.weight = module.norm.bias = None  # type: ignore[union-attr]
    graph, plain = capture(module, images(shape)), capture(module, images(shape), fold=False)
    x = images(shape, 5, seed=9)
    torch.testing.assert_close(result(graph, x), module(x), rtol=1e-5, atol=1e-5)
    assert not [op for op in operators(graph) if "batch_norm" in op]
    assert [layer.name for layer in graph.layers] == ["part"]
    assert graph.layers[0].parameters == part.weight.numel() + len(norm.running_mean)
    assert [op for op in operators(plain) if "batch_norm" in op]
    # What was folded is in float64 until the end: the weight is the exact one, rounded once.
    gamma = module.norm.weight if affine else torch.ones(4)  # type: ignore[union-attr]
    factor = gamma.double() / (module.norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    axis = 1 if "Transpose" in type(part).__name__ else 0
    view = [-1 if i == axis else 1 for i in range(part.weight.dim())]
    exact = (part.weight.double() * factor.view(view)).float()
    assert torch.equal(graph.constants[graph.layers[0].weight or ""], exact)


def test_a_batch_norm_of_rows_is_folded_into_the_linear_layer_of_a_sequence() -> None:
    parts = {"part": nn.Linear(8, 6), "norm": nn.BatchNorm1d(6)}
    module = made(lambda m, x: m.norm((y := m.part(x)).flatten(0, 1)).reshape_as(y).flatten(1), **parts)
    graph = capture(module, images((6, 8)))
    x = images((6, 8), 3, seed=9)
    torch.testing.assert_close(result(graph, x), module(x), rtol=1e-5, atol=1e-5)
    assert [layer.name for layer in graph.layers] == ["part"]
    # Rows of other numbers than the layer's features, or a second use of what the layer gives: it stays.
    for way in (
        lambda m, x: m.norm(m.part(x).reshape(-1, 6, 6).transpose(1, 2).reshape(-1, 6)).reshape(len(x), 36),
        lambda m, x: (m.norm((y := m.part(x)).flatten(0, 1)).reshape_as(y) + y).flatten(1),
    ):
        module = made(way, part=nn.Linear(8, 6), norm=nn.BatchNorm1d(6))
        graph = capture(module, images((6, 8)))
        torch.testing.assert_close(result(graph, x), module(x), rtol=1e-5, atol=1e-5)
        assert {layer.name: layer.quantizable for layer in graph.layers} == {"part": True, "norm": False}


def test_a_residual_network_has_no_batch_norm_left() -> None:
    assert not [op for op in operators(captured(Residual)) if "batch_norm" in op]
    reasons = [layer.reason for layer in captured(Residual, fold=False).layers if not layer.quantizable]
    assert len(reasons) == 6 and all("BatchNorm" in reason for reason in reasons)


# ruff: noqa: E501 - a case is a line
UNFOLDED = [
    ("used twice", lambda m, x: (m.norm(y := m.part(x)) + y).flatten(1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), (3, 4, 4)),
    ("after a relu", lambda m, x: m.norm(m.part(x).relu()).flatten(1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), (3, 4, 4)),
    ("grouped transposed", lambda m, x: m.norm(m.part(x)).flatten(1), nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), (4, 3, 3)),
    # Features of a linear layer lie last, channels of a BatchNorm second: with as many of both they are easily confused.
    ("linear of a sequence", lambda m, x: m.norm(m.part(x)).flatten(1), nn.Linear(8, 6), nn.BatchNorm1d(6), (6, 8)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("way", "part", "norm", "shape"), [u[1:] for u in UNFOLDED], ids=[u[0] for u in UNFOLDED]
)
def test_a_batch_norm_that_cannot_be_folded_stays(
    way, part: nn.Module, norm: nn.Module, shape: tuple[int, ...]
) -> None:  # type: ignore[no-untyped-def]
    module = made(way, part=part, norm=norm)
    graph = capture(module, images(shape))
    x = images(shape, 3, seed=9)
    torch.testing.assert_close(result(graph, x), module(x), rtol=1e-5, atol=1e-5)
    assert [op for op in operators(graph) if "batch_norm" in op]
    assert {layer.name: layer.quantizable for layer in graph.layers} == {"part": True, "norm": False}


def test_a_convolution_called_twice_is_folded_call_by_call() -> None:
    """Each call has its own BatchNorm, so each gets its own weight; the module's is left as it is."""
    module = made(
        lambda m, x: m.norm2(m.part(m.norm1(m.part(x)).relu())).flatten(1),
        part=nn.Conv2d(3, 3, 1), norm1=nn.BatchNorm2d(3), norm2=nn.BatchNorm2d(3),
    )  # fmt: skip
    graph = capture(module, images((3, 4, 4)))
    x = images((3, 4, 4), 3, seed=9)
    torch.testing.assert_close(result(graph, x), module(x), rtol=1e-5, atol=1e-5)
    assert [layer.name for layer in graph.layers] == ["part", "part@2"]
    assert graph.by_layer["part"].weight != graph.by_layer["part@2"].weight


def test_two_batch_norms_in_a_row() -> None:
    module = made(
        lambda m, x: m.norm2(m.norm1(m.part(x))).flatten(1),
        part=nn.Conv2d(3, 3, 1), norm1=nn.BatchNorm2d(3), norm2=nn.BatchNorm2d(3),
    )  # fmt: skip
    graph = capture(module, images((3, 4, 4)))
    x = images((3, 4, 4), 3, seed=9)
    torch.testing.assert_close(result(graph, x), module(x), rtol=1e-5, atol=1e-5)
    assert graph.by_layer["part"].quantizable


# --- what cannot be captured --------------------------------------------------------------------------------


def loops(m: nn.Module, x: Tensor) -> Tensor:
    return m.part(x) if x.sum() > 0 else -m.part(x)


def fixes_the_batch(m: nn.Module, x: Tensor) -> Tensor:
    return m.part(x.reshape(4, -1))


def fails(m: nn.Module, x: Tensor) -> Tensor:
    return m.part(x[:, :3])


REFUSED = [
    ("branches", loops, "branches on the values of a tensor"),
    ("batch", fixes_the_batch, "its code fixes the batch size; it must work for any number of images"),
    ("fails", fails, "The network fails on an input of shape (4, 5):"),
    ("two results", lambda m, x: (m.part(x), x), "The network has 2 results: 0 (4, 2), 1 (4, 5). Say with output="),
    ("no tensor", lambda m, x: None, "The network's result is a NoneType without a tensor in it."),
    ("unchanged", lambda m, x: x, "returns its input or a parameter unchanged"),
    ("wrong shape", lambda m, x: m.part(x).mean(0), "shape (2,) for 4 images; it must be real numbers with one result"),
    ("random", lambda m, x: m.part(x) + torch.rand_like(m.part(x)), "The node 'rand_like' (aten.rand_like.default, at"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_networks_that_cannot_be_captured_are_refused(way, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError) as caught:
        capture(made(way, part=nn.Linear(5, 2)), images((5,)))
    text = str(caught.value)
    assert message in text and "\n" not in text and len(text) < 400
    if way in (loops, fails):
        assert "test_graph.py, line " in text, "the line of the user's code is named"


@torch.library.custom_op("tests::counted", mutates_args=())
def counted(x: Tensor) -> Tensor:
    """An operator that keeps state between calls."""
    CALLS.append(1)
    return x + len(CALLS)


@counted.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


CALLS: list[int] = []
CHANGING = [
    ("native_dropout", lambda m, x: m.part(F.dropout(x, 0.5, True))),
    ("bernoulli", lambda m, x: m.part(x).sigmoid().bernoulli()),
    ("counted", lambda m, x: counted(m.part(x)).relu()),
    ("rand_like", lambda m, x: m.part(x) + torch.rand_like(m.part.bias)),
    ("rand", lambda m, x: m.part(x * float(torch.rand(1)))),
]


@pytest.mark.parametrize(("node", "way"), CHANGING, ids=[node for node, _ in CHANGING])
def test_what_changes_from_call_to_call_is_named(node: str, way) -> None:  # type: ignore[no-untyped-def]
    """The first node that differs, its operator and the user's line, not what comes after it."""
    module = made(way, part=nn.Linear(5, 2))
    words = rf"^The node '{node}' \(\w+\.{node}\.\w+, at .*test_graph\.py:\d+\) gives another value each time"
    with pytest.raises(ModelError, match=words):
        capture(module, images((5,)))


def test_a_graph_is_checked_on_any_batch() -> None:
    """NaN is like itself; what has not been written yet is nobody's value."""
    graph = capture(made(lambda m, x: m.part(x).log().nan_to_num(), part=nn.Linear(5, 2)), images((5,)))
    check_repeatable(graph, images((5,), 6, seed=4))
    filled = made(lambda m, x: m.part(x) + torch.empty_like(x[:, :2]).fill_(3), part=nn.Linear(5, 2))
    assert capture(filled, images((5,)))


def test_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match=r"call .eval\(\) on it first"):
        capture(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize(
    "example", [torch.tensor(1.0), torch.zeros(0, 5), [1, 2]], ids=["scalar", "empty", "list"]
)
def test_examples_that_are_no_batch_are_refused(example: object) -> None:
    with pytest.raises(ModelError, match="one tensor whose first axis is the batch"):
        capture(nn.Linear(5, 2).eval(), example)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_are_named_and_counted(bad: float) -> None:
    module = ready(Perceptron)
    module.shared.weight[1, :3] = bad  # type: ignore[union-attr, index]
    counts = "3 NaN and 0" if bad != bad else "0 NaN and 3"
    with pytest.raises(TensorError, match=f"weight 'shared.weight' holds {counts} infinite values among 64"):
        capture(module, images((2, 3)))


def test_a_mask_may_hold_infinity() -> None:
    module = made(lambda m, x: (m.part(x) + m.mask).softmax(-1), part=nn.Linear(5, 2))
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert [layer.name for layer in capture(module, images((5,))).layers if layer.quantizable] == ["part"]


def test_one_result_in_a_tuple_is_taken() -> None:
    module = made(lambda m, x: (m.part(x),), part=nn.Linear(5, 2))
    graph = capture(module, images((5,)))
    assert torch.equal(result(graph, images((5,))), module(images((5,)))[0])


def test_the_readings_of_a_graph() -> None:
    """Which nodes an edit of a layer reaches, by walking the edges."""
    graph = captured(Residual)
    for layer in graph.layers:
        reached = {layer.node}
        for node in graph.nodes:
            if reached.intersection(node.inputs):
                reached.add(node.name)
        assert graph.descendants(layer.name) == reached
    assert graph.output in graph.worth_keeping <= set(graph.by_name)
    assert graph.descendants("stem") == set(graph.by_name)
