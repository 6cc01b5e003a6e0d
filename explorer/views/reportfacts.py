"""What a report says, as plain values: gathered from a session, written by :mod:`explorer.views.report`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import pandas as pd

from explorer.cost import Cost, cost
from explorer.recipe import TENSORS, Recipe
from explorer.session import Session
from explorer.sources import DataFacts, Notes
from explorer.study import METRICS, Diagnosis, Differences, Evaluation, Histogram, Metric, Trial

# Histograms are drawn of so many layers at most: each takes some 40 kB of the file.
MOST_LAYERS = 12
PACKAGES = ("quantization-explorer", "torch", "bokeh", "numpy")
# Parts that take long and may therefore be of a recipe that is not the present one any more.
PARTS = ("evaluation", "sensitivity", "diagnosis")


@dataclass(frozen=True, eq=False)
class Facts:
    """All that a report says.

    Args:
        model: the network's name.
        data: the evaluation images' name.
        calibration: which images have set the fixed ranges.
        recipe: what is reported on.
        layers: ``session.layers()`` under it.
        now: what the network costs under it.
        floats: what it costs in float.
        weights_sha256: of the weights as they were loaded.
        images_sha256: of the images that the evaluation is from; empty where there is none.
        images: how many these are.
        date: when, with the time zone.
        versions: of this program and of what computes and draws.
        evaluation: the latest, or None.
        histograms: in the order of execution.
        left_out: how many layers have no histogram here.
        sensitivity: a table of ``session.sensitivity``, or None.
        diagnosis: the latest, or None.
        notes: the reviewer's.
        stale: those of ``PARTS`` that are of another recipe.
        trials: configurations beside each other; the present one may be among them.
        differences: in what they differ, for two or more.
        prepared: what the images are and what happens to them.
        metric: what the network is measured by.
    """

    model: str
    data: str
    calibration: str
    recipe: Recipe
    layers: pd.DataFrame
    now: Cost
    floats: Cost
    weights_sha256: str
    images_sha256: str
    images: int
    date: str
    versions: dict[str, str]
    evaluation: Evaluation | None = None
    histograms: tuple[Histogram, ...] = ()
    left_out: int = 0
    sensitivity: pd.DataFrame | None = None
    diagnosis: Diagnosis | None = None
    notes: Notes = field(default_factory=Notes)
    stale: frozenset[str] = frozenset()
    trials: tuple[Trial, ...] = ()
    differences: Differences | None = None
    prepared: DataFacts | None = None
    metric: Metric = METRICS["top1"]

    @property
    def label(self) -> str:
        """What the present recipe is called; nothing where it has no name."""
        return next((trial.label for trial in self.trials if trial.digest == self.recipe.digest), "")


def versions() -> dict[str, str]:
    """Of this program and of what computes and draws, as installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def drawn_layers(session: Session, layers: pd.DataFrame, wanted: Iterable[str] = ()) -> tuple[str, ...]:
    """The layers whose histograms a report has, in the order of execution.

    Those that are ``wanted``, else those whose weights have suffered most, ``MOST_LAYERS`` of them.
    """
    chosen = [name for name in session.layer_names if name in set(wanted)] or list(session.layer_names)
    noise = dict(zip(layers["name"], layers["weight_sqnr_db"].fillna(float("inf")), strict=True))
    worst = set(sorted(chosen, key=lambda name: noise[name])[:MOST_LAYERS])
    return tuple(name for name in session.layer_names if name in worst)


def _histograms(session: Session, names: Sequence[str], layers: pd.DataFrame) -> tuple[Histogram, ...]:
    """Of the weights and inputs of layers, where they have them."""
    rows = layers.set_index("name")
    return tuple(
        session.histogram(name, tensor)
        for name in names
        for tensor in TENSORS
        if isinstance(rows.loc[name, tensor], str)
    )


def gather(
    session: Session,
    evaluation: Evaluation | None = None,
    sensitivity: pd.DataFrame | None = None,
    diagnosis: Diagnosis | None = None,
    stale: Iterable[str] = (),
    wanted: Iterable[str] = (),
    notes: Notes | None = None,
    trials: Sequence[Trial] = (),
) -> Facts:
    """The facts about a session's present recipe; computes what is quick, takes what is not.

    Args:
        session: nobody else changes its recipe meanwhile.
        evaluation: the latest; one of another recipe is marked as such.
        sensitivity: a table of ``session.sensitivity``.
        diagnosis: the latest.
        stale: those of ``PARTS`` that are of another recipe.
        wanted: the layers whose histograms are drawn; none takes the worst.
        notes: the reviewer's.
        trials: configurations to be set side by side, as they are: nothing is evaluated.
    """
    subject, recipe = session.subject, session.recipe
    layers = session.layers()
    names = drawn_layers(session, layers, wanted)
    old = set(stale)
    if evaluation is not None and evaluation.recipe != recipe.digest:
        old.add("evaluation")
    # Only images that have been read: a data set may take long to go through.
    images = evaluation.images if evaluation is not None else 0
    return Facts(
        session.model_name, session.data_name, subject.calibration_name, recipe, layers,
        cost(session.graph, recipe), cost(session.graph, Recipe.preset("fp32")),
        subject.weights_sha256, subject.images_sha256(images) if images else "", images,
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), versions(), evaluation,
        _histograms(session, names, layers), len(session.layer_names) - len(names), sensitivity, diagnosis,
        notes or Notes(), frozenset(old), tuple(trials),
        session.differences_of(trials) if len(trials) > 1 else None, session.data_facts,
        session.metric,
    )  # fmt: skip
