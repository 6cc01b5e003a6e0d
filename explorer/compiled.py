"""Loops over single numbers as machine code, which numba makes of plain functions of arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

# So many threads take as long for the passes of torch as one does for a loop, and on fewer values than these any.
_FEW_THREADS, _FEW_VALUES = 4, 1 << 20
# Which of both a number is decides in how many digits a loop goes on with it.
Real = float | np.float32
Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """A loop over single numbers as machine code, which is made at the first call and kept beside other compiled files.

    Where no folder can be written to, it is made anew in each process.  The loop lets go of the interpreter's lock.
    It may call others.  Python runs it as it stands, too (``__wrapped__``), and gives the same numbers.

    >>> @compiled
    ... def total(numbers):
    ...     found = 0
    ...     for number in numbers:
    ...         found += number
    ...     return found
    >>> import numpy as np
    >>> total(np.arange(5)), total.__wrapped__(range(5))
    (10, 10)
    """

    return _compiled(loop, set())


def summing(loop: Loop) -> Loop:
    """The same for a loop whose sums may be taken in any order, so that several numbers are added at a time."""
    return _compiled(loop, {"reassoc"})


def _compiled(loop: Loop, freedom: set[str]) -> Loop:
    """``freedom`` are the liberties that may be taken with sums, as LLVM names them."""

    @cache
    def made() -> Callable[..., Any]:
        # A fifth of a second that neither the page nor a command that needs no loop has to wait for.
        import numba

        named: dict[str, Any] = {name: loop.__globals__.get(name) for name in loop.__code__.co_names}
        called = {name: each for name, each in named.items() if hasattr(each, "made")}
        others = {name: each.made() for name, each in called.items()}
        plain = FunctionType(loop.__code__, {**loop.__globals__, **others}, loop.__name__)
        # What is kept is known by this name: it changes with what is called, which numba does not look at.
        mark = _mark(loop, *[each.__wrapped__ for each in called.values()])
        plain.__qualname__ = f"{loop.__name__}_{mark:08x}"
        # Division by zero gives what it gives in NumPy; asking each time would keep loops from being vectorised.
        make = partial(numba.njit, nogil=True, error_model="numpy", fastmath=freedom or False)
        try:
            return make(cache=True)(plain)
        except RuntimeError:
            return make()(plain)

    @wraps(loop)
    def call(*arguments: Any) -> Any:
        return made()(*arguments)

    call.made = made  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def alone(*tensors: Tensor) -> bool:
    """Whether tensors lie in memory as a loop reads them, and one thread goes through them about as fast as all do.

    >>> alone(torch.zeros(2, 3)), alone(torch.zeros(2, 3).T)
    (True, False)
    """
    few = tensors[0].numel() <= _FEW_VALUES or torch.get_num_threads() <= _FEW_THREADS
    return few and all(
        type(tensor) in (Tensor, Parameter)
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        for tensor in tensors
    )


def _mark(*loops: Callable[..., Any]) -> int:
    """A number that stands for the text of the files of some loops, and of this one."""
    files = {__file__, *[loop.__code__.co_filename for loop in loops]}
    return crc32(b"".join([Path(file).read_bytes() for file in sorted(files) if Path(file).is_file()]))
