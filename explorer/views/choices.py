"""What the menus offer: read from the tables, nothing typed by hand."""

from __future__ import annotations

from explorer.calibrate import OBJECTIVES
from explorer.formats import (
    CONVENTIONS,
    FORMATS,
    GRANULARITIES,
    OVERFLOWS,
    ROUNDINGS,
    SCALES,
    family,
    spelled,
)
from explorer.recipe import MODES, PRESETS, TensorScheme

ANY = TensorScheme()
# The numbers that are offered for entries of the tables that take one; any other can be typed in the inspector.
SIZES = {"group:N": (4, 16), "subchannel:N": (16, 32, 64, 128)}


def formats() -> list[str]:
    """All number formats."""
    return list(FORMATS)


def granularities(tensor: str) -> list[str]:
    """The granularities that may fit a tensor, those that take a number with the usual ones.

    >>> granularities("weight")[:4]
    ['layer', 'channel', 'group:4', 'group:16']
    """
    offered: list[str] = []
    for name, entry in GRANULARITIES.items():
        if name == "token" and tensor == "weight":
            continue
        sizes = SIZES.get(name, (32,))
        offered += [name.replace("N", str(size)) for size in sizes] if entry.sized else [name]
    return offered


def objectives() -> list[str]:
    """The objectives, those that take a number with the usual one."""
    return [
        f"{name.partition(':')[0]}:{spelled(entry.parameter.usual)}" if entry.parameter else name
        for name, entry in OBJECTIVES.items()
    ]


def objective_family(name: str) -> str:
    """The entry of the table that a name belongs to.

    >>> objective_family("percentile:99.5"), objective_family("mse")
    ('percentile:P', 'mse')
    """
    return family(name, OBJECTIVES)


def granularity_family(name: str) -> str:
    """The entry of the table that a name belongs to.

    >>> granularity_family("group:7")
    'group:N'
    """
    return family(name, GRANULARITIES)


def roundings() -> list[str]:
    """Which neighbouring level a value may become."""
    return list(ROUNDINGS)


def conventions() -> list[str]:
    """Whose arithmetic there is."""
    return list(CONVENTIONS)


def scales() -> list[str]:
    """Which numbers a scale may be."""
    return list(SCALES)


def overflows() -> list[str]:
    """What becomes of values beyond a float format's range."""
    return list(OVERFLOWS)


def modes() -> list[str]:
    """When the ranges of an activation are set."""
    return list(MODES)


def presets() -> list[str]:
    """The recipes that have names."""
    return list(PRESETS)


def consequences(field: str, value: object, scheme: TensorScheme = ANY) -> dict[str, object]:
    """The fields that change with one that a user picks, so that the ``scheme`` as a whole makes sense.

    >>> consequences("mode", "dynamic")
    {'mode': 'dynamic', 'objective': 'minmax', 'granularity': 'layer'}
    >>> consequences("symmetric", True, TensorScheme("int8", symmetric=False, objective="clip:0.5:0.9"))
    {'symmetric': True, 'objective': 'clip:0.9'}
    """
    if field == "mode" and value == "dynamic":
        return {"mode": value, "objective": "minmax", "granularity": "layer"}
    if field == "scale" and str(value) in SCALES and SCALES[str(value)].shared_bits:
        return {"scale": value, "symmetric": True}
    changed = {field: value}
    if field == "format" and str(value) in FORMATS:
        changed |= scheme.changes_for(FORMATS[str(value)])
    centred = scheme.goal.centred()
    if changed.get("symmetric", scheme.symmetric) and "objective" not in changed and scheme.goal != centred:
        # Two bounds become the wider one.
        changed["objective"] = centred.name
    return changed
