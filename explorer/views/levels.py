"""The figures of levels: one number line with its error, and the number lines of several formats on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d

from explorer.study import NumberLine, Rival
from explorer.views import theme
from explorer.views.figures import CROWD, clickable, columns, counted, heights, plain, thinned, ticked
from explorer.views.text import decibels, number, percent

# How much of the height error takes below the line, and the marks of the levels on it, as shares of the counts.
BELOW, MARK = 0.75, 0.09
# Heights in pixels: of the figure of one line, and of a row of several.
HEIGHT, ROW = 160, 17
UNITS = {
    "code": "value in steps of its group's scale (code)",
    "level": "value in units of its group's scale",
}


class NumberLineFigure:
    """Above the line what is there, on it the levels, below it the squared error; ``figure`` is the Bokeh model."""

    def __init__(self, log: bool = True) -> None:
        self.log = log
        self.shown: NumberLine | None = None
        self.bars = ColumnDataSource({"left": [], "right": [], "top": [], "count": []})
        self.error = ColumnDataSource(
            {name: [] for name in ("left", "right", "rounding", "clipping", "share")}
        )
        self.marks = ColumnDataSource(
            {name: [] for name in ("x", "y0", "y1", "colour", "mass", "share", "used")}
        )
        self.x_range, self.y_range = Range1d(), Range1d()
        self.figure = plain(
            x_range=self.x_range, y_range=self.y_range, sizing_mode="stretch_width", height=HEIGHT
        )
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.grid.grid_line_color = None
        plot.quad(
            left="left", right="right", top="top", bottom=0, source=self.bars,
            fill_color=theme.BEFORE, fill_alpha=0.7, line_color=None,
        )  # fmt: skip
        wrong = [
            plot.quad(
                left="left", right="right", top=0, bottom=kind, source=self.error,
                fill_color=colour, fill_alpha=0.8, line_color=None, hatch_pattern=hatch, hatch_color="white",
                hatch_alpha=0.5, hatch_scale=6,
            )
            for kind, colour, hatch in (
                ("rounding", theme.SENSITIVE, " "),
                ("clipping", theme.RANGE, "/"),
            )
        ]  # fmt: skip
        marks = plot.segment(
            x0="x", x1="x", y0="y0", y1="y1", source=self.marks, line_color="colour", line_width=1.6
        )
        plot.add_tools(
            HoverTool(
                renderers=[marks],
                tooltips=[
                    ("level", "@x{0.00000}"),
                    ("values that go to it", "@mass{0,0}"),
                    ("share of the error", "@share{0.00%}"),
                    ("", "@used"),
                ],
                line_policy="nearest",
            ),
            HoverTool(
                renderers=wrong,
                tooltips=[
                    ("values", "@left{0.0000} … @right{0.0000}"),
                    ("share of the error", "@share{0.00%}"),
                ],
            ),
        )

    def use_log(self, log: bool) -> None:
        """Count by decades, or evenly."""
        self.log = log
        if self.shown is not None:
            self.update(self.shown)

    def update(self, line: NumberLine) -> None:
        """Draw another number line."""
        self.shown = line
        top = heights(line.counts, self.log)
        high = 1.08 * max(float(top.max(initial=0)), 1e-9)
        left, right = line.edges[:-1], line.edges[1:]
        self.bars.data = columns(left=left, right=right, top=top, count=line.counts)
        density = line.rounding + line.clipping
        unit = -BELOW * high / (float(density.max(initial=0)) or 1.0)
        self.error.data = columns(
            left=left, right=right, rounding=line.rounding * unit, clipping=line.clipping * unit,
            share=density / (line.error or 1.0),
        )  # fmt: skip
        used = line.mass > 0
        low, far = float(line.edges[0]), float(line.edges[-1])
        margin = 0.03 * (far - low)
        # Levels far from all values are named in the caption and not drawn.
        near = (line.levels >= low - 10 * margin) & (line.levels <= far + 10 * margin)
        place = thinned(np.flatnonzero(near))
        self.marks.data = {
            "x": line.levels[place].tolist(),
            "y0": [-MARK * high * (1.0 if used[i] else 0.5) for i in place],
            "y1": [MARK * high * (1.0 if used[i] else 0.5) for i in place],
            "colour": [theme.RANGE if used[i] else theme.NEUTRAL for i in place],
            "mass": line.mass[place].tolist(),
            "share": line.error_share[place].tolist(),
            "used": ["used" if used[i] else "unused" for i in place],
        }
        seen = line.levels[place]
        low, far = min([low, *seen[:1]]), max([far, *seen[-1:]])
        self.x_range.update(start=float(low - margin), end=float(far + margin))
        self.y_range.update(start=-(BELOW + 0.04) * high, end=high)
        self._axes(line, high)

    def _axes(self, line: NumberLine, high: float) -> None:
        self.figure.xaxis[0].axis_label = UNITS.get(line.unit)
        axis = self.figure.yaxis[0]
        axis.axis_label = "error | count (log)" if self.log else "error | count"
        counted(axis, high / 1.08, self.log)


class RivalsFigure:
    """The levels of several formats on one axis, best first; a click on a row takes its scheme, in words."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self.rows = ColumnDataSource(
            {
                name: []
                for name in ("row", "name", "sqnr", "bits", "used", "scheme", "clipped", "fill", "x", "width")
            }
        )
        self.marks = ColumnDataSource({"x": [], "row": [], "alpha": []})
        self.texts = ColumnDataSource({"x": [], "row": [], "text": []})
        self.x_range, self.y_range = Range1d(), Range1d()
        self.figure = plain(
            x_range=self.x_range, y_range=self.y_range, x_axis_location="above", sizing_mode="stretch_width",
            height=60,
        )  # fmt: skip
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.grid.grid_line_color = None
        rects = plot.rect(
            x="x", y="row", width="width", height=0.94, source=self.rows, line_color=None,
            fill_color=theme.CHOSEN, fill_alpha="fill", hover_fill_color=theme.CHOSEN, hover_fill_alpha=0.25,
        )  # fmt: skip
        plot.scatter(
            x="x", y="row", source=self.marks, marker="dash", angle=np.pi / 2, size=10, line_color=theme.RANGE,
            line_width=1.4, line_alpha="alpha",
        )  # fmt: skip
        # The page's own colour of letters is not known to a canvas; this grey can be read on both grounds.
        plot.text(
            x="x", y="row", text="text", source=self.texts, text_align="right", text_baseline="middle",
            text_font_size="11px", text_color=theme.NEUTRAL,
        )  # fmt: skip
        plot.add_tools(
            HoverTool(
                renderers=[rects],
                tooltips=[
                    ("", "@scheme"), ("SQNR", "@sqnr"), ("bits for a value", "@bits{0.000}"), ("levels used", "@used"),
                    ("clipped", "@clipped"), ("", "click: use it for this layer"),
                ],
            ),
        )  # fmt: skip
        clickable(plot, [rects], "scheme", self._take)

    def update(self, found: Sequence[Rival]) -> None:
        """Draw formats, in this order from the top."""
        count = len(found)
        levels = [thinned(rival.levels, 256) for rival in found]
        ends = [float(abs(own).max()) for own in levels if len(own)]
        # An outlier among the ranges must not squeeze the others.
        reach = float(np.median(ends)) * 1.6 if ends else 1.0
        shown = [own[abs(own) <= reach] for own in levels]
        low = min([float(own.min()) for own in shown if len(own)], default=-1.0)
        high = max([float(own.max()) for own in shown if len(own)], default=1.0)
        width = (high - low) or 1.0
        # Three columns of numbers to the right of the levels.
        places = [high + width * share for share in (0.27, 0.45, 0.78)]
        low, far = low - 0.03 * width, places[-1] + 0.02 * width
        self.rows.data = {
            "row": list(range(count)),
            "name": [_name(rival) for rival in found],
            "sqnr": [decibels(rival.sqnr_db) for rival in found],
            "bits": [rival.bits for rival in found],
            "used": [f"{rival.used:,} of {rival.count:,}" for rival in found],
            "scheme": [rival.scheme.describe() for rival in found],
            "clipped": [percent(rival.clipped_fraction, 3) for rival in found],
            "fill": [0.3 if rival.present else 0.0 for rival in found],
            "x": [(low + far) / 2] * count,
            "width": [far - low] * count,
        }
        self.marks.data = {
            "x": [float(level) for own in shown for level in own],
            "row": [row for row, own in enumerate(shown) for _ in own],
            # Many run into each other; fainter ones still show where they are dense.
            "alpha": [1.0 if len(own) <= CROWD else 0.25 for own in shown for _ in own],
        }
        texts = [
            (decibels(rival.sqnr_db), f"{rival.bits:.2f}", f"{rival.used:,}/{rival.count:,}")
            for rival in found
        ]
        titles = ("SQNR", "bits", "levels used")
        self.texts.data = {
            "x": [place for _ in range(count + 1) for place in places],
            "row": [row for row in range(-1, count) for _ in places],
            "text": [text for own in (titles, *texts) for text in own],
        }
        self.x_range.update(start=low, end=far)
        self.y_range.update(start=count - 0.5, end=-1.5)
        ticked(self.figure.xaxis[0], [0.0, *([high] if count else [])])
        self.figure.xaxis[0].major_label_overrides = {high: number(high)}
        ticked(self.figure.yaxis[0], list(range(count)))
        self.figure.yaxis[0].major_label_overrides = {row: _name(rival) for row, rival in enumerate(found)}
        # Where there is less room it is scrolled, not squeezed.
        high = ROW * (count + 1) + 26
        self.figure.update(height=high, min_height=high)


def _name(rival: Rival) -> str:
    scheme = rival.scheme
    return f"{scheme.format} {scheme.granularity}" if scheme.scaled else scheme.format
