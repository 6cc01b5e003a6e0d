"""The session: a network, images, a recipe and its history.  The one mutable object."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from explorer.calibrate import Sample
from explorer.concise import concise
from explorer.cost import cost
from explorer.errors import (
    LayerError,
    ModelError,
    ParametersError,
    ProjectError,
    RecipeError,
    SchemeError,
    nearest,
    unknown,
)
from explorer.formats import FloatFormat, IntegerFormat, QParams, encode, fake_quantize_
from explorer.graph import Batch, Calibration, Engine, Graph, Layer, Plan, plan
from explorer.graph.fakequant import quantize_activation
from explorer.recipe import PRESETS, Recipe, TensorScheme
from explorer.sources import DataFacts, LoadedModel, Notes, Preprocess, Project, read_foreign
from explorer.study import (
    DEFAULT_FORMATS,
    MEASURES,
    METHODS,
    OWN,
    Additivity,
    Against,
    Channels,
    Check,
    Comparison,
    Curves,
    Diagnosis,
    Differences,
    Effect,
    Evaluation,
    ForeignParameters,
    ForeignTensor,
    Histogram,
    Jackknife,
    Lens,
    Metric,
    NumberLine,
    Ours,
    Outcome,
    Patient,
    Resolving,
    Source,
    Sweep,
    Trial,
    Trials,
    additivity,
    against_of,
    by_loss,
    check_steps,
    compare_steps,
    curve_steps,
    depth_steps,
    diagnosis_steps,
    dynamic_channels,
    effect,
    evaluate_steps,
    harm,
    histogram_of,
    input_channels,
    jackknife_steps,
    layer_reports,
    lens_of,
    number_line,
    rows_for,
    rows_without,
    weight_channels,
)
from explorer.study.depth import IMAGES as DEEP
from explorer.study.diagnosis import IMAGES as DIAGNOSED
from explorer.study.evaluate import check_interval
from explorer.study.grouped import Grouped, grouped_input, grouped_weight
from explorer.study.histogram import clipped_share
from explorer.study.local import output_error
from explorer.study.rivals import LADDER, Rival, rivals
from explorer.study.rivals import table as rivals_table
from explorer.study.trials import changes, counts, differences
from explorer.study.trials import table as trials_table
from explorer.subject import DEFAULT_MODEL, Subject, make_subject
from explorer.tensor import SchemeLike, apply, as_scheme, entropy_bits, fit_tensor, oversized
from explorer.workers import Hands

_KEEP_HISTORY = 200


def _check_bins(bins: int) -> None:
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 1 << 16:
        raise SchemeError(f"A histogram has from 1 to 65536 bins, not {bins!r}.")


class Session:
    """A network under a recipe that may be changed, and all that can be asked of it.

    Args:
        model: a shipped name, ``torchvision:NAME``, ``file.py:factory``, ``package.module:factory``, or a
            ``torch.nn.Module`` from images to class scores.
        data: the images to evaluate on: a shipped name, a folder, an ``.npz``, a loader, a pair of arrays.
        calibration: the images that set activation ranges; None takes the shipped ones, else some of ``data``.
        evaluation: another name for ``data``.
        example: one batch for capturing; None takes the first image.
        checkpoint: a file of weights, loaded without executing anything.
        preprocess: for example ``"mean=0.5 std=0.25 resize=256 crop=224"``.
        recipe: to begin with, or a preset's name.
        calibration_images: how many of the calibration images are used.
        fold: fold BatchNorm into the layer before it.
        store_bytes: budget for intermediate results; None shares one store of a quarter of the free memory.
        seed: of the order in which images are seen, and of ``subset``.
        store_folder: keeps what takes long to compute for other processes; None keeps it in memory only.
        subject: a network and images that another session has loaded; the arguments above, ``recipe`` apart,
            are then left out.
        project: a folder of yours in which the configurations tried outlive the process; None keeps them in memory.
        output: the name or index of the result that is wanted (``"out"``, ``0``, ``"features.1"``), of a network
            that returns several.
        subset: so many of the images, drawn with the same share of each class, are all that is evaluated on; None
            takes all.
        download: let a library fetch the weights that ``model`` names; otherwise they must be on this machine.
        executor: evaluations, comparisons, exact sensitivities and what a diagnosis tries are computed there: any
            executor of ``concurrent.futures``, or a Dask client.  Results are the same to the last bit.
        metric: what the network is measured by: a name in ``explorer.study.METRICS``, a function of (outputs, targets)
            that gives one score for each example, larger being better, ``file.py:function``, or a ``Metric``.  None
            takes top-1 for results (images, classes), and otherwise what suits their shape.
        device: where the network is computed: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``, which takes CUDA where there
            is some.  Results come back to the CPU, and differ between devices by rounding.

    Raises:
        JobError: for workers that cannot be reached or do not fit, and a device that is not there.
        MetricError: for a metric that does not exist or does not fit.
        ModelError, CheckpointError, DataError, RecipeError: for what cannot be read or does not fit.
        ProjectError: for a project folder that cannot be written to.
    """

    def __init__(
        self,
        model: str | nn.Module | LoadedModel = DEFAULT_MODEL,
        data: Any = None,
        calibration: Any = None,
        evaluation: Any = None,
        example: Tensor | None = None,
        checkpoint: Any = None,
        preprocess: Preprocess | str | None = None,
        recipe: Recipe | str = "w8a8",
        calibration_images: int = 512,
        fold: bool = True,
        store_bytes: int | None = None,
        seed: int = 0,
        subject: Subject | None = None,
        store_folder: str | os.PathLike[str] | None = None,
        project: str | os.PathLike[str] | None = None,
        output: str | int | None = None,
        subset: int | None = None,
        download: bool = False,
        executor: Executor | Hands | None = None,
        metric: str | Metric | Callable[..., Tensor] | None = None,
        device: str = "cpu",
    ) -> None:
        self.subject = subject or make_subject(
            model, data, calibration, evaluation, example, checkpoint, preprocess, calibration_images,
            fold, store_bytes, seed, store_folder, output, subset, download, executor, metric, device,
        )  # fmt: skip
        first = self._checked(Recipe.preset(recipe) if isinstance(recipe, str) else recipe)
        # A reviewer's, for the report; no part of the recipe or its history.
        self.notes = Notes()
        self._history = [first]
        self._at = 0
        self._revision = 0
        self._joined = ""
        self._fitted: dict[tuple[str, str], QParams] = {}
        self._listeners: list[Callable[[], None]] = []
        self._histograms: dict[tuple[str, str, str, int], Histogram] = {}
        self._latest_sample: tuple[tuple[str, int], Sample] | None = None
        self.project: Project | None = None
        self._tried = Trials()
        self._owner = ""
        if project is not None:
            about = {"model": self.model_name, "data": self.data_name}
            self.project = Project(project, self.subject.key, about)
            self._tried = Trials(self.project.trials(), self.project.keep)

    # -- what is explored -------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """The network's name."""
        return self.subject.name

    @property
    def data_name(self) -> str:
        """The evaluation images' name."""
        return self.subject.evaluation.data.name

    @property
    def data_facts(self) -> DataFacts:
        """The evaluation images: which, what happens to them before the network sees them, what could not be read."""
        return self.subject.data_facts

    @property
    def graph(self) -> Graph:
        """The captured network."""
        return self.subject.graph

    @property
    def engine(self) -> Engine:
        """What evaluates the network."""
        return self.subject.engine

    @property
    def metric(self) -> Metric:
        """What the network is measured by."""
        return self.subject.metric

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The quantizable layers, in the order of execution."""
        return tuple(layer.name for layer in self.graph.layers if layer.quantizable)

    @property
    def total_images(self) -> int:
        """How many evaluation images there are."""
        return self.subject.evaluation.count(None)

    # -- the recipe and its history ---------------------------------------------------------------

    def _checked(self, recipe: Recipe) -> Recipe:
        if not isinstance(recipe, Recipe):
            raise SchemeError(f"A recipe is a Recipe or a preset's name, not {recipe!r}.")
        recipe.check(self.layer_names)
        for name in self.layer_names:
            layer = self.graph.by_layer[name]
            if layer.weight is not None:
                shape = self.graph.constants[layer.weight].shape
                reason = oversized(recipe.config(name).weight, shape, layer.axis)
                if reason:
                    raise RecipeError(f"The weight of {name!r}: {reason}")
        return recipe

    @property
    def recipe(self) -> Recipe:
        """The present recipe; assigning another one makes a step of history."""
        return self._history[self._at]

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        recipe = self._checked(recipe)
        if recipe == self.recipe:
            return
        self._joined = ""
        self._history = [*self._history[: self._at + 1], recipe][-_KEEP_HISTORY:]
        self._at = len(self._history) - 1
        self._changed()

    @property
    def revision(self) -> int:
        """A number that grows with each change of the recipe."""
        return self._revision

    @property
    def can_undo(self) -> bool:
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        return self._at < len(self._history) - 1

    def undo(self) -> None:
        """Go back to the recipe before; does nothing at the first."""
        if self.can_undo:
            self._at -= 1
            self._joined = ""
            self._changed()

    def redo(self) -> None:
        """Take back an undo; does nothing at the last."""
        if self.can_redo:
            self._at += 1
            self._joined = ""
            self._changed()

    def _changed(self) -> None:
        self._revision += 1
        self._keep_steps()
        for listener in list(self._listeners):
            listener()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener()`` after each change of the recipe, until the returned function is called."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def edit(
        self,
        layers: Iterable[str],
        weight: Mapping[str, Any] | TensorScheme | None = None,
        input: Mapping[str, Any] | TensorScheme | None = None,
        join: str = "",
    ) -> None:
        """Change some fields of some layers in one step of history.

        Where the recipe can say the same of this network's layers in fewer lines, it then does.

        Args:
            layers: their names.
            weight: the fields of their weights that change, or a scheme.
            input: the same of their inputs.
            join: edits that follow each other with the same text here make one step: the movement of a slider.

        Raises:
            LayerError: for a name that is no quantizable layer.
            RecipeError: for a field or value that does not exist or does not go with the others; the recipe
                then stays as it was.
        """
        recipe = self.recipe
        for name in layers:
            self._layer(name)
            recipe = recipe.with_layer(name, weight=weight, input=input)
        recipe = concise(recipe, self.layer_names)
        if join and join == self._joined and recipe != self.recipe:
            # What this movement has changed so far gives way.
            self._history[self._at] = self._checked(recipe)
            self._changed()
        else:
            self.recipe = recipe
        self._joined = join

    def _layer(self, name: str) -> Layer:
        layer = self.graph.by_layer.get(name)
        if layer is None:
            names = list(self.graph.by_layer)
            raise LayerError(f"This network has no layer {name!r}.{nearest(name, names)}")
        if not layer.quantizable:
            raise LayerError(f"The layer {name!r} stays in float: {layer.reason}.")
        return layer

    # -- what was tried ---------------------------------------------------------------------------

    def _trial(self, recipe: Recipe, outcome: Outcome | None = None) -> Trial:
        now, floats = cost(self.graph, recipe), cost(self.graph, Recipe.preset("fp32"))
        return Trial(recipe, now.size, floats.size, now.bops, floats.bops, outcome, time.time())

    def _noted(self, recipe: Recipe, steps: Iterator[Evaluation]) -> Iterator[Evaluation]:
        """The steps of an evaluation; that the recipe was tried is noted once it counts, and when they end."""
        latest = noted = None
        try:
            for latest in steps:
                if latest.stopped or (noted is None and counts(latest)):
                    noted = latest
                    self._tried.add(self._trial(recipe, Outcome.of(latest)))
                yield latest
        finally:
            if latest is not None and latest is not noted and counts(latest):
                self._tried.add(self._trial(recipe, Outcome.of(latest)))

    def trials(self) -> pd.DataFrame:
        """The configurations evaluated on 200 images or more, or named, one row each, the latest last.

        Columns: label, name, digest, present, top1, top1_low, top1_high, delta, delta_low, delta_high, images,
        total_images, kl, size_bytes, size_ratio, bops, bops_ratio (shares of the float network's), best_by_size,
        best_by_bops (no other is as small and more accurate), time (UTC), changes (from the present recipe).
        Those of earlier sessions are among them where there is a project folder.
        """
        return trials_table(list(self._tried), self.recipe, self.layer_names)

    @property
    def tried(self) -> Trials:
        """The configurations tried, as values."""
        return self._tried

    def name(self, name: str, recipe: Recipe | str | None = None) -> None:
        """Give a configuration (the present one if None) a name; an empty one takes its name away.

        Raises:
            ProjectError: for what is no name of one line, or is another configuration's or a preset's.
        """
        chosen = self._chosen(recipe)
        self._tried.name(self._tried.get(chosen.digest) or self._trial(chosen), name)

    def restore(self, name: str) -> None:
        """Bring back a configuration that was tried, by its name, label or digest: one step of history.

        Raises:
            ProjectError: when there is none, with the nearest name.
        """
        self.recipe = self._tried.find(name).recipe

    def differences(
        self,
        configurations: Iterable[Recipe | str],
        images: int | None = None,
        labels: Sequence[str] | None = None,
    ) -> Differences:
        """In what two or more configurations differ: tensor by tensor, and two by two in size, BOPs and accuracy.

        What has not been evaluated yet, or on fewer images, is evaluated.  Accuracies are compared image by image,
        on those that both have seen; the interval of each pair is for this pair by itself.

        Args:
            configurations: recipes, names of presets, or names, labels and digests of what was tried.
            images: how many images at most; None for all.
            labels: what to call them; None for their names, their presets' or their digests.

        Raises:
            ProjectError: for fewer than two, or one that does not exist.
            RecipeError, DataError: as in :meth:`evaluate_steps`.
        """
        found = [self._configuration(each) for each in configurations]
        if len(found) < 2:
            raise ProjectError(f"Differences are between two configurations or more, not {len(found)}.")
        wanted = self.subject.evaluation.count(images)
        for recipe in dict.fromkeys(found):
            known = self._tried.get(recipe.digest)
            if known is None or known.outcome is None or known.outcome.images < wanted:
                self.evaluate(recipe, wanted)
        trials = [self._tried.get(recipe.digest) for recipe in found]
        return self.differences_of([trial for trial in trials if trial is not None], wanted, labels)

    def differences_of(
        self, trials: Sequence[Trial], images: int | None = None, labels: Sequence[str] | None = None
    ) -> Differences:
        """As :meth:`differences`, of trials as they are: nothing is evaluated."""
        labels = [trial.label for trial in trials] if labels is None else list(labels)
        twice = {label for label in labels if labels.count(label) > 1}
        labels = [f"{label} ({i + 1})" if label in twice else label for i, label in enumerate(labels)]
        order = self.subject.evaluation.order
        return differences(trials, labels, self.layer_names, order, images)

    def _configuration(self, which: Recipe | str) -> Recipe:
        if isinstance(which, Recipe):
            return self._checked(which)
        return self._chosen(which) if which in PRESETS else self._tried.find(which).recipe

    def changes(self, recipe: Recipe) -> str:
        """What changes from the present recipe to another one, in a line."""
        return changes(self.recipe, recipe, self.layer_names)

    def resume(self, owner: str) -> bool:
        """Go on where ``owner`` has left off, and keep the steps of history for it from now on.

        Args:
            owner: a digest that tells browser tabs apart.

        Returns:
            Whether there was something to go on with.  Without a project folder there is not.
        """
        if self.project is None:
            return False
        found, self._owner = self.project.steps(owner), owner
        steps, at = self._usable(*found) if found is not None else ([], 0)
        if steps:
            self._history, self._at, self._joined = steps, at, ""
            self._changed()
        return bool(steps)

    def _usable(self, recipes: Sequence[Recipe], at: int) -> tuple[list[Recipe], int]:
        """The steps that this program accepts, and the place of the present one among them."""
        kept, place = list[Recipe](), 0
        for number, recipe in enumerate(recipes):
            try:
                kept.append(self._checked(recipe))
            except RecipeError:
                continue
            place += number < at
        return kept, min(place, max(len(kept) - 1, 0))

    def _keep_steps(self) -> None:
        if self.project is not None and self._owner:
            self.project.keep_steps(self._owner, self._history, self._at)

    # -- questions --------------------------------------------------------------------------------

    def plan(self, recipe: Recipe | None = None) -> Plan:
        """A recipe worked out: ranges that take images are found on the calibration images if they are not yet."""
        recipe = self.resolve(recipe)
        calibration = self.subject.calibration
        calibration.prepare(recipe)
        return plan(self.graph, recipe, calibration.params, calibration.weight_params)

    def resolve(self, recipe: Recipe | str | None = None) -> Recipe:
        """The recipe (the present one if None) with explicit ranges in place of ``objective: cross_entropy``.

        Each such tensor gets ``clip:F``, F being the share of each group's full range under which the network's
        loss on calibration images was least, or ``mse`` where no share did better.  Other recipes stay as they are.

        Raises:
            RecipeError: when the recipe does not fit the network.
            DataError: when there are no calibration images.
        """
        return self.subject.resolver.resolve(self._chosen(recipe))

    def resolve_steps(self, recipe: Recipe | str | None = None) -> Iterator[Resolving]:
        """As :meth:`resolve`, in steps, so that somebody may watch and stop; the last has the explicit recipe.

        The ranges that the recipe takes images for are all there afterwards, also those of other objectives.
        """
        yield from self.subject.resolver.steps(self._chosen(recipe))

    def layers(self, recipe: Recipe | None = None) -> pd.DataFrame:
        """The layers under a recipe, one row each, in the order of execution.

        Columns: name, op, shape, parameters, macs, weight, input, weight_bits, input_bits, weight_sqnr_db,
        size_bytes, quantizable, reason, weight_bits_per_value (scales and zero points counted), shares (the layer
        before it that has the same weight, if any).
        The SQNR of inputs is not among them, for it takes images; that of weights takes none but for the objectives
        ``output`` and ``cross_entropy``.
        """
        recipe = self.recipe if recipe is None else self._checked(recipe)
        explicit = self.resolve(recipe)
        configs = {name: explicit.config(name) for name in self.layer_names}
        weights = self.subject.calibration.weights(explicit)
        weights_only = Plan(self.graph, configs, {}, {}, weights)
        reports = layer_reports(self.engine, weights_only, cost(self.graph, recipe))
        table = pd.DataFrame([vars(report) for report in reports]).drop(columns="input_sqnr_db")
        table["shape"] = ["x".join(map(str, report.shape)) for report in reports]
        for column in ("weight_bits", "input_bits"):
            table[column] = table[column].astype("Int64")
        for column in ("weight_sqnr_db", "weight_bits_per_value"):
            table[column] = table[column].astype(float)
        return table

    def _chosen(self, recipe: Recipe | str | None) -> Recipe:
        if recipe is None:
            return self.recipe
        return self._checked(Recipe.preset(recipe) if isinstance(recipe, str) else recipe)

    def evaluate_steps(
        self,
        recipe: Recipe | str | None = None,
        images: int | None = None,
        interval: float | None = None,
    ) -> Iterator[Evaluation]:
        """Better and better evaluations of a recipe (the present one if None), one after each batch.

        Args:
            recipe: a recipe or a preset's name.
            images: how many images at most, None for all.
            interval: end as soon as the 95% interval of the difference to float is as narrow as this share
                (0.01 is one point), though not before 200 images.

        Raises:
            RecipeError: when the recipe does not fit the network.
            DataError: when images or labels do not fit the network, an image cannot be read, or the
                interval is no width above 0 and up to 2.
        """
        check_interval(interval, self.metric.unit)
        chosen, stream = self._chosen(recipe), self.subject.evaluation
        steps = evaluate_steps(
            self.engine,
            self.plan(chosen),
            self.subject.floats,
            chosen,
            stream.batches(images),
            stream.count(images),
            self.model_name,
            self.data_name,
            self.subject.calibration_name,
            interval,
            self.subject.elsewhere,
            metric=self.metric,
        )
        yield from self._noted(chosen, steps)

    def evaluate(
        self,
        recipe: Recipe | str | None = None,
        images: int | None = None,
        interval: float | None = None,
    ) -> Evaluation:
        """The last of the evaluations of a recipe; see :meth:`evaluate_steps`."""
        return deque(self.evaluate_steps(recipe, images, interval), maxlen=1)[0]

    def check_steps(
        self, max_drop: float, recipe: Recipe | str | None = None, images: int | None = None
    ) -> Iterator[Check]:
        """Whether a recipe (the present one if None) costs more accuracy than is allowed: more and more certain.

        It ends as soon as a larger drop is established or excluded, or when all images are seen.

        Args:
            max_drop: what is allowed, as a share: 0.005 is half a point; of a metric that is no share as a number.
            recipe: a recipe or a preset's name.
            images: how many images at most, None for all.

        Raises:
            SchemeError: for a drop that is no share from 0 to below 1.
            RecipeError, DataError: as in :meth:`evaluate_steps`.
        """
        yield from check_steps(self.evaluate_steps(recipe, images), max_drop, unit=self.metric.unit)

    def check(self, max_drop: float, recipe: Recipe | str | None = None, images: int | None = None) -> Check:
        """The last of :meth:`check_steps`: its ``verdict`` is ``excluded``, ``established`` or ``undecided``."""
        return deque(self.check_steps(max_drop, recipe, images), maxlen=1)[0]

    def compare_steps(
        self,
        recipe_a: Recipe | str,
        recipe_b: Recipe | str | None = None,
        images: int | None = None,
        interval: float | None = None,
    ) -> Iterator[Comparison]:
        """Sharper and sharper comparisons of two recipes on the same images, one after each batch.

        Args:
            recipe_a: a recipe or a preset's name.
            recipe_b: what it is compared with, the present recipe if None.
            images: how many images at most, None for all.
            interval: end as soon as the 95% interval of the difference is as narrow as this share.

        Raises:
            RecipeError, DataError: as in :meth:`evaluate_steps`.
        """
        check_interval(interval, self.metric.unit)
        recipes, stream = (self._chosen(recipe_a), self._chosen(recipe_b)), self.subject.evaluation
        yield from compare_steps(
            self.engine,
            (self.plan(recipes[0]), self.plan(recipes[1])),
            self.subject.floats,
            recipes,
            stream.batches(images),
            stream.count(images),
            self.total_images,
            self.model_name,
            self.data_name,
            self.subject.calibration_name,
            interval,
            self.subject.elsewhere,
            metric=self.metric,
        )

    def compare(
        self,
        recipe_a: Recipe | str,
        recipe_b: Recipe | str | None = None,
        images: int | None = None,
        interval: float | None = None,
    ) -> Comparison:
        """The last of the comparisons of two recipes; see :meth:`compare_steps`."""
        return deque(self.compare_steps(recipe_a, recipe_b, images, interval), maxlen=1)[0]

    def sensitivity_steps(
        self,
        formats: Sequence[str] | str | None = None,
        measure: str | None = None,
        method: str = "exact",
        tensor: str = "weight",
        images: int | None = None,
        layers: Iterable[str] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """Sharper and sharper tables of sensitivities: columns layer, format, tensor, method, measure, value,
        low, high, images, complete, weight_sqnr_db, output_sqnr_db, reason.

        Granularity, symmetry and objective of each layer are those of the present recipe.  ``method`` says
        of each value which tier it is from: ``instant`` values are estimates, with the interval of their sample.
        ``reason`` is empty but for a row under which class scores are infinite or NaN (``overflow: infinity``):
        its value is infinite then (minus infinity for ``sqnr``, NaN for ``top1``), and the others go on.

        Args:
            formats: which formats to try at every layer, ``recipe`` for the layer's own; None takes int8, int4
                and int2.
            measure: ``kl``, ``loss``, ``top1``, ``sqnr``, ``error`` (1 over the SQNR) or ``score``; None takes ``kl``,
                and ``error`` where results are no scores of classes.
            method: ``weight``, ``output``, ``instant``, ``exact``, ``leave_one_out`` or ``live``.
            tensor: ``weight``, ``input`` or ``both``.
            images: how many evaluation images, None for all.
            layers: which layers, None for all.

        Raises:
            SchemeError: for a format, measure, method or tensor that does not exist or does not go together.
        """
        return self._sensitivity_steps(formats, measure, method, tensor, images, layers)

    def _sensitivity_steps(
        self,
        formats: Sequence[str] | str | None,
        measure: str | None,
        method: str,
        tensor: str,
        images: int | None,
        layers: Iterable[str] | None,
        shown: bool = True,
    ) -> Iterator[pd.DataFrame]:
        """Those of :meth:`sensitivity_steps`; fewer where nobody looks at any but the last."""
        if method not in METHODS:
            raise SchemeError(unknown("method", method, METHODS))
        chosen = METHODS[method]
        if measure is None:
            usual = harm(self.metric)
            measure = usual if usual in chosen.measures else chosen.measures[0]
        if measure in MEASURES and measure not in chosen.measures:
            raise SchemeError(
                f"The method {method!r} looks at one layer alone, where {measure!r} cannot be measured; "
                f"use measure sqnr, or the method instant or exact."
            )
        if formats is not None and not chosen.formats:
            raise SchemeError(
                f"The method {method!r} takes each layer as the recipe has it, so formats have no effect; "
                "leave them out."
            )
        if method == "weight" and tensor == "input":
            raise SchemeError("The method 'weight' looks at weights only; use the method output for inputs.")
        sweep = replace(self._sweep(formats, measure, tensor, images, layers, chosen.formats), shown=shown)
        if not chosen.formats and self.subject.resolver.coordinates(self.recipe):
            # What is compared differs by one layer, so its ranges are those of the whole recipe.
            whole = replace(sweep, rows=[replace(row, recipe=self.recipe) for row in sweep.rows])
            yield from whole.resolve_steps(method)
            explicit = self.resolve()
            rows = rows_without([self.graph.by_layer[row.layer] for row in sweep.rows], tensor, explicit)
            sweep = replace(sweep, rows=rows, recipe=explicit)
        yield from sweep.resolve_steps(method)
        yield from chosen.steps(sweep)

    def _sweep(
        self,
        formats: Sequence[str] | str | None,
        measure: str,
        tensor: str,
        images: int | None,
        layers: Iterable[str] | None,
        alone: bool = True,
    ) -> Sweep:
        found = [self._layer(name) for name in (self.layer_names if layers is None else layers)]
        names = (
            DEFAULT_FORMATS if formats is None else [formats] if isinstance(formats, str) else list(formats)
        )
        subject = self.subject
        return Sweep(
            engine=self.engine,
            floats=subject.floats,
            calibration=subject.calibration,
            resolver=subject.resolver,
            batches=subject.evaluation.batches,
            total=subject.evaluation.count(images),
            rows=rows_for(found, names, tensor, self.recipe)
            if alone
            else rows_without(found, tensor, self.recipe),
            measure=measure,
            tensor=tensor,
            recipe=self.recipe,
            elsewhere=subject.elsewhere,
            metric=self.metric,
        )

    def sensitivity(
        self,
        formats: Sequence[str] | str | None = None,
        measure: str | None = None,
        method: str = "exact",
        tensor: str = "weight",
        images: int | None = None,
        layers: Iterable[str] | None = None,
    ) -> pd.DataFrame:
        """The table of sensitivities; see :meth:`sensitivity_steps`."""
        steps = self._sensitivity_steps(formats, measure, method, tensor, images, layers, shown=False)
        return deque(steps, maxlen=1)[0]

    def additivity(
        self, measure: str | None = None, method: str = "instant", images: int | None = None
    ) -> Additivity:
        """What the present recipe does to each layer alone, added up, beside what it does to the network.

        Args:
            measure: as in :meth:`sensitivity_steps`.
            method: ``instant`` or ``exact``: how the layers' own shares are found.
            images: how many evaluation images, None for all.

        Raises:
            SchemeError: for a measure or method that does not exist, or a recipe that quantizes nothing.
        """
        choices = ("instant", "exact")
        if method not in choices:
            raise SchemeError(unknown("method", method, choices))
        sweep = self._sweep(OWN, harm(self.metric) if measure is None else measure, "both", images, None)
        if not sweep.rows:
            raise SchemeError("The present recipe quantizes nothing, so there is nothing to add up.")
        return additivity(sweep, method)

    def depth_steps(
        self, recipe: Recipe | str | None = None, images: int | None = DEEP
    ) -> Iterator[pd.DataFrame]:
        """Where a recipe's error is born and how it grows: sharper and sharper tables, a row for each layer.

        The columns are the fields of :class:`explorer.study.Depth`: the SQNR of each layer's output when only this
        layer is quantized and its inputs are the float network's (``local_db``), and when all up to here is
        (``cumulative_db``), with 95% intervals for the images that these were drawn from.

        Args:
            recipe: a recipe or a preset's name, the present one if None.
            images: how many evaluation images, None for all.

        Raises:
            RecipeError, DataError: as in :meth:`evaluate_steps`.
        """
        chosen, stream = self._chosen(recipe), self.subject.evaluation
        total = stream.count(images)
        yield from depth_steps(
            self.engine, self.subject.floats, self.plan(chosen), stream.batches(total), total
        )

    def depth(self, recipe: Recipe | str | None = None, images: int | None = DEEP) -> pd.DataFrame:
        """The last of the tables of :meth:`depth_steps`."""
        return deque(self.depth_steps(recipe, images), maxlen=1)[0]

    def diagnose_steps(
        self, recipe: Recipe | str | None = None, images: int | None = DIAGNOSED
    ) -> Iterator[Diagnosis]:
        """What does not suit the network's tensors under a recipe, and what changes of it do: better and better.

        What is found comes first, then what each change does to the network on more and more images.

        Args:
            recipe: a recipe or a preset's name, the present one if None.
            images: on how many evaluation images changes are tried at most, None for all.

        Raises:
            RecipeError, DataError: as in :meth:`evaluate_steps`.
        """
        subject = self.subject
        yield from diagnosis_steps(
            Patient(
                engine=self.engine,
                floats=subject.floats,
                calibration=subject.calibration,
                calibration_batches=subject.calibration_batches,
                batches=subject.evaluation.batches,
                total=subject.evaluation.count(images),
                recipe=self.resolve(recipe),
                elsewhere=subject.elsewhere,
                metric=self.metric,
            )
        )

    def diagnose(self, recipe: Recipe | str | None = None, images: int | None = DIAGNOSED) -> Diagnosis:
        """The last of the diagnoses of a recipe; see :meth:`diagnose_steps`."""
        return deque(self.diagnose_steps(recipe, images), maxlen=1)[0]

    def histogram(
        self,
        layer: str,
        tensor: str = "weight",
        bins: int = 256,
        scheme: SchemeLike | None = None,
        index: int = 0,
        foreign: ForeignParameters | None = None,
    ) -> Histogram:
        """The distribution of a layer's weight or input before and after quantization.

        Args:
            layer: its name.
            tensor: ``weight`` or ``input``.
            bins: how many.
            scheme: None takes the recipe's.
            index: which input, where a layer has several.
            foreign: another tool's parameters (:meth:`foreign`), under which it is then; ``scheme`` is left out.

        Raises:
            LayerError: when the layer does not exist or has no such tensor.
            ParametersError: when ``foreign`` has no parameters for it.
        """
        _check_bins(bins)
        if foreign is not None:
            if scheme is not None:
                raise SchemeError("Give a scheme or another tool's parameters, not both.")
            return self._foreign_histogram(layer, tensor, bins, index, foreign)
        found, chosen = self._tensor(layer, tensor, scheme)
        key = (layer, f"{tensor}{index}", chosen.key, bins)
        if key not in self._histograms:
            if len(self._histograms) > 256:
                self._histograms.clear()
            made = (
                self._weight_histogram(found, chosen, bins)
                if tensor == "weight"
                else self._input_histogram(found, chosen, bins, index)
            )
            self._histograms[key] = made
        return self._histograms[key]

    def _tensor(self, layer: str, tensor: str, scheme: SchemeLike | None) -> tuple[Layer, TensorScheme]:
        """The layer, and the scheme that is meant for one of its tensors: the recipe's if None."""
        found = self._layer(layer)
        if tensor not in ("weight", "input"):
            raise LayerError(
                f"A layer has a 'weight' and an 'input', not a {tensor!r}.{nearest(tensor, ['weight', 'input'])}"
            )
        if tensor == "weight":
            self._weight(found)
        config = self.recipe.config(layer)
        if scheme is not None:
            # Refuses what such a tensor cannot have.
            config = replace(config, **{tensor: as_scheme(scheme)})
        chosen = getattr(config, tensor)
        if by_loss(chosen):
            recipe = self.resolve(self.recipe.with_layer(layer, **{tensor: chosen}))
            chosen = getattr(recipe.config(layer), tensor)
        return found, chosen

    def _weight_params(self, layer: Layer, scheme: TensorScheme) -> QParams:
        """The parameters of a weight under a scheme that has a scale."""
        given = self.subject.calibration.weight_params(layer, scheme)
        return fit_tensor(self._weight(layer), scheme, layer.axis) if given is None else given

    def _weight(self, layer: Layer) -> Tensor:
        if layer.weight is None:
            raise LayerError(f"The layer {layer.name!r} is a product of activations and has no weight.")
        return self.graph.constants[layer.weight].float()

    def _check_input(self, layer: Layer, index: int) -> None:
        if not layer.inputs:
            raise LayerError(f"The layer {layer.name!r} has no input activation: it looks its values up.")
        if not 0 <= index < len(layer.inputs):
            raise LayerError(
                f"The layer {layer.name!r} has {len(layer.inputs)} inputs; there is no number {index}."
            )

    def _first_activation(self, layer: Layer, index: int) -> Tensor:
        """An input of a layer in the float network, for the first batch of calibration images."""
        self._check_input(layer, index)
        source = layer.inputs[index]
        batch = next(self.subject.calibration_stream.batches()).batch
        value: Tensor = self.engine.run(self.subject.floats, batch, [source])[source]
        return value.float()

    def lens(
        self, layer: str, tensor: str = "weight", scheme: SchemeLike | None = None, index: int = 0
    ) -> Lens:
        """A layer's weight or input under each convention, symmetric and asymmetric.

        Format, granularity and objective are those of ``scheme``, and codes are compared with its own.  Of a
        weight every element is looked at; of an input, whose ranges are those of all calibration images, the
        elements of the first batch.

        Args:
            layer: its name.
            tensor: ``weight`` or ``input``.
            scheme: None takes the recipe's.
            index: which input, where a layer has several.

        Raises:
            LayerError: when the layer does not exist or has no such tensor.
            SchemeError: for a format that has no conventions, or dynamic ranges.
        """
        found, chosen = self._tensor(layer, tensor, scheme)
        if tensor == "weight":
            plain = self._weight(found)
            return lens_of(layer, tensor, plain, found.axis, chosen, lambda s: self._weight_params(found, s))
        value = self._first_activation(found, index)
        channel = found.channel % value.dim()
        calibration = self.subject.calibration
        return lens_of(
            layer, tensor, value, channel, chosen, lambda s: calibration.params(found, index, s), exact=False
        )

    def channels(
        self, layer: str, tensor: str = "weight", scheme: SchemeLike | None = None, index: int = 0
    ) -> Channels:
        """The ranges of a layer's weight or input channel by channel, and what its scales make of them.

        Args:
            layer: its name.
            tensor: ``weight`` (output channels) or ``input`` (from the calibration images).
            scheme: None takes the recipe's.
            index: which input, where a layer has several.

        Raises:
            LayerError: when the layer does not exist or has no such tensor.
        """
        found, chosen = self._tensor(layer, tensor, scheme)
        if tensor == "weight":
            plain = self._weight(found)
            fitted = self._weight_params(found, chosen) if chosen.scaled else None
            return weight_channels(layer, chosen, plain, fitted, found.axis)
        self._check_input(found, index)
        sample = self._channel_sample(found, index)
        if chosen.scaled and chosen.mode == "dynamic":
            value = self._first_activation(found, index)
            along = self.graph.along(found.inputs[index])
            return dynamic_channels(layer, chosen, sample, value, found.channel, along)
        params = self.subject.calibration.params(found, index, chosen) if chosen.scaled else None
        return input_channels(layer, chosen, sample, params)

    def jackknife_steps(
        self, layer: str, index: int = 0, scheme: SchemeLike | None = None, images: int | None = None
    ) -> Iterator[Jackknife]:
        """How the fixed range of a layer's input hangs on the calibration images: an answer, perhaps a better one.

        Args:
            layer: its name.
            index: which input, where it has several.
            scheme: None takes the recipe's.
            images: how many of the calibration images, None for all that set the ranges.

        Raises:
            LayerError: when the layer does not exist or has no such input.
            SchemeError: when its range is not fixed beforehand.
            DataError: for a number of images below two.
        """
        found, chosen = self._tensor(layer, "input", scheme)
        self._check_input(found, index)
        subject = self.subject
        stream = subject.calibration_stream
        count = min(stream.count(images), subject.calibration_images)
        source = Source(subject.engine, subject.floats, lambda: stream.batches(count), found, index, chosen)
        yield from jackknife_steps(source, count, stream.size)

    def jackknife(
        self, layer: str, index: int = 0, scheme: SchemeLike | None = None, images: int | None = None
    ) -> Jackknife:
        """The last answer of :meth:`jackknife_steps`."""
        return deque(self.jackknife_steps(layer, index, scheme, images), maxlen=1)[0]

    def _channel_sample(self, layer: Layer, index: int) -> Sample:
        """The calibration sample of an input with one group a channel; of all inputs the latest is held."""
        key = layer.name, index
        held = self._latest_sample
        if held is None or held[0] != key:
            subject = self.subject
            # Statistics of their own: those that the recipe needs are kept for good, and these are large.
            alone = Calibration(subject.engine, subject.floats, subject.calibration_batches)
            held = key, alone.sample(layer, index, TensorScheme(granularity="channel"))
            self._latest_sample = held
        return held[1]

    def _weight_histogram(self, layer: Layer, scheme: TensorScheme, bins: int) -> Histogram:
        plain = self._weight(layer)
        params = self._weight_params(layer, scheme) if scheme.scaled else None
        after = apply(plain, scheme, params, layer.axis)
        clipped, codes = None, None
        if isinstance(scheme.number, FloatFormat):
            codes = None if scheme.off else scheme.number.encode(plain)
        elif params is not None:
            spread = params.spread(lambda number: scheme.grain.expand(number, plain.shape, layer.axis))
            codes = encode(plain, *spread, params)
        entropy = None if codes is None else entropy_bits(codes)
        if params is not None:
            # Beyond the ends by more than half a step.
            low, high = (scheme.grain.expand(bound, plain.shape, layer.axis) for bound in params.clip)
            slack = 1e-6 * torch.maximum(-low, high)
            clipped = int(((plain < low - slack) | (plain > high + slack)).sum()) / plain.numel()
        return histogram_of(
            layer.name, "weight", scheme, plain, after, params, None, clipped, bins, entropy=entropy
        )

    def _input_histogram(self, layer: Layer, scheme: TensorScheme, bins: int, index: int) -> Histogram:
        self._check_input(layer, index)
        calibration = self.subject.calibration
        if scheme.scaled and (scheme.mode == "dynamic" or scheme.granularity != "layer"):
            return self._activation_histogram(layer, scheme, bins, index)
        whole = TensorScheme("uint8", "layer", symmetric=False)
        sample = calibration.sample(layer, index, whole)
        params = calibration.params(layer, index, scheme) if scheme.scaled else None
        number = scheme.number
        if isinstance(number, FloatFormat):
            after = number.snap(scheme.rounds.floating(sample.values, number))
        else:
            assert params is not None
            spread = params.spread(lambda number: number[:, None])
            after = fake_quantize_(scheme.rounds.scaled(sample.values, *spread, params), *spread, params)
        clipped = clipped_share(sample, params) if params is not None else None
        return histogram_of(
            layer.name,
            "input",
            scheme,
            sample.values,
            after,
            params,
            sample.weights,
            clipped,
            bins,
            exact=False,
        )

    def _activation_histogram(self, layer: Layer, scheme: TensorScheme, bins: int, index: int) -> Histogram:
        """From the first calibration batch: ranges that change with the example or the channel."""
        value = self._first_activation(layer, index)
        params = None
        if scheme.mode == "static":
            params = self.subject.calibration.params(layer, index, scheme)
        along = self.graph.along(layer.inputs[index])
        after = quantize_activation(value, scheme, params, layer.channel, along)
        return histogram_of(layer.name, "input", scheme, value, after, params, bins=bins, exact=False)

    def _grouped(self, layer: str, tensor: str, scheme: SchemeLike | None = None, index: int = 0) -> Grouped:
        """A tensor of a layer cut into groups, under a scheme or the recipe's."""
        found, chosen = self._tensor(layer, tensor, scheme)
        if tensor == "weight":
            given = self.subject.calibration.weight_params(found, chosen)
            # Fitting levels may take seconds, and one group after the other is looked at.
            key = layer, chosen.key
            fitted = self._fitted.get(key) if given is None else given
            made = grouped_weight(layer, self._weight(found), found.axis, chosen, fitted)
            if given is None and made.params is not None:
                if len(self._fitted) > 64:
                    self._fitted.clear()
                self._fitted[key] = made.params
            return made
        self._check_input(found, index)
        calibration = self.subject.calibration
        along = self.graph.along(found.inputs[index])
        return grouped_input(
            calibration, lambda: self._first_activation(found, index), found, chosen, index, along
        )

    def number_line(
        self,
        layer: str,
        tensor: str = "weight",
        scheme: SchemeLike | None = None,
        group: int | None = None,
        bins: int = 256,
        index: int = 0,
    ) -> NumberLine:
        """The levels of a layer's weight or input: what goes to each, and where the error comes from.

        Args:
            layer: its name.
            tensor: ``weight`` or ``input``.
            scheme: None takes the recipe's.
            group: one of those that share a scale, counted from 0; None takes all at once, in units of their scales.
            bins: how many bins the distribution has.
            index: which input, where a layer has several.

        Raises:
            LayerError: when the layer, its tensor or the group does not exist.
            SchemeError: for float32, which has no levels to be listed.
        """
        _check_bins(bins)
        return number_line(self._grouped(layer, tensor, scheme, index), group, bins)

    def formats_steps(
        self, layer: str, tensor: str = "weight", bits: float | None = None, index: int = 0
    ) -> Iterator[tuple[Rival, ...]]:
        """The present scheme and other formats for a tensor at equal bits for a value, one more at each step.

        See :meth:`formats`.
        """
        found, present = self._tensor(layer, tensor, None)
        if tensor == "weight":
            shape, axis, ladder = tuple(self._weight(found).shape), found.axis, LADDER
        else:
            self._check_input(found, index)
            node = self.graph.by_name.get(found.inputs[index])
            shape = (1, *(node.shape[1:] if node is not None else self.graph.example_shape))
            axis, ladder = found.channel % len(shape), (present.granularity if present.scaled else "layer",)
        yield from rivals(
            present, bits, shape, axis, lambda scheme: self._grouped(layer, tensor, scheme, index), ladder
        )

    def formats(
        self, layer: str, tensor: str = "weight", bits: float | None = None, index: int = 0
    ) -> pd.DataFrame:
        """Formats side by side for one tensor, at equal bits for a value, best SQNR first.

        Each format comes with the granularity whose scales and zero points bring it nearest to the wanted bits, and
        only where it comes within a quarter of a bit.  Columns: format, granularity, symmetric, objective, bits,
        bits_per_value, sqnr_db, used_levels, levels, clipped_fraction, present.

        Args:
            layer: its name.
            tensor: ``weight`` or ``input``; an input keeps its granularity.
            bits: for a value, all metadata counted; None for those of the present scheme.
            index: which input, where a layer has several.

        Raises:
            LayerError: when the layer or its tensor does not exist.
            SchemeError: for bits that are no positive number.
        """
        steps = self.formats_steps(layer, tensor, bits, index)
        return rivals_table(next(iter(deque(steps, maxlen=1)), ()))

    # -- what another tool has chosen --------------------------------------------------------------

    def foreign(
        self, source: str | os.PathLike[str] | Mapping[str, Any], content: bytes | None = None
    ) -> ForeignParameters:
        """Read what another tool has chosen for this network; nothing in a file is executed.

        Args:
            source: an ONNX model with quantizers, a file of AIMET encodings, a state_dict of PyTorch; or in memory
                a state_dict, or ``{layer: {"weight": p, "input": p}}``, each p a quantized torch tensor or a
                dictionary of ``scale, zero_point, qmin, qmax`` and perhaps ``axis``.
            content: of the file, where it has been read already; ``source`` is then its name only.

        Raises:
            ParametersError: when it cannot be read, or holds nothing that is quantized.
        """
        return read_foreign(source, self.graph, content)

    def against(self, foreign: ForeignParameters) -> pd.DataFrame:
        """The present recipe beside another tool's parameters, a row for each tensor that the tool has some for.

        The columns are the fields of :class:`explorer.study.Against`.  Codes and SQNR of inputs are those of the first
        batch of calibration images.
        """
        rows = [self.against_tensor(foreign, *place) for place in foreign.tensors]
        return pd.DataFrame([vars(row) for row in rows], columns=[f.name for f in fields(Against)])

    def against_tensor(
        self, foreign: ForeignParameters, layer: str, tensor: str = "weight", index: int = 0
    ) -> Against:
        """One row of :meth:`against`.

        Raises:
            ParametersError: when ``foreign`` has no parameters for that tensor.
        """
        found, scheme = self._tensor(layer, tensor, None)
        theirs = self._theirs(foreign, layer, tensor, index)
        if tensor == "weight":
            values, axis = self._weight(found), found.axis
            params = self._weight_params(found, scheme) if scheme.scaled else None
            after = apply(values, scheme, params, axis)
        else:
            values = self._first_activation(found, index)
            axis = found.channel % values.dim()
            static = scheme.scaled and scheme.mode == "static"
            params = self.subject.calibration.params(found, index, scheme) if static else None
            along = self.graph.along(found.inputs[index])
            after = (
                values if scheme.off else quantize_activation(values, scheme, params, found.channel, along)
            )
        codes = None
        if params is not None and isinstance(scheme.number, IntegerFormat):
            codes = encode(
                values, *params.spread(lambda number: scheme.grain.expand(number, values.shape, axis)), params
            )
        ours = Ours(scheme.describe(), params, codes, after)
        place = (layer, tensor, index)
        return against_of(place, foreign.how[place], values, ours, theirs, exact=tensor == "weight")

    def _theirs(self, foreign: ForeignParameters, layer: str, tensor: str, index: int) -> ForeignTensor:
        theirs = foreign.get(layer, tensor, index)
        if theirs is None:
            raise ParametersError(f"{foreign.source} has no parameters for the {tensor} of {layer!r}.")
        return theirs

    def _foreign_histogram(
        self, layer: str, tensor: str, bins: int, index: int, foreign: ForeignParameters
    ) -> Histogram:
        found, _ = self._tensor(layer, tensor, None)
        theirs = self._theirs(foreign, layer, tensor, index)
        weights = None
        if tensor == "weight":
            values = self._weight(found)
        elif theirs.axis is None:
            whole = TensorScheme("uint8", "layer", symmetric=False)
            sample = self.subject.calibration.sample(found, index, whole)
            values, weights = sample.values, sample.weights
        else:
            values = self._first_activation(found, index)
        params, (scale, zero_point) = theirs.params, theirs.spread(tuple(values.shape))
        low, high = scale * (params.qmin - zero_point), scale * (params.qmax - zero_point)
        slack = 1e-6 * torch.maximum(-low, high)
        outside = ((values < low - slack) | (values > high + slack)).float()
        clipped = outside.mean() if weights is None else (weights * outside).sum() / weights.sum()
        made = histogram_of(
            layer,
            tensor,
            TensorScheme(),
            values,
            theirs.apply(values),
            params,
            weights,
            float(clipped),
            bins,
            exact=tensor == "weight",
        )
        return replace(made, scheme=f"{foreign.tool} {theirs.describe()}")

    def curves_steps(self, layer: str, tensor: str = "weight", index: int = 0) -> Iterator[Curves]:
        """What each objective minimises over the share of the full range that is kept, one more at each step.

        All groups move together, both ends alike; the present scheme is that of the recipe.

        Args:
            layer: its name.
            tensor: ``weight`` or ``input``.
            index: which input, where a layer has several.

        Raises:
            LayerError: when the layer or its tensor does not exist.
            SchemeError: where there is no fixed range to choose.
        """
        yield from curve_steps(self._grouped(layer, tensor, None, index))

    def curves(self, layer: str, tensor: str = "weight", index: int = 0) -> Curves:
        """The curves of all objectives; see :meth:`curves_steps`."""
        return deque(self.curves_steps(layer, tensor, index), maxlen=1)[0]

    def effect(
        self, layer: str, tensor: str = "weight", scheme: SchemeLike | None = None, index: int = 0
    ) -> Effect:
        """SQNR and clipped share of a tensor under a scheme, at once: for a range that is being moved.

        Raises:
            LayerError: when the layer or its tensor does not exist.
        """
        return effect(self._grouped(layer, tensor, scheme, index))

    def output_sqnr(self, layer: str, images: int = 32, recipe: Recipe | None = None) -> float:
        """The SQNR of a layer's output under a recipe (the present one if None), its inputs being the float network's.

        From the first calibration images, so an estimate; decibels, infinite where nothing differs.

        Raises:
            LayerError: when the layer does not exist.
            DataError: for a number of images that is no positive whole number.
        """
        found = self._layer(layer)
        stream = self.subject.calibration_stream
        batch = Batch.of(next(stream.batches()).batch.images[: stream.count(images)])
        return output_error(self.engine, self.subject.floats, self.plan(recipe), found, batch).sqnr_db

    def panel(self) -> Any:
        """The page, for a notebook cell or a server."""
        try:
            from explorer.views import view
        except ImportError as error:
            raise ModelError(f"The page needs Panel, which cannot be imported: {error}.") from error
        return view(self)
