"""The subject: a captured network with its images and statistics, which sessions may share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from explorer.errors import DataError, JobError, ModelError
from explorer.graph import Batch, Calibration, Disk, Engine, Graph, Layer, Plan, Store, capture, plan
from explorer.graph.device import device_bytes, device_of
from explorer.graph.ir import digest, tensor_digest
from explorer.graph.memory import free_bytes
from explorer.recipe import Recipe, TensorScheme
from explorer.sources import (
    Data,
    DataFacts,
    LoadedModel,
    Preprocess,
    Subset,
    check_shape,
    facts_of,
    fit_labels,
    load_data,
    load_metric,
    load_model,
    sha256_of,
)
from explorer.sources.reading import read_images
from explorer.study import METRICS, Examples, Metric, Resolver, check_fit, usual_metric
from explorer.study.metrics import ErrorSums
from explorer.study.tasks import Elsewhere
from explorer.workers import Crew, Hands, Opening, Place, hands_of

# Batches up to this many bytes together are held; larger data are read again when they are needed.
_HELD_BYTES = 1 << 29
# So many images tell data sets apart.
_LOOKED_AT = 16
DEFAULT_MODEL = "fashion-resnet20"

_stores: dict[str, Store] = {}
_store_lock = threading.Lock()


def shared_store(device: str = "cpu") -> Store:
    """The store of this process for a device: keys are contents, so all sessions may share it."""
    with _store_lock:
        if device not in _stores:
            _stores[device] = Store(default_budget(device))
        return _stores[device]


def default_budget(device: str = "cpu") -> int:
    """A quarter of the memory that is free on the device, and 256 MiB at least."""
    return max(1 << 28, (free_bytes() if device == "cpu" else device_bytes(device)) // 4)


def _store_for(budget: int | None, folder: str | os.PathLike[str] | None, device: str) -> Store:
    """The store that the process shares, or one of its own for a budget or a folder of its own."""
    if budget is None and folder is None:
        return shared_store(device)
    disk = None if folder is None else Disk(folder, kinds=(ErrorSums,))
    return Store(default_budget(device) if budget is None else budget, disk)


class Stream:
    """The batches of some data in a fixed, shuffled order.

    Args:
        data: the examples.
        size: how many images a batch has.
        seed: of the order.
    """

    def __init__(self, data: Data, size: int, seed: int) -> None:
        self.data, self.size = data, size
        self._order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
        self._held: dict[tuple[int, int], Examples] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def count(self, images: int | None) -> int:
        """How many images are meant by ``images``, None being all.

        Raises:
            DataError: for a number below one.
        """
        if images is None:
            return len(self._order)
        if isinstance(images, bool) or not isinstance(images, int) or images < 1:
            raise DataError(f"The number of images must be a whole number of at least 1, not {images!r}.")
        return min(images, len(self._order))

    @property
    def order(self) -> Sequence[int]:
        """The images' numbers in the data set, in the order in which they are seen."""
        return self._order

    def looked_at(self, images: int | None = None) -> list[int]:
        """The numbers of sixteen images, spread over the first so many (None for all)."""
        count = self.count(images)
        return [self._order[place] for place in sorted({count * k // _LOOKED_AT for k in range(_LOOKED_AT)})]

    def fingerprint(self, images: int | None = None) -> str:
        """A digest of how many images there are and of sixteen of them with their labels, spread over the order.

        Args:
            images: among the first so many, None for all.
        """
        count = self.count(images)
        read = read_images(self.data, self.looked_at(images))
        labels = "" if read.labels is None else tensor_digest(read.labels)
        return digest(str(len(self._order)), str(count), tensor_digest(read.images), labels)

    def batches(self, images: int | None = None) -> Iterator[Examples]:
        """The first ``images`` examples, batch by batch."""
        count = self.count(images)
        for start in range(0, count, self.size):
            yield self.read(start, min(start + self.size, count))

    def read(self, start: int, stop: int) -> Examples:
        """A batch: the examples from one place in the order to another."""
        with self._lock:
            if (start, stop) in self._held:
                return self._held[start, stop]
        indices = tuple(self._order[start:stop])
        read = read_images(self.data, indices)
        examples = Examples(Batch.of(read.images), read.labels, indices)
        size = read.images.numel() * read.images.element_size()
        with self._lock:
            if self._bytes + size <= _HELD_BYTES:
                self._held[start, stop] = examples
                self._bytes += size
        return examples


@dataclass(frozen=True, eq=False)
class Subject:
    """What sessions may share, since nobody writes to it: the captured network, its images and statistics.

    ``weights_sha256`` is that of the network's state_dict as it was loaded, in the order of its names; ``elsewhere``
    computes evaluations and sweeps, None being this process; ``metric`` is what the network is measured by.
    """

    name: str
    graph: Graph
    engine: Engine
    floats: Plan
    calibration: Calibration
    resolver: Resolver
    evaluation: Stream
    calibration_stream: Stream
    classes: tuple[str, ...] | None
    preprocess: Preprocess | None
    calibration_name: str
    calibration_images: int
    weights_sha256: str
    own_preprocess: Preprocess | None = None
    wish: Preprocess | None = None
    chosen: str = ""
    labels: str = ""
    elsewhere: Elsewhere | None = None
    metric: Metric = METRICS["top1"]

    @property
    def data_facts(self) -> DataFacts:
        """The evaluation images, what happens to them, and which of them could not be read so far."""
        return facts_of(self.evaluation.data, self.chosen, self.labels, self.wish, self.own_preprocess)

    @property
    def calibration_facts(self) -> DataFacts:
        """The same of the images that set fixed ranges."""
        chosen = f"{self.calibration_name}."
        return facts_of(self.calibration_stream.data, chosen, "", self.wish, self.own_preprocess)

    def images_sha256(self, images: int | None = None) -> str:
        """The sha256 of the first evaluation images as the network sees them, and of their labels.

        Args:
            images: how many, None for all.
        """

        def parts() -> Iterator[tuple[str, Tensor]]:
            for examples in self.evaluation.batches(images):
                for row, index in enumerate(examples.indices):
                    yield f"image {index}", examples.batch.images[row]
                    if examples.labels is not None:
                        yield "label", examples.labels[row]

        return sha256_of(parts())

    @cached_property
    def key(self) -> str:
        """A name for the network and its images, in their order, by their contents: what results belong to."""
        calibration = self.calibration_stream.fingerprint(self.calibration_images)
        # Other metrics give other scores; top-1's name is left out, as in projects from before there were others.
        measured = [] if self.metric.key == "top1" else [self.metric.key]
        return digest(self.graph.digest, self.evaluation.fingerprint(), calibration, *measured)

    def calibration_batches(self) -> Iterator[Batch]:
        """The images that set fixed ranges, batch by batch."""
        return (examples.batch for examples in self.calibration_stream.batches(self.calibration_images))


def _which(data: Data, subset: int | None, seed: int) -> str:
    """Which of the source's images these are."""
    if subset is None:
        return "All images that can be read."
    total = len(data.data) if isinstance(data, Subset) else len(data)
    share = ", with the same share of each class" if data.targets() is not None else ""
    return f"{len(data):,} of {total:,} images, drawn at random with seed {seed}{share}."


def _no_params(layer: Layer, index: int, scheme: TensorScheme) -> Any:
    raise AssertionError("The float network has no quantized input.")


def make_subject(
    model: str | nn.Module | LoadedModel = DEFAULT_MODEL,
    data: Any = None,
    calibration: Any = None,
    evaluation: Any = None,
    example: Tensor | None = None,
    checkpoint: Any = None,
    preprocess: Preprocess | str | None = None,
    calibration_images: int = 512,
    fold: bool = True,
    store_bytes: int | None = None,
    seed: int = 0,
    store_folder: str | os.PathLike[str] | None = None,
    output: str | int | None = None,
    subset: int | None = None,
    download: bool = False,
    executor: Executor | Hands | None = None,
    metric: str | Metric | Callable[..., Tensor] | None = None,
    device: str = "cpu",
) -> Subject:
    """Load and capture a network and its images.  The arguments are those of :class:`Session`."""
    wanted_metric = None if metric is None else load_metric(metric)
    place_of_work = device_of(device)
    if executor is not None and place_of_work != "cpu":
        raise JobError("An executor's workers compute on their own CPUs; leave device= out, or executor=.")
    if isinstance(model, LoadedModel) and (checkpoint is not None or download):
        raise ModelError(
            f"The network {model.name} is loaded already; give checkpoint= and download= to load_model."
        )
    loaded = model if isinstance(model, LoadedModel) else load_model(model, checkpoint, download)
    wish = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
    if data is not None and evaluation is not None:
        raise DataError("Give either data= or evaluation=, not both: they are two names of the same images.")
    chosen = evaluation if evaluation is not None else data if data is not None else loaded.data
    if chosen is None:
        raise DataError(
            "This network comes without images; give data= (or --data): a folder, an .npz or a loader."
        )
    # A metric that is not of classes may compare with any numbers.
    free = wanted_metric is not None and not wanted_metric.classes
    images = load_data(chosen, wish, default=loaded.preprocess, subset=subset, seed=seed, free=free)
    if calibration is None and isinstance(chosen, str) and chosen == loaded.data:
        calibration = loaded.calibration
    # Without images of their own, ranges are set on some of those that are evaluated; the report says so.
    tuning = (
        images if calibration is None else load_data(calibration, wish, default=loaded.preprocess, free=free)
    )
    if example is None:
        example = loaded.example
    if example is None:
        example = images.read([0]).images
    else:
        check_shape(images, example)
        check_shape(tuning, example)
    # Of the network as it was loaded: folding makes other numbers of it.
    weights = sha256_of(sorted(loaded.module.state_dict().items()))
    graph = capture(loaded.module, example, fold, loaded.output if output is None else output)
    results = graph.by_name[graph.output].shape
    chosen_metric = wanted_metric or usual_metric(results, images.read([0]).labels)
    check_fit(chosen_metric, results)
    graph = replace(graph, device=place_of_work)
    which, how = _which(images, subset, seed), ""
    if len(results) == 2 and chosen_metric.classes:
        fitted, how = fit_labels(images, loaded.classes, results[1])
        tuning = fitted if tuning is images else fit_labels(tuning, loaded.classes, results[1])[0]
        images = fitted
    engine = Engine(graph, _store_for(store_bytes, store_folder, place_of_work))
    if store_bytes is not None:
        engine.check_budget()
    floats = plan(graph, Recipe.preset("fp32"), _no_params)
    size = engine.batch_size()
    tuning_stream = Stream(tuning, size, seed)
    wanted = tuning_stream.count(calibration_images)
    statistics = Calibration(
        engine, floats, lambda: (examples.batch for examples in tuning_stream.batches(wanted))
    )
    stream = Stream(images, size, seed)
    crew = None
    if executor is not None:
        place = Place(str(chosen), wish, loaded.preprocess)
        hands = hands_of(executor, store_bytes)
        crew = Crew(hands, engine, stream, Opening.of(images, place, stream.looked_at()))
    shared = " (which are also evaluated)" if calibration is None else ""
    return Subject(
        name=loaded.name,
        graph=graph,
        engine=engine,
        floats=floats,
        calibration=statistics,
        resolver=Resolver(
            engine,
            floats,
            statistics,
            lambda images: tuning_stream.batches(min(images, wanted)),
            chosen_metric,
        ),
        evaluation=stream,
        calibration_stream=tuning_stream,
        classes=images.classes or loaded.classes,
        preprocess=images.preprocess or loaded.preprocess,
        calibration_name=f"{wanted} images of {tuning.name}{shared}",
        calibration_images=wanted,
        weights_sha256=weights,
        own_preprocess=loaded.preprocess,
        wish=wish,
        chosen=which,
        labels=how,
        elsewhere=crew,
        metric=chosen_metric,
    )
