"""What each objective minimises, as a function of how much of the full range is kept, and what each chooses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate import OBJECTIVES, Clip, Sample, objective
from explorer.calibrate.prepared import Even, Plain
from explorer.calibrate.rules import ELEMENTS
from explorer.calibrate.search import PowerSum, Search
from explorer.errors import SchemeError
from explorer.formats import Grid, spelled
from explorer.recipe import TensorScheme
from explorer.study.grouped import Grouped
from explorer.study.metrics import ErrorSums
from explorer.study.numberline import outside
from explorer.study.shown import Drawn

# The coarse candidates of a search, from where anything but the range's middle is left.
SHARES = np.arange(5, 101) / 100


@dataclass(frozen=True, eq=False)
class Curve:
    """One objective.

    Args:
        objective: its name.
        cost: at each share, all groups moving together: the sum over groups, divided by that of the full range;
            None for a rule that has no cost.
        share: of the full range that the objective keeps, the middle one of all groups.
        span: the least and the largest share of a group.
        chosen: the cost of its own choice on the same axis; below the curve where groups choose differently.
            None without a cost.
    """

    objective: str
    cost: np.ndarray | None
    share: float
    span: tuple[float, float]
    chosen: float | None


@dataclass(frozen=True, eq=False)
class Curves(Drawn):
    """The objectives of one tensor so far.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        scheme: what the tensor has now.
        shares: of the full range, increasing, float64 ``(shares,)``.
        groups: how many groups there are.
        curves: one for each objective.
    """

    layer: str
    tensor: str
    scheme: TensorScheme
    shares: np.ndarray
    groups: int
    curves: tuple[Curve, ...]

    @property
    def present(self) -> Curve | None:
        """The present objective's, once it is there."""
        return next((curve for curve in self.curves if curve.objective == self.scheme.objective), None)


def usual_objectives(present: str = "minmax") -> list[str]:
    """Every objective with its usual number, and the present one.

    Typed shares, and objectives that look at more than the tensor, are there only where they are present.

    >>> usual_objectives()[:3]
    ['minmax', 'moving_average', 'percentile:99.9']
    """
    names = [
        name if entry.parameter is None else f"{name.partition(':')[0]}:{spelled(entry.parameter.usual)}"
        for name, entry in OBJECTIVES.items()
        if entry.build is not Clip
    ]
    names = [name for name in names if objective(name).needs == ELEMENTS]
    return names if present in names else [present, *names]


def costs(goal: Search, sample: Sample, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
    """The cost of given ranges as a search for ``goal`` sees it, float64 ``(groups, candidates)``.

    Args:
        goal: the objective.
        sample: the values.
        grid: what ranges become.
        low: the lowest real values, float32 ``(groups, candidates)``.
        high: the highest.
    """
    found = torch.empty(low.shape, dtype=torch.float64)
    points = torch.full((sample.groups,), sample.values.shape[1])
    if sample.weights is not None and sample.bins is None:
        # Short blocks are searched apart from whole ones.
        points = (sample.weights > 0).sum(1)
    rows_at_once = max(1, (1 << 19) // goal.size(sample))
    for count in points.unique():
        for rows in torch.nonzero(points == count)[:, 0].split(rows_at_once):
            prepared = goal.prepare(goal.condensed(sample.part(rows), grid), grid)
            for place in range(low.shape[1]):
                # One by one: of several a search may leave out those that cannot win.
                params = grid.params(low[rows, place], high[rows, place])
                params = replace(params, scale=params.scale[:, None], zero_point=params.zero_point[:, None])
                cost = goal.cost(prepared, params)[:, 0]
                if isinstance(prepared, (Plain, Even)):
                    cost = cost / prepared.unit.double() ** prepared.exponent
                found[rows, place] = cost
    return found


def curve_steps(found: Grouped, shares: np.ndarray = SHARES) -> Iterator[Curves]:
    """The curves of a tensor's objectives, one more at each step, the present objective's first.

    Raises:
        SchemeError: where there is no fixed range to choose.
    """
    scheme, sample = found.scheme, found.sample
    if not scheme.ranged or scheme.mode == "dynamic":
        why = "takes its ranges from each example" if scheme.ranged else "has no range"
        raise SchemeError(
            f"The {found.tensor} of {found.layer!r} {why}, so no objective chooses one; "
            "choose an integer format and mode: static."
        )
    grid = scheme.grid.settle(sample.minimum).spanning(sample.minimum, sample.maximum)
    full = sample.minimum.clamp(max=0.0), sample.maximum.clamp(min=0.0)
    names = usual_objectives(scheme.objective)
    names.sort(key=lambda name: name != scheme.objective)
    known: dict[object, tuple[np.ndarray, float]] = {}
    curves: list[Curve] = []
    for name in names:
        goal = objective(name)
        # What an objective finds that looks at the layer or the network has been found already.
        assert found.params is not None
        low, high = found.params.clip if goal.needs != ELEMENTS else goal(sample, grid)
        low, high = low.float(), high.float()
        kept = _kept(grid, low, high, full)
        cost, chosen = None, None
        if isinstance(goal, Search):
            # Objectives that raise errors to one power have one curve.
            key = goal.exponent if isinstance(goal, PowerSum) else name
            if key not in known:
                known[key] = _curve(goal, sample, grid, full, (low, high), shares)
            cost, chosen = known[key]
        curves.append(Curve(name, cost, float(kept.median()), (float(kept.min()), float(kept.max())), chosen))
        yield Curves(found.layer, found.tensor, scheme, shares, sample.groups, tuple(curves))


def _curve(
    goal: Search,
    sample: Sample,
    grid: Grid,
    full: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    shares: np.ndarray,
) -> tuple[np.ndarray, float]:
    """The relative cost at each share, and of the objective's own choice."""
    tried = torch.tensor([*shares, 1.0]).float()
    low, high = (
        torch.cat([end[:, None] * tried, one[:, None]], 1) for end, one in zip(full, own, strict=True)
    )
    total = costs(goal, sample, grid, low, high).sum(0).numpy()
    # A format so fine that the full range costs nothing is as good as it gets there.
    unit = total[-2] or 1.0
    return total[:-2] / unit, float(total[-1] / unit)


def _kept(grid: Grid, low: Tensor, high: Tensor, full: tuple[Tensor, Tensor]) -> Tensor:
    """The share of the full range that each group keeps, float32 ``(groups,)``; 1 where there is none."""
    if grid.symmetric:
        kept, whole = torch.maximum(-low, high), torch.maximum(-full[0], full[1])
    else:
        kept, whole = high.clamp(min=0) - low.clamp(max=0), full[1] - full[0]
    return torch.where(whole > 0, kept / whole.clamp(min=1e-38), 1.0)


@dataclass(frozen=True)
class Effect:
    """What a scheme does to a tensor, in two numbers.

    Args:
        sqnr_db: of the tensor.
        clipped_fraction: the share of elements beyond the outermost levels of their group.
    """

    sqnr_db: float
    clipped_fraction: float


def effect(found: Grouped) -> Effect:
    """The two numbers that are read while a range is being moved, from every value that is there."""
    values, weights = found.sample.values, found.sample.weights
    error = (values - found.rounded()).square_()
    beyond = outside(found)
    signal = values.square()
    if weights is not None:
        error, signal = error.mul_(weights), signal.mul_(weights)
        clipped = float((weights * beyond).sum(dtype=torch.float64) / weights.sum(dtype=torch.float64))
    else:
        clipped = float(beyond.float().mean())
    sums = ErrorSums(1, float(signal.sum(dtype=torch.float64)), float(error.sum(dtype=torch.float64)))
    return Effect(sums.sqnr_db, clipped)
