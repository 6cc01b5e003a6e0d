"""Observing: what the activations of the float network look like on the calibration images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from explorer.calibrate import GrowingHistogram, Sample, fit
from explorer.errors import DataError
from explorer.formats import QParams, check_finite
from explorer.graph.engine import Batch, Engine, Plan
from explorer.graph.ir import Layer
from explorer.recipe import Recipe, TensorScheme

# Which value, cut how: the node's name, the granularity's name, the channel axis.
Question = tuple[str, str, int]


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
        self._params: dict[tuple[Question, str], QParams] = {}
        self._lock = threading.RLock()

    @staticmethod
    def question(layer: Layer, index: int, scheme: TensorScheme) -> Question:
        grain = scheme.granularity
        return layer.inputs[index], grain, layer.channel if grain != "layer" else 0

    def prepare(self, recipe: Recipe) -> None:
        """Gather in one pass all that ``recipe`` will ask for."""
        wanted = []
        for layer in self.engine.graph.layer_at.values():
            scheme = recipe.config(layer.name).input
            if scheme.scaled and scheme.mode == "static":
                wanted += [self.question(layer, index, scheme) for index in range(len(layer.inputs))]
        self.observe(wanted)

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
                raise DataError("There are no calibration images; activations need some to set their ranges.")
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

    def params(self, layer: Layer, index: int, scheme: TensorScheme) -> QParams:
        """The static parameters of an input of ``layer`` under ``scheme``."""
        question = self.question(layer, index, scheme)
        with self._lock:
            key = (question, scheme.key)
            if key not in self._params:
                self._params[key] = fit(self.sample(layer, index, scheme), scheme.grid, scheme.goal)
            return self._params[key]
