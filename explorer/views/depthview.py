"""Along the network: what each layer adds to the error, beside what has gathered up to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import pandas as pd
from bokeh.models import ColumnDataSource, HoverTool, Range1d

from explorer.recipe import Recipe
from explorer.session import Session
from explorer.study.depth import IMAGES
from explorer.views import kit, theme
from explorer.views.figures import plain
from explorer.views.maps import LEAST_ROW, MOST_ROW, Selecting, rows_of
from explorer.views.runs import Publisher, Runner, settled
from explorer.views.state import PageState
from explorer.views.text import decibels, sentence

AXIS = 44
# Each line of the figure: its colour and its mark, so that nobody needs the colour.
LINES = {"cumulative": (theme.AFTER, "circle", "solid"), "local": (theme.RANGE, "diamond", "dashed")}
CSS = (
    theme.TOKENS
    + """
:host { color: var(--faint); font-size: 12px; line-height: 17px; }
.line { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.two { height: 34px; overflow: hidden; }
.old { color: var(--ink); background: color-mix(in srgb, #E69F00 28%, transparent); border-radius: 3px;
  padding: 0 4px; }
"""
)
KEY = (
    f'<div class="line"><span style="color:{theme.RANGE}">\N{BLACK DIAMOND}</span> local: this layer alone '
    f'&nbsp; <span style="color:{theme.AFTER}">\N{BLACK CIRCLE}</span> cumulative: all up to here &nbsp; '
    "\N{BLACK UP-POINTING TRIANGLE} exact &nbsp; \N{WHITE CIRCLE} not final</div>"
)


def span(table: pd.DataFrame) -> tuple[float, float]:
    """The axis: all finite values and their intervals, zero always in it.

    >>> span(pd.DataFrame({"local_db": [20.0], "local_low": [19.0], "local_high": [21.0],
    ...     "cumulative_db": [math.inf], "cumulative_low": [math.inf], "cumulative_high": [math.inf]}))
    (0.0, 22.68)
    """
    columns = [f"{line}_{end}" for line in LINES for end in ("db", "low", "high")]
    values = [v for v in table[columns].to_numpy(dtype=float).ravel().tolist() if math.isfinite(v)]
    low, high = min([0.0, *values]), max([10.0, *values])
    margin = 0.08 * (high - low)
    return low - (margin if low < 0 else 0.0), high + margin


def describe(table: pd.DataFrame) -> str:
    """The finding in words: which layer adds most by itself, and after which one most is lost."""
    local, whole = table["local_db"].astype(float), table["cumulative_db"].astype(float)
    if not len(table) or not (local < math.inf).any():
        return "nothing is quantized"
    words = f"born: {table['layer'].iloc[int(local.argmin())]} (local {decibels(local.min())})"
    before = whole.shift(fill_value=math.inf)
    # From exact to anything is a birth and no growth.
    drop = (before - whole).where(before < math.inf).fillna(-math.inf)
    if drop.max() > 0:
        at = int(drop.argmax())
        words += f"; largest drop: {decibels(drop.max())} at {table['layer'].iloc[at]}"
    return f"{words}; at the end {decibels(whole.iloc[-1])}"


class DepthFigure(Selecting):
    """Layers from the first at the top to the last; both ratios with their intervals."""

    def __init__(self, names: Sequence[str], choose: Callable[[str], None]) -> None:
        super().__init__(names, choose)
        empty: dict[str, list[Any]] = {
            key: []
            for key in ("row", "value", "low", "high", "text", "range", "layer", "images", "fill", "mark")
        }
        self.points = {line: ColumnDataSource(dict(empty)) for line in LINES}
        self.figure = plain(
            x_range=Range1d(), y_range=Range1d(), x_axis_location="above",
            x_axis_label="SQNR of the layer's output, dB (more is better)",
            min_height=LEAST_ROW * len(self.names) + AXIS, max_height=MOST_ROW * len(self.names) + AXIS,
        )  # fmt: skip
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.ygrid.grid_line_color = None
        marks = []
        for line, (colour, _, dash) in LINES.items():
            source = self.points[line]
            plot.line("value", "row", source=source, line_color=colour, line_width=1.4, line_dash=dash)
            plot.segment(x0="low", x1="high", y0="row", y1="row", source=source, line_color=colour, line_width=4,
                line_alpha=0.35)  # fmt: skip
            dots = plot.scatter(
                x="value", y="row", source=source, marker="mark", size=9, line_color=colour, line_width=1.6,
                fill_color=colour, fill_alpha="fill", name=line,
            )  # fmt: skip
            marks.append(dots)
        self._row(plot)
        rows_of(plot, self.names)
        hover = [
            ("layer", "@layer"),
            ("SQNR", "$name @text"),
            ("95% interval", "@range"),
            ("images", "@images{0,0}"),
        ]
        plot.add_tools(HoverTool(renderers=marks, tooltips=hover))
        self._listen(plot, *marks)

    def update(self, table: pd.DataFrame) -> None:
        """Show a table of ``session.depth_steps``."""
        low, high = span(table)
        self.figure.x_range.update(start=low, end=high)
        # What is exact has no place on the axis: it stands at its end and looks different.
        edge = high - 0.015 * (high - low)

        def ends(values: pd.Series) -> list[float]:
            return [min(max(value, low), edge) for value in values.astype(float)]

        for line, (_, mark, _) in LINES.items():
            values = table[f"{line}_db"].astype(float)
            bounds = [table[f"{line}_{end}"] for end in ("low", "high")]
            self.points[line].data = {
                "row": [self.names.index(name) for name in table["layer"]],
                "value": ends(values),
                "low": ends(bounds[0]),
                "high": ends(bounds[1]),
                "text": [decibels(value, 2) for value in values],
                "range": [
                    f"{decibels(a, 2)} … {decibels(b, 2)}" for a, b in zip(*bounds, strict=True)
                ],
                "layer": list(table["layer"]),
                "images": list(table["images"]),
                "fill": [0.9 if done else 0.0 for done in table["complete"]],
                "mark": ["triangle" if value == math.inf else mark for value in values],
            }  # fmt: skip


class DepthView:
    """The region with the figure; it follows the recipe in the background while it is in sight.

    Args:
        state: of the page.
        publisher: where results go.
        images: how many evaluation images it takes at least; it takes whole batches, which evaluations share.
    """

    def __init__(self, state: PageState, publisher: Publisher, images: int = IMAGES) -> None:
        self.state = state
        stream = state.session.subject.evaluation
        self.images = min(-(-images // stream.size) * stream.size, stream.count(None))
        self.runner = Runner("depth", publisher)
        self.plot = DepthFigure(list(state.session.layer_names), self._choose)
        self.pane = kit.bokeh(
            self.plot.figure, min_height=self.plot.figure.min_height, max_height=self.plot.figure.max_height
        )
        publisher.panes.append(self.pane)
        self.words = kit.html(css=CSS, height=36)
        self.view = kit.column(
            kit.html(KEY, css=CSS, styles={"padding": "6px 0 0"}, height=24),
            self.words,
            kit.scrolled(self.pane),
            styles={"padding": "0 10px"},
        )
        self.visible = False
        state.param.watch(lambda *_: self.refresh(), "revision")
        state.param.watch(lambda *_: self.plot.select(state.layer), "layer")
        self.plot.select(state.layer)

    table: pd.DataFrame | None = None
    # What the table belongs to, and what has been asked for.
    recipe: Recipe | None = None
    asked: Recipe | None = None

    def _choose(self, name: str) -> None:
        self.state.layer = name

    def turn(self, visible: bool) -> None:
        """Come into sight, or leave it; out of sight nothing is computed."""
        self.visible = visible
        if not visible:
            self.runner.cancel()
            self.asked = self.recipe if self.done else None
        self.refresh()

    @property
    def done(self) -> bool:
        """Whether no more images are to come for what is drawn."""
        return self.table is not None and bool(self.table["complete"].all())

    def refresh(self) -> None:
        """Ask for the present recipe if it is another one; what is drawn is called old until it comes."""
        if not self.visible:
            return
        recipe = self.state.session.recipe
        if self.asked != recipe:
            self.asked = recipe
            # A session of its own: the page's may have moved on while this one looks.
            own = Session(subject=self.state.session.subject, recipe=recipe)
            self.runner.start(
                settled(own, recipe, lambda: own.depth_steps(images=self.images)),
                lambda table: self._show(table, recipe),
                self._say,
                self._failed,
            )
        self._say()

    def _show(self, table: pd.DataFrame, recipe: Recipe) -> None:
        self.table, self.recipe = table, recipe
        self.plot.update(table)
        self._say()

    def _say(self) -> None:
        """The finding, two lines at most; the whole of it on hovering."""
        if self.table is None:
            self.words.object = '<div class="line" aria-live="polite">Looking along the network …</div>'
            return
        old = self.recipe != self.state.session.recipe
        images = int(self.table["images"].max())
        seen = f"{images:,} images" if self.done else f"{images:,} of {self.images:,} images"
        text = escape(f"{describe(self.table)} · {seen}, bars: 95% intervals")
        before = '<span class="old">before the edit</span> ' if old else ""
        self.words.object = f'<div class="two" title="{text}" aria-live="polite">{before}{text}</div>'
        self.pane.styles = {"opacity": "0.45" if old else "1"}

    def _failed(self, error: Exception) -> None:
        self.asked = None
        self.words.object = f'<div class="line" role="alert">Not measured: {escape(sentence(error))}</div>'
