"""Recipes by name or from files."""

from __future__ import annotations

from pathlib import Path

from explorer.errors import RecipeError, nearest
from explorer.recipe import LONGEST_FILE, PRESETS, Recipe


def load_recipe(spec: str) -> Recipe:
    """A preset by its name, or a recipe from a YAML or JSON file.

    Raises:
        RecipeError: when there is neither, or when the file is no recipe; the message begins with its name.

    >>> load_recipe("w4a8").default.weight.bits
    4
    """
    if spec in PRESETS:
        return Recipe.preset(spec)
    path = Path(spec)
    try:
        if path.stat().st_size > 4 * LONGEST_FILE:
            raise RecipeError(f"{spec}: a file of {path.stat().st_size:,} bytes is no recipe.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        presets = ", ".join(PRESETS)
        raise RecipeError(
            f"There is no preset and no recipe file {spec!r}; presets are {presets}.{nearest(spec, PRESETS)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe file {spec!r} cannot be read: {error}.") from None
    try:
        return Recipe.from_json(text) if path.suffix == ".json" else Recipe.from_yaml(text)
    except RecipeError as error:
        raise RecipeError(f"{spec}: {error}") from None
