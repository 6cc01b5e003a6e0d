"""A network read from a file: operators that are called one after the other, and a check that any batch will do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.traceback import annotate, preserve_node_meta

from explorer.errors import ModelError
from explorer.graph.ir import fill, refs
from explorer.sources.collect import budget, in_words
from explorer.sources.factory import describe

# One value of the network on a few examples, bytes.
_LARGEST_VALUE = 1 << 32
# Channels that a convolution computes together.
_PADDED = 16
ROWS = 2


class Step(NamedTuple):
    """One operator of a program.

    Args:
        call: the operator.
        args: by position, with a :class:`Ref` for each value of another step.
        kwargs: by name.
        result: the name of its value, or a tuple of names and None for several.
        module: the path of the user's module that it comes from.
        source: file and line of the user's code.
        last: the values that no later step reads.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    module: str
    source: str
    last: tuple[str, ...] = ()


class Program(nn.Module):
    """A program as a module: calls its operators in order.

    Args:
        tensors: parameters and buffers by the names that the user's module gave them.
        held: the name of the value that each of them is.
        temporary: those that a state_dict leaves out.
        image: the name of the input's value.
        steps: the operators.
        mutated: buffers, with the value that they take at the end.
        results: the names of the results, by name or in order, or of the one that there is.
    """

    def __init__(self, tensors: Mapping[str, Tensor], held: Mapping[str, str], temporary: Sequence[str], image: str,
                 steps: Sequence[Step], mutated: Mapping[str, str], results: Any) -> None:  # fmt: skip
        super().__init__()
        for name, tensor in tensors.items():
            _hold(self, name, tensor, name not in temporary)
        self._held, self._image, self._results = dict(held), image, results
        self._mutated, self._steps = dict(mutated), _freed(steps, {*mutated.values(), *refs(results)})

    def forward(self, x: Tensor) -> Any:
        """The results for a batch."""
        return self.run(x)

    def run(self, x: Tensor, seen: Callable[[Step, Any], None] | None = None) -> Any:
        """The results for a batch; ``seen`` is told of each step's value."""
        values: dict[str, Any] = {self._image: x}
        own = {
            **dict(self.named_parameters(remove_duplicate=False)),
            **dict(self.named_buffers(remove_duplicate=False)),
        }
        values |= {name: own[owner] for name, owner in self._held.items()}
        for step in self._steps:
            # A capture of this module learns here what the user called the step's own.
            with preserve_node_meta(), annotate({"explorer": (step.module, step.source)}):
                value = step.call(*fill(step.args, values), **fill(dict(step.kwargs), values))
            values.update(_named(step.result, value))
            if seen is not None:
                seen(step, value)
            for name in step.last:
                values.pop(name, None)
        for buffer, name in self._mutated.items():
            own[buffer].copy_(values[name])
        results = fill(self._results, values)
        return results if not isinstance(results, list) else tuple(results)


def _hold(module: nn.Module, name: str, tensor: Tensor, persistent: bool) -> None:
    """Give a module a tensor at a path such as ``layer1.0.weight``."""
    *path, last = name.split(".")
    for part in path:
        inner = module._modules.get(part)
        if inner is None:
            inner = nn.Module()
            module.add_module(part, inner)
        module = inner
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor, persistent)


def _named(result: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value by their names in a :attr:`Step.result`."""
    if isinstance(result, tuple):
        for each, item in zip(result, value, strict=True):
            yield from _named(each, item)
    elif result is not None:
        yield result, value


def names_in(result: Any) -> Iterator[str]:
    """The names in a :attr:`Step.result`."""
    for each in result if isinstance(result, tuple) else (result,):
        if isinstance(each, tuple):
            yield from names_in(each)
        elif each is not None:
            yield each


def _freed(steps: Sequence[Step], kept: set[str]) -> tuple[Step, ...]:
    """The steps, each with the values that may go after it."""
    later, found = set(kept), list[Step]()
    for step in reversed(steps):
        own = {*refs(step.args), *refs(dict(step.kwargs)), *names_in(step.result)}
        found.append(step._replace(last=tuple(sorted(own - later))))
        later |= own
    return tuple(reversed(found))


@dataclass(frozen=True)
class Input:
    """The one input: the name of its value, its type, and each axis with None for one of any size and a hint."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]
    hints: tuple[int, ...]


def example_for(module: Program, image: Input, name: str, again: str) -> Tensor:
    """A few examples, on which the network is seen to work for any number of them.

    Args:
        module: the network.
        image: its input.
        name: of the file, for messages.
        again: how to export the network for any batch, with its full stop.

    Raises:
        ModelError: when it holds on to the size of its batch, fails, or makes values that are too large.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    fixed = image.sizes[0]
    rows = ROWS if fixed is None else 2 * fixed
    inner = image.hints[1:]
    if math.prod((rows, *inner)) > _LARGEST_VALUE // 8:
        raise ModelError(f"The network in {name} takes inputs of shape {image.hints}, too large to run.")
    try:
        for count in {rows, rows + (fixed or 1)}:
            # Shapes alone are computed: nothing of the size that a hostile file may name is made.
            with _quiet(), FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
                x = torch.empty((count, *inner), dtype=image.dtype)
                returned = module.run(x, _Holding(name, image.name, x))
            if fixed is not None and not _leads(returned, count):
                raise RuntimeError(f"the result for {count} examples is another")
    except ModelError:
        raise
    except Exception as problem:
        if fixed is not None:
            raise _fixed(name, fixed, again) from problem
        raise ModelError(f"The network in {name} fails on {rows} examples: {describe(problem)}.") from problem
    if not image.dtype.is_floating_point:
        return torch.zeros((rows, *inner), dtype=image.dtype)
    example = torch.randn((rows, *inner), generator=torch.Generator().manual_seed(0))
    if fixed is not None:
        _check_rows(module, example, fixed, name, again)
        example = example[: max(fixed, ROWS)]
    return example


class _Holding:
    """What a run on a few examples holds at once, by shapes; told of each step's value.

    Raises:
        ModelError: of one value that is too large, or of several together: a run, and comparing its results with
            another program's, is to stay within :func:`budget`.
    """

    def __init__(self, name: str, image: str, x: Tensor) -> None:
        self.name, self.rows = name, len(x)
        self.values = {image: [x]}

    def __call__(self, step: Step, value: Any) -> None:
        for each in _tensors(value):
            if _bytes(each) > _LARGEST_VALUE:
                raise ModelError(
                    f"The network in {self.name} makes a value of shape {tuple(each.shape)} for {self.rows} examples, "
                    "too large to run."
                )
        own = {name: list(_tensors(part)) for name, part in _named(step.result, value)}
        self.values |= own
        used = {*own, *refs(step.args), *refs(dict(step.kwargs))} & set(self.values)
        held = sum(map(_bytes, chain.from_iterable(self.values.values())))
        needed = 2 * held + sum(_copied(each) for name in used for each in self.values[name])
        if needed > budget():
            raise ModelError(
                f"The network in {self.name} needs about {in_words(needed)} for {self.rows} examples, more than the "
                f"{in_words(budget())} that it may take (half of the free memory)."
            )
        for name in step.last:
            self.values.pop(name, None)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _copied(value: Tensor) -> int:
    """What a convolution's copy of it takes: its channels are padded to sixteen."""
    channels = value.shape[1] if value.dim() > 2 else _PADDED
    return _bytes(value) // max(1, channels) * (-(-channels // _PADDED) * _PADDED)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, which may be a list of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Trying a network that counts its calls leaves no trace in it."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """No dump of torch's own when an operator refuses its shapes; that comes as an error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def tensors_of(returned: Any) -> list[Tensor]:
    """The tensors among the results, in order."""
    parts = returned.values() if isinstance(returned, dict) else returned
    return [
        part
        for part in (parts if isinstance(returned, dict | tuple) else (returned,))
        if isinstance(part, Tensor)
    ]


def _leads(returned: Any, count: int) -> bool:
    return all(part.dim() > 0 and part.shape[0] == count for part in tensors_of(returned))


def _fixed(name: str, size: int, again: str) -> ModelError:
    return ModelError(f"The network in {name} works for batches of {size} only; {again}")


def _check_rows(module: Program, example: Tensor, size: int, name: str, again: str) -> None:
    """Two batches at once give what each of them gives by itself, though the program was exported for one."""
    with torch.inference_mode():
        whole = tensors_of(module(example))
        parts = [tensors_of(module(example[start : start + size])) for start in (0, size)]
    for index, both in enumerate(whole):
        apart = torch.cat([part[index] for part in parts])
        if apart.shape != both.shape or not torch.allclose(apart, both, rtol=1e-3, atol=1e-4):
            raise _fixed(name, size, again)
