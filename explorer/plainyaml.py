"""YAML that somebody wrote, and one sentence about what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import yaml

from explorer.errors import RecipeError

T = TypeVar("T")


def parsed(what: str, parse: Callable[[], T]) -> T:
    """What ``parse`` makes of a text.

    Args:
        what: the text is, with its verb, as in "The recipe is".
        parse: reads it by PyYAML.

    Raises:
        RecipeError: when it is no YAML, with the line and column where they are known.

    >>> parsed("The recipe is", lambda: yaml.safe_load("a: [1"))
    Traceback (most recent call last):
    ...
    explorer.errors.RecipeError: The recipe is not YAML: line 1, column 6: expected ',' or ']', but got '<stream end>'.
    """
    try:
        return parse()
    except RecipeError:
        raise
    # A value that is not of the type that its tag names fails in PyYAML in any of these ways.
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{what} not YAML: {where}{' '.join(problem.split())}.") from None
