"""Every error that the explorer raises on purpose.

::

    ExplorerError (a ValueError)
    +-- SchemeError       a format, granularity, objective, ... that does not exist or does not go together
    |   +-- RecipeError   the same inside a recipe, with its place
    +-- TensorError       a tensor with NaN or infinity, or of a shape that does not fit
    +-- ModelError        a network that cannot be loaded or captured
    |   +-- CheckpointError   weights that are missing, damaged, or of another network
    |   +-- ParametersError   another tool's parameters that cannot be read or do not fit
    +-- DataError         images or labels that cannot be read or do not fit the network
    +-- MetricError       a metric that does not exist, does not fit the network, or fails
    +-- LayerError        a layer name that the network does not have
    +-- JobError          a computation that cannot be carried on
    +-- ProjectError      a project folder that cannot be used, or a name that does not fit

A message is one sentence or two: what was given, what is wrong, and the nearest right word.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Characters of a message: names and values in it come from files and may be of any length.
LONGEST = 1_000


class ExplorerError(ValueError):
    """The base of all errors raised on purpose.

    A name in a file may hold anything: what no screen shows, or a terminal would take for a command, is written
    as an escape, and a message of more than ``LONGEST`` characters loses its middle.

    >>> str(ExplorerError("There is no layer fc\x1b[2J."))
    'There is no layer fc\\\\x1b[2J.'
    """

    def __init__(self, message: str = "") -> None:
        text = message if message.isprintable() else "".join(map(_shown, message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 5 :]}"
        super().__init__(text)


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


class SchemeError(ExplorerError):
    """A format, granularity, objective or convention that does not exist or does not go together."""


class RecipeError(SchemeError):
    """A recipe that cannot be read or does not fit the network."""


class TensorError(ExplorerError):
    """A tensor with NaN or infinity, or of a shape that does not fit."""


class ModelError(ExplorerError):
    """A network that cannot be loaded or captured."""


class CheckpointError(ModelError):
    """Weights that are missing, damaged, or of another network."""


class ParametersError(ModelError):
    """Another tool's quantization parameters that cannot be read or do not fit."""


class DataError(ExplorerError):
    """Images or labels that cannot be read or do not fit the network."""


class MetricError(ExplorerError):
    """A metric that does not exist, does not fit the network, or fails."""


class LayerError(ExplorerError):
    """A layer name that the network does not have."""


class JobError(ExplorerError):
    """A computation that cannot be carried on."""


class ProjectError(ExplorerError):
    """A project folder that cannot be used, or a configuration's name that does not fit."""


def nearest(word: object, choices: Iterable[str]) -> str:
    """A clause that names the choice most like ``word``, or nothing when none is near.

    >>> nearest("int88", ["int8", "fp16"])
    " Did you mean 'int8'?"
    """
    found = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


def unknown(kind: str, word: object, choices: Iterable[str]) -> str:
    """The sentence for a word that is not in a table, with the nearest one that is.

    >>> unknown("format", "int88", ["int8", "fp16"])
    "There is no format 'int88'; there are int8, fp16. Did you mean 'int8'?"
    """
    names = list(choices)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"There is no {kind} {word!r}; there are {shown}.{nearest(word, names)}"
