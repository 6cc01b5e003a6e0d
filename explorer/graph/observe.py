"""Observing: what the activations of the float network look like on the calibration images."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain

from explorer.calibrate import LAYER, GrowingHistogram, Moments, OutputOfWeight, Sample, fit
from explorer.errors import DataError
from explorer.formats import QParams, check_finite
from explorer.graph.engine import Batch, Engine, Plan, environment
from explorer.graph.ir import Layer, digest
from explorer.graph.moments import NO_IMAGES, columns_of, gather, passes
from explorer.graph.output import OutputOfInput, some_images, values_at
from explorer.recipe import Recipe, TensorScheme

# Which value, cut how: the node's name, the granularity's name, the channel axis.
Question = tuple[str, str, int]


def by_output(scheme: TensorScheme) -> bool:
    """Whether a tensor's range is chosen by what it does to its layer's output."""
    return scheme.scaled and scheme.goal.needs == LAYER


class Calibration:
    """Statistics of activations, gathered once for each value and granularity that is asked for.

    Args:
        engine: of the graph.
        plan: the float network.
        batches: gives the calibration batches anew at each call.
    """

    def __init__(self, engine: Engine, plan: Plan, batches: Callable[[], Iterable[Batch]]) -> None:
        self.engine, self.plan, self._batches = engine, plan, batches
        self._samples: dict[Question, Sample] = {}
        self._params: dict[tuple[str, Question, str], QParams] = {}
        self._weights: dict[tuple[str, str], QParams] = {}
        self._lock = threading.RLock()

    @staticmethod
    def question(layer: Layer, index: int, scheme: TensorScheme) -> Question:
        grain = scheme.granularity
        return layer.inputs[index], grain, layer.channel if grain != "layer" else 0

    def prepare(self, recipe: Recipe) -> None:
        """Gather in few passes all that ``recipe`` will ask for."""
        deque(self.prepare_steps(recipe), maxlen=0)

    def prepare_steps(self, recipe: Recipe) -> Iterator[tuple[int, int]]:
        """As :meth:`prepare`; gives how many ranges that take images are found, and of how many."""
        questions, inputs, weights = [], [], []
        for layer in self.engine.graph.layer_at.values():
            config = recipe.config(layer.name)
            if layer.inputs and config.input.scaled and config.input.mode == "static":
                questions += [self.question(layer, i, config.input) for i in range(len(layer.inputs))]
                if by_output(config.input):
                    inputs.append((layer, config.input))
            if layer.weight is not None and by_output(config.weight):
                weights.append((layer, config.weight))
        self.observe(questions)
        inputs = [
            (layer, scheme) for layer, scheme in inputs if self._key(layer, 0, scheme) not in self._params
        ]
        weights = self._missing(weights)
        total = len(inputs) + len(weights)
        for done, _ in enumerate(chain(self._fit_inputs(inputs), self._fit_weights(weights)), 1):
            yield done, total

    def observe(self, questions: Sequence[Question]) -> None:
        """Gather the samples for ``questions`` that are not there yet.

        Raises:
            DataError: when there are no calibration images.
            TensorError: when an activation holds NaN or infinity.
        """
        with self._lock:
            missing = [q for q in dict.fromkeys(questions) if q not in self._samples]
            if not missing:
                return
            # Made before the activations come: what stays must not lie between what goes, or the memory in
            # between is lost.
            tallies = {question: GrowingHistogram(self._groups(question)) for question in missing}
            asked: dict[str, list[Question]] = {}
            for question in missing:
                asked.setdefault(question[0], []).append(question)
            batch = None
            for batch in self._batches():
                for name, value in self.engine.values(self.plan, batch, asked, keep=False):
                    value = value.float()
                    check_finite(value, f"activation {name!r}")
                    for question in asked[name]:
                        grain = TensorScheme(granularity=question[1]).grain
                        matrix, _ = grain.matrix(value, question[2] % value.dim())
                        tallies[question].add(matrix)
            if batch is None:
                raise DataError(NO_IMAGES)
            for question, tally in tallies.items():
                self._samples[question] = tally.sample()

    def _groups(self, question: Question) -> int:
        """How many groups the granularity makes of a value."""
        name, grain, channel = question
        graph = self.engine.graph
        node = graph.by_name.get(name)
        shape = node.shape if node is not None else (graph.example_batch, *graph.example_shape)
        return TensorScheme(granularity=grain).grain.groups(shape, channel % len(shape))

    def sample(self, layer: Layer, index: int, scheme: TensorScheme) -> Sample:
        """The sample of an input of ``layer``, cut as ``scheme`` says."""
        question = self.question(layer, index, scheme)
        self.observe([question])
        return self._samples[question]

    @staticmethod
    def _key(layer: Layer, index: int, scheme: TensorScheme) -> tuple[str, Question, str]:
        """What the parameters of an input depend on: its values, and where the output counts the layer too."""
        owner = layer.name if by_output(scheme) else ""
        return owner, Calibration.question(layer, index, scheme), scheme.key

    def params(self, layer: Layer, index: int, scheme: TensorScheme) -> QParams:
        """The static parameters of an input of ``layer`` under ``scheme``."""
        key = self._key(layer, index, scheme)
        with self._lock:
            if key not in self._params and by_output(scheme):
                deque(self._fit_inputs([(layer, scheme)]), maxlen=0)
            elif key not in self._params:
                self._params[key] = fit(self.sample(layer, index, scheme), scheme.grid, scheme.goal)
            return self._params[key]

    def weight_params(self, layer: Layer, scheme: TensorScheme) -> QParams | None:
        """The parameters of a layer's weight where they are chosen by its output, else None."""
        if not by_output(scheme):
            return None
        with self._lock:
            key = layer.name, scheme.key
            if key not in self._weights:
                deque(self._fit_weights([(layer, scheme)]), maxlen=0)
            return self._weights[key]

    def weights(self, recipe: Recipe) -> dict[str, QParams]:
        """The parameters of all weights that are chosen by their layers' outputs, by the layers' names."""
        layers = [layer for layer in self.engine.graph.layer_at.values() if layer.weight is not None]
        schemes = [(layer, recipe.config(layer.name).weight) for layer in layers]
        wanted = [(layer, scheme) for layer, scheme in schemes if by_output(scheme)]
        with self._lock:
            deque(self._fit_weights(self._missing(wanted)), maxlen=0)
            return {layer.name: self._weights[layer.name, scheme.key] for layer, scheme in wanted}

    def _missing(self, wanted: Sequence[tuple[Layer, TensorScheme]]) -> list[tuple[Layer, TensorScheme]]:
        """Those weights whose parameters are not known yet."""
        return [(layer, scheme) for layer, scheme in wanted if (layer.name, scheme.key) not in self._weights]

    def _fit_inputs(self, wanted: Sequence[tuple[Layer, TensorScheme]]) -> Iterator[Layer]:
        """Find the ranges of the inputs of some layers by their outputs; each layer when it is done."""
        if not wanted:
            return
        self.observe(
            [self.question(layer, i, scheme) for layer, scheme in wanted for i in range(len(layer.inputs))]
        )
        schemes = {layer.name: scheme for layer, scheme in wanted}
        batches = some_images(self.engine, self._batches())
        for layer, values in values_at(self.engine, self.plan, batches, [layer for layer, _ in wanted]):
            scheme = schemes[layer.name]
            for index in range(len(layer.inputs)):
                goal = OutputOfInput(self.engine.graph, layer, index, scheme, values)
                found = fit(self.sample(layer, index, scheme), scheme.grid, goal)
                with self._lock:
                    self._params[self._key(layer, index, scheme)] = found
            yield layer

    def _fit_weights(self, wanted: Sequence[tuple[Layer, TensorScheme]]) -> Iterator[Layer]:
        """Find the ranges of the weights of some layers by their outputs; each layer when it is done."""
        graph = self.engine.graph
        schemes = {layer.name: scheme for layer, scheme in wanted}
        for run in passes(graph, [layer for layer, _ in wanted]):
            moments = self._moments(run)
            for layer in run:
                assert layer.weight is not None
                scheme, weight = schemes[layer.name], graph.constants[layer.weight].float()
                rows = weight.movedim(layer.axis, 0).reshape(weight.shape[layer.axis], -1)
                goal = OutputOfWeight(rows, scheme.grain, moments.pop(layer.name))
                found = fit(Sample.of(weight, scheme.grain, layer.axis), scheme.grid, goal)
                with self._lock:
                    self._weights[layer.name, scheme.key] = found
                yield layer

    @cached_property
    def key(self) -> str:
        """A name for the calibration images."""
        return digest(*(batch.key for batch in self._batches()))

    def _moments(self, layers: Sequence[Layer]) -> dict[str, Moments]:
        """The moments of the inputs of some layers, from the store or gathered."""
        store, graph = self.engine.store, self.engine.graph
        found: dict[str, Moments] = {}
        keys = {layer.name: self._moments_key(layer) for layer in layers if layer.inputs}
        for layer in layers:
            blocks = store.get(keys[layer.name]) if layer.inputs else None
            if blocks is not None:
                found[layer.name] = Moments(blocks, columns_of(graph, layer))
        begun = time.perf_counter()
        fresh = gather(
            self.engine, self.plan, self._batches(), [layer for layer in layers if layer.name not in found]
        )
        seconds = (time.perf_counter() - begun) / max(len(fresh), 1)
        for name, moments in fresh.items():
            if name in keys:
                store.put(keys[name], moments.blocks, seconds)
        return {**found, **fresh}

    def _moments_key(self, layer: Layer) -> str:
        graph = self.engine.graph
        assert layer.weight is not None
        shape = str(tuple(graph.constants[layer.weight].shape))
        signature = graph.by_name[layer.node].signature
        return digest("moments", environment(), self.plan.keys[layer.inputs[0]], signature, shape, self.key)
