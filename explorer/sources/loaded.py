"""What loading a network gives, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explorer.sources.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network ready to be captured, with what is known about its inputs.

    ``module`` is in eval mode and on the CPU.  ``example`` is one input (1, C, H, W); ``data`` and
    ``calibration`` are the names of images that fit; ``output`` says which of several results is meant, by its
    name or index.  A factory may return one, to say these things itself.
    """

    name: str
    module: nn.Module
    example: Tensor | None = None
    preprocess: Preprocess | None = None
    data: str | None = None
    calibration: str | None = None
    classes: tuple[str, ...] | None = None
    output: str | int | None = None


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``build`` makes with random numbers from seed 0; the caller's are left alone.

    >>> one, two = (seeded(lambda: nn.Linear(2, 1)) for _ in range(2))
    >>> torch.equal(one.weight, two.weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
