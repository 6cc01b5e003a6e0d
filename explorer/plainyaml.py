"""YAML that somebody wrote, and one sentence about what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from explorer.errors import RecipeError

T = TypeVar("T")

# libyaml's, where PyYAML was built with it, reads ten times as fast.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What people write is nested four deep; PyYAML takes quadratic time over deeper and deeper files.
DEEPEST = 16


def parsed(what: str, parse: Callable[[], T]) -> T:
    """What ``parse`` makes of a text.

    Args:
        what: the text is, with its verb, as in "The recipe is".
        parse: reads it by PyYAML.

    Raises:
        RecipeError: when it is no YAML, with the line and column where they are known.

    >>> parsed("The recipe is", lambda: yaml.load("a: [1", LOADER))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    explorer.errors.RecipeError: The recipe is not YAML: line ...
    """
    try:
        return parse()
    except RecipeError:
        raise
    # A value that is not of the type that its tag names fails in PyYAML in any of these ways.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{what} not YAML: {where}{' '.join(problem.split())}.") from None


def check_events(text: str, what: str) -> None:
    """Refuse YAML that would take long to read.

    Args:
        text: the YAML.
        what: it is, at the beginning of a sentence, as in "A recipe".

    Raises:
        RecipeError: for an alias, and for more than ``DEEPEST`` levels.

    >>> check_events("a: [1, [2]]", "A recipe")
    """
    depth = 0
    for event in yaml.parse(text, LOADER):
        # An alias can make a short file stand for an endless one.
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(f"{what} may not use YAML aliases (*name); write the fields out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecipeError(f"{what} is nested too deeply.")
