"""The ranges of a tensor's channels as bars, with the range that their scales give them drawn over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d
from bokeh.plotting import figure

from explorer.study import Channels
from explorer.views import kit, theme
from explorer.views.figures import columns, plain, ticked
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tensorview import TensorView
from explorer.views.text import decibels, number, percent

ORDERS = ("channel", "width")
# More bars than this are no bars any more: neighbours are drawn as one.
MOST_BARS = 256
CSS = (
    theme.TOKENS
    + f"""
:host {{ font-size: 12px; line-height: 17px; }}
.key {{ color: var(--faint); white-space: nowrap; overflow: hidden; }}
.key i {{ display: inline-block; width: 12px; margin: 0 4px 0 8px; background: {theme.BEFORE}; vertical-align: 2px; }}
.key i:first-child {{ margin-left: 0; }}
.thin {{ height: 2px; }} .wide {{ height: 5px; opacity: .45; }} .thick {{ height: 9px; vertical-align: 0 !important; }}
.clip {{ height: 0; border-top: 2px solid {theme.RANGE}; background: none !important; }}
"""
)
KEY = (
    '<div class="key"><i class="thin"></i>min … max<i class="wide"></i>1 … 99%<i class="thick"></i>25 … 75%'
    '<i class="clip"></i>kept</div>'
)


def bent(values: np.ndarray, unit: float) -> np.ndarray:
    """Values on an axis that is even near zero and by decades beyond ``unit``, on both sides.

    >>> bent(np.array([-9.0, 0.0, 99.0]), 1.0).tolist()
    [-1.0, 0.0, 2.0]
    """
    return np.sign(values) * np.log10(1 + np.abs(values) / unit)


def bend(c: Channels) -> float:
    """Where the axis of a tensor's ranges turns: so that the narrowest channel can still be seen."""
    reach = c.reach[c.reach > 0]
    return float(max(reach.min() / 3, reach.max() * 1e-6)) if len(reach) else 1.0


def bars(c: Channels, order: str, most: int = MOST_BARS) -> dict[str, list[Any]]:
    """What is drawn: a bar for each channel, or for each few neighbours in the given order.

    Args:
        c: the channels.
        order: ``channel`` or ``width``, the widest first.
        most: how many bars at most.

    >>> from explorer.study import Channels
    >>> line = np.arange(4.0)
    >>> c = Channels("fc", "weight", "", -line, line, np.outer(line, [-1, -0.5, 0, 0.5, 1]),
    ...     *([-line, line] + [line] * 6), 1, True)
    >>> bars(c, "width", 2)["name"], bars(c, "channel", 2)["high"]
    (['2 channels, widest 3', '2 channels, widest 1'], [1.0, 3.0])
    """
    places = np.arange(len(c))
    if order == "width":
        places = np.argsort(-c.reach, kind="stable")
    found: dict[str, list[Any]] = {
        key: [] for key in ("name", "low", "high", "q1", "q25", "q75", "q99", "bottom", "top", "facts")
    }
    for part in np.array_split(places, min(len(c), most)):
        widest = int(part[c.reach[part].argmax()])
        one = len(part) == 1
        found["name"].append(f"channel {widest}" if one else f"{len(part)} channels, widest {widest}")
        found["low"].append(float(c.minimum[part].min()))
        found["high"].append(float(c.maximum[part].max()))
        found["q1"].append(float(c.quantiles[part, 0].min()))
        found["q99"].append(float(c.quantiles[part, 4].max()))
        # The middle of several is that of the widest: quantiles do not join.
        found["q25"].append(float(c.quantiles[widest, 1]))
        found["q75"].append(float(c.quantiles[widest, 3]))
        found["bottom"].append(float(c.clip_low[part].min()))
        found["top"].append(float(c.clip_high[part].max()))
        worst = float(c.sqnr_db[part].min())
        facts = [f"SQNR {decibels(worst)}"]
        if not np.isnan(c.codes[part]).any() and not np.isnan(c.available[part]).any():
            facts.append(f"{c.codes[part].min():.0f} of {c.available[widest]:.0f} codes")
        found["facts"].append(("" if one else "at worst ") + ", ".join(facts))
    return found


class ChannelFigure:
    """Ranges as vertical bars; :meth:`update`, :meth:`use_log` and :meth:`sort` change it in place."""

    def __init__(self, log: bool = True) -> None:
        self.log, self.order = log, ORDERS[0]
        self.shown: Channels | None = None
        empty: Any = {
            key: []
            for key in ("x", "y0", "y1", "a0", "a1", "b0", "b1", "name", "range", "middle", "kept", "facts")
        }
        self.source = ColumnDataSource(empty)
        self.clips = ColumnDataSource({"x0": [], "x1": [], "y": []})
        self.x_range, self.y_range = Range1d(), Range1d()
        self.figure = plain(x_range=self.x_range, y_range=self.y_range)
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.xgrid.grid_line_color = None
        look = {"source": self.source, "fill_color": theme.BEFORE, "line_color": None}
        thin = plot.vbar(x="x", width=0.2, bottom="y0", top="y1", fill_alpha=0.9, name="reach", **look)
        plot.vbar(x="x", width=0.6, bottom="a0", top="a1", fill_alpha=0.4, **look)
        plot.vbar(x="x", width=0.9, bottom="b0", top="b1", fill_alpha=0.9, **look)
        plot.segment(
            x0="x0", x1="x1", y0="y", y1="y", source=self.clips, line_color=theme.RANGE, line_width=2,
            name="clip",
        )  # fmt: skip
        # A thin bar is hard to hit: the whole strip of a channel answers.
        plot.add_tools(
            HoverTool(
                renderers=[thin],
                mode="vline",
                tooltips=[
                    ("", "@name"),
                    ("values", "@range"),
                    ("1 … 99%", "@middle"),
                    ("range kept", "@kept"),
                    ("", "@facts"),
                ],
            )
        )

    def use_log(self, log: bool) -> None:
        """Values by decades on both sides of zero, or evenly."""
        self.log = log
        self._again()

    def sort(self, order: str) -> None:
        """Bars in the order of the channels, or the widest first."""
        self.order = order
        self._again()

    def _again(self) -> None:
        if self.shown is not None:
            self.update(self.shown)

    def update(self, c: Channels) -> None:
        """Draw another tensor."""
        self.shown = c
        found, unit = bars(c, self.order), bend(c)
        count = len(found["name"])

        def height(values: Any) -> np.ndarray:
            array = np.asarray(values, dtype=float)
            return bent(array, unit) if self.log else array

        def ends(low: str, high: str) -> list[str]:
            pairs = zip(found[low], found[high], strict=True)
            return ["–" if np.isnan(a) else f"{number(a)} … {number(b)}" for a, b in pairs]  # noqa: RUF001

        self.source.data = {
            **columns(
                x=np.arange(count), y0=height(found["low"]), y1=height(found["high"]), a0=height(found["q1"]),
                a1=height(found["q99"]), b0=height(found["q25"]), b1=height(found["q75"]),
            ),
            "name": found["name"],
            "range": ends("low", "high"),
            "middle": ends("q1", "q99"),
            "kept": ends("bottom", "top"),
            "facts": found["facts"],
        }  # fmt: skip
        low, high = min(0.0, *found["low"]), max(0.0, *found["high"])
        span = (high - low) or 1.0
        inside = [
            (at, edge)
            for edges in (found["bottom"], found["top"])
            for at, edge in enumerate(edges)
            if low - span <= edge <= high + span
        ]
        at, edge = (np.array([pair[side] for pair in inside], dtype=float) for side in (0, 1))
        self.clips.data = columns(x0=at - 0.5, x1=at + 0.5, y=height(edge))
        low, high = min([low, *edge]), max([high, *edge])
        bottom, top = (float(end) for end in height([low, high]))
        room = 0.04 * ((top - bottom) or 1.0)
        self.x_range.update(start=-0.8, end=count - 0.2)
        self.y_range.update(start=bottom - room, end=top + room)
        self._axes(unit, max(-low, high), count < len(c))

    def _axes(self, unit: float, reach: float, joined: bool) -> None:
        axis = self.figure.yaxis[0]
        # A place is the channel's number only where each has its own bar, in its own place.
        self.figure.xaxis[0].visible = self.order == "channel" and not joined
        if not self.log:
            if isinstance(axis.ticker, FixedTicker):
                fresh = figure().yaxis[0]
                axis.update(ticker=fresh.ticker, formatter=fresh.formatter)
            return
        lowest, highest = int(np.ceil(np.log10(unit))), int(np.floor(np.log10(max(reach, unit))))
        each = 1 + (highest - lowest) // 4
        powers = 10.0 ** np.arange(highest, lowest - 1, -each)
        ticks = bent(np.concatenate([-powers, [0.0], powers]), unit)
        code = (
            f"const v = Math.sign(tick) * {unit!r} * (Math.pow(10, Math.abs(tick)) - 1);"
            "return v === 0 ? '0' : ('' + Number(v.toPrecision(2))).replace('-', '\\u2212')"
        )
        ticked(axis, ticks.tolist(), code)


def said(c: Channels) -> str:
    """What the ranges show, in a line of HTML."""
    reach = c.reach[c.reach > 0]
    facts = [f"<b>{escape(c.scheme)}</b>", f"{len(c):,} channels"]
    if len(reach) > 1:
        facts.append(
            f"the widest reaches <b>{c.ratio:,.3g} times</b> as far as the narrowest "
            f"({number(float(reach.max()))}, {number(float(reach.min()))})"
        )
    if c.shared == 1:
        facts.append("each has a scale of its own")
    elif c.shared > 1:
        whole = c.shared >= len(c)
        facts.append("all share one scale" if whole else f"{c.shared:,} share a scale")
    if c.starved:
        facts.append(f"<b>{c.starved:,}</b> have only the values \N{MINUS SIGN}1, 0 and 1 step")
    sqnr = c.sqnr_db[np.isfinite(c.sqnr_db)]
    if len(sqnr):
        worst = int(np.where(np.isfinite(c.sqnr_db), c.sqnr_db, np.inf).argmin())
        facts.append(f"SQNR {decibels(float(sqnr.min()))} in channel {worst}, the middle one {_middle(sqnr)}")
    if np.nansum(c.clipped) > 0:
        facts.append(f"clipped up to {percent(float(np.nanmax(c.clipped)))} of a channel")
    if len(c) > MOST_BARS:
        facts.append("a bar stands for some neighbours")
    if not c.exact:
        facts.append("from calibration bins")
    return " · ".join(facts)


def _middle(values: np.ndarray) -> str:
    return decibels(float(np.median(values)))


class ChannelView(TensorView):
    """The ranges of the chosen tensor's channels."""

    logarithmic = tall = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self.plot = ChannelFigure(state.log)
        self.pane = kit.bokeh(self.plot.figure)
        publisher.panes.append(self.pane)
        self.order = kit.choice(list(ORDERS), ORDERS[0], sx=theme.TABS)
        self.order.param.watch(lambda event: self.plot.sort(event.new), "value")
        self.view = kit.column(
            kit.row(
                kit.html(KEY, css=CSS, height=18), kit.html("by", css=theme.LABEL, width=16), self.order,
                height=30, styles={"padding": "0 8px 0 12px"},
            ),
            self.pane,
            self.caption,
        )  # fmt: skip
        state.param.watch(lambda event: self.plot.use_log(event.new), "log")

    def steps(self) -> Callable[[], Iterator[Channels]]:
        layer, tensor, scheme = self.state.layer, self.state.tensor, self.scheme

        def steps() -> Iterator[Channels]:
            yield self.state.session.channels(layer, tensor, scheme)

        return steps

    def draw(self, found: Channels) -> None:
        self.plot.update(found)
        self.say(said(found))
