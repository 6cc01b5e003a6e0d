"""What hypothesis draws: tensors, schemes, recipes and edits; and the tables' entries as names.

A template such as ``group:N`` stands in the tables for many names; :func:`names` gives an example of each, so that a
new entry is drawn and tested without a word here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from explorer.calibrate import ELEMENTS, OBJECTIVES, objective
from explorer.errors import SchemeError
from explorer.formats import (
    CONVENTIONS,
    FORMATS,
    GRANULARITIES,
    OVERFLOWS,
    SCALES,
    CodebookFormat,
    IntegerFormat,
    LevelFormat,
    Parameter,
    spelled,
)
from explorer.recipe import MODES, TENSORS, LayerConfig, Recipe, TensorScheme

SCALED = tuple(name for name, number in FORMATS.items() if number.scaled)
INTEGERS = tuple(name for name, number in FORMATS.items() if isinstance(number, IntegerFormat))
LEVELS = tuple(name for name, number in FORMATS.items() if isinstance(number, LevelFormat))
CODEBOOKS = tuple(name for name, number in FORMATS.items() if isinstance(number, CodebookFormat))
FLOATING = tuple(name for name, number in FORMATS.items() if not number.scaled)


def names(table: Mapping[str, Any], size: int = 2) -> tuple[str, ...]:
    """One name for each entry of a table; a template is filled with ``size`` or with its own example."""

    def number(entry: Any) -> object:
        parameter = getattr(entry, "parameter", None)
        return spelled(parameter.usual) if parameter else size

    return tuple(
        f"{key.split(':')[0]}:{number(entry)}" if ":" in key else key for key, entry in table.items()
    )


GRAINS, ALL_GOALS = names(GRANULARITIES), names(OBJECTIVES)
# Those that choose a range from the tensor's own values; what takes a layer or a network has laws of its own.
GOALS = tuple(name for name in ALL_GOALS if objective(name).needs == ELEMENTS)

Fields = dict[str, Any]


def valid(build: Callable[..., Any], fields: Fields) -> bool:
    """Whether ``build`` takes these fields."""
    try:
        build(**fields)
    except SchemeError:
        return False
    return True


def pairwise(axes: Mapping[str, Sequence[Any]], fits: Callable[[Fields], bool]) -> list[Fields]:
    """A short list of combinations in which every two values of different axes that fit together meet.

    Greedy and the same at every run.
    """
    pairs = [((a, x), (b, y)) for a, b in combinations(axes, 2) for x in axes[a] for y in axes[b]]
    unmet = set(pairs)

    def meets(fields: Fields) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
        """The pairs not met so far that are in ``fields``."""
        known = [axis for axis in axes if axis in fields]
        return unmet & {((a, fields[a]), (b, fields[b])) for a, b in combinations(known, 2)}

    found: list[Fields] = []
    for pair in pairs:
        if pair not in unmet:
            continue
        chosen: Fields = dict(pair)
        for axis in axes:
            if axis not in chosen:
                # Start from another value each time, so that ties do not always fall on the first.
                turn = len(found) * (1 + len(chosen)) // 2 % len(axes[axis])
                tried = [{**chosen, axis: value} for value in (*axes[axis][turn:], *axes[axis][:turn])]
                chosen = max(tried, key=lambda fields: (fits(fields), len(meets(fields))))
        if fits(chosen):
            found.append({axis: chosen[axis] for axis in axes})
            unmet -= meets(chosen)
    return found


AXES: dict[str, Sequence[Any]] = {
    "format": tuple(FORMATS),
    "granularity": GRAINS,
    "convention": tuple(CONVENTIONS),
    "objective": GOALS,
    "symmetric": (True, False),
    "narrow": (None, True, False),
    "scale": tuple(SCALES),
}
# Every two entries of any two tables meet in at least one of these.
SCHEMES = tuple(
    dict.fromkeys(TensorScheme(**f) for f in pairwise(AXES, lambda fields: valid(TensorScheme, fields)))
)


def label(scheme: TensorScheme) -> str:
    """A readable name for a test."""
    return scheme.describe().replace(" ", "-")


def fixed_tensors() -> dict[str, Tensor]:
    """Small tensors of the kinds that occur in networks, and of those that break arithmetic."""
    draw = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    mixed = normal(5, 7)
    mixed[1], mixed[2], mixed[3] = 0.0, 0.75, -3.0
    heavy = normal(3, 16)
    heavy[0, 0], heavy[1, 3] = 40.0, -25.0
    return {
        "normal": normal(4, 6),
        "convolution": normal(5, 3, 2, 2) * 0.1,
        "positive": normal(4, 7).relu(),
        "negative": -normal(4, 7).abs() - 0.1,
        "heavy": heavy,
        "constant-rows": mixed,
        "zeros": torch.zeros(3, 5),
        "vector": normal(6),
        "scalar": torch.tensor(-1.7),
        "tiny": normal(3, 5) * 1e-30,
        "huge": normal(3, 5) * 1e30,
        "far-apart": normal(4, 6) * torch.tensor([1e-6, 1.0, 1e6, 1e-2])[:, None],
        "off-centre": normal(4, 6) + 100,
    }


TENSOR_KINDS = tuple(fixed_tensors())


def tensors(
    smallest: int = 1, largest: int = 9, dims: tuple[int, int] = (1, 3), bound: float = 1e6
) -> st.SearchStrategy[Tensor]:
    """Finite float32 tensors, with repeated values and zeros more often than by chance."""
    numbers = st.one_of(
        st.floats(-bound, bound, width=32, allow_subnormal=False),
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 127.0, -128.0, 1e-6]),
    )
    shapes = arrays.array_shapes(min_dims=dims[0], max_dims=dims[1], min_side=smallest, max_side=largest)
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=numbers)).map(
        torch.from_numpy
    )


def granularity_names() -> st.SearchStrategy[str]:
    sized = [key.split(":")[0] for key, entry in GRANULARITIES.items() if entry.sized]
    plain = [key for key, entry in GRANULARITIES.items() if not entry.sized]
    return st.one_of(
        st.sampled_from(plain), st.builds("{}:{}".format, st.sampled_from(sized), st.integers(1, 40))
    )


def objective_names() -> st.SearchStrategy[str]:
    plain = [key for key, entry in OBJECTIVES.items() if not entry.parameter]

    def drawn(key: str, parameter: Parameter) -> st.SearchStrategy[str]:
        numbers = st.floats(parameter.above, parameter.most, exclude_min=True)
        several = st.lists(numbers, min_size=1, max_size=parameter.count)
        return several.map(lambda given: ":".join([key.split(":")[0], *map(spelled, given)]))

    taken = [drawn(key, entry.parameter) for key, entry in OBJECTIVES.items() if entry.parameter]
    return st.one_of(st.sampled_from(plain), *taken)


FIELD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "format": st.sampled_from(list(FORMATS)),
    "granularity": granularity_names(),
    "symmetric": st.booleans(),
    "objective": objective_names(),
    "mode": st.sampled_from(list(MODES)),
    "convention": st.sampled_from(list(CONVENTIONS)),
    "narrow": st.sampled_from([None, True, False]),
    "scale": st.sampled_from(list(SCALES)),
    "overflow": st.sampled_from(list(OVERFLOWS)),
    "rounding": st.sampled_from(["nearest", "stochastic", "stochastic:7"]),
}


def schemes() -> st.SearchStrategy[TensorScheme]:
    """Any scheme that exists."""
    return (
        st.fixed_dictionaries(FIELD_VALUES)
        .filter(lambda fields: valid(TensorScheme, fields))
        .map(lambda f: TensorScheme(**f))
    )


def lone_schemes() -> st.SearchStrategy[TensorScheme]:
    """Any scheme by which a tensor can be quantized that belongs to no layer."""
    return schemes().filter(lambda scheme: scheme.goal.needs == ELEMENTS)


def configs() -> st.SearchStrategy[LayerConfig]:
    return (
        st.tuples(schemes(), schemes())
        .filter(lambda pair: valid(LayerConfig, {"weight": pair[0], "input": pair[1]}))
        .map(lambda pair: LayerConfig(*pair))
    )


PATTERNS = ("fc", "layer1.*", "layer?.0.conv1", "*", "stem", "a b", "größe", "1", "true", "x: y", "*.[0]")


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """A default and up to four lines; a line that does not fit is left out."""
    recipe = Recipe(draw(configs()))
    for _ in range(draw(st.integers(0, 4))):
        pattern = draw(st.sampled_from(PATTERNS))
        settings = {tensor: draw(st.fixed_dictionaries({}, optional=FIELD_VALUES)) for tensor in TENSORS}
        try:
            recipe = recipe.with_layer(pattern, **settings)
        except SchemeError:
            continue
    return recipe


# What a page offers for one layer; together with other edits any of these is valid.
WEIGHT_EDITS: tuple[Fields, ...] = (
    {"format": "int8", "granularity": "channel"},
    {"format": "int4", "granularity": "subchannel:3", "objective": "mse"},
    {"format": "int2", "granularity": "layer"},
    {"format": "uint5", "granularity": "group:2", "symmetric": False},
    {"format": "int3", "granularity": "channel", "objective": "output"},
    {"format": "bf16"},
    {"format": "fp32"},
    {"mode": "off"},
    {"mode": "static"},
)
INPUT_EDITS: tuple[Fields, ...] = (
    {"format": "uint8", "granularity": "layer", "symmetric": False, "objective": "minmax", "mode": "static"},
    {"format": "int4", "granularity": "layer", "symmetric": True, "objective": "mse", "mode": "static"},
    {"format": "int8", "granularity": "channel", "objective": "minmax", "mode": "static"},
    {"format": "int3", "granularity": "layer", "symmetric": True, "objective": "output", "mode": "static"},
    {"format": "int8", "granularity": "layer", "objective": "minmax", "mode": "dynamic"},
    {"format": "int6", "granularity": "token", "objective": "minmax", "mode": "dynamic"},
    {"format": "fp16"},
    {"format": "fp32"},
)


def edits(layers: Iterable[str], most: int = 4) -> st.SearchStrategy[list[tuple[str, str, Fields]]]:
    """A sequence of edits (layer, tensor, fields)."""
    layer = st.sampled_from(list(layers))
    weight = st.tuples(layer, st.just("weight"), st.sampled_from(WEIGHT_EDITS))
    inputs = st.tuples(layer, st.just("input"), st.sampled_from(INPUT_EDITS))
    return st.lists(st.one_of(weight, inputs), min_size=1, max_size=most)
