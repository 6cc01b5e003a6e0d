"""Tiny networks of the kinds that there are, with weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from explorer.graph import Graph, capture


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return self.relu(y)


class Residual(nn.Module):
    """A residual network: BatchNorm, in-place ReLU and addition, one block with a downsampling branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 6, 2))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn(self.stem(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Attention(nn.Module):
    """One transformer block on (N, 6, 5): fused projections, a class token and positions that are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.pos = nn.Parameter(torch.randn(1, 7, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = torch.cat([self.cls.expand(n, -1, -1), self.embed(x)], 1) + self.pos
        q, k, v = self.qkv(self.norm(x)).reshape(n, 7, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-2, -1)) / 2).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(n, 7, 8))
        return self.head(x[:, 0])


class Perceptron(nn.Module):
    """Linear layers, one with BatchNorm, one weight used twice, and an activation that goes to two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.bn = nn.BatchNorm1d(8)
        self.shared = nn.Linear(8, 8)
        self.side = nn.Linear(8, 4)
        self.last = nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.first(x.flatten(1))).relu()
        return self.last(self.shared(self.shared(x).relu()).relu()) + self.side(x)


def ready(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network in eval mode, with random weights and random BatchNorm statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build().eval()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean = torch.randn(part.num_features) * 0.3
                part.running_var = torch.rand(part.num_features) + 0.5
                part.weight = nn.Parameter(torch.rand(part.num_features) + 0.5)
                part.bias = nn.Parameter(torch.randn(part.num_features) * 0.3)
    return module.requires_grad_(False)


SHAPES: dict[Callable[[], nn.Module], tuple[int, ...]] = {
    Residual: (2, 8, 8),
    Attention: (6, 5),
    Perceptron: (2, 3),
}


@cache
def captured(build: Callable[[], nn.Module], fold: bool = True) -> Graph:
    """The graph of one of the networks above, captured once."""
    return capture(ready(build), images(SHAPES[build]), fold)


def images(shape: tuple[int, ...], count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
