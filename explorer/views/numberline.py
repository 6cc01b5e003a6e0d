"""The number line of the chosen tensor, and other formats that would take as many bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from explorer.study import NumberLine, Rival
from explorer.views import kit, theme
from explorer.views.levels import NumberLineFigure, RivalsFigure
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tensorview import TensorView
from explorer.views.text import line_caption

CSS = (
    theme.TOKENS
    + f"""
:host {{ font-size: 12px; line-height: 17px; color: var(--faint); }}
.key {{ white-space: nowrap; overflow: hidden; }}
.key i {{ display: inline-block; width: 12px; height: 9px; margin: 0 4px 0 9px; }}
.key i:first-child {{ margin-left: 0; }}
.there {{ background: {theme.BEFORE}; opacity: .7; }} .rounding {{ background: {theme.SENSITIVE}; opacity: .8; }}
.clipping {{ background: repeating-linear-gradient(135deg, {theme.RANGE} 0 3px, #fff9 3px 4px); }}
.used, .unused {{ width: 2px !important; height: 12px !important; background: {theme.RANGE}; vertical-align: -2px; }}
.unused {{ height: 7px !important; background: {theme.NEUTRAL}; vertical-align: 0; }}
.title {{ padding: 4px 12px 0; border-top: 1px solid var(--line); }}
"""
)
KEY = (
    '<div class="key"><i class="there"></i>values<i class="used"></i>level used<i class="unused"></i>unused'
    '<i class="rounding"></i>error: rounding<i class="clipping"></i>clipping</div>'
)
TITLE = '<div class="title">Other formats at equal bits, scales and zero points counted; %s</div>'
WHOLE, PARTLY = "a click takes one", "more are being fitted …"
BINS = 128
ALL, ONE = "all groups", "one group"
# The number line, the formats beside it, and whether those are all.
Shown = tuple[NumberLine, tuple[Rival, ...], bool]


class NumberLineView(TensorView):
    """Levels over the distribution, their error, and the levels of other formats below."""

    logarithmic = True
    tall = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self.plot = NumberLineFigure(state.log)
        self.others = RivalsFigure(self._take)
        self.found: tuple[Rival, ...] = ()
        self._of: tuple[str, ...] = ()
        self._quiet = False
        self.which = kit.choice([ALL, ONE], ALL, sx=theme.TABS)
        self.group: Any = None
        self.pane = kit.bokeh(self.plot.figure, sizing_mode="stretch_width")
        self.table = kit.bokeh(self.others.figure, sizing_mode="stretch_width")
        publisher.panes += [self.pane, self.table]
        self.title = kit.html(TITLE % PARTLY, css=CSS, height=24)
        self.choice = kit.row(self.which, kit.spacer(), height=46, styles={"padding": "0 12px"})
        self.view = kit.scrolled(
            self.choice,
            kit.html(KEY, css=CSS, styles={"padding": "0 12px"}, height=18),
            self.pane,
            self.caption,
            self.title,
            self.table,
        )
        self.which.param.watch(lambda *_: self._picked(), "value")
        state.param.watch(lambda event: self.plot.use_log(event.new), "log")

    def _picked(self) -> None:
        if self.group is not None:
            self.group.visible = self.which.value == ONE
        if not self._quiet and self.visible:
            self.refresh()

    def _take(self, scheme: str) -> None:
        """Use a row's scheme for the chosen tensor."""
        for rival in self.found:
            if rival.scheme.describe() == scheme:
                self.state.edit([self.state.layer], **{self.state.tensor: rival.scheme.to_dict()})
                break

    def steps(self) -> Callable[[], Iterator[Shown]]:
        session, layer, tensor, scheme = self.state.session, self.state.layer, self.state.tensor, self.scheme
        of = (layer, tensor, scheme.granularity)
        # Of another tensor another group is the interesting one: the widest, which is known when all are looked at.
        one, number = self.which.value == ONE, (self.group.value or 0) if self.group is not None else 0
        fresh = of != self._of

        def steps() -> Iterator[Shown]:
            line = session.number_line(layer, tensor, scheme, bins=BINS)
            if one and line.groups > 1:
                group = line.widest if fresh else min(number, line.groups - 1)
                line = session.number_line(layer, tensor, scheme, group, BINS)
            yield line, (), False
            found: tuple[Rival, ...] = ()
            for found in session.formats_steps(layer, tensor):
                # The list of a tensor that has one stays, instead of shrinking and growing under the hand.
                if fresh:
                    yield line, found, False
            yield line, found, True

        return steps

    def draw(self, found: Shown) -> None:
        line, rivals, whole = found
        if line is not self.plot.shown:
            self._show(line)
        if rivals:
            self.found = rivals
            self.others.update(rivals)
        self.title.object = TITLE % (WHOLE if whole else PARTLY)

    def _show(self, line: NumberLine) -> None:
        self.plot.update(line)
        self.say(line_caption(line))
        self.choice.visible = line.groups > 1
        of = (line.layer, line.tensor, self.scheme.granularity)
        self._quiet = True
        try:
            number = line.group if line.group is not None else line.widest if of != self._of else None
            if number is not None and line.groups > 1:
                self._number(number, line.groups - 1)
        finally:
            self._quiet = False
        self._of = of

    def _number(self, number: int, last: int) -> None:
        """Show a group's number in the field, which is made with it: what changes while it comes up it does not see."""
        if self.group is not None:
            self.group.param.update(end=last, value=number)
            return
        self.group = kit.whole("group", number, start=0, end=last, width=104, visible=self.which.value == ONE)
        self.group.param.watch(lambda *_: self._picked(), "value")
        self.group.align = "center"
        self.choice.insert(1, self.group)
