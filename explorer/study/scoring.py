"""Metrics: what one result of a network is worth, one score for each example, larger being better.

One score for each example is what keeps comparisons sharp: two networks are compared on the same examples, and
every mean has its interval.  A measure that is defined for a whole set only (mean average precision, the usual
mean IoU) is no metric here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.errors import DataError, MetricError, unknown
from explorer.graph.ir import digest

Function = Callable[[Tensor, Tensor | None], Tensor]
# Labels of pixels that count for nothing: what segmentation data sets write at borders, and PyTorch's default.
VOID = (255, -100)
UNITS = ("", "%")
# A score that differs by more than this from that of the example alone depends on its neighbours.
_ALONE = 1e-4


@dataclass(frozen=True, eq=False)
class Metric:
    """What a network is measured by.

    Args:
        function: of the results (images, ...) and what they should be (images, ...), or None where nobody knows; it
            gives one score for each example, ``(images,)``, larger being better.
        name: what it is called in ``METRICS``, on the command line and in JSON.
        title: what it is called on the page.
        help: what it says, in a line.
        unit: ``%`` for a share from 0 to 1 that is shown as a percentage, otherwise nothing.
        classes: the results are scores of classes along axis 1, so that divergence and cross-entropy exist.
        against_float: the float network's result is what results should be, whether there are labels or not.
        stand_in: makes what results should be of the float network's result where there are no labels; None gives the
            function None then.
        agreement: the title where the float network's results stand in for labels.
        binary: scores are 0 or 1 by definition.
        made: how another process makes it, where its function is in a file: a function and what it is given.

    >>> closeness = Metric(lambda outputs, targets: -(outputs - targets).abs().amax(1), "closeness")
    >>> closeness.scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.5]])).tolist()
    [-0.5]
    """

    function: Function
    name: str
    title: str = ""
    help: str = ""
    unit: str = ""
    classes: bool = False
    against_float: bool = False
    stand_in: Callable[[Tensor], Tensor] | None = None
    agreement: str = ""
    binary: bool = False
    made: tuple[Callable[[str], Metric], str] | None = field(default=None, repr=False)
    ours: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise MetricError(f"The unit of a metric is '%' or nothing, not {self.unit!r}.")
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))

    @property
    def is_top1(self) -> bool:
        """Whether it is the table's top-1, of which more is known than of other metrics."""
        return self.ours and self.name == "top1"

    @property
    def key(self) -> str:
        """A digest of what it measures: its name, and the text of a function of the user's own."""
        if self.ours:
            return self.name
        try:
            text = inspect.getsource(self.function)
        except (OSError, TypeError):
            text = getattr(self.function, "__qualname__", type(self.function).__name__)
        return digest("metric", self.name, text, self.unit, str((self.classes, self.against_float)))

    def called(self, agreement: bool = False) -> str:
        """What it is called, with labels or where the float network's results stand in for them."""
        return (agreement and self.agreement) or self.title

    def __reduce__(self) -> tuple[Any, ...]:
        # Those of the table, and of a file, go to other processes by name, for their functions may not.
        if self.ours:
            return as_metric, (self.name,)
        if self.made is not None:
            return self.made[0], (self.made[1],)
        return Metric, tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def compared(self, labelled: bool) -> bool:
        """Whether the float network's results are what results should be, given whether there are labels."""
        return self.against_float or (not labelled and self.stand_in is not None)

    def targets(self, reference: Tensor, labels: Tensor | None) -> Tensor | None:
        """What results should be, from the float network's result and the labels."""
        if self.against_float:
            return reference
        if labels is None and self.stand_in is not None:
            return self.stand_in(reference)
        return labels

    def scores(self, results: Tensor, targets: Tensor | None, where: str = "") -> Tensor:
        """One score for each example, float64 ``(images,)``.

        Args:
            results: of the network, (images, ...).
            targets: what they should be.
            where: the examples, for messages.

        Raises:
            MetricError: when the function raises, or gives another shape, no real numbers, NaN or infinity.
        """
        about = f"The metric {self.name!r}{f' on {where}' if where else ''}"
        try:
            found = self.function(results, targets)
        except (DataError, MetricError):
            raise
        except Exception as error:
            text = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
            raise MetricError(f"{about} failed: {text.rstrip('. :')}.") from error
        if not isinstance(found, Tensor):
            raise MetricError(
                f"{about} gives a {type(found).__name__}; it must give a tensor of one score each."
            )
        if tuple(found.shape) != (len(results),):
            raise MetricError(
                f"{about} gives a tensor of shape {tuple(found.shape)}; it must give one score for each example, "
                f"shape {(len(results),)}."
            )
        if found.is_complex():
            raise MetricError(
                f"{about} gives complex numbers; a score is a real number, larger being better."
            )
        found = found.detach().cpu().double()
        if not math.isfinite(float(found.sum())) and not bool(torch.isfinite(found).all()):
            bad = int((~torch.isfinite(found)).sum())
            at = int((~torch.isfinite(found)).nonzero()[0])
            raise MetricError(
                f"{about} gives NaN or infinity for {bad:,} of {len(found):,} examples, the first at place {at}; "
                "a score must be a number."
            )
        return found

    def check(self, results: Tensor, targets: Tensor | None, scores: Tensor, where: str = "") -> None:
        """Refuse a user's function that gives other scores to the same results, or looks at other examples.

        Raises:
            MetricError: with the two scores.
        """
        if self.ours:
            return
        about = f"The metric {self.name!r}{f' on {where}' if where else ''}"
        again = self.scores(results, targets, where)
        if not torch.equal(scores, again):
            at = int((scores != again).nonzero()[0])
            raise MetricError(
                f"{about} is not deterministic: the same results score {float(scores[at]):.6g} and then "
                f"{float(again[at]):.6g}; seed what it draws, or leave it out."
            )
        alone = self.scores(results[:1], None if targets is None else targets[:1], where)
        if abs(float(alone[0] - scores[0])) > _ALONE * max(1.0, abs(float(scores[0]))):
            raise MetricError(
                f"{about} scores an example {float(alone[0]):.6g} alone and {float(scores[0]):.6g} beside others; "
                "a score must depend on its own example only."
            )


def check_classes(labels: Tensor, results: Tensor) -> None:
    """Refuse labels that are not classes of the results (images, classes, ...).

    Raises:
        DataError: with the shapes, or the largest label and the number of classes.
    """
    wanted = (len(results), *results.shape[2:])
    if tuple(labels.shape) != wanted or labels.is_floating_point():
        kind = str(labels.dtype).removeprefix("torch.")
        raise DataError(
            f"The labels are {kind} of shape {tuple(labels.shape)} and the network's results have shape "
            f"{tuple(results.shape)}; class scores take whole numbers of shape {wanted}."
        )
    if labels.ndim > 1:
        labels = labels[~_void(labels)]
    classes = results.shape[1]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = int(labels.max()) if int(labels.max()) >= classes else int(labels.min())
        raise DataError(
            f"The labels reach {wrong} but the network tells {classes} classes apart (0 to {classes - 1})."
        )


def _void(labels: Tensor) -> Tensor:
    return (labels == VOID[0]) | (labels == VOID[1])


def _counted(results: Tensor, targets: Tensor) -> Tensor:
    """Which pixels of each image count, ``(images, pixels)``: a label of 255 does where there are so many classes."""
    flat = targets.flatten(1)
    return flat != VOID[1] if results.shape[1] > VOID[0] else ~_void(flat)


def _given(targets: Tensor | None) -> Tensor:
    assert targets is not None
    return targets


def _top(count: int) -> Function:
    def each(results: Tensor, targets: Tensor | None) -> Tensor:
        best = results.topk(min(count, results.shape[1]), 1).indices
        return (best == _given(targets)[:, None]).any(1)

    return each


def _first(results: Tensor, targets: Tensor | None) -> Tensor:
    return results.argmax(1) == _given(targets)


def _pixels(results: Tensor, targets: Tensor | None) -> Tensor:
    """The share of pixels; 1 of an image of which none counts."""
    targets = _given(targets)
    counted = _counted(results, targets)
    right = (results.argmax(1) == targets).flatten(1) & counted
    count = counted.sum(1)
    return torch.where(count > 0, right.sum(1) / count.clamp(min=1), 1.0)


def _overlaps(results: Tensor, targets: Tensor | None) -> Tensor:
    """Intersection over union of each class in label or result, the mean of these classes; 1 where there is none."""
    targets = _given(targets)
    counted, classes = _counted(results, targets), results.shape[1]
    found, right = results.argmax(1).flatten(1), targets.flatten(1)
    scores = []
    for which, one, other in zip(counted, found, right, strict=True):
        one, other = one[which], other[which]
        both = torch.bincount(one[one == other], minlength=classes)
        union = torch.bincount(one, minlength=classes) + torch.bincount(other, minlength=classes) - both
        scores.append((both[union > 0] / union[union > 0]).mean() if len(one) else torch.tensor(1.0))
    return torch.stack(scores)


def _cosine(results: Tensor, targets: Tensor | None) -> Tensor:
    """Of the flattened results; 1 of two zeros, 0 of one."""
    one, other = results.double().flatten(1), _given(targets).double().flatten(1)
    size = one.norm(dim=1) * other.norm(dim=1)
    same = (one == other).all(1)
    return torch.where(same, 1.0, (one * other).sum(1) / size.where(size > 0, 1.0)).clamp(-1, 1)


def _distance(results: Tensor, targets: Tensor | None) -> Tensor:
    targets = _given(targets)
    if targets.numel() != results.numel():
        raise DataError(
            f"The targets have shape {tuple(targets.shape)} and the network's results {tuple(results.shape)}; the "
            "metric neg_mae takes as many numbers as there are."
        )
    return -(results.double().flatten(1) - targets.double().reshape(len(results), -1)).abs().mean(1)


def _classes(results: Tensor) -> Tensor:
    return results.argmax(1)


def _itself(results: Tensor) -> Tensor:
    return results


AGREEMENT = "agreement with float"
METRICS: dict[str, Metric] = {
    "top1": Metric(
        _first, "top1", "top-1", "share of examples whose likeliest class is right", "%", True,
        stand_in=_classes, agreement=AGREEMENT, binary=True, ours=True,
    ),
    "top5": Metric(
        _top(5), "top5", "top-5", "share of examples whose class is among the five likeliest", "%", True,
        stand_in=_classes, agreement="float's class among five", binary=True, ours=True,
    ),
    "pixel_accuracy": Metric(
        _pixels, "pixel_accuracy", "pixel accuracy",
        "share of an image's pixels whose likeliest class is right (255 and -100 count for nothing)", "%", True,
        stand_in=_classes, agreement="pixels as in float", ours=True,
    ),
    "image_iou": Metric(
        _overlaps, "image_iou", "IoU within images",
        "mean over an image's classes of intersection over union; the mean over images, not the data set's mean IoU",
        "%", True, stand_in=_classes, agreement="IoU with float", ours=True,
    ),
    "cosine": Metric(
        _cosine, "cosine", "cosine with float",
        "cosine of the angle between a result and the float network's: embeddings, feature maps",
        against_float=True, ours=True,
    ),
    "neg_mae": Metric(
        _distance, "neg_mae", "minus mean error",
        "minus the mean absolute error of a result's numbers (without labels, from the float network's)",
        stand_in=_itself, agreement="minus mean error to float", ours=True,
    ),
}  # fmt: skip


def usual_metric(shape: tuple[int, ...], labels: Tensor | None) -> Metric:
    """The metric for a network that gives results of ``shape`` (the batch first), by that and by its labels.

    >>> usual_metric((8, 10), None).name, usual_metric((8, 64, 7, 7), None).name, usual_metric((8, 1), None).name
    ('top1', 'cosine', 'neg_mae')
    """
    if (
        len(shape) > 2
        and labels is not None
        and not labels.is_floating_point()
        and labels.ndim == len(shape) - 1
    ):
        return METRICS["pixel_accuracy"]
    numbers = labels is not None and labels.is_floating_point()
    if len(shape) == 1 or (numbers and labels is not None and labels[0].numel() == _size(shape)):
        return METRICS["neg_mae"]
    if len(shape) == 2:
        return METRICS["neg_mae" if shape[1] == 1 else "top1"]
    return METRICS["cosine"]


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape[1:]).numel())


def as_metric(spec: str | Metric | Function) -> Metric:
    """A metric from its name in ``METRICS``, from a function of (outputs, targets), or as it is.

    Raises:
        MetricError: for a name that does not exist, or what is no function.

    >>> as_metric("cosine").title
    'cosine with float'
    """
    if isinstance(spec, Metric):
        return spec
    if isinstance(spec, str):
        if spec not in METRICS:
            raise MetricError(unknown("metric", spec, METRICS))
        return METRICS[spec]
    if not callable(spec):
        raise MetricError(
            f"A metric is a name ({', '.join(METRICS)}) or a function of (outputs, targets), not {spec!r}."
        )
    name = getattr(spec, "__name__", type(spec).__name__)
    about = (inspect.getdoc(spec) or "").strip().splitlines()
    return Metric(spec, "metric" if name == "<lambda>" else name, help=about[0] if about else "")


def check_fit(metric: Metric, shape: tuple[int, ...]) -> None:
    """Refuse a metric of class scores for a network that gives none.

    Raises:
        MetricError: with the shape of the results, the batch first.
    """
    few = METRICS["pixel_accuracy" if len(shape) > 2 else "neg_mae"].name if metric.ours else "cosine"
    flat = metric.name in ("top1", "top5")
    if metric.classes and (len(shape) < 2 or (metric.ours and flat != (len(shape) == 2))):
        wanted = "(images, classes)" if flat or not metric.ours else "(images, classes, height, width)"
        raise MetricError(
            f"The metric {metric.name!r} takes results of shape {wanted} and this network gives "
            f"{('images', *shape[1:])}; use {few}, cosine, or a function of your own.".replace(
                "'images'", "images"
            )
        )


def class_rows(results: Tensor) -> Tensor:
    """Scores of classes (images, classes, ...) as one row for each decision, ``(images * pixels, classes)``."""
    return results if results.ndim == 2 else results.movedim(1, -1).reshape(-1, results.shape[1])


def image_means(each: Tensor, images: int) -> Tensor:
    """The mean of each image's decisions, ``(images,)``, of one number for each decision."""
    return each if len(each) == images else each.reshape(images, -1).mean(1)


def cross_entropies(log_chances: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each image ``(images,)``: of pixels the mean of those that count.

    Args:
        log_chances: logarithms of probabilities, (images, classes, ...).
        targets: the classes, (images, ...).
    """
    if targets.ndim == 1:
        return F.nll_loss(log_chances, targets, reduction="none")
    counted = _counted(log_chances, targets)
    plain = targets.where(counted.reshape(targets.shape), 0)
    each = F.nll_loss(log_chances, plain, reduction="none").flatten(1)
    return (each * counted).sum(1) / counted.sum(1).clamp(min=1)
