"""Tiny networks with each kind of layer that users have, and the layers that capturing is to find in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from explorer.graph import Graph, capture
from tests.nets import ready


class Made(nn.Module):
    """A module with the given parts and the given way through them."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.way = way
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


@dataclass(frozen=True)
class Kind:
    """A tiny network.

    Args:
        build: makes it.
        shape: of one example; whole numbers below ``tokens`` where that is given.
        layers: the quantizable layers by name, with their operators.
        others: the names of those that stay in float.
        exact: whether the captured network gives the module's bits where nothing is folded.
        tokens: how many different tokens there are.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: dict[str, str]
    others: tuple[str, ...] = ()
    exact: bool = True
    tokens: int = 0

    def examples(self, count: int = 4, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(0, self.tokens, (count, *self.shape), generator=generator)
        return torch.randn(count, *self.shape, generator=generator)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(7)))


def kind(
    way: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...], layers: dict[str, str], **rest: Any
) -> Kind:
    """A kind whose network has the named parts, made anew each time."""
    options = {key: rest.pop(key) for key in ("others", "exact", "tokens") if key in rest}

    def flat(m: Any, x: Tensor) -> Tensor:
        return way(m, x).flatten(1)

    return Kind(lambda: Made(flat, **{name: make() for name, make in rest.items()}), shape, layers, **options)


def through(part: Callable[[], nn.Module], shape: tuple[int, ...], op: str, **options: Any) -> Kind:
    """A part and a flattening."""
    return kind(lambda m, x: m.part(x).flatten(1), shape, {"part": op}, part=part, **options)


def last_step(part: Callable[[], nn.Module], shape: tuple[int, ...], layers: str, **options: Any) -> Kind:
    """A recurrent part whose whole sequence is wanted."""
    found = {f"part.{name}": "recurrent" if name.startswith("hh") else "linear" for name in layers.split()}
    return kind(lambda m, x: m.part(x)[0].flatten(1), shape, found, part=part, **options)


def cells(m: Any, x: Tensor) -> Tensor:
    """Two steps, written out by the user."""
    begin = F.pad(x[:, 1], (0, 1))
    if isinstance(m.cell, nn.LSTMCell):
        return m.cell(x[:, 1], m.cell(x[:, 0], (begin, begin)))[0]
    return m.cell(x[:, 1], m.cell(x[:, 0], begin))


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def fused(m: Any, x: Tensor, **options: Any) -> Tensor:
    q, k, v = (heads(each) for each in m.qkv(x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(1)


def grouped_query(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x)), heads(m.v(x))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.3).transpose(1, 2).flatten(1)


def masked(m: Any, x: Tensor) -> Tensor:
    seen = (x[..., 0] > -1)[:, None, None, :]
    return fused(m, x, attn_mask=seen)


def tied(m: Any, x: Tensor) -> Tensor:
    return m.decoder(m.embed(x).relu()).flatten(1)


def tie(module: nn.Module) -> nn.Module:
    module.decoder.weight = module.embed.weight  # type: ignore[union-attr]
    return module


MHA = {"attn.q_proj": "linear", "attn.k_proj": "linear", "attn.v_proj": "linear", "attn.matmul": "matmul", "attn.matmul@2": "matmul", "attn.out_proj": "linear"}  # fmt: skip  # noqa: E501
SDPA = {"qkv": "linear", "matmul": "matmul", "matmul@2": "matmul"}


def attention(way: Callable[[Any, Tensor], Tensor], **options: Any) -> Kind:
    return kind(
        way, (5, 8), MHA, attn=lambda: nn.MultiheadAttention(8, 2, batch_first=True, **options), exact=False
    )


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)


KINDS: dict[str, Kind] = {
    "conv1d": through(lambda: nn.Conv1d(2, 4, 3, groups=2), (2, 7), "conv1d"),
    "conv2d depthwise": through(lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), (3, 5, 5), "conv2d"),
    "conv2d circular": through(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5), "conv2d"),
    "conv3d": through(lambda: nn.Conv3d(2, 3, 2, stride=2), (2, 4, 4, 4), "conv3d"),
    "transposed 1d": through(lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 5), "conv_transpose1d"),
    "transposed 2d": through(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 3, 3), "conv_transpose2d"),
    "transposed 3d": through(lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 2, 2), "conv_transpose3d"),
    "plain convolution": kind(
        lambda m, x: torch.convolution(x, m.w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1).flatten(1),
        (2, 4, 4), {"w": "conv2d"}, w=lambda: weight(3, 2, 3, 3),
    ),
    "plain transposed": kind(
        lambda m, x: torch.convolution(x, m.w, None, [2], [1], [1], True, [1], 2).flatten(1),
        (4, 5), {"w": "conv_transpose1d"}, w=lambda: weight(4, 3, 3),
    ),
    "linear of a sequence": through(lambda: nn.Linear(5, 3), (4, 5), "linear"),
    "embedding": through(lambda: nn.Embedding(11, 4, padding_idx=0), (5,), "embedding", tokens=11),
    "embedding bag": kind(
        lambda m, x: m.fc(m.bag(x)), (5,), {"fc": "linear"}, tokens=11, others=("bag",),
        bag=lambda: nn.EmbeddingBag(11, 4), fc=lambda: nn.Linear(4, 2),
    ),
    "tied decoder": Kind(
        lambda: tie(Made(tied, embed=nn.Embedding(11, 4), decoder=nn.Linear(4, 11, bias=False))),
        (3,), {"embed": "embedding", "decoder": "linear"}, tokens=11,
    ),
    "tied by hand": kind(
        lambda m, x: (m.embed(x).relu() @ m.embed.weight.t()).flatten(1),
        (3,), {"embed": "embedding", "embed@2": "linear"}, tokens=11, embed=lambda: nn.Embedding(11, 4), exact=False,
    ),
    "parameter right": kind(lambda m, x: x @ m.w, (4, 5), {"w": "linear"}, w=lambda: weight(5, 3)),
    "parameter right, stack": kind(lambda m, x: x @ m.w, (2, 4, 5), {"w": "linear"}, w=lambda: weight(2, 5, 3)),
    "parameter left": kind(lambda m, x: m.w @ x, (5, 4), {"w": "linear"}, w=lambda: weight(3, 5), exact=False),
    "parameter left, stack": kind(
        lambda m, x: m.w @ x, (2, 5, 4), {"w": "linear"}, w=lambda: weight(2, 3, 5), exact=False
    ),
    "vector": kind(lambda m, x: x @ m.w, (4, 5), {"w": "linear"}, w=lambda: weight(5), exact=False),
    "vector left": kind(lambda m, x: m.w @ x, (5, 4), {"w": "linear"}, w=lambda: weight(5), exact=False),
    "mv": kind(lambda m, x: x.mv(m.w)[:, None], (5,), {"w": "linear"}, w=lambda: weight(5), exact=False),
    "addmm": kind(
        lambda m, x: torch.addmm(m.b, x, m.w), (5,), {"w": "linear"}, w=lambda: weight(5, 3), b=lambda: weight(3)
    ),
    "inner": kind(lambda m, x: torch.inner(x, m.w), (5,), {"w": "linear"}, w=lambda: weight(3, 5), exact=False),
    "tensordot": kind(
        lambda m, x: torch.tensordot(x, m.w, ([1, 3], [0, 1])).flatten(1),
        (4, 3, 2), {"w": "linear"}, w=lambda: weight(4, 2, 5), exact=False,
    ),
    "baddbmm": kind(
        lambda m, x: torch.baddbmm(m.fc(x)[:, :, :1], x, x.mT).flatten(1), (4, 5),
        {"fc": "linear", "matmul": "matmul"}, fc=lambda: nn.Linear(5, 4),
    ),
    "einsum, weight": kind(
        lambda m, x: torch.einsum("bti,oi->bto", x, m.w), (4, 5), {"w": "linear"}, w=lambda: weight(3, 5), exact=False
    ),
    "einsum, heads out": kind(
        lambda m, x: torch.einsum("...i,hdi->...hd", x, m.w).flatten(1),
        (4, 5), {"w": "linear"}, w=lambda: weight(2, 3, 5), exact=False,
    ),
    "einsum, heads in": kind(
        lambda m, x: torch.einsum("bthd,hdo->bto", x, m.w), (4, 2, 3), {"w": "linear"},
        w=lambda: weight(2, 3, 5), exact=False,
    ),
    "einsum, weight first": kind(
        lambda m, x: torch.einsum("oi,bit->bot", m.w, x), (5, 4), {"w": "linear"}, w=lambda: weight(3, 5), exact=False
    ),
    "einsum, head by head": kind(
        lambda m, x: torch.einsum("bthi,hio->btho", x, m.w), (4, 2, 3), {"w": "linear"},
        w=lambda: weight(2, 3, 5), exact=False,
    ),
    "einsum, a stack": kind(
        lambda m, x: torch.einsum("bhi,hio->bho", x, m.w), (2, 3), {"w": "linear"},
        w=lambda: weight(2, 3, 5), exact=False,
    ),
    "einsum, no columns": kind(
        lambda m, x: torch.einsum("bhi,hi->bh", x, m.w), (2, 3), {"w": "linear"}, w=lambda: weight(2, 3), exact=False
    ),
    "einsum, activations": kind(
        lambda m, x: torch.einsum("bqhd,bkhd->bhqk", m.fc(x).unflatten(-1, (2, 3)), x.unflatten(-1, (2, 3))).flatten(1),
        (4, 6), {"fc": "linear", "matmul": "matmul"}, fc=lambda: nn.Linear(6, 6), exact=False,
    ),
    "einsum, implicit": kind(
        lambda m, x: torch.einsum("bi, oi", x, m.w), (5,), {"w": "linear"}, w=lambda: weight(3, 5), exact=False
    ),
    "einsum, diagonal": kind(
        lambda m, x: torch.einsum("bii,oi->bo", x, m.w), (5, 5), {}, others=("w",), w=lambda: weight(3, 5)
    ),
    "weight norm": through(lambda: parametrizations.weight_norm(nn.Linear(5, 3)), (5,), "linear"),
    "spectral norm": through(lambda: parametrizations.spectral_norm(nn.Linear(5, 3)), (5,), "linear"),
    "orthogonal": through(lambda: parametrizations.orthogonal(nn.Linear(4, 4)), (4,), "linear"),
    "lstm": last_step(lambda: nn.LSTM(3, 4, batch_first=True), (5, 3), "ih_l0 hh_l0", exact=False),
    "lstm, two ways": last_step(
        lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), (5, 3),
        "ih_l0 hh_l0 ih_l0_reverse hh_l0_reverse ih_l1 hh_l1 ih_l1_reverse hh_l1_reverse", exact=False,
    ),
    "lstm, cells": kind(
        lambda m, x: torch.cat([each.transpose(0, 1).flatten(1) for each in m.part(x)[1]], 1),
        (5, 3), {"part.ih_l0": "linear", "part.hh_l0": "recurrent"}, exact=False,
        part=lambda: nn.LSTM(3, 4, batch_first=True, bias=False),
    ),
    "lstm, projected": kind(
        lambda m, x: m.fc(m.part(x)[0][:, -1]), (5, 3), {"fc": "linear"}, others=("part",),
        part=lambda: nn.LSTM(3, 4, batch_first=True, proj_size=2), fc=lambda: nn.Linear(2, 2),
    ),
    "lstm, steps first": kind(
        lambda m, x: m.part(x.transpose(0, 1))[0][-1], (5, 3), {"part.ih_l0": "linear", "part.hh_l0": "recurrent"},
        part=lambda: nn.LSTM(3, 4), exact=False,
    ),
    "gru": last_step(lambda: nn.GRU(3, 4, batch_first=True), (5, 3), "ih_l0 hh_l0", exact=False),
    "gru, two ways": last_step(
        lambda: nn.GRU(3, 4, batch_first=True, bidirectional=True), (5, 3),
        "ih_l0 hh_l0 ih_l0_reverse hh_l0_reverse", exact=False,
    ),
    "rnn": last_step(lambda: nn.RNN(3, 4, 2, batch_first=True), (5, 3), "ih_l0 hh_l0 ih_l1 hh_l1", exact=False),
    "rnn, relu": last_step(
        lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True), (5, 3), "ih_l0 hh_l0", exact=False
    ),
    "lstm cells": kind(
        cells, (2, 3), {"cell.ih": "linear", "cell.hh": "linear", "cell.ih@2": "linear", "cell.hh@2": "linear"},
        cell=lambda: nn.LSTMCell(3, 4), exact=False,
    ),
    "gru cells": kind(
        cells, (2, 3), {"cell.ih": "linear", "cell.hh": "linear", "cell.ih@2": "linear", "cell.hh@2": "linear"},
        cell=lambda: nn.GRUCell(3, 4), exact=False,
    ),
    "rnn cells": kind(
        cells, (2, 3), {"cell.ih": "linear", "cell.hh": "linear", "cell.ih@2": "linear", "cell.hh@2": "linear"},
        cell=lambda: nn.RNNCell(3, 4), exact=False,
    ),
    "attention, plain": attention(lambda m, x: m.attn(x, x, x, need_weights=False)[0].flatten(1)),
    "attention, weights": attention(lambda m, x: torch.cat([r.flatten(1) for r in m.attn(x, x, x)], 1)),
    "attention, cross": attention(lambda m, x: m.attn(x, x + 1, x * 2, need_weights=False)[0].flatten(1)),
    "attention, masked": attention(
        lambda m, x: m.attn(x, x, x, key_padding_mask=x[..., 0] > 1, need_weights=False)[0].flatten(1)
    ),
    "attention, causal": attention(
        lambda m, x: m.attn(
            x, x, x, attn_mask=nn.Transformer.generate_square_subsequent_mask(5), is_causal=True, need_weights=False
        )[0].flatten(1)
    ),
    "attention, other widths": kind(
        lambda m, x: m.attn(x, x[..., :4], x[..., :6], need_weights=False)[0].flatten(1), (5, 8), MHA,
        attn=lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True), exact=False,
    ),
    "encoder": Kind(
        lambda: Made(lambda m, x: m.layer(x).flatten(1), layer=encoder()), (5, 8),
        {f"layer.{n.replace('attn', 'self_attn')}": op for n, op in MHA.items()}
        | {"layer.linear1": "linear", "layer.linear2": "linear"},
        ("layer.norm1", "layer.norm2"), exact=False,
    ),
    "sdpa": kind(fused, (5, 8), SDPA, qkv=lambda: nn.Linear(8, 24), exact=False),
    "sdpa, causal": kind(
        lambda m, x: fused(m, x, is_causal=True), (5, 8), SDPA, qkv=lambda: nn.Linear(8, 24), exact=False
    ),
    "sdpa, masked": kind(masked, (5, 8), SDPA, qkv=lambda: nn.Linear(8, 24), exact=False),
    "sdpa, groups": kind(
        grouped_query, (5, 8), {"q": "linear", "k": "linear", "v": "linear", "matmul": "matmul", "matmul@2": "matmul"},
        q=lambda: nn.Linear(8, 12), k=lambda: nn.Linear(8, 6), v=lambda: nn.Linear(8, 6), exact=False,
    ),
}  # fmt: skip


@cache
def module_of(name: str) -> nn.Module:
    return ready(KINDS[name].build)


@cache
def graph_of(name: str) -> Graph:
    return capture(module_of(name), KINDS[name].examples())
