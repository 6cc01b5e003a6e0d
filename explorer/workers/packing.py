"""Values as bytes, for another process: tensors as plain arrays, plans without their graph, formats by name.

The bytes are a pickle, as all that executors carry is: a worker and whoever asks it trust each other.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.formats import FORMATS
from explorer.formats.base import Format
from explorer.graph import Graph, Plan
from explorer.graph.engine import worked_out
from explorer.graph.wire import flat, layout
from explorer.recipe import LayerConfig, TensorScheme

_OFF = LayerConfig(TensorScheme("fp32"), TensorScheme("fp32"))
# Takes what a plan is made of, and a name for it, to the plan.
Planner = Callable[[str, Any], Plan]


def _tensor(
    elements: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    if not elements.size:
        return torch.empty_strided(shape, strides, dtype=dtype)
    # An array that was read belongs to nobody else, but says that it must not be written to.
    return torch.from_numpy(elements.copy()).view(dtype).as_strided(shape, strides)


def _format(name: str) -> Format:
    return FORMATS[name]


class _Packer(pickle.Pickler):
    """Torch's own way to pickle a tensor writes a file for each, or passes on handles to shared memory."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            kept = value.detach().cpu()
            elements = flat(kept).contiguous().view(torch.uint8).numpy()
            return _tensor, (elements, kept.dtype, *layout(kept))
        if isinstance(value, Format) and FORMATS.get(value.name) is value:
            return _format, (value.name,)
        return NotImplemented

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Plan):
            return None
        acting = {
            name: config
            for name, config in value.configs.items()
            if not (config.weight.off and config.input.off)
        }
        return value.keys[value.graph.output], (acting, dict(value.params), dict(value.weights))


class _Unpacker(pickle.Unpickler):
    def __init__(self, content: bytes, planner: Planner) -> None:
        super().__init__(io.BytesIO(content))
        self._planner = planner

    def persistent_load(self, found: Any) -> Plan:
        return self._planner(*found)


def pack(value: Any) -> bytes:
    """A value as bytes.

    Raises:
        Exception: whatever ``pickle`` raises for a value that is of a function, or of a class, of the user's own.

    >>> unpack(pack({"scale": torch.ones(2, dtype=torch.bfloat16)}))
    {'scale': tensor([1., 1.], dtype=torch.bfloat16)}
    """
    content = io.BytesIO()
    _Packer(content, protocol=5).dump(value)
    return content.getvalue()


def _no_plan(key: str, parts: Any) -> Plan:
    raise pickle.UnpicklingError("There is a plan where none is expected.")


def unpack(content: bytes, planner: Planner = _no_plan) -> Any:
    """The value that :func:`pack` was given.

    Args:
        content: its bytes.
        planner: makes plans of what they are made of (:func:`plan_for`).
    """
    return _Unpacker(content, planner).load()


def plan_for(graph: Graph, parts: Any) -> Plan:
    """The plan of a graph, of what :func:`pack` has left of it."""
    acting, params, weights = parts
    configs = {layer.name: acting.get(layer.name, _OFF) for layer in graph.layer_at.values()}
    return worked_out(graph, configs, params, weights)
