"""Quantization Explorer: look into the quantization of a real network.

>>> import explorer as qx
>>> recipe = qx.Recipe.preset("w8a8").with_layer("layer3.*", weight={"format": "int4", "objective": "mse"})
>>> recipe.config("layer3.0.conv1").weight.describe()
'int4 channel sym mse'
"""

from __future__ import annotations

from explorer.errors import ExplorerError
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.session import Session
from explorer.study import Evaluation, Histogram, Metric, styled
from explorer.tensor import Quantized, fake_quantize, quantize

__all__ = [
    "Evaluation",
    "ExplorerError",
    "Histogram",
    "LayerConfig",
    "Metric",
    "Quantized",
    "Recipe",
    "Session",
    "TensorScheme",
    "fake_quantize",
    "quantize",
    "styled",
]
