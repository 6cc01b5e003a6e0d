"""Each scheme's answer for each fixed tensor, worked out once for all laws."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from explorer.formats import QParams
from explorer.recipe import TensorScheme
from explorer.tensor import Quantized, apply, fit_tensor, quantize
from tests import strategies

TENSORS = strategies.fixed_tensors()


@cache
def quantized(scheme: TensorScheme, name: str) -> Quantized:
    return quantize(TENSORS[name], scheme)


@cache
def fitted(scheme: TensorScheme, name: str) -> QParams | None:
    return fit_tensor(TENSORS[name], scheme, 0) if scheme.scaled else None


@cache
def faked(scheme: TensorScheme, name: str) -> Tensor:
    """What :func:`explorer.fake_quantize` gives, from the parameters already found."""
    return apply(TENSORS[name], scheme, fitted(scheme, name), 0)
