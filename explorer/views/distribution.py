"""The distribution of the chosen layer's weight or input, with its caption in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape

from explorer.study import Histogram
from explorer.views import kit, theme
from explorer.views.figures import HistogramFigure
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tensorview import TensorView
from explorer.views.text import caption, sentence

CSS = (
    theme.TOKENS
    + f"""
:host {{ font-size: 12px; line-height: 17px; }}
.key {{ color: var(--faint); white-space: nowrap; }}
.key i {{ display: inline-block; width: 14px; height: 9px; margin: 0 4px 0 10px; box-sizing: border-box; }}
.key i:first-child {{ margin-left: 0; }}
.before {{ background: {theme.BEFORE}; opacity: .7; }} .after {{ border: 2px solid {theme.AFTER}; border-bottom: 0; }}
.levels {{ background: repeating-linear-gradient(90deg, {theme.RANGE} 0 1.5px, transparent 1.5px 4px); }}
.clip {{ width: 0 !important; height: 12px !important; border-left: 2px dashed {theme.RANGE}; vertical-align: -2px; }}
"""
)
KEY = (
    '<div class="key"><i class="before"></i>before<i class="after"></i>after'
    '<i class="levels"></i>levels<i class="clip"></i>range kept</div>'
)


class Distribution(TensorView):
    """The histogram before and after quantization."""

    logarithmic = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self.plot = HistogramFigure(state.log)
        self.pane = kit.bokeh(self.plot.figure)
        publisher.panes.append(self.pane)
        self.view = kit.column(
            kit.html(KEY, css=CSS, styles={"padding": "0 12px"}, height=18), self.pane, self.caption
        )
        state.param.watch(lambda event: self.plot.use_log(event.new), "log")

    def steps(self) -> Callable[[], Iterator[Histogram]]:
        layer, tensor, scheme = self.state.layer, self.state.tensor, self.scheme

        def steps() -> Iterator[Histogram]:
            yield self.state.session.histogram(layer, tensor, scheme=scheme)

        return steps

    def draw(self, found: Histogram) -> None:
        self.plot.update(found)
        self.say(caption(found))

    def failed(self, error: Exception) -> None:
        before = f" The figure is the one before, of {self.plot.shown.layer}." if self.plot.shown else ""
        self.say(escape(f"Not drawn: {sentence(error)}{before}"))
