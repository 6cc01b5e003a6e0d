"""Quantization Explorer: look into the quantization of a real network."""

from __future__ import annotations

from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.tensor import Quantized, fake_quantize, quantize

__all__ = ["LayerConfig", "Quantized", "Recipe", "TensorScheme", "fake_quantize", "quantize"]
