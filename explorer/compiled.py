"""Loops over single numbers as machine code, which numba makes of plain functions of arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """A loop as machine code, which is made at the first call and kept beside other compiled files.

    Where no folder can be written to, it is made anew in each process.  The loop lets go of the interpreter's lock.
    Python runs it as it stands, too (``__wrapped__``), and gives the same numbers.

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

    @cache
    def made() -> Callable[..., Any]:
        # A fifth of a second that neither the page nor a command that needs no loop has to wait for.
        import numba

        # Division by zero gives what it gives in NumPy; asking each time would keep loops from being vectorised.
        try:
            return numba.njit(nogil=True, error_model="numpy", cache=True)(loop)
        except RuntimeError:
            return numba.njit(nogil=True, error_model="numpy")(loop)

    @wraps(loop)
    def call(*arguments: Any) -> Any:
        return made()(*arguments)

    return call  # type: ignore[return-value]
