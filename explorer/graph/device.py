"""Where a network is computed: tensors and operators' arguments change their device here and nowhere else.

A graph, its weights, ranges and everything that studies look at stay on the CPU.  An engine of a graph with another
device keeps a copy of the constants there, moves images to it and results back; kept values stay there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from explorer.errors import JobError, unknown
from explorer.graph.ir import Node

CPU = torch.device("cpu")
DEVICES = ("cpu", "cuda", "cuda:0", "auto")


def device_of(word: str) -> str:
    """The device that is meant: ``cpu``, ``cuda`` (the first), ``cuda:N``, or ``auto``, CUDA where there is some.

    Raises:
        JobError: for a device that does not exist or is not on this machine.

    >>> device_of("cpu")
    'cpu'
    """
    kind, _, number = str(word).partition(":")
    if word == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if word == "cpu":
        return "cpu"
    if kind != "cuda" or (":" in word and not number.isdecimal()):
        raise JobError(unknown("device", word, DEVICES))
    if not torch.cuda.is_available():
        raise JobError(
            f"The device {word!r} needs CUDA, which this machine or this build of torch lacks; use 'cpu'."
        )
    count, place = torch.cuda.device_count(), int(number or 0)
    if place >= count:
        raise JobError(f"There is no device {word!r}; CUDA has {count} here, cuda:0 to cuda:{count - 1}.")
    return f"cuda:{place}"


def device_name(device: str) -> str:
    """What results may depend on to the last bit, besides the CPU: nothing for the CPU itself."""
    return "" if device == "cpu" else f"{device.partition(':')[0]}/{torch.cuda.get_device_name(device)}"


def device_bytes(device: str) -> int:
    """The memory that a device other than the CPU could still give, bytes."""
    return int(torch.cuda.mem_get_info(device)[0])


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or some, on ``device``; as it is if it is there."""
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(item, device) for item in value)
    return value


def placed(node: Node, device: torch.device) -> Node:
    """A node that makes what it makes on ``device``."""
    kwargs = dict(node.kwargs)
    schema = getattr(node.target, "_schema", None)
    arguments = schema.arguments if schema is not None else ()
    if any(argument.name == "device" and argument.kwarg_only for argument in arguments):
        kwargs["device"] = device
    return replace(node, args=_placed(node.args, device), kwargs=_placed(kwargs, device))


def _placed(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.device):
        return device
    # A reference is a tuple as well.
    if type(value) in (tuple, list):
        return tuple(_placed(item, device) for item in value)
    if isinstance(value, Mapping):
        return {key: _placed(item, device) for key, item in value.items()}
    return value
