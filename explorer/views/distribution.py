"""The distribution of the chosen layer's weight or input, with its caption in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape

from explorer.calibrate import Clip, objective
from explorer.recipe import TensorScheme
from explorer.study import Histogram
from explorer.views import kit, theme
from explorer.views.figures import HistogramFigure
from explorer.views.moving import LEAST, MOST, PAUSE, Moving
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tensorview import TensorView
from explorer.views.text import caption, foreign_caption, sentence

CSS = (
    theme.TOKENS
    + f"""
:host {{ font-size: 12px; line-height: 17px; }}
.key {{ color: var(--faint); white-space: nowrap; }}
.key i {{ display: inline-block; width: 14px; height: 9px; margin: 0 4px 0 10px; box-sizing: border-box; }}
.key i:first-child {{ margin-left: 0; }}
.before {{ background: {theme.BEFORE}; opacity: .7; }} .after {{ border: 2px solid {theme.AFTER}; border-bottom: 0; }}
.levels {{ background: repeating-linear-gradient(90deg, {theme.RANGE} 0 1.5px, transparent 1.5px 4px); }}
.theirs {{ width: 0 !important; height: 12px !important; border-left: 2px dotted {theme.CHOSEN};
  vertical-align: -2px; }}
.other {{ color: var(--faint); padding: 0 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }}
.other b {{ color: var(--ink); font-weight: 600; }}
.clip {{ width: 0 !important; height: 12px !important; border-left: 2px dashed {theme.RANGE}; vertical-align: -2px; }}
"""
)
KEY = (
    '<div class="key"><i class="before"></i>before<i class="after"></i>after'
    '<i class="levels"></i>levels<i class="clip"></i>range kept</div>'
)
GRIP = " (drag an edge)"
THEIRS = '<i class="theirs"></i>levels and range of another tool'
# The recipe's histogram, and that under another tool's parameters where there are some.
Drawn = tuple[Histogram, Histogram | None]


def grips(h: Histogram, scheme: TensorScheme) -> str:
    """Which ends of the range of a drawn tensor can be moved: ``left``, ``right``, both (``x``) or ``none``.

    An end at zero stays there, and a range that each example brings along is nobody's to choose.
    """
    if not scheme.ranged or scheme.mode == "dynamic":
        return "none"
    low, high = h.clip[0] < 0, h.clip[1] > 0
    return "x" if low and high else "left" if low else "right" if high else "none"


def kept(h: Histogram, scheme: TensorScheme) -> tuple[float, float]:
    """The shares of the full range that a drawn tensor keeps at its lowest and at its highest end.

    As typed, where they are; else as far as the widest of all groups tells.
    """
    chosen = objective(scheme.objective)
    if isinstance(chosen, Clip):
        low, high = chosen.shares
    else:
        full = min(h.minimum, 0.0), max(h.maximum, 0.0)
        if scheme.symmetric:
            full = -max(-full[0], full[1]), max(-full[0], full[1])
        low, high = (
            min(max(end / whole, LEAST), MOST) if whole else MOST
            for end, whole in zip(h.clip, full, strict=True)
        )
    return (max(low, high), max(low, high)) if scheme.symmetric else (low, high)


class Distribution(TensorView):
    """The histogram before and after quantization, with a range whose ends can be moved."""

    logarithmic = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self.plot = HistogramFigure(state.log, self._moved)
        self.moving = Moving(state, publisher, self.say, self._measure, self._live)
        # Of the range as it was drawn last: its ends and the shares that it keeps.
        self._ends, self._shares = (0.0, 0.0), (1.0, 1.0)
        self.pane = kit.bokeh(self.plot.figure)
        publisher.panes.append(self.pane)
        self.key = kit.html(KEY, css=CSS, styles={"padding": "0 12px"}, height=18)
        self.theirs = kit.show(kit.html(css=CSS, height=22), False)
        self.view = kit.column(self.key, self.pane, self.caption, self.theirs, kit.hand(self._pressed))
        state.param.watch(lambda event: self.plot.use_log(event.new), "log")
        state.param.watch(lambda *_: self.moving.forget(), ["layer", "tensor"])

    def _moved(self, low: float, high: float) -> None:
        """A hand has put the ends of the range here: in proportion to where they were drawn."""
        if self.scheme.symmetric:
            # Both ends are on their way; how wide it is does not hang much on which of them has arrived.
            self.moving.to(self._shares[1] * (high - low) / (self._ends[1] - self._ends[0]))
            return
        below, above = (
            share * end / drawn if drawn else None
            for end, drawn, share in zip((low, high), self._ends, self._shares, strict=True)
        )
        # An end at zero has no share of its own.
        if below is None or above is None:
            self.moving.to(above or below or MOST)
        else:
            self.moving.to(below, above)

    def _measure(self, layer: str, tensor: str, scheme: TensorScheme) -> Histogram:
        return self.state.session.histogram(layer, tensor, scheme=scheme)

    def _live(self, h: Histogram) -> None:
        """Draw where the hand is, which is ahead of the recipe."""
        if self.visible and self.moving.stands:
            self.plot.update(h, self.plot.theirs, held=True)

    def _pressed(self, down: bool) -> None:
        self.moving.press(down)
        self.plot.tell(not down)
        if not down:
            self.publisher.after(2 * PAUSE, self._settle)

    def _settle(self) -> None:
        """Once the hand has let go, draw the range where the recipe has it, with axes that fit."""
        if self.moving.active:
            # The page is behind, or the hand is at it again and will let go.
            self.publisher.after(PAUSE, self._settle)
        elif self.visible:
            self._draw_again()

    def _draw_again(self) -> None:
        """Draw what is there now; words and figure stay until then, as they are the hand's."""
        self.runner.start(self.steps(), self.draw, lambda: None, self.failed)

    def _grip(self, h: Histogram) -> str:
        """Let the range be moved; says which ends of it."""
        edges, shares = grips(h, self.scheme), kept(h, self.scheme)
        self._ends, self._shares = h.clip, shares
        self.plot.grip(edges, together=self.scheme.symmetric and edges == "x")
        return edges

    def refresh(self) -> None:
        if self.moving.active:
            return  # what is drawn is ahead of the recipe
        if self.moving.stands:
            self._draw_again()
        else:
            super().refresh()

    def close(self) -> None:
        super().close()
        self.moving.close()

    def steps(self) -> Callable[[], Iterator[Drawn]]:
        state = self.state
        session, layer, tensor, scheme, foreign = (
            state.session,
            state.layer,
            state.tensor,
            self.scheme,
            state.foreign,
        )

        def steps() -> Iterator[Drawn]:
            ours = session.histogram(layer, tensor, scheme=scheme)
            known = foreign is not None and foreign.get(layer, tensor) is not None
            yield ours, session.histogram(layer, tensor, foreign=foreign) if known else None

        return steps

    def draw(self, found: Drawn) -> None:
        ours, theirs = found
        held = self.moving.active
        self.plot.update(ours, theirs, held)
        if not held:
            words = "range kept" + (GRIP if self._grip(ours) != "none" else "")
            key = KEY.replace("range kept", words)
            self.key.object = key.replace("</div>", THEIRS + "</div>") if theirs else key
            if not self.moving.stands:
                self.say(caption(ours))
        kit.show(self.theirs, theirs is not None)
        self.theirs.object = f'<div class="other">{foreign_caption(theirs)}</div>' if theirs else ""

    def failed(self, error: Exception) -> None:
        before = f" The figure is the one before, of {self.plot.shown.layer}." if self.plot.shown else ""
        self.say(escape(f"Not drawn: {sentence(error)}{before}"))
