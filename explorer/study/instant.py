"""The instant tier: what each row would do to the network's result, from one backward pass.

A row's error at its own layer's output is taken as it is, and carried to the network's result by the
Jacobian of what follows.  The Kullback-Leibler divergence of a small change d of the class scores is
d' F d / 2 with the Fisher matrix F of the class distribution, so the gradient of one scalar for each image,
a random square root of F applied to the scores, gives an unbiased estimate for every row of every layer at
once.  Rows whose step is too large for that are run through what follows on a few images: a secant in place of
the tangent.  Where results are no scores of classes the squared error of the result takes the divergence's place: the
metric is the identity instead of F (plain Gauss-Newton), and its random square root a vector of signs.  Images are
drawn where the network is unsure, since there it can change its mind, and weighted so that the estimate stays unbiased.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from explorer.graph import Batch
from explorer.graph.images import by_image
from explorer.hand import HAND
from explorer.study.evaluate import Examples, ScoreList, Scores, readable
from explorer.study.local import energy, output_steps
from explorer.study.measures import MEASURES, energy_ratio_db, harm
from explorer.study.scoring import Metric, cross_entropies
from explorer.study.sweep import EXACT, Board, Sweep, starts

INSTANT = "instant"
# Of what the naive loop costs, the share that the instant tier may cost, in passes over an image.
_SHARE = 1 / 64
# How many images are looked at for each one that is drawn.
_POOL = 4
# A divergence, nats, above which a step is too large for the expansion; the same of a squared error, as a share.
_LARGE, _LARGE_ERROR = 3e-3, 1e-2
# The part of the draw that does not look at how sure the network is: bounds the weights.
_EVEN = 0.2
_MOST, _LEAST = 384, 40
# Few layers are run through one by one; so many multiply-adds may be spent in any case: some tenths of a second.
_FEW_LAYERS, _WORK = 8, 4e9
# All rows on all images, where that is no more than so many times as much: a second or less, and nothing is estimated.
_AFFORDABLE = 5
# Up to so many classes the square root of the Fisher matrix is taken of the whole of it.
_CLASSES = 24


@dataclass(frozen=True, eq=False)
class Draw:
    """Some of the first ``pool`` images.

    Args:
        places: which, increasing, int64 ``(images,)``.
        weights: how many images of the pool each stands for, relative to their mean, ``(images,)``.
    """

    places: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(unsure: np.ndarray, count: int, even: float = _EVEN) -> Draw:
        """A systematic sample with probabilities that grow with ``unsure``; everything if there is no more.

        Source: Horvitz and Thompson (1952), doi:10.1080/01621459.1952.10483446; Madow (1949) for the draw.

        >>> Draw.of(np.array([0.0, 1.0, 0.0]), 3).weights.tolist()
        [1.0, 1.0, 1.0]
        """
        pool = len(unsure)
        if count >= pool:
            return Draw(np.arange(pool), np.ones(pool))
        sure = unsure.sum() <= 0
        share = np.full(pool, 1 / pool) if sure else (1 - even) * unsure / unsure.sum() + even / pool
        chance = _at_most_one(share, count)
        # Half a step off the grid, so that rounding cannot lose the last one.
        places = np.searchsorted(np.cumsum(chance), np.arange(count) + 0.5).clip(0, pool - 1)
        places = np.unique(places)
        return Draw(places, len(places) / (pool * chance[places]))

    def examples(self, batches: Iterable[Examples], size: int) -> Iterator[Examples]:
        """The drawn images among those of ``batches``, in batches of ``size``."""
        images: list[Tensor] = []
        labels: list[Tensor] = []
        indices: list[int] = []
        begun = 0
        for found in batches:
            here = self.places[(self.places >= begun) & (self.places < begun + len(found.batch.images))]
            index = torch.from_numpy(here - begun)
            begun += len(found.batch.images)
            images += list(found.batch.images[index])
            labels += [] if found.labels is None else list(found.labels[index])
            indices += [found.indices[i] for i in index.tolist()]
        for start in range(0, len(images), size):
            part = torch.stack(labels[start : start + size]) if labels else None
            batch = Batch.of(torch.stack(images[start : start + size]))
            yield Examples(batch, part, tuple(indices[start : start + size]))


def _at_most_one(share: np.ndarray, count: int) -> np.ndarray:
    """Chances of being drawn that are proportional to ``share``, add up to ``count`` and do not exceed 1.

    >>> _at_most_one(np.array([0.8, 0.1, 0.1]), 2).tolist()
    [1.0, 0.5, 0.5]
    """
    chance = count * share / share.sum()
    while chance.max() > 1 + 1e-9:
        sure = chance >= 1
        left = count - sure.sum()
        chance = np.where(sure, 1.0, share * (left / share[~sure].sum()))
    return chance


def sample_size(sweep: Sweep) -> tuple[int, int]:
    """How many images the backward pass and the secants see: what the share of the naive loop's cost allows.

    In passes over an image: one for each image of the pool, 3 for forward and backward, one for each format of a
    layer, and for the rows with large steps about half a pass on half of the images.
    """
    rows, total = len(sweep.rows), sweep.total
    layers = len({row.layer for row in sweep.rows})
    macs = max(1, sum(layer.macs for layer in sweep.engine.graph.layers))
    if rows * total * macs / 2 <= _AFFORDABLE * _WORK:
        return 0, total
    # With few layers the order of each pair counts and nothing averages out, and running every row through what
    # follows costs no more than expanding it.
    run_all = layers <= _FEW_LAYERS or not sweep.expandable
    each = _POOL + rows / 2 if run_all else _POOL + 3 + rows / layers + 0.09 * rows
    count = max(_LEAST, min(_MOST, int(rows * total * _SHARE / each)), int(_WORK / (each * macs)))
    count = min(total, count)
    return (0, count) if run_all else (count, max(1, count // 2))


def instant_steps(sweep: Sweep, board: Board) -> Iterator[None]:
    """Fill the board with the instant tier: first from the tangent, then large steps from the secant."""
    if not sweep.rows:
        return
    sweep.prepare()
    count, fewer = sample_size(sweep)
    pool = min(sweep.total, _POOL * max(count, fewer))
    unsure = _unsure(sweep, pool, max(count, fewer))
    large = list(range(len(sweep.rows)))
    if count:
        large = _tangents(sweep, board, Draw.of(unsure, count), pool)
    else:
        *_, (estimates, _) = output_steps(sweep)
        board.output_sqnr[:] = [value for value, _ in estimates]
    yield
    if large:
        _secants(sweep, board, Draw.of(unsure, fewer), pool, large)
        yield


def _unsure(sweep: Sweep, pool: int, drawn: int) -> np.ndarray:
    """How unsure the float network is of each of the first images: the trace of its Fisher matrix, ``(pool,)``.

    Where all of them are drawn nobody asks.
    """
    if drawn >= pool:
        sweep.checked(next(iter(sweep.batches(pool))))
        return np.zeros(pool)
    output = sweep.engine.graph.output
    results = [
        sweep.engine.run(sweep.floats, sweep.checked(found).batch, keep=False)[output]
        for found in sweep.batches(pool)
    ]
    if not sweep.metric.classes:
        # No image is known to tell more than another: all are as likely to be drawn.
        return np.zeros(sum(len(result) for result in results))
    chances = torch.cat(results).double().softmax(1)
    return (chances * (1 - chances)).flatten(1).sum(1).numpy()


def _tangents(sweep: Sweep, board: Board, draw: Draw, pool: int) -> list[int]:
    """Fill every row from the expansion; those rows whose step is too large for it, all if there is no gradient."""
    examples = draw.examples(sweep.batches(pool), sweep.engine.batch_size())
    found = [_tangent(sweep, part, step) for step, part in enumerate(examples)]
    tangents = [tangent for tangent in found if tangent is not None]
    if len(tangents) < len(found):
        return list(range(len(sweep.rows)))
    large = []
    for index in range(len(sweep.rows)):
        scores = Scores.join([tangent.scores[index] for tangent in tangents])
        energies = np.concatenate([tangent.energies[index] for tangent in tangents], axis=1)
        board.output_sqnr[index] = energy_ratio_db(*(energies * draw.weights))[0]
        damage, most = MEASURES[harm(sweep.metric)].weighted(scores, draw.weights)[0], _LARGE_ERROR
        if sweep.metric.classes:
            most = _LARGE
        if math.isfinite(damage):
            board.put(index, INSTANT, sweep.goal.weighted(scores, draw.weights), len(draw.places))
        # An error without any effect has met an operator whose gradient says nothing (a rounding, a step).
        if not damage <= most or (damage == 0 and energies[1].any()):
            large.append(index)
    return large


def _secants(sweep: Sweep, board: Board, draw: Draw, pool: int, rows: list[int]) -> None:
    """The network's result under some rows, on some images."""
    engine, output = sweep.engine, sweep.engine.graph.output
    plans = {index: sweep.plan(sweep.rows[index].recipe) for index in rows}
    parts: dict[int, ScoreList] = defaultdict(ScoreList)
    for found in draw.examples(sweep.batches(pool), engine.batch_size()):
        reference = sweep.reference(starts(sweep.engine, sweep.floats, found.batch), found)
        for index in rows:
            result = engine.run(plans[index], found.batch, keep=False)[output]
            if board.reason[index]:
                continue
            if readable(result):
                parts[index].append(reference.scores(result))
            else:
                parts.pop(index, None)
                board.spoil(index, len(draw.places))
    method = EXACT if len(draw.places) == sweep.total else INSTANT
    for index, scores in parts.items():
        board.put(index, method, sweep.goal.weighted(scores.all, draw.weights), len(draw.places))


@dataclass(frozen=True, eq=False)
class _Tangent:
    """For each row: predicted scores of the images, and the energies (2, images) of its layer's output and error."""

    scores: list[Scores]
    energies: list[np.ndarray]


def _tangent(sweep: Sweep, examples: Examples, seed: int) -> _Tangent | None:
    """One forward and one backward pass; None where the network has no gradient."""
    graph = sweep.engine.graph
    rows: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(sweep.rows):
        rows[graph.by_layer[row.layer].node].append(index)
    try:
        values = _forward(sweep, examples.batch, set(rows))
        result = values[graph.output]
        directions = _directions(sweep.measure, result.detach(), examples.labels, sweep.metric, seed)
        nodes = [name for name in rows if values[name].requires_grad]
        gradients = [
            torch.autograd.grad(result, [values[n] for n in nodes], d, retain_graph=True, allow_unused=True)
            for d in directions.values()
        ]
    except (RuntimeError, NotImplementedError):  # of autograd: an operator on the way has no gradient
        return None
    scores: dict[int, Scores] = {}
    energies: dict[int, np.ndarray] = {}
    facts = _Facts.of(sweep, result.detach(), examples)
    plain = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
    with torch.no_grad():
        for place, name in enumerate(nodes):
            here = [found[place] for found in gradients]
            along, images = graph.along(name), len(examples.batch.images)
            here = [None if each is None else by_image(each, along, images) for each in here]
            signal = energy(by_image(plain[name], along, images))
            for index in rows[name]:
                HAND.breathe()
                error = sweep.engine.compute(sweep.local_plan(sweep.rows[index]), name, plain) - plain[name]
                error = by_image(error, along, images)
                size = energy(error)
                if np.isfinite(size).all():
                    moves = {
                        key: _products(gradient, error)
                        for key, gradient in zip(directions, here, strict=True)
                    }
                    scores[index] = facts.predict(moves)
                else:
                    scores[index] = facts.unpredictable
                energies[index] = np.stack([signal, size])
    order = range(len(sweep.rows))
    return _Tangent([scores[i] for i in order], [energies[i] for i in order])


def _products(gradient: Tensor | None, error: Tensor) -> np.ndarray:
    """The inner product of each image's gradient and error, float64 ``(images,)``."""
    if gradient is None:
        return np.zeros(len(error))
    return torch.linalg.vecdot(gradient.flatten(1), error.flatten(1)).double().numpy()


def _forward(sweep: Sweep, batch: Batch, wanted: set[str]) -> dict[str, Any]:
    """The float network's values at ``wanted`` nodes, at their inputs and at the output, ready for gradients."""
    graph = sweep.engine.graph
    kept = {graph.output, *wanted}.union(*(graph.by_name[name].inputs for name in wanted))
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    values: dict[str, Any] = {graph.input: batch.images}
    with torch.enable_grad():
        for node in graph.nodes:
            inputs = {
                name: graph.constants[name].detach() if name in graph.constants else values[name]
                for name in node.inputs
            }
            HAND.breathe()
            value = node.call(inputs)
            if node.name in wanted and not value.requires_grad:
                value = value.detach().requires_grad_()
            values[node.name] = value
            for name in node.inputs:
                uses[name] -= 1
                if not uses[name] and name not in kept:
                    values.pop(name, None)
    return values


def _directions(
    measure: str, result: Tensor, labels: Tensor | None, metric: Metric, seed: int
) -> dict[str, Tensor]:
    """What the results (images, ...) are multiplied by before the backward pass, by purpose."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    if metric.classes:
        chances = result.double().softmax(1)
        root = _fisher_root if result.ndim == 2 else _pixel_roots
        found["fisher"] = root(chances, generator)
        if measure == "loss" and labels is not None:
            found["loss"] = _loss_gradient(result, labels)
    if measure in ("sqnr", "error") or not metric.classes:
        found["energy"] = _signs(result.shape, generator)
    if measure in ("top1", "score") and metric.is_top1:
        first, second = result.topk(2, 1).indices.T
        eye = torch.eye(result.shape[1], dtype=torch.float64)
        found["margin"] = eye[first] - eye[second]
    return {name: direction.to(result.dtype) for name, direction in found.items()}


def _loss_gradient(result: Tensor, labels: Tensor) -> Tensor:
    """Of each image's cross-entropy with respect to its class scores."""
    scores = result.double().requires_grad_()
    with torch.enable_grad():
        total = cross_entropies(scores.log_softmax(1), labels).sum()
    return torch.autograd.grad(total, scores)[0]


def _pixel_roots(chances: Tensor, generator: torch.Generator) -> Tensor:
    """The same as :func:`_fisher_root` for the mean divergence of an image's pixels, (images, classes, ...).

    Of each pixel ``sqrt(p) s - p (sqrt(p)' s)`` with random signs s: there are too many for eigenvectors.
    """
    part = chances.sqrt() * _signs(chances.shape, generator)
    return (part - chances * part.sum(1, keepdim=True)) / math.sqrt(chances[0, 0].numel())


def _signs(shape: Iterable[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=generator).double() * 2 - 1


def _fisher_root(chances: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector r for each image with E[r r'] = diag(p) - p p', ``(images, classes)``.

    The likeliest classes and the rest as one more are treated together, by eigenvectors with random signs, in
    which the strongest direction, two classes confused, has no noise; then the classes within the rest.
    """
    images, classes = chances.shape
    few = min(classes, _CLASSES)
    top, order = chances.topk(few, 1)
    rest = (1 - top.sum(1, keepdim=True)).clamp(min=0) if few < classes else chances.new_zeros(images, 0)
    grouped = torch.cat([top, rest], 1)
    fisher = torch.diag_embed(grouped) - grouped[:, :, None] * grouped[:, None, :]
    strengths, vectors = torch.linalg.eigh(fisher)
    signs = _signs(strengths.shape, generator)
    root = (vectors * (strengths.clamp(min=0).sqrt() * signs)[:, None, :]).sum(2)
    out = torch.zeros_like(chances)
    if few < classes:
        within = chances.scatter(1, order, 0.0) / rest.clamp(min=1e-30)
        steps = within.sqrt() * _signs(chances.shape, generator)
        out = within * root[:, few:] + rest.sqrt() * (steps - within * steps.sum(1, keepdim=True))
    return out.scatter(1, order, root[:, :few])


@dataclass(frozen=True, eq=False)
class _Facts:
    """What the float network says of the images, and how a row's moves along the directions become scores."""

    float_scores: Scores
    second_right: np.ndarray
    margin: np.ndarray

    @staticmethod
    def of(sweep: Sweep, result: Tensor, examples: Examples) -> _Facts:
        scores = sweep.reference(result, examples).scores(result)
        if not sweep.metric.is_top1:
            return _Facts(scores, np.empty(0), np.empty(0))
        labels, best = examples.labels, result.double().topk(2, 1)
        target = best.indices[:, 0] if labels is None else labels
        second = (best.indices[:, 1] == target).double()
        return _Facts(scores, second.numpy(), (best.values[:, 0] - best.values[:, 1]).numpy())

    @property
    def unpredictable(self) -> Scores:
        """Of an error that is infinite or NaN, which is no small step."""
        endless = np.full_like(self.float_scores.kl, math.inf)
        return replace(self.float_scores, kl=endless, noise=endless)

    def predict(self, moves: dict[str, np.ndarray]) -> Scores:
        base = self.float_scores
        scores = base
        if "fisher" in moves:
            scores = replace(scores, kl=moves["fisher"] ** 2 / 2)
        if "loss" in moves:
            scores = replace(scores, loss=base.loss_float + moves["loss"] + scores.kl)
        if "energy" in moves:
            scores = replace(scores, noise=moves["energy"] ** 2)
        if "margin" in moves:
            # As if the margins' moves were normal around zero: every image near the border tells something.
            spread = math.sqrt(float(np.mean(moves["margin"] ** 2))) or 1e-300
            change = special.ndtr(-self.margin / spread)
            right = base.score_float + change * (self.second_right - base.score_float)
            scores = replace(scores, score=right)
        return scores
