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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
    second: Second | None = None


@dataclass(frozen=True)
class Second:
    """More epochs after the first plan, towards a trained teacher's class distribution (Hinton et al., 2015).

    The teacher has seen each image as it is and flipped; what is kept is the average of the weights.
    """

    teacher: str
    epochs: int
    rate: float
    temperature: float = 2.0
    share: float = 0.8
    decay: float = 0.999


PLANS = {
    "fashion-lenet300": Plan(60, 1.5e-3, "adamw", 2e-2, crop=1),
    "fashion-lenet5": Plan(30, 0.03, bf16=True),
    "fashion-resnet20": Plan(36, 0.2, bf16=True),
    "fashion-vit": Plan(
        16, 1.2e-3, "adamw", 5e-2, batch=64, crop=1, second=Second("fashion-resnet20", 7, 6e-4)
    ),
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
        yield x[:, None], labels[chosen], chosen, flip


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    with torch.inference_mode():
        right = sum(
            int((net((x[:, None].float() / 255 - MEAN) / STD).argmax(1) == y).sum())
            for x, y in zip(images.split(200), labels.split(200), strict=True)
        )
    net.train()
    return right / len(labels)


def opinions(teacher: nn.Module, images: Tensor) -> Tensor:
    """The teacher's scores (2, N, 10) of the images as they are and flipped."""
    teacher = teacher.eval().to(memory_format=torch.channels_last)
    both = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for flipped in (images, images.flip(2)):
            parts = [teacher((x[:, None].float() / 255 - MEAN) / STD).float() for x in flipped.split(128)]
            both.append(torch.cat(parts))
    return torch.stack(both).clone()


def distil(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, plan: Plan, second: Second
) -> nn.Module:
    """Train on towards the teacher; the averaged network."""
    teacher = ZOO[second.teacher]()
    teacher.load_state_dict(load_file(HERE / f"{second.teacher}.safetensors"), strict=False)
    scores = opinions(teacher, images)
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    plan = replace(plan, crop=2)
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(second.decay))
    optimizer = torch.optim.AdamW(net.parameters(), second.rate, weight_decay=plan.decay)
    steps = second.epochs * (len(images) // plan.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, second.rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    begun, heat = time.time(), second.temperature
    for epoch in range(second.epochs):
        total = 0.0
        for x, y, chosen, flip in batches(images, labels, plan, generator):
            out = net(x.contiguous(memory_format=torch.channels_last))
            wanted = F.softmax(scores[flip.long(), chosen] / heat, 1)
            soft = F.kl_div(F.log_softmax(out / heat, 1), wanted, reduction="batchmean") * heat**2
            loss = second.share * soft + (1 - second.share) * F.cross_entropy(out, y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            mean.update_parameters(net)
            total += float(loss.detach())
        seconds = time.time() - begun
        print(
            f"{name} second {epoch + 1}/{second.epochs} loss {total * plan.batch / len(images):.4f} {seconds:.0f} s",
            flush=True,
        )
    return mean.module


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
        for x, y, _, _ in batches(images, labels, plan, generator):
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
    if plan.second:
        net = distil(name, net, images, labels, plan, plan.second)
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
