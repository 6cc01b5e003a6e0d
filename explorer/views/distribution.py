"""The distribution of the chosen layer's weight or input, with its caption in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape

from explorer.errors import ExplorerError
from explorer.study import Histogram
from explorer.views import kit, theme
from explorer.views.figures import HistogramFigure
from explorer.views.runs import Publisher, Runner
from explorer.views.state import PageState
from explorer.views.text import caption, sentence

CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--ink); font-size: 12px; line-height: 17px; }}
.head {{ font-size: 13px; font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  direction: rtl; text-align: left; }}
.head::before, .head::after {{ content: "\\200e"; }}
.key {{ color: var(--faint); white-space: nowrap; }}
.key i {{ display: inline-block; width: 14px; height: 9px; margin: 0 4px 0 10px; box-sizing: border-box; }}
.key i:first-child {{ margin-left: 0; }}
.before {{ background: {theme.BEFORE}; opacity: .7; }} .after {{ border: 2px solid {theme.AFTER}; border-bottom: 0; }}
.levels {{ background: repeating-linear-gradient(90deg, {theme.RANGE} 0 1.5px, transparent 1.5px 4px); }}
.clip {{ width: 0 !important; height: 12px !important; border-left: 2px dashed {theme.RANGE}; vertical-align: -2px; }}
.caption {{ padding: 2px 12px 8px; color: var(--faint); }}
.waiting {{ animation: wait .2s .3s forwards; }} @keyframes wait {{ to {{ opacity: .35; }} }}
.caption b {{ color: var(--ink); font-weight: 600; }}
"""
)
KEY = (
    '<div class="key"><i class="before"></i>before<i class="after"></i>after'
    '<i class="levels"></i>levels<i class="clip"></i>range kept</div>'
)


class Distribution:
    """The region with the histogram.

    Ranges may have to be searched for, and an input's calibration images to be run, so it comes from the
    background; what was drawn stays until then.
    """

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        self.state = state
        self.runner = Runner("histogram", publisher)
        self.plot = HistogramFigure()
        self.head = kit.html(css=CSS, height=18)
        self.caption = kit.html(css=CSS, min_height=52)
        self.tensor = kit.choice(["weight", "input"], state.tensor)
        self.log = kit.switch("log", True)
        self.pane = kit.bokeh(self.plot.figure)
        publisher.panes.append(self.pane)
        self.view = kit.column(
            kit.row(self.head, self.tensor, self.log, height=40, styles={"padding": "2px 6px 0 12px"}),
            kit.html(KEY, css=CSS, styles={"padding": "0 12px"}, height=18),
            self.pane,
            self.caption,
            css=theme.CARD,
        )
        self.tensor.param.watch(self._tensor_picked, "value")
        self.log.param.watch(lambda event: self.plot.use_log(event.new), "value")
        state.param.watch(lambda *_: self.refresh(), ["layer", "tensor", "revision"])
        self.refresh(at_once=True)

    def _tensor_picked(self, event: object) -> None:
        self.state.tensor = self.tensor.value

    def refresh(self, at_once: bool = False) -> None:
        """Draw the chosen tensor under the present recipe; ``at_once`` while there is nothing to look at yet."""
        state = self.state
        facts = state.facts
        self.tensor.value = state.tensor
        if not facts:
            return
        self.head.object = f'<div class="head">{escape(state.layer)}</div>'
        if facts["reason"]:
            self.runner.cancel()
            self.pane.visible = False
            self._words(f"Stays in float: {facts['reason']}.")
        elif at_once:
            try:
                self.show(next(self._steps(state.layer, state.tensor)()))
            except ExplorerError as error:
                self._failed(error)
        else:
            self.caption.object = self.caption.object.replace('class="caption', 'class="caption waiting')
            self.runner.start(self._steps(state.layer, state.tensor), self.show, lambda: None, self._failed)

    def _steps(self, layer: str, tensor: str) -> Callable[[], Iterator[Histogram]]:
        scheme = getattr(self.state.config, tensor)

        def steps() -> Iterator[Histogram]:
            yield self.state.session.histogram(layer, tensor, scheme=scheme)

        return steps

    def show(self, histogram: Histogram) -> None:
        """Draw a histogram and say in words what it shows."""
        self.pane.visible = True
        self.plot.update(histogram)
        self.caption.object = f'<div class="caption" aria-live="polite">{caption(histogram)}</div>'

    def _failed(self, error: Exception) -> None:
        before = f" The figure is the one before, of {self.plot.shown.layer}." if self.plot.shown else ""
        self._words(f"Not drawn: {sentence(error)}{before}")

    def _words(self, text: str) -> None:
        self.caption.object = f'<div class="caption" aria-live="polite">{escape(text)}</div>'
