"""Which tensor is the network's result, where its module returns several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from explorer.errors import ModelError, nearest

# From what the module returns to the tensor: keys, indices and fields.
Path = tuple[Any, ...]
_SHOWN = 12


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """The parts of a mapping, a sequence or a dataclass with their keys."""
    if isinstance(value, Mapping):
        return list(value.items())
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(name, getattr(value, name)) for name in value._fields]
    return list(enumerate(value)) if isinstance(value, tuple | list) else []


def tensors_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in what a module has returned, with its path, in order.

    >>> import torch
    >>> [path for path, _ in tensors_in({"out": torch.zeros(1), "aux": (torch.zeros(2), None)})]
    [('out',), ('aux', 0)]
    """
    if isinstance(value, Tensor):
        yield path, value
    for key, part in _parts(value):
        yield from tensors_in(part, (*path, key))


def at(value: Any, path: Path) -> Any:
    """What lies at ``path`` in a module's result."""
    for key in path:
        value = dict(_parts(value))[key]
    return value


def name_of(path: Path) -> str:
    """The path as a user writes it: ``0``, ``out``, ``a.0``."""
    return ".".join(map(str, path))


def choose(value: Any, output: str | int | None) -> Path:
    """The path of the result that is meant.

    Args:
        value: what the module has returned.
        output: the name or index of one result; a part of a path does where only one tensor lies below it.
            None where there is one only.

    Raises:
        ModelError: where none or several are meant, with their names and shapes.

    >>> import torch
    >>> results = {"out": torch.zeros(2, 3), "aux": (torch.zeros(2, 4),)}
    >>> choose(results, "aux"), choose(results, 0), choose([torch.zeros(1)], None)
    (('aux', 0), ('out',), (0,))
    """
    found = dict(tensors_in(value))
    if not found:
        raise ModelError(f"The network's result is {_kind(value)} without a tensor in it.")
    if output is None:
        if len(found) == 1:
            return next(iter(found))
        raise ModelError(
            f"The network has {len(found)} results: {_listed(found)}. Say with output= (or --output) which one "
            "is meant."
        )
    wish = str(output)
    if not wish:
        raise ModelError("The name of the wanted result is empty.")
    named = {path: name_of(path) for path in found}
    exact = [path for path, name in named.items() if name == wish]
    below = exact or [path for path, name in named.items() if name.startswith(f"{wish}.")]
    places = list(found)
    if not below and wish.isdecimal() and int(wish) < len(places):
        # Results with names, or one only, are counted as well.
        below = [places[int(wish)]]
    if len(below) == 1:
        return below[0]
    if below:
        part = {path: found[path] for path in below}
        raise ModelError(f"The result {wish!r} holds {len(part)}: {_listed(part)}. Say which one is meant.")
    if places == [()]:
        raise ModelError(f"The network has one result without a name, not {wish!r}; leave output= out.")
    raise ModelError(
        f"The network has no result {wish!r}; it has {_listed(found)}.{nearest(wish, named.values())}"
    )


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _listed(found: Mapping[Path, Tensor]) -> str:
    words = [f"{name_of(path)} {tuple(tensor.shape)}" for path, tensor in found.items()]
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


class Chosen(nn.Module):
    """A network of which one result is wanted."""

    # What comes before the names of the network's own parts.
    PREFIX = "network."

    def __init__(self, network: nn.Module, path: Path) -> None:
        super().__init__()
        self.network = network
        self.path = path

    def forward(self, images: Tensor) -> Any:
        return at(self.network(images), self.path)
