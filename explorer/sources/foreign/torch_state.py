"""PyTorch: a state_dict with fake quantizers, observers or quantized tensors, from a file or in memory.

A state_dict has scales and zero points but not the lowest and highest code.  They follow from the range that the
observer has seen, where it is there too: ``scale = (max - min) / (qmax - qmin)`` and ``zero_point = qmin -
min / scale``.  Otherwise eight bits are assumed, which the note of the tensor says.

Source: torch.ao.quantization, FakeQuantize and the observers.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from explorer.errors import ParametersError, nearest
from explorer.sources.checkpoint import WRAPPERS
from explorer.sources.factory import describe
from explorer.sources.foreign.common import RANGES, Contents, numbers

_QUANTIZED = {torch.qint8: "int8", torch.quint8: "uint8"}
_WEIGHT = re.compile(r"^(.+)\.(weight_fake_quant|parametrizations\.weight\.0|weight_quantizer)$")
_OUTPUT = re.compile(r"^(.+)\.activation_post_process$")
_FX_INPUT = re.compile(r"^(.+)_input_scale_(\d+)$")
_FIELDS = ("scale", "zero_point", "qmin", "qmax", "axis", "block")


def read_state(content: bytes, name: str) -> Contents:
    """The parameters in a state_dict saved by torch, or a safetensors file; no code in it is run.

    Raises:
        ParametersError: when it is damaged, no state_dict, or holds more than tensors.
    """
    try:
        if name.lower().endswith(".safetensors"):
            state: Any = load_safetensors(content)
        else:
            with warnings.catch_warnings():
                # That tensors of torch's quantized types will go one day is no news to who has a file of them.
                warnings.simplefilter("ignore", UserWarning)
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:  # raised instead of running what is not tensors
        if "weights only" in str(problem).lower():
            raise ParametersError(
                f"{name} holds more than tensors, which is not read because that could run code; "
                "save module.state_dict()."
            ) from None
        raise ParametersError(f"{name} is damaged: {describe(problem)}.") from None
    except Exception as problem:  # what a damaged file raises is anybody's guess
        raise ParametersError(f"{name} is damaged or of another kind: {describe(problem)}.") from None
    for word in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(word), Mapping):
            state = state[word]
    if not isinstance(state, Mapping):
        raise ParametersError(f"{name} holds no state_dict.")
    return _from_state({str(key): value for key, value in state.items()})


def read_memory(source: Mapping[str, Any]) -> Contents:
    """The parameters in a state_dict, or in a dictionary of layers.

    Raises:
        ParametersError: when it is neither, or a field does not exist.
    """
    if not source:
        raise ParametersError("The dictionary of parameters is empty.")
    if any(not isinstance(value, Mapping) for value in source.values()):
        contents = _from_state({str(key): value for key, value in source.items()})
        if not contents.found and not contents.left:
            raise ParametersError("Nothing in this state_dict is quantized.")
        return contents
    contents = Contents("torch")
    for layer, tensors in source.items():
        for role, given in tensors.items():
            if role not in ("weight", "input"):
                raise ParametersError(
                    f"A layer has a 'weight' and an 'input', not {role!r}.{nearest(role, ['weight', 'input'])}"
                )
            for index, one in enumerate(given if isinstance(given, list | tuple) else [given]):
                name = f"{layer}.{role}"
                if isinstance(one, Tensor) and one.is_quantized:
                    contents.add(
                        role, (str(layer),), name, index=index, **_of_quantized(one, role == "weight")
                    )
                else:
                    fields = _of_fields(one, name)
                    outward = one.get("axis") is None
                    contents.add(role, (str(layer),), name, index=index, outward=outward, **fields)
    return contents


def _of_fields(given: Any, name: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ParametersError(
            f"{name!r} is neither a quantized tensor nor a dictionary of {', '.join(_FIELDS)}."
        )
    for key in given:
        if key not in _FIELDS:
            raise ParametersError(f"{name!r} has no field {key!r}.{nearest(key, _FIELDS)}")
    for key in _FIELDS[:4]:
        if key not in given:
            raise ParametersError(
                f"{name!r} lacks {key!r}; it takes {', '.join(_FIELDS[:4])} and perhaps axis."
            )
    scale = numbers(given["scale"], name)
    axis = given.get("axis")
    return {
        "scale": scale,
        "zero_point": numbers(given["zero_point"], name, whole=True).expand(scale.shape).contiguous(),
        "qmin": int(given["qmin"]),
        "qmax": int(given["qmax"]),
        "axis": 0 if axis is None and scale.numel() > 1 else axis,
        "block": int(given.get("block", 0)),
    }


def _of_quantized(tensor: Tensor, weight: bool) -> dict[str, Any]:
    """The parameters of a quantized tensor.

    Raises:
        ParametersError: for a type of codes or a scheme that is not compared.
    """
    dtype = _QUANTIZED.get(tensor.dtype)
    scheme = tensor.qscheme()
    if dtype is None or scheme not in (torch.per_tensor_affine, torch.per_channel_affine):
        raise ParametersError(f"codes of the type {tensor.dtype} with {scheme} are not compared")
    low, high = RANGES[dtype]
    found: dict[str, Any] = {"qmin": low, "qmax": high, "values": tensor.dequantize() if weight else None}
    if scheme == torch.per_tensor_affine:
        scale, zero_point = (
            torch.tensor(tensor.q_scale()),
            torch.tensor(tensor.q_zero_point(), dtype=torch.int32),
        )
        return found | {"scale": scale, "zero_point": zero_point}
    return found | {
        "scale": tensor.q_per_channel_scales().float(),
        "zero_point": tensor.q_per_channel_zero_points().to(torch.int32),
        "axis": tensor.q_per_channel_axis(),
    }


def _from_state(state: dict[str, Any]) -> Contents:
    contents = Contents("torch")
    for key, value in state.items():
        for tensor in value if isinstance(value, tuple) else (value,):
            if isinstance(tensor, Tensor) and tensor.is_quantized:
                _quantized(contents, key, tensor)
        if not isinstance(value, Tensor):
            continue
        fx = _FX_INPUT.match(key)
        if fx:
            zero_point = state.get(key.replace("_input_scale_", "_input_zero_point_"))
            _pair(contents, "input", (fx[1], fx[1].replace("_", ".")), key, value, zero_point, {}, int(fx[2]))
        elif key == "scale" or key.endswith(".scale"):
            _scale(contents, state, key, value)
        elif key.endswith(".min_val"):
            owner = key.removesuffix(".min_val").removesuffix(".activation_post_process")
            if f"{owner}.scale" not in state:
                contents.left.append((key, "a range that an observer has seen; the scale is not in the file"))
    return contents


def _quantized(contents: Contents, key: str, tensor: Tensor) -> None:
    owner = re.sub(r"(\._packed_params)+$", "", key).removesuffix(".weight")
    try:
        contents.add("weight", (owner,), key, **_of_quantized(tensor, weight=True))
    except ParametersError as error:
        contents.left.append((key, str(error)))


def _scale(contents: Contents, state: dict[str, Any], key: str, scale: Tensor) -> None:
    owner = key.removesuffix("scale").removesuffix(".")
    zero_point = state.get(f"{owner}.zero_point" if owner else "zero_point")
    observer = {
        word: state.get(f"{owner}.activation_post_process.{word}", state.get(f"{owner}.{word}"))
        for word in ("min_val", "max_val")
    }
    weight, output = _WEIGHT.match(owner), _OUTPUT.match(owner)
    if weight:
        values = state.get(f"{weight[1]}.weight")
        _pair(contents, "weight", (weight[1],), owner, scale, zero_point, observer, values=values)
    elif output:
        _pair(contents, "output", (output[1],), owner, scale, zero_point, observer)
    elif re.search(r"(^|\.)activation_post_process_\d+$", owner):
        contents.left.append((owner, "a number given by torch.fx, which does not say whose activation it is"))
    elif isinstance(zero_point, Tensor):
        # What a converted module gives.
        _pair(contents, "output", (owner,), owner or key, scale, zero_point, {})


def _pair(contents: Contents, role: str, hints: tuple[str, ...], name: str, scale: Tensor, zero_point: Any,
          observer: Mapping[str, Any], index: int = 0, values: Any = None) -> None:  # fmt: skip
    """A scale with its zero point and the range that was observed, where there is one."""
    try:
        if not isinstance(zero_point, Tensor):
            raise ParametersError(f"{name!r} has a scale and no zero point")
        # That of a learnable quantizer is a real number, which it rounds when it is used.
        zero = numbers(zero_point.double().round(), name, whole=True).reshape(-1)
        steps = numbers(scale, name).reshape(-1)
        codes, note = _codes(steps, zero, observer, role == "weight")
    except ParametersError as error:
        contents.left.append((name, str(error)))
        return
    one = steps.numel() == 1
    real = isinstance(values, Tensor) and values.is_floating_point() and not values.is_quantized
    contents.add(
        role, hints, name, index=index,
        scale=steps.reshape(()) if one else steps,
        zero_point=zero.reshape(()) if one and zero.numel() == 1 else zero,
        qmin=codes[0], qmax=codes[1],
        axis=None if one else 0 if role == "weight" else 1,
        note=note, outward=True,
        values=values.float() if real else None,
    )  # fmt: skip


def _codes(
    scale: Tensor, zero_point: Tensor, observer: Mapping[str, Any], weight: bool
) -> tuple[tuple[int, int], str]:
    """The lowest and highest code, and what had to be assumed."""
    low, high = observer.get("min_val"), observer.get("max_val")
    if isinstance(low, Tensor) and isinstance(high, Tensor) and low.numel() == high.numel() == scale.numel():
        bottom, top = low.float().reshape(-1).clamp(max=0), high.float().reshape(-1).clamp(min=0)
        for first, last in _CANDIDATES:
            middle = 0 if first < 0 else (first + last + 1) // 2
            even = 2 * torch.maximum(-bottom, top) / (last - first)
            # The fused observer lets the lower half have one code more.
            fused = torch.maximum(-bottom / (middle - first), top / (last - middle))
            wide = (top - bottom) / (last - first)
            shifted = (first - (bottom / wide).round()).clamp(first, last)
            symmetric = torch.allclose(scale, even, rtol=1e-3) or torch.allclose(scale, fused, rtol=1e-3)
            affine = torch.allclose(scale, wide, rtol=1e-3) and bool(
                ((zero_point - shifted).abs() <= 1).all()
            )
            if affine or (symmetric and bool((zero_point == middle).all())):
                return (first, last), ""
    signed = weight or bool((zero_point < 0).any())
    first, last = RANGES["int8" if signed else "uint8"]
    return (first, last), f"the codes are not in the file and taken to be {first} to {last}"


# The likeliest first: eight bits, narrow, reduced, then the other widths.
_CANDIDATES: tuple[tuple[int, int], ...] = (
    (-128, 127),
    (0, 255),
    (-127, 127),
    (0, 127),
    (-64, 63),
    *RANGES.values(),
)
