"""The table of objectives: what the clipping range of a group may be chosen by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from explorer.calibrate.analytic import ACIQ
from explorer.calibrate.rules import (
    LAYER,
    NETWORK,
    Clip,
    MinMax,
    MovingAverage,
    Objective,
    Percentile,
    Range,
)
from explorer.calibrate.sample import Sample
from explorer.calibrate.search import KL, MSE, SQNR, Lp
from explorer.errors import SchemeError
from explorer.formats import CodebookFormat, Grid, Parameter, QParams, entry_named, spelled


@dataclass(frozen=True)
class Output(Objective):
    """What the error of one tensor does to its layer's output, on calibration images."""

    needs: ClassVar[str] = LAYER

    @property
    def name(self) -> str:
        return "output"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        raise SchemeError(_out_of_context(self))

    def levels(self, sample: Sample, number: CodebookFormat) -> QParams:
        raise SchemeError(_out_of_context(self))


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """The loss of the whole network on calibration images."""

    needs: ClassVar[str] = NETWORK

    @property
    def name(self) -> str:
        return "cross_entropy"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        raise SchemeError(_out_of_context(self))


def _out_of_context(objective: Objective) -> str:
    return (
        f"The objective {objective.name!r} looks at {objective.needs} that a tensor belongs to, and this is a "
        "tensor by itself; use objective: mse, or a recipe on a Session."
    )


@dataclass(frozen=True)
class ObjectiveEntry:
    """A line of the table: how to build the objective from the numbers after the colon, if it takes any."""

    help: str
    build: Callable[..., Objective]
    parameter: Parameter | None = None


OBJECTIVES: dict[str, ObjectiveEntry] = {
    "minmax": ObjectiveEntry("the full range: nothing is clipped", MinMax),
    "moving_average": ObjectiveEntry("running average of the batches' extremes", MovingAverage),
    "percentile:P": ObjectiveEntry("the central P percent of the values", Percentile, Percentile.PARAMETER),
    "clip:F": ObjectiveEntry(
        "the share F of each group's full range, 1 being minmax; clip:LO:HI for a share at each end",
        Clip,
        Clip.PARAMETER,
    ),
    "mse": ObjectiveEntry("least mean squared error", MSE),
    "sqnr": ObjectiveEntry(
        "largest signal-to-noise ratio in dB of each group: picks the ranges of mse", SQNR
    ),
    "lp:P": ObjectiveEntry("least mean of the error's P-th power; 2 is mse", Lp, Lp.PARAMETER),
    "aciq": ObjectiveEntry(
        "least expected squared error of the Gaussian or Laplace distribution that fits better (ACIQ)", ACIQ
    ),
    "kl": ObjectiveEntry("least Kullback-Leibler divergence (entropy)", KL),
    "output": ObjectiveEntry("least squared error of the layer's output on calibration images", Output),
    "cross_entropy": ObjectiveEntry(
        "least loss of the whole network on calibration images, tensor by tensor", CrossEntropy
    ),
}


@lru_cache(maxsize=1024)
def objective(name: str) -> Objective:
    """The objective called ``name``, for example ``mse`` or ``percentile:99.9``.

    Raises:
        SchemeError: for an unknown name or a number that does not fit.

    >>> objective("percentile:99.9")
    Percentile(percent=99.9)
    """
    entry, word, numbers = entry_named(name, OBJECTIVES, "objective")
    if entry.parameter is None:
        return entry.build()
    words = numbers.split(":")
    try:
        given = [float(number) for number in words]
    except ValueError:
        given = []
    if not 1 <= len(given) <= entry.parameter.count:
        wanted = "a number" if entry.parameter.count == 1 else f"one to {entry.parameter.count} numbers"
        raise SchemeError(
            f"The objective {name!r} needs {wanted} after the colon, "
            f"for example '{word}:{spelled(entry.parameter.usual)}'."
        )
    return entry.build(*given)
