"""What the readers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.errors import ParametersError
from explorer.study.foreign import ForeignTensor
from explorer.study.naming import Found

# The codes of the integer types by name.
RANGES: dict[str, tuple[int, int]] = {
    **{f"int{bits}": (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in range(2, 17)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in range(2, 17)},
}
BIAS = "a bias; recipes act at weights and inputs"


@dataclass
class Contents:
    """What a reader found in a file, and what it left with the reason."""

    tool: str
    found: list[Found] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def add(self, role: str, hints: tuple[str, ...], name: str, *, turned: bool = False, site: int | None = None,
            index: int = 0, outward: bool = False, **parameters: Any) -> None:  # fmt: skip
        """Take something in, or leave it when its numbers do not go together."""
        try:
            tensor = ForeignTensor(name, tool=self.tool, **parameters)
        except ParametersError as error:
            self.left.append((name, str(error)))
            return
        self.found.append(Found(tensor, role, hints, index, site, turned, outward))


def numbers(value: Any, name: str, whole: bool = False) -> Tensor:
    """Scales as float32, or zero points as int32 when ``whole``.

    Raises:
        ParametersError: for what is no array of numbers, or whole numbers that are none.
    """
    word = "zero points" if whole else "scales"
    try:
        array = (
            value.detach().cpu().double().numpy()
            if isinstance(value, Tensor)
            else np.array(value, np.float64)
        )
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ParametersError(f"{name!r} has {word} that are no numbers.") from None
    if not whole:
        return torch.from_numpy(np.asarray(array)).float()
    if not np.isfinite(array).all() or (np.abs(array) >= 1 << 31).any() or (array != np.round(array)).any():
        raise ParametersError(f"{name!r} has zero points that are no whole numbers of 32 bits.")
    return torch.from_numpy(np.asarray(array)).to(torch.int32)
