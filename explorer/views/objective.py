"""What the objectives minimise, over the share of the range that is kept, with a range that can be moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import BoxAnnotation

from explorer.calibrate import OBJECTIVES, Clip
from explorer.recipe import TensorScheme
from explorer.study import Curves
from explorer.views import choices, kit, theme
from explorer.views.figures import plain
from explorer.views.moving import LEAST, MOST, Moving
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tensorview import TensorView
from explorer.views.text import number

# Okabe and Ito's; one for each line of the table of objectives, the same for those that have one curve.
COLOURS = (
    theme.NEUTRAL, "#56B4E9", theme.SENSITIVE, "#F0E442", theme.AFTER, theme.AFTER, theme.BEFORE, theme.CHOSEN,
    theme.RANGE,
)  # fmt: skip
# Costs this many times the full range's are cut off.
HIGHEST = 8.0
TICKS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
CSS = (
    theme.TOKENS
    + """
:host { font-size: 12px; line-height: 17px; color: var(--faint); }
.key i { display: inline-block; margin-right: 4px; }
.key .drawn { width: 12px; height: 3px; vertical-align: 3px; background: var(--colour); }
.key .mark { border: 4px solid transparent; border-top: 0; border-bottom: 7px solid var(--colour); }
.key span { white-space: nowrap; margin-right: 9px; } .key .present { color: var(--ink); font-weight: 600; }
.moved b { color: var(--ink); font-weight: 600; }
"""
)
HINT = "Drag the dashed edge, or the slider: the range that is kept goes into the recipe."


class CurvesFigure:
    """Relative cost by share: a line for each objective with a cost, a mark where each chooses.

    ``figure`` is the Bokeh model; ``moved`` is called with the share to which its edge was dragged.  Without it the
    edge stands still.
    """

    def __init__(self, moved: Callable[[float], None] | None = None) -> None:
        self._moved = moved
        self._quiet = False
        self.lines = ColumnDataSource({"x": [], "y": [], "colour": [], "width": [], "name": []})
        self.marks = ColumnDataSource(
            {name: [] for name in ("x", "y", "low", "high", "colour", "size", "name", "marker")}
        )
        self.y_range = Range1d(start=0.5, end=2.0)
        self.figure = plain(
            x_range=Range1d(start=0.0, end=1.04), y_range=self.y_range, y_axis_type="log",
            y_axis_label="relative cost",
        )  # fmt: skip
        self.box = BoxAnnotation(
            left=0, right=1, editable=moved is not None, movable="none", resizable="right",
            fill_color=theme.RANGE, fill_alpha=0.08, line_color=theme.RANGE, line_width=2, line_dash="dashed",
        )  # fmt: skip
        self._draw()

    def _draw(self) -> None:
        plot = self.figure
        plot.multi_line("x", "y", source=self.lines, line_color="colour", line_width="width", name="curves")
        plot.segment(
            x0="low", x1="high", y0="y", y1="y", source=self.marks, line_color="colour", line_alpha=0.5
        )
        marks = plot.scatter(
            "x", "y", source=self.marks, marker="marker", size="size", fill_color="colour", line_color="white"
        )
        plot.yaxis.ticker = FixedTicker(ticks=TICKS, minor_ticks=[])
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[000]")
        plot.add_layout(self.box)
        plot.add_tools(
            HoverTool(
                renderers=[marks],
                tooltips=[
                    ("objective", "@name"),
                    ("keeps", "@x{0.000}"),
                    ("groups", "@low{0.00} … @high{0.00}"),
                ],
            )
        )
        if self._moved is not None:
            self.box.on_change("right", lambda _a, _o, new: self._dragged(new))

    def _dragged(self, right: Any) -> None:
        if self._moved is not None and not self._quiet and isinstance(right, int | float):
            self._moved(float(right))

    def hold(self, share: float) -> None:
        """Put the edge where the recipe has it."""
        self._quiet = True
        try:
            self.box.right = share
        finally:
            self._quiet = False

    def update(self, found: Curves, colours: dict[str, str]) -> None:
        """Draw the curves that are known."""
        drawn = [curve for curve in found.curves if curve.cost is not None]
        costs = [curve.cost for curve in drawn if curve.cost is not None]
        present = found.scheme.objective
        least = min([1.0, *(float(cost.min()) for cost in costs), *(c.chosen or 1.0 for c in drawn)])
        floor = 0.8 * max(least, 1e-4)
        self.lines.data = {
            "x": [found.shares.tolist()] * len(drawn),
            "y": [np.maximum(cost, floor).tolist() for cost in costs],
            "colour": [colours[curve.objective] for curve in drawn],
            "width": [3.0 if curve.objective == present else 1.4 for curve in drawn],
            "name": [curve.objective for curve in drawn],
        }
        self.marks.data = {
            "x": [curve.share for curve in found.curves],
            # A rule without a cost has no height: its mark stands on the axis.
            "y": [max(floor, curve.chosen) if curve.chosen is not None else floor for curve in found.curves],
            "low": [curve.span[0] for curve in found.curves],
            "high": [curve.span[1] for curve in found.curves],
            "colour": [colours[curve.objective] for curve in found.curves],
            "size": [12 if curve.objective == present else 8 for curve in found.curves],
            "name": [curve.objective for curve in found.curves],
            "marker": ["circle" if curve.cost is not None else "triangle" for curve in found.curves],
        }
        highest = max([2.0, *(float(cost.max()) for cost in costs)])
        self.y_range.update(start=0.93 * floor, end=min(1.1 * highest, HIGHEST))


class ObjectiveView(TensorView):
    """The curves, the range to be moved, and its numbers while it moves."""

    tall = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self.plot = CurvesFigure(self._drag)
        self.pane = kit.bokeh(self.plot.figure)
        publisher.panes.append(self.pane)
        self._echoes = kit.Echoes()
        self.slider = kit.slider("range kept", LEAST, MOST, 0.005, 1.0, format="0.000")
        self.key = kit.html(css=CSS, styles={"padding": "0 12px"}, min_height=18)
        self.live = kit.html(HINT, css=CSS, styles={"padding": "0 12px"}, min_height=18)
        self.moving = Moving(state, publisher, self._numbers)
        self._known: tuple[tuple[object, ...], Curves] | None = None
        self._quiet = False
        # The slider's label stands out of it.
        self.row = kit.row(self.slider, height=54, styles={"padding": "8px 20px 0 12px"})
        self.view = kit.column(
            self.key,
            self.pane,
            self.row,
            self.live,
            self.caption,
            kit.hand(self.moving.press),
        )
        self.slider.param.watch(self._slid, "value")
        state.param.watch(lambda *_: self._elsewhere(), ["layer", "tensor"])
        state.param.watch(lambda *_: self._edited(), "revision")

    def _drag(self, share: float) -> None:
        share = min(max(share, LEAST), MOST)
        self._echoes.give(self.slider, share)
        self._put(share)
        self.moving.to(share)

    def _slid(self, event: Any) -> None:
        if not self._quiet and not self._echoes.hears(self.slider, event.new):
            self.plot.hold(event.new)
            self.moving.to(event.new)

    def _put(self, share: float, slider: bool = True, edge: bool = False) -> None:
        """Let the other control follow."""
        self._quiet = True
        try:
            if slider:
                self.slider.value = min(max(share, LEAST), MOST)
            if edge:
                self.plot.hold(share)
        finally:
            self._quiet = False

    def _numbers(self, markup: str) -> None:
        self.live.object = f'<div class="moved" aria-live="polite">{markup}</div>'

    def _elsewhere(self) -> None:
        self.moving.forget()
        self.live.object = HINT
        self._typed()

    def _edited(self) -> None:
        """The numbers of a movement that somebody has taken back are nobody's."""
        if not self.moving.stands:
            self.live.object = HINT
            self._typed()

    def _typed(self) -> None:
        """A range that is typed needs no curves: a slider that is being put on the page has it already."""
        share = typed(self.scheme)
        if share is not None:
            self._put(share, edge=True)

    def _shown(self, visible: bool) -> None:
        for part in (self.key, self.pane, self.row, self.live):
            part.visible = visible

    def _question(self) -> tuple[object, ...]:
        """What the curves depend on; the present objective only where it is not among the usual ones."""
        scheme = self.scheme
        alone = replace(scheme, objective="minmax") if scheme.scaled else scheme
        return self.state.layer, self.state.tensor, alone

    def steps(self) -> Callable[[], Iterator[tuple[tuple[object, ...], Curves]]]:
        session, layer, tensor = self.state.session, self.state.layer, self.state.tensor
        question, scheme = self._question(), self.scheme
        known = self._known

        def steps() -> Iterator[tuple[tuple[object, ...], Curves]]:
            if known is not None and known[0] == question and scheme.objective.startswith("clip"):
                # A typed range changes no curve; it is drawn as the edge.
                yield question, replace(known[1], scheme=scheme)
                return
            for found in session.curves_steps(layer, tensor):
                yield question, found

        return steps

    def close(self) -> None:
        super().close()
        self.moving.close()

    def refresh(self) -> None:
        if not self.moving.active:
            super().refresh()
        else:
            self.runner.start(self.steps(), self.draw, lambda: None, self.failed)

    def failed(self, error: Exception) -> None:
        # Nothing to look at, and no range to be moved.
        self._shown(False)
        super().failed(error)

    def draw(self, found: tuple[tuple[object, ...], Curves]) -> None:
        self._known = found
        self._shown(True)
        curves, colours = coloured(found[1])
        self.plot.update(curves, colours)
        share = typed(curves.scheme)
        if share is None and curves.present is not None:
            share = curves.present.share
        if share is not None and not self.moving.active:
            self._put(share, edge=True)
        self.key.object = _key(curves, colours)
        self.say(said(curves))


def coloured(found: Curves) -> tuple[Curves, dict[str, str]]:
    """The curves in the order of the table of objectives, and the colour of each."""
    places = {curve.objective: _place(curve.objective) for curve in found.curves}
    colours = {name: COLOURS[place % len(COLOURS)] for name, place in places.items()}
    inorder = sorted(found.curves, key=lambda curve: places[curve.objective])
    return replace(found, curves=tuple(inorder)), colours


def _place(objective: str) -> int:
    """The line of the table that an objective belongs to."""
    return list(OBJECTIVES).index(choices.objective_family(objective))


def typed(scheme: TensorScheme) -> float | None:
    """The share of the range that a scheme keeps, the middle of two; None where no share is typed."""
    if not scheme.objective.startswith("clip"):
        return None
    low, high = Clip(*map(float, scheme.objective.split(":")[1:])).shares
    return max(low, high) if scheme.symmetric else (low + high) / 2


def _key(curves: Curves, colours: dict[str, str]) -> str:
    parts = [
        f'<span class="{"present" if curve.objective == curves.scheme.objective else ""}">'
        f'<i class="{"drawn" if curve.cost is not None else "mark"}" style="--colour:{colours[curve.objective]}"></i>'
        f"{escape(curve.objective)} "
        f"{number(round(curve.share, 3))}</span>"
        for curve in curves.curves
    ]
    return f'<div class="key">{"".join(parts)}</div>'


def said(curves: Curves) -> str:
    """What the curves show, in a line of HTML."""
    many = (
        f", summed over {curves.groups:,} groups that shrink alike; a mark is what the middle group keeps by itself"
        if curves.groups > 1
        else ""
    )
    return (
        f"<b>{escape(curves.scheme.describe())}</b> · cost over the share of the range kept, divided by the full "
        f"range's{many}. Triangles have no cost to draw: a rule chooses."
    )
