"""What a benchmark has to say: one figure a line, beside its bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_HEADINGS = ("what", "value", "bound", "note")


@dataclass(frozen=True)
class Line:
    """One figure, a ratio of two things done in the same run.

    Args:
        what: the question, with the network's name.
        value: the figure; a text where it is no number.
        bound: what it could be at best, or must not exceed; None where there is none.
        note: what was measured, in a few words.
    """

    what: str
    value: float | str
    bound: float | str | None = None
    note: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The line as it is printed."""
        return self.what, _text(self.value), _text(self.bound), self.note


def _text(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def print_lines(lines: Iterable[Line], widths: tuple[int, ...] = (58, 9, 9)) -> None:
    """Print each line as soon as it is known."""
    print(_row(_HEADINGS, widths))
    for line in lines:
        print(_row(line.cells, widths), flush=True)


def _row(cells: Iterable[str], widths: tuple[int, ...]) -> str:
    first, *numbers, note = cells
    return (
        f"{first:<{widths[0]}}"
        + "".join(f"{n:>{w}}" for n, w in zip(numbers, widths[1:], strict=True))
        + f"  {note}"
    )


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """The seconds that ``work`` takes, and its result."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def fastest(work: Callable[[], Any], times: int = 5) -> float:
    """The least seconds of several runs, the first of which warms up and does not count."""
    work()
    return min(timed(work)[0] for _ in range(times))
