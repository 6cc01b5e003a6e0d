"""Estimate against exact: whether the instant tier can be trusted, one point for each value that has both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import holoviews as hv
import holoviews.plotting.bokeh
import pandas as pd
import panel as pn

from explorer.study.instant import INSTANT
from explorer.views import kit, theme
from explorer.views.figures import styled

COLUMNS = ["estimate", "exact", "layer", "format"]
# Okabe and Ito's colours; a format keeps its colour as long as the map has the same formats.
COLOURS = (theme.BEFORE, "#56B4E9", theme.AFTER, theme.SENSITIVE, theme.RANGE, theme.CHOSEN)
# Measures that spread over decades.
LOGARITHMIC = ("kl", "loss", "error")
CSS = theme.TOKENS + ":host { color: var(--faint); font-size: 12px; line-height: 17px; padding: 4px 2px 0; }"


class Tiers:
    """Remembers the estimates of a map and pairs them with the exact values that replace them."""

    def __init__(self) -> None:
        self._estimates: dict[tuple[str, str], float] = {}

    def pairs(self, table: pd.DataFrame) -> pd.DataFrame:
        """Read a table of ``session.sensitivity_steps``; the values so far that have both tiers."""
        found = []
        columns = (table[name].tolist() for name in ("layer", "format", "method", "value"))
        for layer, format, method, value in zip(*columns, strict=True):
            key = (layer, format)
            if method == INSTANT:
                self._estimates[key] = value
            elif key in self._estimates:
                found.append((self._estimates[key], value, *key))
        return pd.DataFrame(found, columns=COLUMNS)


def drawable(pairs: pd.DataFrame, log: bool) -> pd.DataFrame:
    """The pairs that have a place in the figure."""
    values = pairs[["estimate", "exact"]].astype(float)
    fits = ~values.isin([math.inf, -math.inf]).any(axis=1) & values.notna().all(axis=1)
    return pairs[fits & (values > 0).all(axis=1)] if log else pairs[fits]


def limits(pairs: pd.DataFrame, log: bool) -> tuple[float, float]:
    """One range for both axes, with some room.

    >>> limits(pd.DataFrame({"estimate": [1.0, 2.0], "exact": [1.0, 4.0]}), True)
    (0.5, 8.0)
    """
    values = pairs[["estimate", "exact"]].to_numpy(dtype=float)
    if not len(values):
        return (1e-6, 1.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * ((high - low) or 1.0)
    return (low / 2, high * 2) if log else (low - margin, high + margin)


def _style(plot: Any, _: Any) -> None:
    styled(plot.state)
    plot.state.toolbar_location = None


def scatter(pairs: pd.DataFrame, measure: str, colours: Mapping[str, str]) -> Any:
    """The figure: a point for each pair, and the line on which both tiers agree."""
    log = measure in LOGARITHMIC
    shown = drawable(pairs, log)
    low, high = limits(shown, log)
    line = hv.Curve([(low, low), (high, high)], "estimate", "exact").opts(
        color=theme.NEUTRAL, line_dash="dashed", line_width=1
    )
    # An overlay of no point would have no legend to tell from one with points.
    points = [
        hv.Points(part, ["estimate", "exact"], ["layer", "format"], label=str(name)).opts(
            color=colours[str(name)], size=7, alpha=0.85, tools=["hover"], line_color=None
        )
        for name, part in shown.groupby("format", sort=False)
    ]
    return hv.Overlay([line, *points]).opts(
        hv.opts.Overlay(
            logx=log, logy=log, xlim=(low, high), ylim=(low, high), responsive=True, hooks=[_style],
            xlabel=f"instant estimate ({measure})", ylabel=f"exact ({measure})", show_legend=len(points) > 1,
            legend_position="bottom_right", legend_opts={"background_fill_alpha": 0, "border_line_alpha": 0,
                "padding": 0, "spacing": 0, "label_text_font_size": "11px"},
            backend="bokeh",
        )
    )  # fmt: skip


class Estimates:
    """The region with the scatter; it is drawn while it is in sight only."""

    def __init__(self) -> None:
        hv.Store.set_current_backend("bokeh")
        self._tiers, self._pairs = Tiers(), pd.DataFrame(columns=COLUMNS)
        self._measure, self._colours = "kl", dict[str, str]()
        self._visible, self._drawn = False, 0
        self.words = kit.html(css=CSS, height=22)
        self.pane = pn.pane.HoloViews(
            None, backend="bokeh", sizing_mode="stretch_both", margin=0, linked_axes=False
        )
        self.view = kit.column(self.words, self.pane, styles={"padding": "0 10px"})

    def reset(self) -> None:
        """Forget the map before."""
        self._tiers = Tiers()
        self._pairs = pd.DataFrame(columns=COLUMNS)
        self._refresh()

    def read(self, table: pd.DataFrame) -> None:
        """Take note of a map's table."""
        self._measure = str(table["measure"].iloc[0])
        names = dict.fromkeys(table["format"])
        self._colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
        self._pairs = self._tiers.pairs(table)
        # Points move little after they have come, and drawing anew takes some of the page's time.
        if len(self._pairs) - self._drawn >= 5 or bool(table["complete"].all()):
            self._refresh()

    def turn(self, visible: bool) -> None:
        """Come into sight, or leave it."""
        self._visible = visible
        self._refresh()

    def _refresh(self) -> None:
        if not self._visible:
            return
        count = self._drawn = len(self._pairs)
        self.words.object = (
            f"{count} values both estimated and exact; on the dashed line the two agree."
            if count
            else "A point for each value, once it is both estimated and exact: measure with the method live."
        )
        self.pane.object = scatter(self._pairs, self._measure, self._colours) if count else None
