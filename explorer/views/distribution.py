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
THEIRS = '<i class="theirs"></i>levels and range of another tool'
# The recipe's histogram, and that under another tool's parameters where there are some.
Drawn = tuple[Histogram, Histogram | None]


class Distribution(TensorView):
    """The histogram before and after quantization."""

    logarithmic = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self.plot = HistogramFigure(state.log)
        self.pane = kit.bokeh(self.plot.figure)
        publisher.panes.append(self.pane)
        self.key = kit.html(KEY, css=CSS, styles={"padding": "0 12px"}, height=18)
        self.theirs = kit.html(css=CSS, height=22, visible=False)
        self.view = kit.column(self.key, self.pane, self.caption, self.theirs)
        state.param.watch(lambda event: self.plot.use_log(event.new), "log")

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
        self.plot.update(ours, theirs)
        self.key.object = KEY.replace("</div>", THEIRS + "</div>") if theirs else KEY
        self.say(caption(ours))
        self.theirs.visible = theirs is not None
        self.theirs.object = f'<div class="other">{foreign_caption(theirs)}</div>' if theirs else ""

    def failed(self, error: Exception) -> None:
        before = f" The figure is the one before, of {self.plot.shown.layer}." if self.plot.shown else ""
        self.say(escape(f"Not drawn: {sentence(error)}{before}"))
