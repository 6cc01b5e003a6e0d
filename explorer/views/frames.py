"""The session's tables to be looked at: a pandas Styler with units, intervals, estimates, and the worst rows bold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from explorer.errors import SchemeError
from explorer.study import MEASURES
from explorer.study.instant import INSTANT
from explorer.views.text import NOTHING, amount, decibels, extent, kilobytes, percent

if TYPE_CHECKING:
    from pandas.io.formats.style_render import CSSDict

# Where a layer is one of so many with the lowest SQNR, its row is marked.
LOWEST = 3
CELL = "text-align:left;white-space:nowrap;padding:2px 12px 2px 0;font-variant-numeric:tabular-nums"
LOOK: list[CSSDict] = [
    {"selector": "th, td", "props": CELL},
    {"selector": "caption", "props": "caption-side:bottom;text-align:left;padding-top:4px;opacity:.75"},
]


def _interval(low: float, high: float, measure: str) -> str:
    # What is known of all its values has no interval.
    if np.isnan(low) or np.isnan(high) or low == high:
        return NOTHING
    return extent((low, high), measure)


def _styler(shown: pd.DataFrame, bold: Sequence[bool], slanted: Sequence[bool], caption: str) -> Any:
    """A Styler of columns of text, everything escaped; ``bold`` and ``slanted`` say which rows are."""
    looks = [
        ";".join(rule for rule, on in (("font-weight:600", b), ("font-style:italic", s)) if on)
        for b, s in zip(bold, slanted, strict=True)
    ]
    styler = shown.style.apply(lambda column: looks, axis=0).set_table_styles(LOOK)
    return styler.format(escape="html").hide(axis="index").set_caption(caption)


def sensitivity(frame: pd.DataFrame) -> Any:
    """Values with units and intervals; estimates in italics behind a tilde, the worst layer of each format bold."""
    frame = frame.reset_index(drop=True)
    measure = str(frame["measure"].iloc[0]) if len(frame) else "kl"
    harm = frame["value"].astype(float) * MEASURES[measure].worse if len(frame) else frame["value"]
    worst = [""] * len(frame)
    for name, part in harm.dropna().groupby(frame["format"]):
        if len(part) > 1:
            worst[part.index[int(part.argmax())]] = f"worst at {name}"
    estimate = frame["method"] == INSTANT
    values = [
        ("~" if guess else "") + amount(value, measure)
        for value, guess in zip(frame["value"].astype(float), estimate, strict=True)
    ]
    ranges = [
        _interval(low, high, measure)
        for low, high in zip(frame["low"].astype(float), frame["high"].astype(float), strict=True)
    ]
    columns: dict[str, Any] = {"layer": frame["layer"], "format": frame["format"], "value": values}
    optional = {
        "95% interval": ranges,
        "tier": [
            "estimate" if guess else str(method) if done else f"{method}, sharpening"
            for guess, method, done in zip(estimate, frame["method"], frame["complete"], strict=True)
        ],
        "images": [f"{count:,}" if count else NOTHING for count in frame["images"]],
        "weight SQNR": [decibels(value) for value in frame["weight_sqnr_db"].astype(float)],
        "output SQNR": [decibels(value) for value in frame["output_sqnr_db"].astype(float)],
        "note": [
            "; ".join(filter(None, both)) for both in zip(worst, frame["reason"].astype(str), strict=True)
        ],
    }
    # A column without anything to say is left out.
    columns |= {name: cells for name, cells in optional.items() if set(cells) - {NOTHING, ""}}
    tensor = str(frame["tensor"].iloc[0]) if len(frame) else "weight"
    caption = f"{tensor}: {MEASURES[measure].help}"
    if estimate.any():
        caption += "; ~ marks estimates, whose interval is that of their sample"
    return _styler(pd.DataFrame(columns), [bool(text) for text in worst], list(estimate), caption)


def layers(frame: pd.DataFrame) -> Any:
    """Layers with their schemes, the lowest SQNR bold."""
    frame = frame.reset_index(drop=True)
    noise = frame["weight_sqnr_db"].astype(float)
    low = set(noise[np.isfinite(noise)].nsmallest(LOWEST).index)
    shown = pd.DataFrame(
        {
            "layer": frame["name"],
            "op": frame["op"],
            "shape": frame["shape"],
            "weight": frame["weight"].fillna(NOTHING),
            "input": frame["input"].fillna(NOTHING),
            "weight SQNR": [decibels(value) for value in noise],
            "size": [kilobytes(size) for size in frame["size_bytes"]],
            "note": [
                "lowest SQNR" if i in low else f"stays in float: {reason}" if reason else ""
                for i, reason in enumerate(frame["reason"].fillna(""))
            ],
        }
    )
    return _styler(shown, [i in low for i in range(len(frame))], [False] * len(frame), "SQNR of the weights")


def formats(frame: pd.DataFrame) -> Any:
    """Formats side by side, the present one bold."""
    frame = frame.reset_index(drop=True)
    shown = pd.DataFrame(
        {
            "format": frame["format"],
            "granularity": frame["granularity"],
            "objective": frame["objective"],
            "bits a value": [f"{bits:.2f}" for bits in frame["bits_per_value"]],
            "SQNR": [decibels(value) for value in frame["sqnr_db"]],
            "levels used": [
                f"{used:,} of {count:,}"
                for used, count in zip(frame["used_levels"], frame["levels"], strict=True)
            ],
            "clipped": [percent(share, 3) for share in frame["clipped_fraction"]],
            "note": ["present" if present else "" for present in frame["present"]],
        }
    )
    return _styler(shown, list(frame["present"]), [False] * len(frame), "Best SQNR first; metadata counted")


# What makes a table one of these, and what it then looks like.
KINDS: dict[str, tuple[frozenset[str], Callable[[pd.DataFrame], Any]]] = {
    "sensitivity": (frozenset({"layer", "format", "method", "measure", "value", "low", "high"}), sensitivity),
    "layers": (frozenset({"name", "op", "weight_sqnr_db", "size_bytes"}), layers),
    "formats": (frozenset({"format", "granularity", "sqnr_db", "used_levels"}), formats),
}


def styled(frame: pd.DataFrame) -> Any:
    """A table of the session's to be looked at.

    Raises:
        SchemeError: for another table.
    """
    columns = set(frame.columns) if isinstance(frame, pd.DataFrame) else set()
    for needs, look in KINDS.values():
        if needs <= columns:
            return look(frame)
    raise SchemeError(
        f"There is a look for the tables of session.{', session.'.join(KINDS)}, not for this one."
    )
