"""The table of objectives: what the clipping range of a group may be chosen by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from explorer.calibrate.rules import MinMax, MovingAverage, Objective, Percentile
from explorer.calibrate.search import KL, MSE
from explorer.errors import SchemeError
from explorer.formats import entry_named


@dataclass(frozen=True)
class ObjectiveEntry:
    """A line of the table: how to build the objective from the number after the colon, if it has one."""

    help: str
    build: Callable[..., Objective]
    parameter: str = ""


OBJECTIVES: dict[str, ObjectiveEntry] = {
    "minmax": ObjectiveEntry("the full range: nothing is clipped", MinMax),
    "moving_average": ObjectiveEntry("running average of the batches' extremes", MovingAverage),
    "percentile:P": ObjectiveEntry("the central P percent of the values", Percentile, "99.9"),
    "mse": ObjectiveEntry("least mean squared error", MSE),
    "kl": ObjectiveEntry("least Kullback-Leibler divergence (entropy)", KL),
}


def objective(name: str) -> Objective:
    """The objective called ``name``, for example ``mse`` or ``percentile:99.9``.

    Raises:
        SchemeError: for an unknown name or a number that does not fit.

    >>> objective("percentile:99.9")
    Percentile(percent=99.9)
    """
    entry, word, number = entry_named(name, OBJECTIVES, "objective")
    if not entry.parameter:
        return entry.build()
    try:
        return entry.build(float(number))
    except ValueError as error:
        if isinstance(error, SchemeError):
            raise
        raise SchemeError(
            f"The objective {name!r} needs a number after the colon, for example '{word}:{entry.parameter}'."
        ) from None
