"""The networks that ship: five small classifiers of 28x28 grey images.

They are ordinary ``torch.nn.Module`` classes, trained by ``data/train.py``; the weights lie beside it
as safetensors.  Each was chosen because it behaves differently when quantized:

* ``fashion-resnet20``: residual, BatchNorm, ReLU (He et al., 2016, arXiv:1512.03385, section 4.2);
* ``fashion-mobilenet``: inverted residuals with depthwise convolutions and ReLU6
  (Sandler et al., 2018, arXiv:1801.04381), the kind that suffers under one scale per layer;
* ``fashion-vit``: LayerNorm, GELU, attention (Dosovitskiy et al., 2021, arXiv:2010.11929);
* ``fashion-lenet5``, ``fashion-lenet300``: the nets of Deep Compression (Han et al., 2016,
  arXiv:1510.00149).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet20(nn.Module):
    """Images (N, 1, 28, 28) -> class scores (N, 10): three stages of three blocks, 16/32/64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, outputs, stride),
            BasicBlock(outputs, outputs, 1),
            BasicBlock(outputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3 depthwise), project (1x1); add where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        steps: list[nn.Module] = []
        if expand != 1:
            steps += [*_conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)]
        steps += [*_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True)]
        steps += _conv_bn(hidden, outputs, 1)
        self.conv = nn.Sequential(*steps)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    """Images (N, 1, 28, 28) -> class scores (N, 10); depthwise-separable, ReLU6."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks: list[nn.Module] = [*_conv_bn(1, 24, 3), nn.ReLU6(inplace=True)]
        channels = 24
        for expand, outputs, count, stride in (
            (1, 16, 1, 1),
            (4, 24, 2, 2),
            (4, 40, 3, 1),
            (4, 64, 3, 2),
            (4, 80, 1, 1),
        ):
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expand))
                channels = outputs
        blocks += [*_conv_bn(channels, 320, 1), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(320, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(x).mean((2, 3))))


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, T, C) with one joint projection for q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Images (N, 1, 28, 28) -> class scores (N, 10): 49 tokens from three convolutions, mean over tokens.

    Convolutions instead of one cut into patches let a small transformer learn from few images
    (Xiao et al., 2021, arXiv:2106.14881).
    """

    def __init__(self, classes: int = 10, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        half = width // 2
        self.stem1, self.bn1 = nn.Conv2d(1, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half)
        self.stem2, self.bn2 = nn.Conv2d(half, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.act = nn.GELU()
        self.patch, self.bn3 = nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.position = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, 3 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn2(self.stem2(self.act(self.bn1(self.stem1(x))))))
        x = self.bn3(self.patch(x)).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class LeNet5(nn.Module):
    """Images (N, 1, 28, 28) -> class scores (N, 10): the LeNet-5 of Deep Compression, 431,080 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.ip1 = nn.Linear(800, 500)
        self.dropout = nn.Dropout(0.3)
        self.ip2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.ip1(torch.flatten(x, 1)))
        return self.ip2(self.dropout(x))


class LeNet300(nn.Module):
    """Images (N, 1, 28, 28) -> class scores (N, 10): 784-300-100-10, 266,610 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.ip1 = nn.Linear(784, 300)
        self.ip2 = nn.Linear(300, 100)
        self.ip3 = nn.Linear(100, classes)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.ip1(torch.flatten(x, 1))))
        return self.ip3(F.relu(self.ip2(x)))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "fashion-resnet20": ResNet20,
    "fashion-mobilenet": MobileNet,
    "fashion-vit": ViT,
    "fashion-lenet5": LeNet5,
    "fashion-lenet300": LeNet300,
}
