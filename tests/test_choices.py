"""What the page's menus change with one choice: the scheme as a whole makes sense afterwards."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from explorer.errors import SchemeError
from explorer.formats import FORMATS
from explorer.scheme import TensorScheme

FEW = ("int4", "uint8", "fp8_e4m3", "fp16", "nf4", "kmeans2", "binary", "fp32")
GOALS = ("minmax", "mse", "output", "clip:0.5:0.9")


def schemes() -> list[TensorScheme]:
    found = []
    for name, mode, symmetric, goal in product(FEW, ("static", "dynamic"), (True, False), GOALS):
        for scale, overflow in (("float", "saturate"), ("pow2", "saturate"), ("float", "infinity")):
            try:
                found.append(
                    TensorScheme(name, "layer", symmetric, goal, mode, scale=scale, overflow=overflow)
                )
            except SchemeError:
                continue
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_any_format_can_be_picked_for_any_scheme(name: str) -> None:
    choices = pytest.importorskip("explorer.views.choices")
    for scheme in schemes():
        changed = replace(scheme, **choices.consequences("format", name, scheme))
        assert changed.format == name


def test_any_scheme_can_be_made_symmetric() -> None:
    choices = pytest.importorskip("explorer.views.choices")
    for scheme in schemes():
        assert replace(scheme, **choices.consequences("symmetric", True, scheme)).symmetric
