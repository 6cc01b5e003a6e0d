"""The figure that moves at every change: a distribution before and after quantization."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    Range1d,
)
from bokeh.models.annotations import BoxAnnotation
from bokeh.plotting import figure

from explorer.study import Histogram
from explorer.views import theme

# More lines than this run into each other: they fade, and only so many are drawn.
CROWD = 64
MOST_LINES = 1024
# A count from its height on a logarithmic axis.
COUNT = (
    "const n = Math.round(Math.pow(10, tick) - 1);"
    "return n >= 1e6 ? n / 1e6 + 'M' : n >= 1e3 ? n / 1e3 + 'k' : '' + n"
)
EVEN = (
    "const short = n => '' + Number(n.toFixed(1));"
    "return tick >= 1e6 ? short(tick / 1e6) + 'M' : tick >= 1e3 ? short(tick / 1e3) + 'k' : short(tick)"
)
# What lies under a click, by the column that names it.  Bokeh takes what is held for longer than 0.3 seconds for
# another gesture than a tap, and so does it with a quick second click: to who clicks it is the same.  The count makes
# a click on the same place another message.
CLICK = """
const at = {type: "point", sx: cb_obj.sx, sy: cb_obj.sy}
for (const mark of marks) {
  const found = cb_context.index.find_one(mark)?.hit_test(at)
  if (found == null || found.indices.length == 0) continue
  const name = mark.data_source.data[key][found.indices[0]]
  clicks.data = {count: [(clicks.data.count[0] ?? 0) + 1], name: [name]}
  break
}
"""
CLICKS = ("tap", "pressup", "doubletap")
# Both ends of a range may move at once, and are one movement.
FOLLOW = """
if (kept.follows) return
kept.follows = true
queueMicrotask(() => {
  kept.follows = false
  clips.data = {x: kept.visible ? [kept.left, kept.right] : []}
})
"""
# How much of the height the strip of level marks takes, below zero.
STRIP = 0.06


def plain(**options: Any) -> Any:
    """An empty figure in the page's style."""
    options.setdefault("sizing_mode", "stretch_both")
    plot = figure(
        toolbar_location=None,
        tools="",
        min_border=4,
        outline_line_color=None,
        **options,
    )
    return styled(plot)


def styled(plot: Any) -> Any:
    """A figure with lines and letters in the page's style."""
    plot.background_fill_alpha = plot.border_fill_alpha = 0
    plot.axis.axis_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_standoff = 4
    plot.axis.major_label_text_font_size = "11px"
    plot.axis.axis_line_color = theme.NEUTRAL
    plot.axis.major_tick_line_color = theme.NEUTRAL
    plot.axis.minor_tick_line_color = None
    plot.grid.grid_line_color = theme.NEUTRAL
    plot.grid.grid_line_alpha = 0.18
    return plot


def clickable(plot: Any, marks: Sequence[Any], key: str, call: Callable[[str], None]) -> ColumnDataSource:
    """Call with what stands in the column ``key`` for that one of the ``marks`` that is clicked.

    The browser says what it shows there, so what is drawn anew in between is not taken for it.  Returned is where
    it says it.
    """
    clicks = ColumnDataSource({"count": [], "name": []})
    follow = CustomJS(args={"marks": list(marks), "key": key, "clicks": clicks}, code=CLICK)
    for event in CLICKS:
        plot.js_on_event(event, follow)
    clicks.on_change("data", lambda _a, _o, new: call(str(new["name"][0])))
    return clicks


def columns(**arrays: Any) -> Any:
    """A figure's columns as lists: arrays travel as binary buffers, which a notebook loses on later updates."""
    return {name: np.asarray(values).tolist() for name, values in arrays.items()}


def heights(counts: np.ndarray, log: bool) -> np.ndarray:
    """Bar heights of counts; the logarithmic ones keep nothing at nothing.

    >>> heights(np.array([0.0, 99.0]), True).tolist()
    [0.0, 2.0]
    """
    return np.log10(1 + counts) if log else counts


def decades(top: float) -> list[float]:
    """Where log10(1 + count) has its ticks: at 0 and at powers of ten, so many that their labels have room.

    >>> [round(10**tick - 1) for tick in decades(2.5)], [round(10**tick - 1) for tick in decades(7.1)]
    ([0, 10, 100], [0, 10, 1000, 100000, 10000000])
    """
    highest = int(np.log10(max(10.0**top - 1, 1.0)))
    powers = range(highest, -1, -(1 + highest // 4))
    # Where the axis is long its 1 is so near to 0 that the two would be one.
    return [0.0, *(float(np.log10(1 + 10.0**k)) for k in reversed(powers) if k or highest < 2)]


def rounds(top: float) -> list[float]:
    """A few round numbers from 0 to ``top``.

    >>> rounds(17.0), rounds(380.0)
    ([0.0, 5.0, 10.0, 15.0], [0.0, 100.0, 200.0, 300.0])
    """
    unit = 10.0 ** np.floor(np.log10(max(top, 1e-9)))
    each = unit * (2 if top >= 5 * unit else 1 if top >= 2 * unit else 0.5)
    return np.arange(0.0, top * (1 + 1e-9), each).tolist()


def counted(axis: Any, top: float, log: bool) -> None:
    """Ticks and labels of an axis of :func:`heights` up to ``top``."""
    ticked(axis, decades(top) if log else rounds(top), COUNT if log else EVEN)


def ticked(axis: Any, ticks: Sequence[float], code: str | None = None) -> None:
    """Ticks of an axis, and JavaScript that writes their labels.

    An axis that has a ticker and a formatter keeps them: for another model Bokeh walks through the whole page.
    """
    if isinstance(axis.ticker, FixedTicker):
        axis.ticker.ticks = list(ticks)
    else:
        axis.ticker = FixedTicker(ticks=list(ticks), minor_ticks=[])
    if code is None:
        return
    if isinstance(axis.formatter, CustomJSTickFormatter):
        axis.formatter.code = code
    else:
        axis.formatter = CustomJSTickFormatter(code=code)


def steps(edges: np.ndarray, tops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a histogram as the corners of one line."""
    return np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(tops, 2), [0.0]])


def thinned(levels: np.ndarray, most: int = MOST_LINES) -> np.ndarray:
    """At most ``most`` of the levels, evenly chosen with both ends."""
    if len(levels) <= most:
        return levels
    return levels[np.linspace(0, len(levels) - 1, most).round().astype(int)]


def view_range(h: Histogram) -> tuple[float, float]:
    """From where to where the values are drawn: all of the data, and clip edges and levels not far beyond."""
    low, high = float(h.edges[0]), float(h.edges[-1])
    width = (high - low) or 1.0
    for edge in h.clip:
        if low - 0.6 * width <= edge <= high + 0.6 * width:
            low, high = min(low, edge), max(high, edge)
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def widest(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The range that holds both.

    >>> widest((-1.0, 2.0), (-3.0, 1.0))
    (-3.0, 2.0)
    """
    return min(one[0], other[0]), max(one[1], other[1])


class HistogramFigure:
    """A distribution before (filled) and after (outlined), its levels, and the range that is kept.

    ``figure`` is the Bokeh model; :meth:`update` and :meth:`use_log` change it in place.

    Args:
        log: count by decades.
        moved: is called with the two ends of the range while a hand moves one of them; None for a figure that stands.
    """

    def __init__(self, log: bool = True, moved: Callable[[float, float], None] | None = None) -> None:
        self.log, self._moved = log, moved
        self._quiet = False
        # Where the range was drawn last; a browser is never farther behind.
        self._drawn: deque[tuple[float, float]] = deque([(math.nan, math.nan)], maxlen=8)
        self._top = 0.0
        self.shown: Histogram | None = None
        self.theirs: Histogram | None = None
        self.bars = ColumnDataSource({"left": [], "right": [], "top": [], "count": [], "after": []})
        self.outline = ColumnDataSource({"x": [], "y": []})
        self.levels = ColumnDataSource({"x": [], "y0": [], "y1": []})
        self.clips = ColumnDataSource({"x": []})
        self.their_levels = ColumnDataSource({"x": [], "y0": [], "y1": []})
        self.their_clips = ColumnDataSource({"x": []})
        self.x_range, self.y_range = Range1d(), Range1d()
        self.figure = plain(x_range=self.x_range, y_range=self.y_range, y_axis_label="count")
        self._draw()
        self.use_log(log)

    def _draw(self) -> None:
        plot = self.figure
        plot.xgrid.grid_line_color = None
        bars = plot.quad(
            left="left", right="right", top="top", bottom=0, source=self.bars,
            fill_color=theme.BEFORE, fill_alpha=0.7, line_color=None, name="before",
        )  # fmt: skip
        self.lines = plot.vspan(
            x="x", source=self.levels, line_color=theme.RANGE, line_alpha=0.3, line_width=1, name="levels"
        )
        plot.line("x", "y", source=self.outline, line_color=theme.AFTER, line_width=1.8, name="after")
        plot.segment(
            x0="x", x1="x", y0="y0", y1="y1", source=self.levels, line_color=theme.RANGE, line_width=1.2
        )
        plot.vspan(
            x="x", source=self.clips, line_color=theme.RANGE, line_width=2, line_dash="dashed", name="clip"
        )
        plot.segment(
            x0="x",
            x1="x",
            y0="y0",
            y1="y1",
            source=self.their_levels,
            line_color=theme.CHOSEN,
            line_width=1.2,
        )
        plot.vspan(
            x="x",
            source=self.their_clips,
            line_color=theme.CHOSEN,
            line_width=2,
            line_dash="dotted",
            name="theirs",
        )
        # What is outside is shaded; the lines of the range follow its edges in the browser, before any answer.  The
        # width of the line that is not drawn is how near an edge it can be taken hold of.
        self.kept = BoxAnnotation(
            editable=False, movable="none", inverted=True, fill_color=theme.RANGE, fill_alpha=0.1, line_color=None,
            line_width=10,
        )  # fmt: skip
        if self._moved is not None:
            self._follow()
        plot.add_layout(self.kept)
        self.bar = bars
        self.hover = HoverTool(
            renderers=[bars],
            mode="vline",
            tooltips=[
                ("values", "@left{0.0000} … @right{0.0000}"),
                ("before", "@count{0,0}"),
                ("after", "@after{0,0}"),
            ],
        )
        plot.add_tools(self.hover)

    def tell(self, told: bool) -> None:
        """Whether a bar that is pointed at tells its numbers, which would stand in the way of a hand at work."""
        self.hover.renderers = [self.bar] if told else []

    def use_log(self, log: bool) -> None:
        """Count by decades, or evenly."""
        self.log = log
        self.figure.yaxis[0].axis_label = "count (log)" if log else "count"
        if self.shown is not None:
            self.update(self.shown, self.theirs)

    def _follow(self) -> None:
        follow = CustomJS(args={"kept": self.kept, "clips": self.clips}, code=FOLLOW)
        for edge in ("left", "right"):
            self.kept.js_on_change(edge, follow)
        self.clips.on_change("data", lambda _a, _o, new: self._dragged(list(new["x"])))

    def _dragged(self, ends: list[float]) -> None:
        if self._moved is None or self._quiet or len(ends) != 2:
            return
        # A browser that is told of both ends one by one says each of them back, as if a hand had moved it.
        lows, highs = zip(*self._drawn, strict=True)
        if ends[0] not in lows or ends[1] not in highs:
            self._moved(float(ends[0]), float(ends[1]))

    def update(self, h: Histogram, theirs: Histogram | None = None, held: bool = False) -> None:
        """Draw another histogram, and levels and range of ``theirs`` over it.

        While a hand has ``held`` of the range its edges stay in the hand, and no axis moves away under it; only what
        it moves is drawn anew.
        """
        self.shown, self.theirs = h, theirs
        before, after = heights(h.counts, self.log), heights(h.quantized_counts, self.log)
        top = 1.08 * max(float(before.max(initial=0)), float(after.max(initial=0)), 1e-9)
        if not held:
            self.bars.data = columns(
                left=h.edges[:-1], right=h.edges[1:], top=before, count=h.counts, after=h.quantized_counts
            )
        x, y = steps(h.edges, after)
        self.outline.data = columns(x=x, y=y)
        if held:
            top = max(top, self._top)
        self._top = top
        self._levels(h, top)
        if not held:
            self._theirs(theirs, top)
        self.y_range.update(start=-STRIP * top, end=top)
        counted(self.figure.yaxis[0], top / 1.08, self.log)
        if not held:
            low, high = view_range(h if theirs is None else replace(h, clip=widest(h.clip, theirs.clip)))
            self.x_range.update(start=low, end=high)
            self._clip(h)

    def _levels(self, h: Histogram, top: float) -> None:
        levels = thinned(h.levels)
        count = len(levels)
        self.lines.glyph.line_alpha = (
            0.4 if count <= CROWD // 2 else max(0.0, 0.4 * (1 - count / (2 * CROWD)))
        )
        self.levels.data = columns(
            x=levels, y0=np.full(count, -STRIP * top), y1=np.full(count, -STRIP * top * 0.25)
        )

    def _theirs(self, theirs: Histogram | None, top: float) -> None:
        levels = thinned(theirs.levels) if theirs is not None else np.empty(0)
        count = len(levels)
        self.their_levels.data = columns(
            x=levels, y0=np.full(count, top * (1 - STRIP / 2)), y1=np.full(count, top)
        )
        self.their_clips.data = {"x": list(theirs.clip) if theirs is not None else []}

    def _clip(self, h: Histogram) -> None:
        quantized = h.scheme != "fp32"
        self._drawn.append(h.clip)
        self._quiet = True
        try:
            self.kept.update(visible=quantized, left=h.clip[0], right=h.clip[1])
            self.clips.data = {"x": list(h.clip) if quantized else []}
        finally:
            self._quiet = False

    def grip(self, edges: str, together: bool) -> None:
        """Let a hand move the range.

        Args:
            edges: ``left``, ``right``, both (``x``) or ``none`` of them.
            together: both ends move alike.
        """
        self.kept.update(editable=edges != "none", resizable=edges, symmetric=together)
