"""Sensitivity: which layer suffers under which format, in tiers from instant to exact.

The exact method quantizes one tensor of one layer at a time and measures the network's result against the
float network's; leave-one-out takes the quantization of one layer back in a quantized network.  On the engine
each row costs only what lies downstream of its layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from explorer.graph import Plan
from explorer.study.evaluate import ScoreList, Scores, finite
from explorer.study.instant import INSTANT, instant_steps
from explorer.study.local import OUTPUT_IMAGES, fill_weights, output_steps
from explorer.study.measures import Estimate
from explorer.study.metrics import Interval
from explorer.study.shown import Told
from explorer.study.sweep import EXACT, Board, Pace, Row, Sweep

WEIGHT, OUTPUT, WITHOUT = "weight", "output", "leave_one_out"
# A race does not stop a row before it has seen so many images, nor on an interval wider than this share of its value.
_RACE_IMAGES, _RACE_WIDTH = 200, 0.1


def _weight_steps(sweep: Sweep) -> Iterator[pd.DataFrame]:
    board = Board(sweep, WEIGHT)
    fill_weights(sweep, board)
    board.value[:] = board.low[:] = board.high[:] = board.weight_sqnr
    board.decided[:] = True
    yield board.table()


def _output_steps(sweep: Sweep) -> Iterator[pd.DataFrame]:
    """One pass: each row's error at the output of its own layer, its input being the float network's."""
    sweep.prepare()
    board = Board(sweep, OUTPUT)
    fill_weights(sweep, board)
    for estimates, images in output_steps(sweep):
        for index, estimate in enumerate(estimates):
            board.put(index, OUTPUT, estimate, images)
        board.output_sqnr[:] = board.value
        board.decided[:] = images >= min(sweep.total, OUTPUT_IMAGES)
        yield board.table()


def _instant_steps(sweep: Sweep) -> Iterator[pd.DataFrame]:
    board = Board(sweep, INSTANT)
    fill_weights(sweep, board)
    for _ in instant_steps(sweep, board):
        yield board.table()
    board.decided[:] = True
    yield board.table()


def _exact(
    sweep: Sweep,
    board: Board,
    order: Sequence[int],
    race: bool = False,
    base: Plan | None = None,
    method: str = EXACT,
) -> Iterator[pd.DataFrame]:
    """The network's result under each row, batch by batch; the first batch row by row.

    Args:
        sweep: the question.
        board: takes the values.
        order: of the rows within a batch.
        race: leave out rows that are decided.
        base: what each row is compared with; None: the float network, which costs nothing.
        method: the name of the values.
    """
    parts: dict[int, ScoreList] = defaultdict(ScoreList)
    base_parts, pace, fresh, seen = ScoreList(), Pace(sweep.shown), set[int](), 0

    def running() -> list[int]:
        return [index for index in order if not board.decided[index]]

    def update() -> None:
        """Put on the board what rows have seen since the last time."""
        for index in fresh:
            scores = parts[index].all
            estimate: Estimate = (
                sweep.goal.estimate(scores) if base is None else sweep.goal.difference(base_parts.all, scores)
            )
            board.put(index, method, estimate, len(scores))
        fresh.clear()

    def table() -> pd.DataFrame:
        update()
        return board.table()

    for answer in sweep.tries(base, running):
        sweep.check(answer.labelled)
        first, seen = seen == 0, seen + len(answer.indices)
        if answer.base is not None:
            base_parts.append(answer.base)
        left = len(running())
        for index, scores in answer.pieces:
            left -= 1
            if scores is not None:
                parts[index].append(scores)
                fresh.add(index)
            else:
                fresh.discard(index)
                board.spoil(index, seen)
            if first and left and pace.due():
                yield pace.clocked(table)
        if race:
            update()
            board.decided |= _decided(board, sweep.rows)
        if bool(board.decided.all()):
            break
        if seen < sweep.total and pace.due():
            yield pace.clocked(table)
    yield table()


def _decided(board: Board, rows: Sequence[Row]) -> np.ndarray:
    """Which rows need no more images: their place among the rows of their format is clear, or their value is."""
    found = np.zeros(len(rows), dtype=bool)
    formats = np.array([row.format for row in rows])
    for name in dict.fromkeys(formats):
        index = np.flatnonzero(formats == name)
        index = index[np.argsort(board.value[index], kind="stable")]
        low, high = board.low[index], board.high[index]
        above = np.append(low[1:], np.inf)
        below = np.insert(high[:-1], 0, -np.inf)
        placed = (high < above) & (low > below)
        # Infinite intervals have no width; those of rows without a number are decided anyway.
        with np.errstate(invalid="ignore"):
            narrow = (high - low) <= _RACE_WIDTH * np.abs(board.value[index])
        found[index] = (placed | narrow) & (board.images[index] >= _RACE_IMAGES)
    return found


def _exact_steps(sweep: Sweep) -> Iterator[pd.DataFrame]:
    board = Board(sweep, EXACT)
    fill_weights(sweep, board)
    yield from _exact(sweep, board, range(len(sweep.rows)))


def _without_steps(sweep: Sweep) -> Iterator[pd.DataFrame]:
    board = Board(sweep, WITHOUT)
    yield from _exact(sweep, board, range(len(sweep.rows)), base=sweep.plan(sweep.recipe), method=WITHOUT)


def _live_steps(sweep: Sweep) -> Iterator[pd.DataFrame]:
    """Every tier in turn; exact values replace estimates, what matters most first, until each is decided."""
    board = Board(sweep, INSTANT)
    fill_weights(sweep, board)
    yield board.table()
    for _ in instant_steps(sweep, board):
        yield board.table()
    # Where little is asked all rows are exact already.
    if all(method == EXACT for method in board.method):
        return
    order = np.argsort(-sweep.goal.worse * board.value, kind="stable")
    yield from _exact(sweep, board, [int(index) for index in order], race=True)


@dataclass(frozen=True)
class Method:
    """A way to find sensitivities.

    Args:
        help: what it does.
        steps: better and better tables.
        measures: the measures that it can take.
        formats: whether it tries formats; otherwise each layer is as in the present recipe.
    """

    help: str
    steps: Callable[[Sweep], Iterator[pd.DataFrame]]
    measures: tuple[str, ...] = ("kl", "loss", "top1", "sqnr", "error", "score")
    formats: bool = True


METHODS: dict[str, Method] = {
    WEIGHT: Method("the SQNR of the weight itself; no image is seen", _weight_steps, ("sqnr",)),
    OUTPUT: Method("the SQNR of the layer's own output, all layers in one pass", _output_steps, ("sqnr",)),
    INSTANT: Method(
        "an estimate: the error at the layer's output carried to the result, large steps run on few images",
        _instant_steps,
    ),
    EXACT: Method("one tensor of one layer at a time, the whole network evaluated", _exact_steps),
    WITHOUT: Method(
        "the present recipe minus the recipe with one layer back in float, on the same images",
        _without_steps,
        formats=False,
    ),
    "live": Method(
        "instant estimates at once, then exact values, worst first; a row stops when its place is clear",
        _live_steps,
    ),
}


@dataclass(frozen=True)
class Additivity(Told):
    """Whether the parts of a recipe add up to the whole.

    Args:
        measure: a name in ``MEASURES``.
        method: how the layers' own shares were found.
        predicted: what the layers suffer one at a time, added up (energies, for ``sqnr``).
        measured: what the network suffers under the whole recipe.
        interval: the 95% interval of ``measured``.
        images: how many images ``measured`` is from.
        layers: each layer's share, in the order of execution.
    """

    measure: str
    method: str
    predicted: float
    measured: float
    interval: Interval
    images: int
    layers: tuple[tuple[str, float], ...]

    @property
    def ratio(self) -> float:
        """Predicted over measured; of decibels the difference."""
        if self.measure == "sqnr":
            return self.predicted - self.measured
        return self.predicted / self.measured if self.measured else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return finite({**asdict(self), "ratio": self.ratio})


def additivity(sweep: Sweep, method: str) -> Additivity:
    """What the rows of ``sweep`` add up to, beside the measured total of its recipe on the same images."""
    *_, table = METHODS[method].steps(sweep)
    engine, whole = sweep.engine, sweep.plan(sweep.recipe)
    output = engine.graph.output
    scores = Scores.join(
        [
            sweep.reference(engine.run(sweep.floats, examples.batch)[output], examples).scores(
                engine.run(whole, examples.batch)[output]
            )
            for examples in sweep.batches(sweep.total)
        ]
    )
    measured, interval = sweep.goal.estimate(scores)
    values = table["value"].to_numpy(dtype=float)
    shares = tuple(zip(table["layer"], values.tolist(), strict=True))
    return Additivity(
        sweep.measure, method, sweep.goal.total(values), measured, interval, len(scores), shares
    )
