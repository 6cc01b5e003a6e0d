"""Tiny networks and images for tests of whole questions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4


class TinyNet(nn.Module):
    """A residual convolution net with BatchNorm: (N, 1, 6, 6) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.mid = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.mid(x))
        return self.fc(x.mean((2, 3)))


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = TinyNet()
    net.bn.running_mean.normal_()
    net.bn.running_var.uniform_(0.5, 2)
    return net.eval()


def images(count: int = 90, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    with torch.no_grad():
        labels = tiny()(x).argmax(1)
    # A fifth is labelled at random, so that accuracy lies away from its bounds.
    wrong = torch.rand(count, generator=generator) < 0.2
    labels[wrong] = torch.randint(0, CLASSES, (int(wrong.sum()),), generator=generator)
    return x, labels
