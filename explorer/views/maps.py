"""The figures of all layers at once: sensitivities by layer and format, and what is left of each tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    FactorRange,
    FixedTicker,
    GroupFilter,
    HoverTool,
    LinearColorMapper,
    Range1d,
)
from bokeh.palettes import cividis

from explorer.study import MEASURES
from explorer.study.instant import INSTANT
from explorer.views import theme
from explorer.views.figures import clickable, plain
from explorer.views.text import decibels, points, short

# Rows grow and shrink with the room there is; below the least the figure scrolls.
LEAST_ROW, MOST_ROW = 12, 28
AXIS = 24
# What the tier of a value looks like: hatching where it is not done, and the style of the number.
HATCH = {"estimate": ".", "open": "/"}
TIERS = {"estimate": " (an estimate)", "open": " (still sharpening)", "done": ""}
FONT = {"estimate": "italic", "open": "normal", "done": "normal"}
PALETTE = cividis(256)
# Below this a divergence is the arithmetic's own noise.
LEAST = 1e-7


def badness(value: float, measure: str) -> float:
    """A number that grows with the damage, even in its steps: the logarithm of divergences, minus the decibels."""
    if math.isnan(value):
        return math.nan
    if MEASURES[measure].worse < 0:
        return -min(value, 200.0)
    return math.log10(max(value, LEAST)) if measure in ("kl", "loss", "error") else value


def cell_text(value: float, measure: str) -> str:
    """The number that stands in a cell.

    >>> cell_text(0.01352, "kl"), cell_text(0.0123, "top1")
    ('0.0135', '+1.23')
    """
    if math.isnan(value):
        return ""
    if measure == "top1":
        return points(value)
    if measure == "sqnr":
        return decibels(value).removesuffix(" dB")
    return (
        "< 1e-6"
        if 0 <= value < 1e-6
        else f"{value:.1e}".replace("e-0", "e-")
        if abs(value) < 1e-3
        else f"{value:.3g}"
    )


def estimated(text: str) -> str:
    """The number of a cell as that of an estimate.

    >>> estimated("0.0135"), estimated("< 1e-6"), estimated("")
    ('~0.0135', '< 1e-6', '')
    """
    return text if text[:1] in ("", "<") else f"~{text}"


def look(method: str, complete: bool) -> str:
    """How a value is drawn: an estimate, exact and still sharpening, or done.

    >>> look("instant", True), look("exact", False), look("exact", True)
    ('estimate', 'open', 'done')
    """
    return "estimate" if method == INSTANT else "done" if complete else "open"


def letters(count: int) -> str:
    """The size of letters for so many rows."""
    return "11px" if count <= 12 else "10px" if count <= 22 else "9.5px"


def rows_of(plot: Any, names: Sequence[str]) -> None:
    """One row for each layer, the first at the top, its name truncated from the left."""
    count = len(names)
    plot.y_range.update(start=count - 0.5, end=-0.5)
    plot.yaxis.ticker = FixedTicker(ticks=list(range(count)), minor_ticks=[])
    plot.yaxis.major_label_overrides = {i: short(name) for i, name in enumerate(names)}


class Selecting:
    """A figure whose rows are layers: a click chooses one, a frame shows which one is chosen.

    Without ``choose``, in a file that nobody listens to, clicks do nothing.
    """

    def __init__(self, names: Sequence[str], choose: Callable[[str], None] | None) -> None:
        self.names = list(names)
        self._choose = choose
        self.band = ColumnDataSource({"y0": [], "y1": []})

    def _row(self, plot: Any) -> None:
        plot.hstrip(
            y0="y0", y1="y1", source=self.band, fill_color=theme.CHOSEN, fill_alpha=0.0,
            line_color=theme.CHOSEN, line_width=2,
        )  # fmt: skip

    def select(self, name: str) -> None:
        """Frame the row of a layer."""
        rows = [self.names.index(name)] if name in self.names else []
        self.band.data = {"y0": [r - 0.5 for r in rows], "y1": [r + 0.5 for r in rows]}

    def _listen(self, plot: Any, *marks: Any) -> None:
        if self._choose is not None:
            clickable(plot, marks, "layer", self._choose)


class SensitivityFigure(Selecting):
    """Layers by formats; colour and number say how much the network suffers, ``look`` how sure that is."""

    def __init__(self, names: Sequence[str], choose: Callable[[str], None] | None = None) -> None:
        super().__init__(names, choose)
        self.cells = ColumnDataSource(
            {
                key: []
                for key in (
                    "row",
                    "format",
                    "colour",
                    "text",
                    "ink",
                    "look",
                    "font",
                    "layer",
                    "range",
                    "images",
                    "tier",
                    "weight",
                    "output",
                )
            }
        )
        self.mapper = LinearColorMapper(palette=PALETTE, low=0, high=1, nan_color="rgba(127,135,144,0.12)")
        self.figure = plain(
            x_range=FactorRange(), y_range=Range1d(), x_axis_location="above",
            min_height=LEAST_ROW * len(names) + AXIS, max_height=MOST_ROW * len(names) + AXIS,
        )  # fmt: skip
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.grid.grid_line_color = None
        rects = plot.rect(
            x="format", y="row", width=1, height=1, source=self.cells, line_color=None,
            fill_color={"field": "colour", "transform": self.mapper},
        )  # fmt: skip
        # One hatching for all cells of a kind: Bokeh draws one that differs from cell to cell on a canvas for each,
        # which took the browser a second at every new value.
        for kind, pattern in HATCH.items():
            plot.rect(
                x="format", y="row", width=1, height=1, source=self.cells, line_color=None, fill_color=None,
                hatch_pattern=pattern, hatch_color="white", hatch_alpha=0.2, hatch_scale=9,
                view=CDSView(filter=GroupFilter(column_name="look", group=kind)),
            )  # fmt: skip
        plot.text(
            x="format", y="row", text="text", text_color="ink", source=self.cells, text_align="center",
            text_baseline="middle", text_font_size=letters(len(self.names)), text_font_style={"field": "font"},
        )  # fmt: skip
        self._row(plot)
        rows_of(plot, self.names)
        plot.add_tools(
            HoverTool(
                renderers=[rects],
                tooltips=[
                    ("layer", "@layer"), ("format", "@format"), ("value", "@text"), ("tier", "@tier"),
                    ("95% interval", "@range"), ("images", "@images{0,0}"), ("weight SQNR", "@weight"),
                    ("output SQNR", "@output"),
                ],
            ),
        )  # fmt: skip
        self._listen(plot, rects)

    def blank(self, formats: Sequence[str]) -> None:
        """Show what would be measured, all of it open."""
        cells = [(name, text) for name in self.names for text in formats]
        table = pd.DataFrame(cells, columns=["layer", "format"])
        self.update(
            table.assign(
                measure="kl", method="", value=math.nan, low=math.nan, high=math.nan, images=0, complete=True,
                weight_sqnr_db=math.nan, output_sqnr_db=math.nan, reason="",
            )
        )  # fmt: skip

    def update(self, table: pd.DataFrame) -> None:
        """Show a table of ``session.sensitivity``; cells without a value yet stay grey."""
        if table.empty:
            return
        measure = str(table["measure"].iloc[0])
        index = {name: i for i, name in enumerate(self.names)}
        table = table[table["layer"].isin(index)]
        bad = np.array([badness(value, measure) for value in table["value"]])
        known = bad[np.isfinite(bad)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        self.mapper.update(low=low, high=high if high > low else low + 1)
        middle = (low + high) / 2
        formats = list(dict.fromkeys(table["format"]))
        if self.figure.x_range.factors != formats:
            self.figure.x_range.factors = formats
        looks = [look(*each) for each in zip(table["method"], table["complete"], strict=True)]
        texts = [cell_text(value, measure) for value in table["value"]]
        self.cells.data = {
            "row": [index[name] for name in table["layer"]],
            "format": list(table["format"]),
            "colour": bad.tolist(),
            "text": [
                estimated(text) if seen == "estimate" else text
                for text, seen in zip(texts, looks, strict=True)
            ],
            "ink": ["#111" if value > middle else "#fff" for value in bad],
            "look": looks,
            "font": [FONT[seen] for seen in looks],
            "layer": list(table["layer"]),
            "range": [_interval(a, b, measure) for a, b in zip(table["low"], table["high"], strict=True)],
            "images": list(table["images"]),
            "tier": [
                reason or f"{method}{TIERS[seen]}"
                for method, seen, reason in zip(table["method"], looks, table["reason"], strict=True)
            ],
            "weight": [decibels(value) for value in table["weight_sqnr_db"]],
            "output": [decibels(value) for value in table["output_sqnr_db"]],
        }


def _interval(low: float, high: float, measure: str) -> str:
    return f"{cell_text(low, measure)} … {cell_text(high, measure)}" if not math.isnan(low) else ""


class LayersFigure(Selecting):
    """Signal to quantization noise of every layer: bars for weights, diamonds for inputs once evaluated."""

    def __init__(self, names: Sequence[str], choose: Callable[[str], None]) -> None:
        super().__init__(names, choose)
        self.bars = ColumnDataSource({"row": [], "value": [], "text": [], "layer": [], "scheme": []})
        self.dots = ColumnDataSource({"row": [], "value": [], "layer": []})
        self.figure = plain(
            x_range=Range1d(), y_range=Range1d(), x_axis_location="above",
            x_axis_label="SQNR, dB (more is better)",
            min_height=LEAST_ROW * len(names) + 44, max_height=MOST_ROW * len(names) + 44,
        )  # fmt: skip
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.ygrid.grid_line_color = None
        bars = plot.hbar(
            y="row", right="value", left=0, height=0.62, source=self.bars, fill_color=theme.AFTER,
            fill_alpha=0.75, line_color=None,
        )  # fmt: skip
        plot.scatter(
            x="value", y="row", source=self.dots, marker="diamond", size=10, fill_color=theme.SENSITIVE,
            line_color=None,
        )  # fmt: skip
        self._row(plot)
        rows_of(plot, self.names)
        hover = [("layer", "@layer"), ("weight", "@scheme"), ("SQNR", "@text")]
        plot.add_tools(HoverTool(renderers=[bars], tooltips=hover))
        self._listen(plot, bars)

    def update(self, weights: pd.DataFrame, inputs: Mapping[str, float | None] | None = None) -> None:
        """Show ``session.layers()``, and the inputs' SQNR by layer where an evaluation knows them."""
        index = {name: i for i, name in enumerate(self.names)}
        table = weights[weights["name"].isin(index)]
        values = table["weight_sqnr_db"].astype(float)
        dots = {
            name: v
            for name, v in (inputs or {}).items()
            if name in index and v is not None and math.isfinite(v)
        }
        finite = [*values[np.isfinite(values)], *dots.values()]
        top = max([10.0, *finite]) * 1.06
        self.figure.x_range.update(start=min(0.0, *finite, 0.0) if finite else 0.0, end=top)
        self.bars.data = {
            "row": [index[name] for name in table["name"]],
            # A tensor that stays as it is has no noise: its bar fills the width.
            "value": [top if math.isinf(v) else v for v in values],
            "text": [decibels(v) for v in values],
            "layer": list(table["name"]),
            "scheme": [text if isinstance(text, str) else "" for text in table["weight"]],
        }
        self.dots.data = {
            "row": [index[name] for name in dots], "value": list(dots.values()), "layer": list(dots)
        }  # fmt: skip


def describe(table: pd.DataFrame) -> str:
    """The finding in words: which layer suffers most, by format."""
    if table.empty or table["value"].isna().all():
        return ""
    measure = str(table["measure"].iloc[0])
    worse = MEASURES[measure].worse
    # Row by row: it is asked at each result of a measurement, and pandas takes longer over a group than over a list.
    formats = table["format"].tolist()
    rows = zip(formats, table["layer"].tolist(), table["value"].tolist(), strict=True)
    known = [row for row in rows if not math.isnan(row[2])]
    if len(set(formats)) == 1:
        first = sorted(known, key=lambda row: -worse * row[2])[:3]
        listed = (f"{layer} ({cell_text(value, measure)})" for _, layer, value in first)
        return f"most sensitive ({formats[0]}): " + ", ".join(listed)
    worst: dict[str, tuple[str, float]] = {}
    for format, layer, value in known:
        if format not in worst or worse * value > worse * worst[format][1]:
            worst[format] = (layer, value)
    found = (f"{format}: {layer} ({cell_text(value, measure)})" for format, (layer, value) in worst.items())
    return "most sensitive at " + ", ".join(found)
