"""A check: is a recipe's loss of accuracy within what somebody allows, as far as the images tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from explorer.errors import SchemeError
from explorer.study.evaluate import MINIMUM_IMAGES, Evaluation, finite
from explorer.study.metrics import CONFIDENCE, Interval, mean_sample_size, sample_size
from explorer.study.scoring import AGREEMENT
from explorer.study.shown import Told

EXCLUDED, ESTABLISHED, UNDECIDED = "excluded", "established", "undecided"
"""What the images say of a drop beyond the one allowed."""

EARLY = 0.999
"""The confidence that an early look takes: so strict that the last one may have what it would have alone."""

# An early look whenever so many times as many images have been seen.
_APART = 2


@dataclass(frozen=True)
class Check(Told):
    """Whether a recipe costs more accuracy than is allowed, on the images so far.

    Args:
        max_drop: what is allowed, as a share: 0.005 is half a point; of a metric that is no share as a number.
        verdict: ``excluded``, ``established`` or ``undecided``: is the drop larger than that?
        interval: of the difference to float, at ``confidence``; the verdict is read off it.
        confidence: 0.95 at the last look, 0.999 at an early one.
        images_needed: about how many images in all would decide, were the difference the one observed, at 95% and
            with a power of 80%; None where it is decided, where so many have been seen, or where none would do.
        evaluation: all that was measured.
    """

    max_drop: float
    verdict: str
    interval: Interval
    confidence: float
    images_needed: int | None
    evaluation: Evaluation

    @property
    def decided(self) -> bool:
        return self.verdict != UNDECIDED

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        e = self.evaluation
        what = "agreement with the float network" if e.score_name == AGREEMENT else e.score_name
        times, points = (100, " points") if e.unit == "%" else (1, "")
        drop = f"a drop of more than {times * self.max_drop:g}{points} in {what}"
        shown = "{:+.2f}".format if e.unit == "%" else "{:+.3g}".format
        low, high = (shown(times * end) for end in self.interval)
        found = f"{shown(times * e.delta)}, {100 * self.confidence:g}% interval {low} to {high}"
        seen = f"{e.images:,} of {e.total_images:,}" if e.images < e.total_images else f"{e.images:,}"
        if self.verdict == ESTABLISHED:
            return f"On {seen} images {drop} is established ({found})."
        if self.verdict == EXCLUDED:
            return f"On {seen} images {drop} is excluded ({found})."
        more = "" if self.images_needed is None else f"; about {self.images_needed:,} images would"
        return f"On {seen} images {drop} is neither established nor excluded ({found}){more}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which infinite numbers are null."""
        return finite({**asdict(self), "evaluation": self.evaluation.to_dict(), "sentence": self.sentence})


def verdict(interval: Interval, max_drop: float) -> str:
    """What an interval of the difference to float says of a drop beyond ``max_drop``.

    >>> verdict((-0.03, -0.01), 0.005), verdict((-0.003, 0.001), 0.005), verdict((-0.01, 0.0), 0.005)
    ('established', 'excluded', 'undecided')
    """
    low, high = interval
    if high < -max_drop:
        return ESTABLISHED
    return EXCLUDED if low > -max_drop else UNDECIDED


def check_steps(
    evaluations: Iterable[Evaluation], max_drop: float, minimum: int = MINIMUM_IMAGES, unit: str = "%"
) -> Iterator[Check]:
    """Check after check while the images are seen; it ends as soon as the drop is established or excluded.

    Early looks, each at twice as many images as the one before, take 99.9% intervals, and the look at all images
    a 95% one: the rule of Haybittle (1971, doi:10.1259/0007-1285-44-526-793) and Peto et al. (1976,
    doi:10.1038/bjc.1976.220).  A drop that is just the one allowed is then taken for a larger or a smaller one in
    2.5% of all checks each, and 0.05% more for each early look at most.

    Args:
        evaluations: better and better ones of the recipe.
        max_drop: what is allowed, as a share.
        minimum: no look before so many images.
        unit: of the metric; where it is not ``%``, a drop is in the metric's own numbers.

    Raises:
        SchemeError: for a drop that is no share from 0 to below 1.
    """
    _check_drop(max_drop, unit)
    look = minimum
    for evaluation in evaluations:
        last = evaluation.complete
        if not last and evaluation.images < look:
            yield _checked(evaluation, max_drop, EARLY, look=False)
            continue
        found = _checked(evaluation, max_drop, CONFIDENCE if last else EARLY)
        yield found
        if found.decided:
            return
        while look <= evaluation.images:
            look *= _APART


def _check_drop(max_drop: float, unit: str) -> None:
    number = isinstance(max_drop, int | float) and not isinstance(max_drop, bool)
    if unit != "%":
        if not number or not 0 <= max_drop < math.inf:
            raise SchemeError(
                f"The drop that is allowed must be a number of at least 0, in the metric's unit, not {max_drop!r}."
            )
        return
    if not number or not 0 <= max_drop < 1:
        raise SchemeError(
            f"The drop that is allowed must be a share from 0 to below 1 (0.005 is half a point), not {max_drop!r}."
        )


def _checked(e: Evaluation, max_drop: float, confidence: float, look: bool = True) -> Check:
    interval = e.delta_at(confidence)
    said = verdict(interval, max_drop) if look else UNDECIDED
    needed = None
    if said == UNDECIDED:
        if e.scores:
            spread = float(np.std(np.array(e.scores) - np.array(e.scores_float)))
            more = mean_sample_size(e.delta + max_drop, spread)
        else:
            more = sample_size(e.delta + max_drop, (e.won + e.lost) / e.images)
        needed = int(more) if e.images < more < math.inf else None
    return Check(max_drop, said, interval, confidence, needed, e)
