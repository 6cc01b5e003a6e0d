"""A recipe for one network's layers in as few lines as may be: what many edits have made, as one would write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from explorer.errors import RecipeError, SchemeError
from explorer.recipe import Line, Recipe, TensorScheme
from explorer.scheme import FIELDS, LayerConfig

Settings = tuple[tuple[str, Any], ...]


def concise(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """A recipe with fewer lines that gives each of these layers the same schemes; the same one if there is none.

    What most layers have becomes the default, and layers that differ from it in the same way share a pattern where
    one names just them (``layer1.*`` or ``*.conv1``).  For other layers it may say something else.

    Args:
        recipe: one that fits the layers.
        names: all quantizable layers of the network.

    >>> names = ["stem", "a.conv1", "a.conv2", "fc"]
    >>> recipe = Recipe.preset("w8a8").with_layer("fc", weight={"format": "int6"})
    >>> for name in names:
    ...     recipe = recipe.with_layer(name, weight={"format": "int4"})
    >>> concise(recipe.with_layer("a.conv1", weight={"format": "int8"}), names).to_dict()["layers"]
    {'a.conv1': {'weight': {'format': 'int8'}}}
    """
    if len(recipe.layers) < 2:
        return recipe
    configs = {name: recipe.config(name) for name in names}
    shortest = recipe
    for default in _defaults(recipe, configs):
        try:
            found = Recipe(default, tuple(_lines(default, configs)))
            same = all(found.config(name) == config for name, config in configs.items())
        except (RecipeError, SchemeError):
            continue
        if same and len(found.layers) < len(shortest.layers):
            shortest = found
    return shortest


def _defaults(recipe: Recipe, configs: Mapping[str, LayerConfig]) -> Iterator[LayerConfig]:
    """The recipe's own default, and what most layers have."""
    yield recipe.default
    weights, inputs = (
        Counter(getattr(c, tensor) for c in configs.values()) for tensor in ("weight", "input")
    )
    if weights:
        yield LayerConfig(weights.most_common(1)[0][0], inputs.most_common(1)[0][0])


def _lines(default: LayerConfig, configs: Mapping[str, LayerConfig]) -> Iterator[Line]:
    """What differs from the default, layers that differ in the same way together where a pattern names just them."""
    differing = {
        name: (_changes(default.weight, config.weight), _changes(default.input, config.input))
        for name, config in configs.items()
    }
    named = cache(lambda pattern: frozenset(name for name in configs if Line(pattern).matches(name)))
    left = [name for name, changes in differing.items() if any(changes)]
    while left:
        changes = differing[left[0]]
        alike = {name for name in left if differing[name] == changes}
        pattern = _pattern(left[0], alike, named)
        yield Line(pattern, *changes)
        left = [name for name in left if name not in named(pattern)]


def _changes(default: TensorScheme, scheme: TensorScheme) -> Settings:
    return tuple(
        (field, getattr(scheme, field))
        for field in FIELDS
        if getattr(scheme, field) != getattr(default, field)
    )


def _pattern(name: str, alike: set[str], named: Callable[[str], frozenset[str]]) -> str:
    """The pattern for ``name`` that names most of the layers ``alike`` and no other."""
    if len(alike) == 1:
        return name
    parts = name.split(".")
    tried = [name]
    for count in range(1, len(parts)):
        tried += [".".join([*parts[:count], "*"]), ".".join(["*", *parts[-count:]])]

    fitting = [pattern for pattern in tried if named(pattern) <= alike]
    return max(fitting, key=lambda pattern: len(named(pattern)), default=name)
