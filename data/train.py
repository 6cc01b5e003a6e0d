"""Train the networks that ship and write them beside this file.

    python data/train.py --images FOLDER [NAME ...]

FOLDER holds Fashion-MNIST's four ``*-ubyte.gz`` files (for example from Debian's package
``dataset-fashion-mnist``).  All 60,000 training images are used; nothing is chosen on the test set,
whose accuracy is printed once, at the end.  Seeds are fixed, and with one thread the same
versions of the libraries on the same kind of processor give the same weights.
"""

from __future__ import annotations

import argparse
import gzip
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.sources.zoo import ZOO

HERE = Path(__file__).parent
MEAN, STD = 0.2860, 0.3530


@dataclass(frozen=True)
class Plan:
    """How one network is trained: a one-cycle schedule with crops, flips and weight decay."""

    epochs: int
    rate: float
    optimizer: str = "sgd"
    decay: float = 5e-4
    batch: int = 128
    crop: int = 2
    bf16: bool = False


PLANS = {
    "fashion-lenet300": Plan(60, 1.5e-3, "adamw", 2e-2, crop=1),
    "fashion-lenet5": Plan(30, 0.03, bf16=True),
    "fashion-resnet20": Plan(36, 0.2, bf16=True),
    "fashion-vit": Plan(38, 1.5e-3, "adamw", 5e-2, batch=64),
    "fashion-mobilenet": Plan(24, 0.15, decay=1e-4),
}


def read_idx(path: Path) -> Tensor:
    """A ``*-ubyte.gz`` file as a uint8 tensor: images (N, 28, 28) or labels (N,)."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">i4", axes, 4)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def batches(images: Tensor, labels: Tensor, plan: Plan, generator: torch.Generator):
    """One epoch of shuffled, cropped and flipped batches; images (N, 28, 28) uint8."""
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(order) - plan.batch + 1, plan.batch):
        chosen = order[start : start + plan.batch]
        x = (images[chosen].float() / 255 - MEAN) / STD
        count, pad = len(chosen), plan.crop
        padded = F.pad(x, (pad,) * 4, value=-MEAN / STD)
        dy, dx = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
        rows = (torch.arange(28) + dy)[:, :, None]
        columns = (torch.arange(28) + dx)[:, None, :]
        x = padded[torch.arange(count)[:, None, None], rows, columns]
        flip = torch.rand(count, generator=generator) < 0.5
        x[flip] = x[flip].flip(2)
        yield x[:, None], labels[chosen]


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    with torch.inference_mode():
        right = sum(
            int((net((x[:, None].float() / 255 - MEAN) / STD).argmax(1) == y).sum())
            for x, y in zip(images.split(200), labels.split(200), strict=True)
        )
    net.train()
    return right / len(labels)


def train(name: str, folder: Path) -> None:
    plan = PLANS[name]
    images = read_idx(folder / "train-images-idx3-ubyte.gz")
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz").long()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = ZOO[name]().to(memory_format=torch.channels_last)
    steps = plan.epochs * (len(images) // plan.batch)
    optimizer: torch.optim.Optimizer
    if plan.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            net.parameters(), plan.rate, momentum=0.9, weight_decay=plan.decay, nesterov=True
        )
    else:
        optimizer = torch.optim.AdamW(net.parameters(), plan.rate, weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.rate, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    begun = time.time()
    for epoch in range(plan.epochs):
        total = 0.0
        for x, y in batches(images, labels, plan, generator):
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
                out = net(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(out.float(), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        mean = total / (len(images) // plan.batch)
        print(
            f"{name} epoch {epoch + 1}/{plan.epochs} loss {mean:.4f} {time.time() - begun:.0f} s", flush=True
        )
    test_images = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    test_labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz").long()
    state = {key: value.contiguous() for key, value in net.state_dict().items() if value.is_floating_point()}
    save_file(state, HERE / f"{name}.safetensors")
    print(f"{name} test accuracy {accuracy(net, test_images, test_labels):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("names", nargs="*", help="default: all")
    options = parser.parse_args()
    for name in options.names:
        if name not in PLANS:
            parser.error(f"no network {name!r}; there are {', '.join(PLANS)}")
    torch.set_num_threads(options.threads)
    for name in options.names or PLANS:
        train(name, options.images)


if __name__ == "__main__":
    main()
