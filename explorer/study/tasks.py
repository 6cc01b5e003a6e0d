"""Tasks: what is computed of one batch, apart from what is made of it.

A task is a plain value whose answer depends on the graph, the task and the images alone, so it may be computed in any
process.  Whatever looks at more than one batch (intervals, stopping, races, orders) is left to those who ask, and
comes out the same wherever the answers are from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from explorer.errors import DataError
from explorer.graph import Batch, Engine


@dataclass(frozen=True, eq=False)
class Examples:
    """One batch and what is known to be right: ``(images, ...)``, or None where nobody knows.

    ``indices`` are the images' numbers in the data set.
    """

    batch: Batch
    labels: Tensor | None
    indices: tuple[int, ...]

    @property
    def where(self) -> str:
        """Which examples these are, in words."""
        return f"the batch of {len(self.indices):,} that begins with image {self.indices[0]}"


@dataclass(frozen=True, eq=False)
class Answer:
    """What a task has found about one batch.

    Args:
        indices: the images' numbers in the data set.
        labelled: whether there are labels.
    """

    indices: tuple[int, ...]
    labelled: bool

    def settled(self) -> Self:
        """The answer with all that it would compute when it is looked at."""
        return self


A = TypeVar("A", bound=Answer)
A_co = TypeVar("A_co", bound=Answer, covariant=True)


class Task(ABC, Generic[A_co]):
    """What is to be computed of a batch; a frozen value."""

    def settled(self) -> Self:
        """The task with all that it would work out when its turn comes."""
        return self

    @abstractmethod
    def answer(self, engine: Engine, examples: Examples) -> A_co:
        """What the batch has to say."""


@dataclass(frozen=True, eq=False)
class Pieces(Answer):
    """An answer in pieces, one for each network that was asked about.

    Args:
        base: of the network that all are compared with; None where that is the float network.
        pieces: the number of each network and what was found; it may be computed while it is gone through.
    """

    base: Any
    pieces: Iterable[tuple[int, Any]]

    def settled(self) -> Pieces:
        return replace(self, pieces=list(self.pieces))


@dataclass(frozen=True, eq=False)
class Divisible:
    """A question about many networks, which may be asked about some of them here and some there.

    Args:
        open: the networks, by number, that are still in question: fewer and fewer, in the order in which they matter.
        task: what is asked about some of them.
    """

    open: Callable[[], Sequence[int]]
    task: Callable[[Sequence[int]], Task[Pieces]]


class Elsewhere(Protocol):
    """Others who compute; answers come in the order of the batches, as they would here."""

    def each(self, task: Task[A], total: int) -> Iterator[A]:
        """The answer of each batch among the first ``total`` images."""
        ...

    def divided(self, question: Divisible, total: int) -> Iterator[Pieces]:
        """The same of a question that may be divided; pieces that are no longer open are left out."""
        ...


def answers(
    engine: Engine, batches: Iterable[Examples], task: Task[A], total: int, elsewhere: Elsewhere | None
) -> Iterator[A]:
    """The answer of each batch, computed here when it is asked for, or elsewhere and ahead.

    Args:
        engine: of the graph; computes here.
        batches: the examples, in order; they are not read where others compute.
        task: what is asked.
        total: how many images the batches hold together.
        elsewhere: who computes; None: this process.
    """
    if elsewhere is not None:
        return elsewhere.each(task, total)
    return (task.answer(engine, examples) for examples in batches)


def divided(
    engine: Engine, batches: Iterable[Examples], question: Divisible, total: int, elsewhere: Elsewhere | None
) -> Iterator[Pieces]:
    """As :func:`answers`, of a question about many networks."""
    if elsewhere is not None:
        return elsewhere.divided(question, total)
    return (question.task(question.open()).answer(engine, examples) for examples in batches)


def counted(found: Iterable[A], total: int) -> Iterator[A]:
    """The answers; when an image cannot be read the error says how many images came before it.

    Raises:
        DataError: from reading, or when there is no image.
    """
    done = 0
    try:
        for answer in found:
            yield answer
            done += len(answer.indices)
    except DataError as error:
        raise DataError(f"{error} {done:,} of {total:,} images were finished before it.") from error
    if not done:
        raise DataError("There is no image to evaluate on.")
