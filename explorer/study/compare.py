"""Comparison: which of two recipes does better, whether the images tell, and how many would."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from explorer.cost import Cost, cost
from explorer.graph import Engine, Plan
from explorer.recipe import Difference, Recipe
from explorer.study.evaluate import (
    Flip,
    Flips,
    Reference,
    ScoreList,
    Scores,
    binary,
    check_interval,
    finite,
    mean_score,
    score_change,
    stop_reason,
)
from explorer.study.measures import MEASURES
from explorer.study.metrics import Interval, mean_interval, mean_sample_size, sample_size
from explorer.study.scoring import METRICS, Metric
from explorer.study.shown import Told
from explorer.study.tasks import Answer, Elsewhere, Examples, Task, answers, counted


@dataclass(frozen=True)
class Side:
    """One of the two recipes.

    Args:
        recipe: its digest.
        top1: the mean score; share of images classified rightly (0 to 1), without labels as the float network does.
        top1_interval: its 95% interval (Wilson, where scores are 0 or 1).
        kl: mean divergence from the float network's class distribution, nats; None where there is none.
        loss: mean cross-entropy, nats; None without labels, and where results are no scores of classes.
        size_bytes: of the stored network.
        bops: bit operations for one image.
        error: squared error of the result as a share of the float network's.
    """

    recipe: str
    top1: float
    top1_interval: Interval
    kl: float | None
    loss: float | None
    size_bytes: int
    bops: int
    error: float = 0.0


@dataclass(frozen=True)
class Comparison(Told):
    """Two recipes for one network on the same images so far; every difference is ``a`` minus ``b``.

    Args:
        images: how many images it is from.
        total_images: how many it will be from when complete.
        available_images: how many the data set has.
        stopped: why it ended, ``narrow enough`` or ``all images``; empty while it runs.
        interval_target: the width of ``delta_interval`` at which it ends before all images are seen.
        agreement: the scores are against the float network's results, since no labels were known or by definition.
        delta: difference of top-1, or of the mean score.
        delta_interval: its 95% interval, paired (Tango, where scores are 0 or 1).
        won: images that only ``a`` gets right, or scores better.
        lost: images that only ``b`` gets right, or scores better.
        won_images: the images that ``won`` counts; ``before`` is the class under ``b``, ``after`` under ``a``.
        lost_images: the images that ``lost`` counts.
        distinguishable: the interval of the difference of scores leaves zero out.
        kl_delta: difference of the divergences from float, nats; None where there are none.
        kl_interval: its 95% interval, paired.
        loss_delta: difference of the losses, nats; None without labels.
        loss_interval: its 95% interval, paired.
        size_delta: difference in size, bytes.
        bops_delta: difference in bit operations for one image.
        differences: what changes from ``b`` to ``a`` in the schemes of the layers.
        images_needed: how many images in all would show a difference as large as the one observed, at 95%
            and with a power of 80%; None when no difference was observed.
        images_needed_interval: the same at the ends of ``delta_interval``, the lower number first;
            infinite where the interval holds zero.
        metric: what is measured, a name in ``METRICS`` or a function's.
        score_name: what that is called.
        unit: ``%`` where the score is a share that is shown as a percentage, otherwise nothing.
        error_delta: difference of the squared errors of the result, as shares of its signal.
        error_interval: its 95% interval, paired.
    """

    model: str
    data: str
    a: Side
    b: Side
    images: int
    total_images: int
    available_images: int
    complete: bool
    stopped: str
    interval_target: float | None
    agreement: bool
    delta: float
    delta_interval: Interval
    won: int
    lost: int
    won_images: tuple[Flip, ...]
    lost_images: tuple[Flip, ...]
    distinguishable: bool
    kl_delta: float | None
    kl_interval: Interval | None
    loss_delta: float | None
    loss_interval: Interval | None
    size_delta: int
    bops_delta: int
    differences: tuple[Difference, ...]
    images_needed: int | None
    images_needed_interval: Interval
    calibration: str = ""
    metric: str = "top1"
    score_name: str = "top-1"
    unit: str = "%"
    error_delta: float = 0.0
    error_interval: Interval = (-math.inf, math.inf)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose schemes differ, in the order of execution."""
        return tuple(dict.fromkeys(difference.where for difference in self.differences))

    @property
    def verdict(self) -> str:
        """Whether the two can be told apart, and how many images it would take, in a sentence."""
        if not self.differences:
            return "The two recipes are the same for this network."
        what = self.score_name
        if self.distinguishable:
            better = "higher" if self.delta > 0 else "lower"
            return f"These {self.images:,} images tell the two apart: {what} is {better} under the first."
        start = f"These {self.images:,} images do not tell the two apart by {what}"
        if self.images_needed is None:
            return f"{start}, and show no difference that more images could confirm."
        low, high = self.images_needed_interval
        upper = f"{high:,.0f}" if math.isfinite(high) else "any number"
        count = f"about {self.images_needed:,} in all (from {low:,.0f} to {upper})"
        more = f"a difference as large as this one takes {count}"
        if self.images_needed > self.available_images:
            return f"{start}; {more}, and the data set has {self.available_images:,}."
        if self.images_needed > self.images:
            return f"{start}; {more}, {self.images_needed - self.images:,} more than these."
        return f"{start}; {more}: by chance these did not suffice."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which infinite numbers are null."""
        return finite({**asdict(self), "layers": self.layers, "verdict": self.verdict})


def needed(won: int, lost: int, count: int, interval: Interval) -> tuple[int | None, Interval]:
    """How many images would show the observed difference, and the same at the ends of its interval.

    >>> needed(2, 6, 200, (-0.05, 0.007))
    (783, (155.0, inf))
    """
    flips = (won + lost) / count
    found = sample_size((won - lost) / count, flips)
    low, high = interval
    most = max(abs(low), abs(high))
    least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return (int(found) if math.isfinite(found) else None), (
        sample_size(most, flips),
        sample_size(least, flips),
    )


def needed_by_scores(difference: np.ndarray, interval: Interval) -> tuple[int | None, Interval]:
    """As :func:`needed`, from the differences of scores of any kind.

    >>> needed_by_scores(np.array([-0.2, 0.1, -0.2, 0.0]), (-0.2, 0.05))
    (32, (5.0, inf))
    """
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    found = mean_sample_size(float(difference.mean()), spread)
    ends = [abs(end) for end in interval]
    least = 0.0 if interval[0] <= 0 <= interval[1] else min(ends)
    low = mean_sample_size(max(ends), spread) if math.isfinite(max(ends)) else 0.0
    return (int(found) if math.isfinite(found) else None), (low, mean_sample_size(least, spread))


def needed_for(one: np.ndarray, other: np.ndarray, interval: Interval) -> tuple[int | None, Interval]:
    """How many images would show the observed difference of two sets of scores ``(images,)``."""
    if binary(one) and binary(other):
        return needed(int((one > other).sum()), int((one < other).sum()), len(one), interval)
    return needed_by_scores(one - other, interval)


@dataclass(frozen=True, eq=False)
class Compared(Answer):
    """Two recipes on one batch: each image's scores under either, and the flips from the second to the first."""

    scores: tuple[Scores, Scores]
    flips: Flips


@dataclass(frozen=True, eq=False)
class Compare(Task[Compared]):
    """What two recipes do on a batch.

    Args:
        plans: the two worked out.
        floats: the float network worked out.
        metric: what is measured.
    """

    plans: tuple[Plan, Plan]
    floats: Plan
    metric: Metric = METRICS["top1"]

    def answer(self, engine: Engine, examples: Examples) -> Compared:
        output = engine.graph.output
        plain = engine.run(self.floats, examples.batch)[output]
        reference = Reference(plain, examples.labels, self.metric, examples.where)
        first, second = (engine.run(plan, examples.batch)[output] for plan in self.plans)
        one, other = reference.scores(first), reference.scores(second)
        flips = Flips()
        flips.add(examples, second, first, other.score, one.score, self.metric.classes)
        return Compared(examples.indices, examples.labels is not None, (one, other), flips)


def compare_steps(
    engine: Engine,
    plans: tuple[Plan, Plan],
    floats: Plan,
    recipes: tuple[Recipe, Recipe],
    batches: Iterable[Examples],
    total: int,
    available: int,
    model: str = "",
    data: str = "",
    calibration: str = "",
    interval: float | None = None,
    elsewhere: Elsewhere | None = None,
    metric: Metric = METRICS["top1"],
) -> Iterator[Comparison]:
    """Sharper and sharper comparisons of two recipes, one after each batch.

    Args:
        engine: of the graph.
        plans: the two recipes worked out.
        floats: the float network worked out.
        recipes: what ``plans`` were made from.
        batches: the examples, in the order in which they are to be seen.
        total: how many images the batches hold together.
        available: how many images the data set has.
        model: a name to report.
        data: a name to report.
        calibration: a text to report.
        interval: stop when the 95% interval of the paired difference is as narrow as this.
        elsewhere: who computes; None: this process.
        metric: what is measured.

    Raises:
        DataError: for images that cannot be read, labels that do not fit the results, or when there is no image.
        MetricError: for a metric that fails.
    """
    check_interval(interval, metric.unit)
    costs = [cost(engine.graph, recipe) for recipe in recipes]
    names = [layer.name for layer in engine.graph.layers if layer.quantizable]
    differences = recipes[1].diff(recipes[0], names)
    seen, flips = (ScoreList(), ScoreList()), Flips()
    agreement = False
    found = answers(engine, batches, Compare(plans, floats, metric), total, elsewhere)
    for answer in counted(found, total):
        agreement = agreement or metric.compared(answer.labelled)
        for scores, more in zip(seen, answer.scores, strict=True):
            scores.append(more)
        flips.extend(answer.flips)
        one, other = (scores.all for scores in seen)
        images = len(one)
        delta, difference = score_change(one.score, other.score)
        images_needed, images_needed_interval = needed_for(one.score, other.score, difference)
        sides = [
            _side(recipe, scores, each, metric, agreement)
            for recipe, scores, each in zip(recipes, (one, other), costs, strict=True)
        ]
        error_delta, error_interval = MEASURES["error"].difference(one, other)
        labelled = metric.classes and not agreement
        stopped = stop_reason(difference, interval, images, total)
        yield Comparison(
            model=model,
            data=data,
            a=sides[0],
            b=sides[1],
            images=images,
            total_images=total,
            available_images=available,
            complete=images >= total,
            stopped=stopped,
            interval_target=interval,
            agreement=agreement,
            delta=delta,
            delta_interval=difference,
            won=int((one.score > other.score).sum()),
            lost=int((one.score < other.score).sum()),
            won_images=tuple(flips.won),
            lost_images=tuple(flips.lost),
            distinguishable=not difference[0] <= 0 <= difference[1],
            kl_delta=float(one.kl.mean()) - float(other.kl.mean()) if metric.classes else None,
            kl_interval=mean_interval(one.kl - other.kl) if metric.classes else None,
            loss_delta=float((one.loss - other.loss).mean()) if labelled else None,
            loss_interval=mean_interval(one.loss - other.loss) if labelled else None,
            size_delta=costs[0].size - costs[1].size,
            bops_delta=costs[0].bops - costs[1].bops,
            differences=differences,
            images_needed=images_needed,
            images_needed_interval=images_needed_interval,
            calibration=calibration,
            metric=metric.name,
            score_name=metric.called(agreement),
            unit=metric.unit,
            error_delta=error_delta,
            error_interval=error_interval,
        )
        if stopped:
            return


def _side(recipe: Recipe, scores: Scores, costs: Cost, metric: Metric, agreement: bool) -> Side:
    score, interval = mean_score(scores.score)
    return Side(
        recipe=recipe.digest,
        top1=score,
        top1_interval=interval,
        kl=float(scores.kl.mean()) if metric.classes else None,
        loss=float(scores.loss.mean()) if metric.classes and not agreement else None,
        size_bytes=costs.size,
        bops=costs.bops,
        error=MEASURES["error"].estimate(scores)[0],
    )
