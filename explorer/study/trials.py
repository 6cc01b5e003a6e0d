"""Configurations that were tried: what each costs and does, which nothing beats, and in what they differ."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from explorer.errors import ProjectError, nearest
from explorer.recipe import PRESETS, TENSORS, Recipe
from explorer.study.compare import needed, needed_for
from explorer.study.evaluate import MINIMUM_IMAGES, Evaluation, finite, score_change
from explorer.study.metrics import Interval, paired

LONGEST_NAME = 60
# What a configuration may cost, by the field of a trial.
COSTS: dict[str, str] = {"size": "bytes to store", "bops": "bit operations for one image"}


@dataclass(frozen=True)
class Outcome:
    """What an evaluation has found, without the layers and the pictures.

    The fields are those of :class:`~explorer.study.Evaluation`; ``won`` and ``lost`` are the numbers of the
    images in the data set, so that two outcomes can be compared image by image.  ``kl_interval`` is None in
    projects from before it was kept.  Of a metric whose scores are not just 0 or 1, ``scores`` are those of the images
    in the order of evaluation, to seven digits, and ``won`` and ``lost`` are empty.
    """

    images: int
    total_images: int
    agreement: bool
    top1: float
    top1_interval: Interval
    top1_float: float
    delta: float
    delta_interval: Interval
    kl: float | None
    won: tuple[int, ...]
    lost: tuple[int, ...]
    kl_interval: Interval | None = None
    scores: tuple[float, ...] = ()

    @staticmethod
    def of(e: Evaluation) -> Outcome:
        """The summary of an evaluation."""
        won, lost = ((),) * 2 if e.scores else (e.won_images, e.lost_images)
        return Outcome(
            e.images, e.total_images, e.agreement, e.top1, e.top1_interval, e.top1_float, e.delta,
            e.delta_interval, e.kl, tuple(flip.index for flip in won), tuple(flip.index for flip in lost),
            e.kl_interval, tuple(float(f"{score:.7g}") for score in e.scores),
        )  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried, or only named.

    Args:
        recipe: the configuration.
        size: bytes of the stored network.
        size_float: of the float network.
        bops: bit operations for one image.
        bops_float: of the float network.
        outcome: what an evaluation has found; None before there is one.
        time: when it was first tried or named, in seconds since 1970.
        name: a label given by the user, or nothing.
        named: when the name was given or taken away; 0 for never.
    """

    recipe: Recipe
    size: int
    size_float: int
    bops: int
    bops_float: int
    outcome: Outcome | None
    time: float
    name: str = ""
    named: float = 0.0

    @property
    def digest(self) -> str:
        """The recipe's; what tells trials of one network apart."""
        return self.recipe.digest

    @property
    def label(self) -> str:
        """The name, or the preset's, or the beginning of the digest."""
        return self.name or _presets().get(self.digest, f"#{self.digest[:6]}")

    def merged(self, other: Trial) -> Trial:
        """What is known from two trials of one configuration: of outcomes that from more images, of names the later.

        Raises:
            ValueError: for two configurations.
        """
        if self.digest != other.digest:
            raise ValueError("Trials of two configurations cannot be merged.")
        best = max((self, other), key=lambda t: (t.outcome.images if t.outcome else 0, t.time))
        named = max((self, other), key=lambda t: t.named)
        return replace(best, name=named.name, named=named.named, time=min(self.time, other.time))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(replace(self, recipe=Recipe())), "recipe": self.recipe.to_dict()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Trial:
        """A trial from what :meth:`to_dict` has made, also by way of JSON.

        Raises:
            RecipeError, TypeError, KeyError: for what was not made so.
        """
        found = dict(values)
        recipe, outcome = Recipe.from_dict(found.pop("recipe")), found.pop("outcome")
        if outcome is not None:
            listed = {key: tuple(value) for key, value in outcome.items() if isinstance(value, list)}
            outcome = Outcome(**{**outcome, **listed})
        return Trial(recipe=recipe, outcome=outcome, **found)


@cache
def _presets() -> dict[str, str]:
    return {preset.recipe.digest: name for name, preset in reversed(PRESETS.items())}


def counts(e: Evaluation) -> bool:
    """Whether an evaluation is far enough for its configuration to count as tried.

    That is at 200 images, or at the end: what is passed over while a range is dragged does not count.
    """
    return bool(e.stopped) or e.images >= MINIMUM_IMAGES


def checked_name(name: str) -> str:
    """A name as it is kept.

    Raises:
        ProjectError: for what is no text of one line of at most 60 characters.

    >>> checked_name("  safe int4 ")
    'safe int4'
    """
    if not isinstance(name, str):
        raise ProjectError(f"A name is a text, not {name!r}.")
    name = name.strip()
    if len(name) > LONGEST_NAME:
        raise ProjectError(f"A name has at most {LONGEST_NAME} characters, not {len(name):,}.")
    if not name.isprintable():
        raise ProjectError(f"A name is one line of letters and signs, not {name!r}.")
    return name


class Trials:
    """The configurations tried of one network on one set of images; may be asked and told from any thread.

    Args:
        known: those of earlier sessions.
        keep: told of each trial that is new or has changed; gives back what is known of it now.

    ``version`` is a number that grows with each change.
    """

    def __init__(
        self, known: Iterable[Trial] = (), keep: Callable[[Trial], Trial] = lambda trial: trial
    ) -> None:
        self._keep = keep
        self._lock = threading.RLock()
        self._trials = {trial.digest: trial for trial in known}
        self.version = 0

    def __iter__(self) -> Iterator[Trial]:
        """In the order of time."""
        with self._lock:
            return iter(sorted(self._trials.values(), key=lambda trial: trial.time))

    def __len__(self) -> int:
        return len(self._trials)

    def get(self, digest: str) -> Trial | None:
        """The trial of the recipe with this digest."""
        return self._trials.get(digest)

    def add(self, trial: Trial) -> None:
        """Take note of a trial; what was known of the same configuration is kept where it says more."""
        with self._lock:
            before = self._trials.get(trial.digest)
            now = trial if before is None else before.merged(trial)
            if now != before:
                self._trials[trial.digest] = self._keep(now)
                self.version += 1

    def name(self, trial: Trial, name: str) -> None:
        """Give a configuration a name, or take it away with an empty one.

        Raises:
            ProjectError: for what is no name, or is the name of another configuration or a preset.
        """
        name = checked_name(name)
        with self._lock:
            other = next((t for t in self if name and t.name == name and t.digest != trial.digest), None)
            if other is not None:
                raise ProjectError(
                    f"Another configuration is called {name!r} already; take its name away first, or choose "
                    "another one."
                )
            if name in PRESETS and PRESETS[name].recipe != trial.recipe:
                raise ProjectError(f"{name!r} is the name of a preset; choose another one.")
            self.add(replace(trial, name=name, named=time.time()))

    def find(self, word: str) -> Trial:
        """The configuration with this name, label or digest (or the beginning of one, six characters at least).

        Raises:
            ProjectError: when there is none, with the nearest name.
        """
        word = str(word).removeprefix("#")
        for trial in self:
            if word and word in (trial.name, trial.label, trial.digest):
                return trial
        found = [trial for trial in self if len(word) >= 6 and trial.digest.startswith(word)]
        if len(found) == 1:
            return found[0]
        names = [trial.label for trial in self]
        raise ProjectError(f"No configuration that was tried is called {word!r}.{nearest(word, names)}")


def front(trials: Sequence[Trial], by: str) -> list[Trial]:
    """The trials that no other beats: none is as small and more accurate, or smaller and as accurate.

    By the estimates of top-1, not by their intervals; what was not evaluated is left out.

    Args:
        trials: to choose from.
        by: a name in ``COSTS``.
    """
    found: list[Trial] = []
    for trial in sorted(_evaluated(trials), key=lambda t: (getattr(t, by), -_top1(t))):
        if not found or _top1(trial) > _top1(found[-1]):
            found.append(trial)
    return found


def _evaluated(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.outcome is not None]


def _top1(trial: Trial) -> float:
    assert trial.outcome is not None
    return trial.outcome.top1


def changes(before: Recipe, after: Recipe, names: Sequence[str], most: int = 3) -> str:
    """What changes from one recipe to another in the layers ``names``, in a line.

    >>> a = Recipe.preset("w8a8")
    >>> changes(a, a.with_layer("fc", weight={"format": "int4"}), ["stem", "fc"])
    'weight int8 → int4 in fc'
    """
    groups: dict[tuple[str, str, Any, Any], list[str]] = {}
    for d in before.diff(after, names):
        groups.setdefault((d.tensor, d.field, d.before, d.after), []).append(d.where)
    words = []
    for (tensor, field, old, new), where in groups.items():
        count = f"all {len(names)} layers" if len(where) == len(names) > 1 else f"{len(where)} layers"
        what = tensor if field == "format" else f"{tensor}.{field}"
        words.append(f"{what} {_word(old)} → {_word(new)} in {', '.join(where) if len(where) < 3 else count}")
    more = [f"and {len(words) - most} more changes"] if len(words) > most else []
    return "; ".join(words[:most] + more)


def _word(value: Any) -> str:
    return "as usual" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def table(trials: Sequence[Trial], present: Recipe, names: Sequence[str]) -> pd.DataFrame:
    """The trials, one row each.

    Columns: label, name, digest, present, top1, top1_low, top1_high, delta, delta_low, delta_high, images,
    total_images, kl, size_bytes, size_ratio, bops, bops_ratio (shares of the float network's), best_by_size,
    best_by_bops (on the front), time (UTC), changes (from the present recipe to this one).
    """
    fronts = {by: {trial.digest for trial in front(trials, by)} for by in COSTS}
    rows = []
    for trial in trials:
        found = trial.outcome
        low, high = found.top1_interval if found else (None, None)
        below, above = found.delta_interval if found else (None, None)
        rows.append(
            {
                "label": trial.label,
                "name": trial.name,
                "digest": trial.digest,
                "present": trial.recipe == present,
                "top1": found.top1 if found else None,
                "top1_low": low,
                "top1_high": high,
                "delta": found.delta if found else None,
                "delta_low": below,
                "delta_high": above,
                "images": found.images if found else 0,
                "total_images": found.total_images if found else 0,
                "kl": found.kl if found else None,
                "size_bytes": trial.size,
                "size_ratio": trial.size / max(trial.size_float, 1),
                "bops": trial.bops,
                "bops_ratio": trial.bops / max(trial.bops_float, 1),
                "best_by_size": trial.digest in fronts["size"],
                "best_by_bops": trial.digest in fronts["bops"],
                "time": pd.Timestamp(trial.time, unit="s").isoformat(timespec="seconds"),
                "changes": changes(present, trial.recipe, names),
            }
        )
    shares = ("top1", "top1_low", "top1_high", "delta", "delta_low", "delta_high", "kl")
    columns = list(table_columns())
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(shares, float))


def table_columns() -> tuple[str, ...]:
    """The columns of :func:`table`."""
    return (
        "label", "name", "digest", "present", "top1", "top1_low", "top1_high", "delta", "delta_low",
        "delta_high", "images", "total_images", "kl", "size_bytes", "size_ratio", "bops", "bops_ratio",
        "best_by_size", "best_by_bops", "time", "changes",
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A tensor that not all configurations quantize alike; ``schemes`` in the order of the configurations."""

    layer: str
    tensor: str
    schemes: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two of the configurations; every difference is ``a`` minus ``b``.

    Args:
        a: the label of the first.
        b: of the second.
        images: on how many images both were evaluated; 0 where one was not.
        won: images that only ``a`` gets right.
        lost: images that only ``b`` gets right.
        delta: difference of top-1; None where one was not evaluated.
        delta_interval: its 95% interval, paired (Tango), for this pair by itself.
        distinguishable: the interval leaves zero out.
        images_needed: how many images in all would show a difference as large as the one observed.
        size_delta: bytes.
        bops_delta: bit operations for one image.
        layers: how many layers differ.
        kl: the divergence of each from float, nats, on its own images; None where it was not evaluated.
        kl_intervals: their 95% intervals, each for itself.
        graded: scores are not just right or wrong, so that ``won`` and ``lost`` count those that grew and fell.
    """

    a: str
    b: str
    images: int
    won: int
    lost: int
    delta: float | None
    delta_interval: Interval | None
    distinguishable: bool
    images_needed: int | None
    size_delta: int
    bops_delta: int
    layers: int
    kl: tuple[float | None, ...] = (None, None)
    kl_intervals: tuple[Interval | None, ...] = (None, None)
    graded: bool = False

    @property
    def verdict(self) -> str:
        """Which of the two is better, in a few words."""
        if not self.layers:
            return "the same for this network"
        if self.delta is None:
            return "not both evaluated"
        if self.distinguishable:
            return f"{self.a if self.delta > 0 else self.b} {'scores higher' if self.graded else 'is more accurate'}"
        text = f"not distinguishable on {self.images:,} images"
        if self.images_needed is None:
            return text
        return f"{text}; about {float(f'{self.images_needed:.2g}'):,.0f} would tell"


@dataclass(frozen=True)
class Differences:
    """In what two or more configurations differ.

    Args:
        labels: theirs, in the order in which they were given.
        rows: the tensors that not all of them quantize alike, in the order of execution.
        pairs: each two of them.
        agreement: no labels were known, so that top-1 is the agreement with the float network.
    """

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    agreement: bool = False

    @property
    def layers(self) -> pd.DataFrame:
        """The rows as a table: layer, tensor, and a column for each configuration."""
        rows = [(row.layer, row.tensor, *row.schemes) for row in self.rows]
        return pd.DataFrame(rows, columns=["layer", "tensor", *self.labels])

    @property
    def table(self) -> pd.DataFrame:
        """The pairs as a table, ``verdict`` included."""
        rows = [{**vars(pair), "verdict": pair.verdict} for pair in self.pairs]
        found = pd.DataFrame(rows, columns=[*Pair.__dataclass_fields__, "verdict"])
        found[["delta_low", "delta_high"]] = [pair.delta_interval or (None, None) for pair in self.pairs]
        found[["kl_a", "kl_b"]] = [pair.kl for pair in self.pairs]
        return found.drop(columns=["delta_interval", "kl", "kl_intervals", "graded"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pairs = [{**asdict(pair), "verdict": pair.verdict} for pair in self.pairs]
        return finite({**asdict(self), "pairs": pairs})


def rows_of(recipes: Sequence[Recipe], names: Iterable[str]) -> tuple[Row, ...]:
    """The tensors of the layers ``names`` that not all recipes quantize alike."""
    found = []
    for name in names:
        configs = [recipe.config(name) for recipe in recipes]
        for tensor in TENSORS:
            schemes = [getattr(config, tensor) for config in configs]
            if len({scheme.key for scheme in schemes}) > 1:
                found.append(Row(name, tensor, tuple(scheme.describe() for scheme in schemes)))
    return tuple(found)


def won_and_lost(a: Outcome, b: Outcome, images: Iterable[int]) -> tuple[int, int]:
    """How many of ``images`` only the first gets right, and how many only the second.

    Both are known against the float network: on an image that neither wins nor loses, both do as it does.
    """
    among = set(images)
    won_a, lost_a, won_b, lost_b = (set(each) & among for each in (a.won, a.lost, b.won, b.lost))
    return len(won_a - won_b) + len(lost_b - lost_a), len(won_b - won_a) + len(lost_a - lost_b)


def pair_of(
    a: Trial,
    b: Trial,
    labels: tuple[str, str],
    names: Iterable[str],
    order: Sequence[int],
    images: int | None,
) -> Pair:
    """Two trials beside each other, on the images that both have seen.

    Args:
        a: the first.
        b: the second.
        labels: what they are called.
        names: the layers.
        order: the images' numbers in the order in which evaluations see them.
        images: how many at most.
    """
    won = lost = seen = 0
    delta, interval, enough = None, None, None
    if a.outcome is not None and b.outcome is not None:
        seen = min(a.outcome.images, b.outcome.images, len(order), images or len(order))
        if a.outcome.scores and b.outcome.scores:
            one, other = (np.array(outcome.scores[:seen]) for outcome in (a.outcome, b.outcome))
            won, lost = int((one > other).sum()), int((one < other).sum())
            delta, interval = score_change(one, other)
            enough = needed_for(one, other, interval)[0]
        else:
            won, lost = won_and_lost(a.outcome, b.outcome, order[:seen])
            delta, interval = (won - lost) / seen, paired(won, lost, seen)
            enough = needed(won, lost, seen, interval)[0]
    return Pair(
        a=labels[0],
        b=labels[1],
        images=seen,
        won=won,
        lost=lost,
        delta=delta,
        delta_interval=interval,
        distinguishable=interval is not None and not interval[0] <= 0 <= interval[1],
        images_needed=enough,
        size_delta=a.size - b.size,
        bops_delta=a.bops - b.bops,
        layers=len({row.layer for row in rows_of((a.recipe, b.recipe), names)}),
        kl=tuple(trial.outcome.kl if trial.outcome else None for trial in (a, b)),
        kl_intervals=tuple(trial.outcome.kl_interval if trial.outcome else None for trial in (a, b)),
        graded=any(trial.outcome is not None and bool(trial.outcome.scores) for trial in (a, b)),
    )


def differences(
    trials: Sequence[Trial],
    labels: Sequence[str],
    names: Sequence[str],
    order: Sequence[int],
    images: int | None = None,
) -> Differences:
    """In what trials differ: tensor by tensor, and in cost and accuracy two by two.

    Args:
        trials: two or more.
        labels: what they are called, all different.
        names: the layers, in the order of execution.
        order: the images' numbers in the order in which evaluations see them.
        images: on how many images at most they are compared.
    """
    pairs = tuple(
        pair_of(trials[i], trials[j], (labels[i], labels[j]), names, order, images)
        for i in range(len(trials))
        for j in range(i + 1, len(trials))
    )
    agreement = any(trial.outcome is not None and trial.outcome.agreement for trial in trials)
    rows = rows_of([trial.recipe for trial in trials], names)
    return Differences(tuple(labels), rows, pairs, agreement)
