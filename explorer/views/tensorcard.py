"""The card about the chosen tensor: which tensor, and which of the ways to look at it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from explorer.views import kit, theme
from explorer.views.calibrationview import CalibrationView
from explorer.views.channelview import ChannelView
from explorer.views.conventions import ConventionsView
from explorer.views.distribution import Distribution
from explorer.views.numberline import NumberLineView
from explorer.views.objective import ObjectiveView
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tabs import Tabs
from explorer.views.tensorview import TensorView

# The ways to look at a tensor, in the order in which they are offered; the first is shown first.
TENSOR_VIEWS: dict[str, type[TensorView]] = {
    "Histogram": Distribution,
    "Number line": NumberLineView,
    "Objective": ObjectiveView,
    "Conventions": ConventionsView,
    "Channels": ChannelView,
    "Calibration": CalibrationView,
}
CSS = (
    theme.TOKENS
    + """
:host { color: var(--ink); font-size: 12px; line-height: 17px; }
.head { font-size: 13px; font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  direction: rtl; text-align: left; }
.head::before, .head::after { content: "\\200e"; }
.float { padding: 8px 12px; color: var(--faint); }
"""
)


class TensorCard:
    """The views of ``TENSOR_VIEWS`` with the choices they share.

    Args:
        state: of the page.
        publisher: where results go.
        grown: is called with whether the view in sight asks for more room.
    """

    def __init__(
        self, state: PageState, publisher: Publisher, grown: Callable[[bool], None] = lambda tall: None
    ) -> None:
        self.state, self.grown = state, grown
        self.views = {name: kind(state, publisher) for name, kind in TENSOR_VIEWS.items()}
        self.tabs = Tabs(self.views, lambda name: self._turned())
        self.head = kit.html(css=CSS, height=18)
        self.tensor = kit.choice(["weight", "input"], state.tensor, sx=theme.TABS)
        self.log = kit.switch("log", state.log)
        self.why = kit.html(css=CSS, visible=False)
        choice = kit.row(self.tabs.choice, height=34, css=theme.STRIP, styles={"padding": "4px 8px 0"})
        self.view = kit.column(
            choice,
            kit.row(
                self.head,
                self.tensor,
                self.log,
                self.tabs.help,
                height=34,
                styles={"padding": "0 6px 0 12px"},
            ),
            self.why,
            self.tabs.place,
            css=theme.CARD,
            css_classes=["place-tensor"],
        )
        choice.visible = len(self.views) > 1
        self.tensor.param.watch(self._tensor_picked, "value")
        self.log.param.watch(self._log_picked, "value")
        state.param.watch(lambda *_: self.refresh(), ["layer", "tensor"])
        self._turned()
        self.refresh(at_once=True)

    @property
    def shown(self) -> TensorView:
        """The view in sight."""
        return self.views[self.tabs.chosen]

    def _tensor_picked(self, event: object) -> None:
        self.state.tensor = self.tensor.value

    def _log_picked(self, event: object) -> None:
        self.state.log = self.log.value

    def _turned(self) -> None:
        self.log.disabled = not self.shown.logarithmic
        self.grown(self.shown.tall)
        if self.state.facts.get("reason"):
            self.shown.turn(False)

    def refresh(self, at_once: bool = False) -> None:
        """Show what is chosen; of a layer that no recipe reaches, why there is nothing to see."""
        facts = self.state.facts
        self.tensor.value = self.state.tensor
        if not facts:
            return
        self.head.object = f'<div class="head">{escape(self.state.layer)}</div>'
        self.why.object = f'<div class="float">Stays in float: {escape(str(facts["reason"]))}.</div>'
        seen = not facts["reason"]
        self.why.visible, self.tabs.place.visible = not seen, seen
        if seen != self.shown.visible:
            self.shown.turn(seen, at_once=at_once) if seen else self.shown.turn(False)

    def close(self) -> None:
        """Stop all work."""
        for view in self.views.values():
            view.close()
