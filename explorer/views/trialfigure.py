"""The scatter of the configurations that were tried: accuracy against size or bit operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Span

from explorer.recipe import Recipe
from explorer.study import METRICS, Metric, Outcome, Trial
from explorer.study.trials import COSTS, front
from explorer.views import theme
from explorer.views.figures import clickable, plain, ticked
from explorer.views.text import change, kilobytes, large, score

SIZE, BOPS = COSTS
COST_AXES = {"size": "size, kB", "bit operations": "bit operations for one image"}
# What the two switches offer, and the fields that they stand for.
ACROSS = dict(zip(COST_AXES, COSTS, strict=True))
TOP1, DELTA = "top-1", "difference to float"
UP = (TOP1, DELTA)
HEIGHT = 210
COLUMNS = ("x", "y", "low", "high", "digest", "label", "title", "accuracy", "cost", "changes", "alpha")
HOVER = [
    ("", "@title"),
    ("", "@accuracy"),
    ("", "@cost"),
    ("against the present", "@changes"),
    ("", "click: bring it back"),
]


def height(outcome: Outcome, up: str, unit: str = "%") -> tuple[float, float, float]:
    """Where a point stands and from where to where its interval goes; of shares in percent or percentage points."""
    value, interval = (
        (outcome.top1, outcome.top1_interval) if up == TOP1 else (outcome.delta, outcome.delta_interval)
    )
    times = 100 if unit == "%" else 1
    return times * value, times * interval[0], times * interval[1]


def place(trial: Trial, by: str) -> float:
    """Where a point stands on the axis of costs: kB or bit operations."""
    return max(trial.size, 1) / 1000 if by == SIZE else float(max(trial.bops, 1))


def ticks(low: float, high: float) -> list[float]:
    """The numbers 1, 2 and 5 of each decade in a range.

    >>> ticks(150, 2500)
    [200.0, 500.0, 1000.0, 2000.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{m}e{k}") for k in decades for m in (1, 2, 5) if low <= float(f"{m}e{k}") <= high]


def in_words(outcome: Outcome, metric: Metric) -> str:
    """The accuracy of a configuration in a line."""
    low, high = (change(end, metric.unit) for end in outcome.delta_interval)
    far = " points to float" if metric.unit == "%" else " to float"
    return (
        f"{metric.called(outcome.agreement)} {score(outcome.top1, metric.unit)}, "
        f"{change(outcome.delta, metric.unit)}{far} ({low} … {high}), {outcome.images:,} images"
    )


class TrialsFigure:
    """One point for each configuration, with its interval; a click calls ``take`` with its digest.

    The present one has a ring, the float network is the square with the dashed line, and the steps join what no
    other configuration beats.
    """

    def __init__(self, take: Callable[[str], None], metric: Metric = METRICS["top1"]) -> None:
        self.metric = metric
        self._take = take
        self.dots = ColumnDataSource({name: [] for name in COLUMNS})
        self.ring = ColumnDataSource({"x": [], "y": []})
        self.floats = ColumnDataSource({"x": [], "y": [], "title": []})
        self.front = ColumnDataSource({"x": [], "y": []})
        self.x_range, self.y_range = Range1d(start=1, end=10), Range1d(start=0, end=100)
        self.level = Span(
            location=0,
            dimension="width",
            line_color=theme.BEFORE,
            line_dash="dashed",
            line_width=1,
            visible=False,
        )
        self.figure = plain(
            x_range=self.x_range,
            y_range=self.y_range,
            x_axis_type="log",
            height=HEIGHT,
            sizing_mode="stretch_width",
        )
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.add_layout(self.level)
        plot.step(x="x", y="y", source=self.front, mode="after", line_color=theme.AFTER, line_width=1.2)
        plot.segment(
            x0="x", x1="x", y0="low", y1="high", source=self.dots, line_color=theme.NEUTRAL, line_width=1.4,
        )  # fmt: skip
        squares = plot.scatter(
            x="x",
            y="y",
            source=self.floats,
            marker="square",
            size=9,
            fill_color=theme.BEFORE,
            line_color=None,
        )
        plot.scatter(
            x="x", y="y", source=self.ring, size=17, fill_color=None, line_color=theme.CHOSEN, line_width=2.5
        )
        dots = plot.scatter(
            x="x", y="y", source=self.dots, size=9, fill_color=theme.AFTER, fill_alpha="alpha",
            line_color=theme.AFTER, hover_line_color=theme.CHOSEN,
        )  # fmt: skip
        plot.text(
            x="x", y="y", text="label", source=self.dots, x_offset=8, y_offset=-3, text_font_size="11px",
            text_color=theme.NEUTRAL,
        )  # fmt: skip
        plot.add_tools(
            HoverTool(renderers=[dots], tooltips=HOVER),
            HoverTool(renderers=[squares], tooltips=[("", "@title")]),
        )
        plot.yaxis[0].formatter = NumeralTickFormatter(format="0.[00]")
        plot.xaxis[0].formatter = NumeralTickFormatter()
        self.clicks = clickable(plot, [dots], "digest", self._take)

    def update(
        self,
        trials: Sequence[Trial],
        present: Recipe,
        across: str,
        up: str,
        changes: Callable[[Recipe], str],
    ) -> None:
        """Draw the trials that have been evaluated.

        Args:
            trials: all of them.
            present: the present recipe.
            across: a key of ``ACROSS``.
            up: one of ``UP``.
            changes: says in a line what changes from the present recipe to another one.
        """
        by = ACROSS[across]
        shown = [(trial, trial.outcome) for trial in trials if trial.outcome is not None]
        places = [(place(trial, by), *height(outcome, up, self.metric.unit)) for trial, outcome in shown]
        best = front([trial for trial, _ in shown], by)
        beaten = {trial.digest for trial, _ in shown} - {trial.digest for trial in best}
        self.dots.data = {
            "x": [at[0] for at in places],
            "y": [at[1] for at in places],
            "low": [at[2] for at in places],
            "high": [at[3] for at in places],
            "digest": [trial.digest for trial, _ in shown],
            "label": [trial.name for trial, _ in shown],
            "title": [trial.label for trial, _ in shown],
            "accuracy": [in_words(outcome, self.metric) for _, outcome in shown],
            "cost": [f"{kilobytes(trial.size)}, {large(trial.bops)} bit operations" for trial, _ in shown],
            "changes": [changes(trial.recipe) or "nothing: it is the present one" for trial, _ in shown],
            "alpha": [0.25 if trial.digest in beaten else 0.95 for trial, _ in shown],
        }
        here = [at for (trial, _), at in zip(shown, places, strict=True) if trial.recipe == present]
        self.ring.data = {"x": [at[0] for at in here], "y": [at[1] for at in here]}
        steps = [
            (place(t, by), height(t.outcome, up, self.metric.unit)[0]) for t in best if t.outcome is not None
        ]
        self.front.data = {"x": [x for x, _ in steps], "y": [y for _, y in steps]}
        self._float(shown, by, up)
        self._axes(places, across, up)

    def _float(self, shown: Sequence[tuple[Trial, Outcome]], by: str, up: str) -> None:
        """The float network, as the evaluation on most images has it."""
        self.level.visible = bool(shown)
        if not shown:
            self.floats.data = {"x": [], "y": [], "title": []}
            return
        trial, outcome = max(shown, key=lambda each: each[1].images)
        times = 100 if self.metric.unit == "%" else 1
        level = times * outcome.top1_float if up == TOP1 else 0.0
        cost = trial.size_float / 1000 if by == SIZE else float(trial.bops_float)
        self.level.location = level
        costs = f"{kilobytes(trial.size_float)}, {large(trial.bops_float)} bit operations"
        title = f"float: {score(outcome.top1_float, self.metric.unit)}, {costs}"
        self.floats.data = {"x": [cost], "y": [level], "title": [title]}

    def _axes(self, places: Sequence[tuple[float, ...]], across: str, up: str) -> None:
        """Axes that hold all points, the float network's and their intervals, with some room."""
        xs = [at[0] for at in places] + list(self.floats.data["x"])
        ys = [y for at in places for y in at[1:]] + list(self.floats.data["y"])
        if xs:
            low, high = min(xs) / 1.25, max(xs) * 1.25
            self.x_range.update(start=low, end=high)
            ticked(self.figure.xaxis[0], ticks(low, high))
            room = 0.08 * ((max(ys) - min(ys)) or 1.0)
            # A name stands above its point.
            self.y_range.update(start=min(ys) - room, end=max(ys) + 2 * room)
        self.figure.xaxis[0].axis_label = COST_AXES[across]
        self.figure.xaxis[0].formatter.format = "0.[0] a" if ACROSS[across] == BOPS else "0,0.[0]"
        share = self.metric.unit == "%"
        name, far = self.metric.called(), "points to float" if share else "difference to float"
        self.figure.yaxis[0].axis_label = (f"{name}, %" if share else name) if up == TOP1 else far
