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
from explorer.views.text import caption

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
.caption {{ padding: 2px 12px 8px; color: var(--faint); }} .caption b {{ color: var(--ink); font-weight: 600; }}
"""
)
KEY = (
    '<div class="key"><i class="before"></i>before<i class="after"></i>after'
    '<i class="levels"></i>levels<i class="clip"></i>range kept</div>'
)


class Distribution:
    """The region with the histogram.

    A weight's is drawn at once; an input's may need calibration images to be run, so it comes from the
    background.
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
        state.param.watch(lambda *_: self.refresh(), ["layer", "tensor", "layers"])
        self.refresh()

    def _tensor_picked(self, event: object) -> None:
        self.state.tensor = self.tensor.value

    def refresh(self) -> None:
        """Draw the chosen tensor under the present recipe."""
        state = self.state
        facts = state.facts
        self.tensor.value = state.tensor
        if not facts:
            return
        self.head.object = f'<div class="head">{escape(state.layer)}</div>'
        if facts["reason"]:
            self._words(f"Stays in float: {facts['reason']}.")
        elif state.tensor == "weight":
            try:
                self.show(state.session.histogram(state.layer, "weight"))
            except ExplorerError as error:
                self._words(str(error))
        else:
            self.pane.loading = True
            self.runner.start(self._steps(state.layer), self.show, lambda: None, self._failed)

    def _steps(self, layer: str) -> Callable[[], Iterator[Histogram]]:
        scheme = self.state.config.input

        def steps() -> Iterator[Histogram]:
            yield self.state.session.histogram(layer, "input", scheme=scheme)

        return steps

    def show(self, histogram: Histogram) -> None:
        """Draw a histogram and say in words what it shows."""
        self.pane.loading = False
        self.pane.visible = True
        self.plot.update(histogram)
        self.caption.object = f'<div class="caption" aria-live="polite">{caption(histogram)}</div>'

    def _failed(self, error: Exception) -> None:
        self._words(str(error) if isinstance(error, ExplorerError) else f"{type(error).__name__}: {error}")

    def _words(self, text: str) -> None:
        self.pane.loading = False
        self.pane.visible = False
        self.caption.object = f'<div class="caption" aria-live="polite">{escape(text)}</div>'
