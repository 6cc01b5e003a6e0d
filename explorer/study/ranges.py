"""Ranges by the loss of the whole network: what a recipe calls ``cross_entropy`` becomes shares of full ranges.

All tensors of a recipe with that objective, weights and static inputs, are the coordinates of a search.  It
starts from the ranges of least squared error.  In the order of execution each tensor tries some shares of its
full range, all others being as they stand, and takes the one under which the cross-entropy on calibration
images is least; a second round tries the neighbours.  A step is taken only where it lowers the loss, so the
result is never worse than its start on these images.  On the engine a try costs what lies behind its tensor.

The classes that count are the labels; where the images have none, the float network's class distribution.  Where
results are no scores of classes the loss is their squared error, as a share of the float network's result.
Source: Nahshan et al., "Loss aware post-training quantization" (2019), arXiv:1911.07190, for the loss as the
objective of ranges and for starting from those of least error.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.calibrate import NETWORK, objective
from explorer.errors import DataError
from explorer.graph import Calibration, Engine, Plan, plan
from explorer.graph.engine import environment
from explorer.graph.ir import digest, tensor_digest
from explorer.graph.moments import NO_IMAGES
from explorer.recipe import Recipe, TensorScheme
from explorer.study.evaluate import Examples
from explorer.study.scoring import METRICS, Metric, check_classes, class_rows, cross_entropies, image_means
from explorer.tensor import fit_tensor

# The loss is taken on the first so many calibration images.
IMAGES = 256
# What is tried first, as a multiple of the share that the least squared error takes; and then of the best.
FACTORS, NEIGHBOURS = (0.7, 0.8, 0.9, 1.0, 1.15, 1.3), (0.95, 1.05)
# Seconds between two looks at whether somebody else has found the ranges.
_WAIT = 0.1

Coordinate = tuple[str, str]


@dataclass(frozen=True)
class Resolving:
    """How far the search for ranges is.

    Args:
        done: tensors that are settled.
        total: tensors in all, each counted once a round.
        loss: the least cross-entropy so far, nats, or squared error, as a share; None before it is
            known, and where no recipe asks for it.
        recipe: the recipe with what has been found so far; None before there is any.
    """

    done: int
    total: int
    loss: float | None = None
    recipe: Recipe | None = None


def by_loss(scheme: TensorScheme) -> bool:
    """Whether a tensor's range is chosen by the loss of the whole network."""
    return scheme.scaled and scheme.goal.needs == NETWORK


def names_it(recipe: Recipe) -> bool:
    """Whether an objective that takes the whole network is anywhere in a recipe; looks at no layer.

    >>> names_it(Recipe.preset("w4a8")), names_it(Recipe().with_layer("fc", weight={"objective": "cross_entropy"}))
    (False, True)
    """
    names = {recipe.default.weight.objective, recipe.default.input.objective}
    for line in recipe.layers:
        names.update(value for name, value in (*line.weight, *line.input) if name == "objective")
    return any(objective(name).needs == NETWORK for name in names)


def with_objectives(recipe: Recipe, objectives: Mapping[Coordinate, str]) -> Recipe:
    """The recipe with other objectives for some tensors, given by layer and ``weight`` or ``input``.

    >>> recipe = with_objectives(Recipe.preset("w4a8"), {("fc", "weight"): "clip:0.8"})
    >>> recipe.config("fc").weight.describe()
    'int4 channel sym clip:0.8'
    """
    for (name, tensor), goal in objectives.items():
        config = recipe.config(name)
        wanted = replace(config, **{tensor: replace(getattr(config, tensor), objective=goal)})
        changed = recipe.with_layer(name, **{tensor: {"objective": goal}})
        # A line that an earlier pattern shares with the layer may have moved past another one.
        if changed.config(name) != wanted:
            changed = recipe.with_layer(name, weight=wanted.weight, input=wanted.input)
        recipe = changed
    return recipe


@dataclass(frozen=True, eq=False)
class Resolver:
    """Finds the ranges that take the whole network.

    Args:
        engine: of the graph.
        floats: the float network worked out.
        calibration: finds the ranges of all other tensors.
        batches: gives the first so many calibration images, batch by batch.
        metric: says whether results are scores of classes.
    """

    engine: Engine
    floats: Plan
    calibration: Calibration
    batches: Callable[[int], Iterator[Examples]]
    metric: Metric = METRICS["top1"]
    _found: dict[str, tuple[float, ...]] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    def coordinates(self, recipe: Recipe) -> list[Coordinate]:
        """The tensors whose ranges are chosen by the loss, in the order of execution."""
        found: list[Coordinate] = []
        if not names_it(recipe):
            return found
        for layer in self.engine.graph.layer_at.values():
            config = recipe.config(layer.name)
            if layer.inputs and by_loss(config.input):
                found.append((layer.name, "input"))
            if layer.weight is not None and by_loss(config.weight):
                found.append((layer.name, "weight"))
        return found

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with a share of the full range, or ``mse``, in place of each ``cross_entropy``."""
        if not self.coordinates(recipe):
            return recipe
        found = deque(self.steps(recipe), maxlen=1)[0].recipe
        assert found is not None
        return found

    def steps(self, recipe: Recipe) -> Iterator[Resolving]:
        """As :meth:`resolve`, in steps; the last one has the recipe.  All other ranges are found on the way.

        Raises:
            DataError: when there are no calibration images, or labels go beyond the network's classes.
        """
        wanted = self.coordinates(recipe)
        start = with_objectives(recipe, dict.fromkeys(wanted, "mse"))
        for done, total in self.calibration.prepare_steps(start):
            yield Resolving(done, total)
        if not wanted:
            yield Resolving(0, 0, recipe=recipe)
            return
        key = self._key(recipe)
        lock = self._locks.setdefault(key, threading.Lock())
        # Whoever asks for the same while it is looked for waits for it, and may be stopped.
        while not lock.acquire(timeout=_WAIT):
            yield Resolving(0, 2 * len(wanted))
        try:
            shares = self._found.get(key) or self._stored(key)
            if shares is None:
                begun = time.perf_counter()
                shares = yield from self._search(start, wanted)
                self.engine.store.put(
                    key, torch.tensor(shares, dtype=torch.float64), time.perf_counter() - begun
                )
            self._found[key] = shares
        finally:
            lock.release()
        objectives = {at: _objective(share) for at, share in zip(wanted, shares, strict=True)}
        yield Resolving(2 * len(wanted), 2 * len(wanted), recipe=with_objectives(recipe, objectives))

    def _stored(self, key: str) -> tuple[float, ...] | None:
        found = self.engine.store.get(key)
        return None if found is None else tuple(found.tolist())

    def _key(self, recipe: Recipe) -> str:
        """A name for all that the ranges depend on."""
        graph = self.engine.graph
        parts = [
            "ranges",
            environment(),
            graph.digest,
            self.calibration.key,
            str((IMAGES, FACTORS, NEIGHBOURS)),
            *([] if self.metric.classes else ["error"]),
        ]
        for layer in graph.layer_at.values():
            config = recipe.config(layer.name)
            parts += [config.weight.key if layer.weight else "", config.input.key if layer.inputs else ""]
        for examples in self.batches(IMAGES):
            parts += [
                examples.batch.key,
                "" if examples.labels is None else tensor_digest(examples.labels),
            ]
        return digest(*parts)

    def _search(
        self, start: Recipe, wanted: list[Coordinate]
    ) -> Generator[Resolving, None, tuple[float, ...]]:
        """The share of each tensor, NaN where the least squared error stays."""
        total = 2 * len(wanted)
        shares, second = dict.fromkeys(wanted, math.nan), dict.fromkeys(wanted, math.nan)
        recipe, done, loss = start, 0, math.inf

        def look(tried: Recipe, keep: bool) -> Generator[Resolving, None, float]:
            """The loss of a recipe, giving a sign of life after each batch."""
            sums = []
            for term in self._losses(tried, keep):
                sums.append(term)
                yield Resolving(done, total, loss if math.isfinite(loss) else None, recipe)
            losses, counts = zip(*sums, strict=True)
            return math.fsum(losses) / (math.fsum(counts) or 1.0)

        loss = yield from look(recipe, True)
        for round in range(2):
            for at in wanted:
                if round == 0:
                    usual = self._usual_share(start, at)
                    tries = [usual * factor for factor in FACTORS]
                elif math.isnan(shares[at]):
                    tries = [] if math.isnan(second[at]) else [second[at]]
                else:
                    tries = [shares[at] * factor for factor in NEIGHBOURS]
                tries = [share for share in dict.fromkeys(map(_rounded, tries)) if share != shares[at]]
                here, least = recipe, math.inf
                for share in tries:
                    tried = with_objectives(here, {at: _objective(share)})
                    now = yield from look(tried, False)
                    if now < least:
                        least, second[at] = now, share
                    if now < loss:
                        loss, recipe, shares[at] = now, tried, share
                done += 1
                if recipe is not here:
                    # The next tries start from what this leads to.
                    yield from look(recipe, True)
        return tuple(shares.values())

    def _usual_share(self, start: Recipe, at: Coordinate) -> float:
        """The share of the full range that the least squared error takes in the middle group."""
        layer, scheme = self.engine.graph.by_layer[at[0]], getattr(start.config(at[0]), at[1])

        def scale(objective: str) -> torch.Tensor:
            own = replace(scheme, objective=objective)
            if at[1] == "input":
                return self.calibration.params(layer, 0, own).scale
            assert layer.weight is not None
            return fit_tensor(self.engine.graph.constants[layer.weight].float(), own, layer.axis).scale

        return float((scale("mse") / scale("minmax")).median())

    def _losses(self, recipe: Recipe, keep: bool) -> Iterator[tuple[float, float]]:
        """The sum of the losses of each batch, and what it is a share of: the images, or the signal."""
        graph, calibration = self.engine.graph, self.calibration
        worked_out = plan(graph, recipe, calibration.params, calibration.weight_params)
        seen = 0
        for examples in self.batches(IMAGES):
            result = self.engine.run(worked_out, examples.batch, keep=keep)[graph.output].double().cpu()
            seen += len(result)
            labelled = self.metric.classes and examples.labels is not None
            floats = None if labelled else self.engine.run(self.floats, examples.batch)[graph.output]
            if floats is not None and not self.metric.classes:
                floats = floats.double().cpu()
                yield float((result - floats).square().sum()), float(floats.square().sum())
            else:
                yield _cross_entropy(result, examples.labels, floats), len(result)
        if not seen:
            raise DataError(NO_IMAGES)


def _cross_entropy(result: Tensor, labels: Tensor | None, floats: Tensor | None) -> float:
    """The sum over images against labels or, without, against the float network's class distribution."""
    log_q = F.log_softmax(result, 1)
    if labels is not None:
        check_classes(labels, result)
        return float(cross_entropies(log_q, labels).sum())
    assert floats is not None
    each = -(class_rows(floats.double().cpu()).softmax(1) * class_rows(log_q)).sum(1)
    return float(image_means(each, len(result)).sum())


def _objective(share: float) -> str:
    return "mse" if math.isnan(share) else f"clip:{share:g}"


def _rounded(share: float) -> float:
    """A share to three places, at most the full range."""
    return min(1.0, max(0.001, float(f"{share:.3g}")))
