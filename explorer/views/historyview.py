"""The history on the page: every configuration tried, named, brought back, and set side by side."""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import Any

from explorer.errors import ProjectError
from explorer.study import Differences, Metric, Trial
from explorer.study.trials import LONGEST_NAME, Pair
from explorer.views import kit, theme
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.text import NOTHING, between, change, in_points, kilobytes, large, number, score, short
from explorer.views.trialfigure import ACROSS, HEIGHT, UP, TrialsFigure

# More configurations side by side than this cannot be read.
MOST_BESIDE = 6
CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--ink); font-size: 12px; line-height: 17px; font-variant-numeric: tabular-nums; }}
.note {{ color: var(--faint); padding: 2px; }} .line {{ white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }}
.warn {{ color: var(--bad); }}
.wide {{ overflow-x: auto; margin-bottom: 8px; }}
table {{ border-collapse: collapse; width: 100%; }}
caption {{ text-align: left; font-weight: 600; padding: 12px 2px 2px; }} caption .small {{ font-weight: 400; }}
th {{ text-align: left; font-weight: 500; color: var(--faint); font-size: 11.5px; }}
th, td {{ padding: 2px 6px 2px 2px; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }}
td.number, th.number {{ text-align: right; }}
td.small, .small {{ color: var(--faint); }}
td.some {{ white-space: normal; min-width: 120px; }}
td.what {{ width: 99%; max-width: 0; overflow: hidden; text-overflow: ellipsis; }}
td.what div {{ white-space: normal; display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical;
  overflow: hidden; }}
tr.present {{ background: color-mix(in srgb, {theme.CHOSEN} 16%, transparent); }}
td.same {{ color: var(--faint); }}
td b {{ font-weight: 600; }}
button {{ font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  min-height: 24px; }}
button.back {{ font-weight: 600; text-decoration: underline dotted; text-align: left; }}
button.mark {{ min-width: 24px; font-size: 14px; }}
button:focus-visible {{ outline: 2px solid {theme.CHOSEN}; outline-offset: 1px; }}
"""
)


def cell(text: str, kind: str = "") -> str:
    """A cell of a table; the text is markup."""
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def interval(low: float, high: float, unit: str = "%") -> str:
    """An interval of differences of scores; of shares in percentage points."""
    return f"{change(low, unit)} … {change(high, unit)}"


def when(seconds: float) -> str:
    """A moment in the server's time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def two(above: str, below: str, kind: str = "") -> str:
    """A cell of two lines, the lower one faint; both are markup."""
    return cell(f'{above}<div class="small">{below}</div>', kind)


def row(trial: Trial, marked: bool, present: bool, changes: str, unit: str = "%") -> str:
    """A configuration as a row of the list; ``changes`` are those from the present one to it."""
    found, name = trial.outcome, escape(trial.label)
    mark = (
        f'<button class="mark" data-press="mark:{trial.digest}" role="checkbox" aria-checked="{str(marked).lower()}" '
        f'aria-label="compare {name}">{"☑" if marked else "☐"}</button>'
    )
    back = (
        f"<b>{name}</b>"
        if present
        else f'<button class="back" data-press="back:{trial.digest}" title="bring it back">{name}</button>'
    )
    said = "the present one" if present else f"against it: {escape(changes)}"
    accuracy = (
        two(score(found.top1, unit), f"{found.images:,} images", "number")
        + two(change(found.delta, unit), interval(*found.delta_interval, unit), "number")
        if found is not None
        else two(NOTHING, "not evaluated", "number") + cell(NOTHING, "number")
    )
    return (
        f"<tr{' class=present' if present else ''}>{cell(mark)}"
        f'<td class="what" title="{said}; {when(trial.time)}">{back}<div class="small">{said}</div></td>{accuracy}'
        f"{two(kilobytes(trial.size), f'{large(trial.bops)} BOPs', 'number')}</tr>"
    )


def head(metric: Metric) -> str:
    """The heads of the list's columns."""
    far = "points to float" if metric.unit == "%" else "to float"
    return (
        f'<tr><th></th><th>configuration</th><th class="number">{escape(metric.called())}</th>'
        f'<th class="number">{far}, 95%</th><th class="number">size</th></tr>'
    )


def pair_row(pair: Pair, unit: str = "%") -> str:
    """Two configurations as a row of the comparison."""
    verdict = escape(pair.verdict)
    told = f"<b>{verdict}</b>" if pair.distinguishable else verdict
    names = f'{escape(pair.a)} <span class="small">minus</span> {escape(pair.b)}'
    differ = f"{pair.layers:,} layers differ" if pair.layers != 1 else "1 layer differs"
    delta = (
        two(change(pair.delta, unit), interval(*pair.delta_interval, unit), "number")
        if pair.delta is not None and pair.delta_interval is not None
        else cell(NOTHING, "number")
    )
    size, bops = signed(pair.size_delta, kilobytes), signed(pair.bops_delta, large)
    far = " against ".join(
        "not evaluated" if kl is None else between(kl, span, number)
        for kl, span in zip(pair.kl, pair.kl_intervals, strict=True)
    )
    known = any(kl is not None for kl in pair.kl)
    kl = f'<div class="small">KL to float, nats: {far}</div>' if known else ""
    return (
        f'<tr><td class="some">{names}<div>{told} <span class="small">· {differ}</span></div>'
        f"{kl}</td>{delta}"
        f"{two(size, f'{bops} BOPs', 'number')}</tr>"
    )


def signed(value: float, words: Any) -> str:
    """A difference with its sign.

    >>> signed(1200, kilobytes), signed(0, kilobytes)
    ('+1.2 kB', '0')
    """
    return f"{'+' if value > 0 else chr(0x2212)}{words(abs(value))}" if value else "0"


def comparison(found: Differences, metric: Metric) -> str:
    """Configurations side by side as HTML: two by two, then tensor by tensor."""
    what = in_points(escape(metric.called(found.agreement)), metric.unit)
    pairs = "".join(pair_row(pair, metric.unit) for pair in found.pairs)
    head = f'<tr><th>two by two</th><th class="number">{what}, 95%</th><th class="number">size</th></tr>'
    many = ' <span class="small">each interval is for its own pair</span>' if len(found.pairs) > 1 else ""
    text = f"<table><caption>Side by side{many}</caption>{head}{pairs}</table>"
    if not found.rows:
        return text + '<div class="note">No tensor is quantized differently.</div>'
    names = "".join(f"<th>{escape(label)}</th>" for label in found.labels)
    rows = []
    for each in found.rows:
        # What the first has is faint where others have it too, so that what differs stands out.
        schemes = "".join(
            cell(escape(scheme), "same" if place and scheme == each.schemes[0] else "")
            for place, scheme in enumerate(each.schemes)
        )
        name = f'<td title="{escape(each.layer)}">{escape(short(each.layer, 28))}</td>'
        rows.append(f"<tr>{name}{cell(each.tensor)}{schemes}</tr>")
    return (
        f'{text}<div class="wide"><table><caption>Tensor by tensor, where they differ</caption>'
        f"<tr><th>layer</th><th>tensor</th>{names}</tr>{''.join(rows)}</table></div>"
    )


class HistoryView:
    """The region with the configurations tried; it is drawn while it is in sight only.

    Args:
        state: of the page.
        publisher: where the figure may be changed.
    """

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        self.state, self.publisher, self.visible = state, publisher, False
        self.marked: list[str] = []
        self._drawn: tuple[Any, ...] = ()
        self.plot = TrialsFigure(self._back, state.session.metric)
        self.pane = kit.bokeh(self.plot.figure, sizing_mode="stretch_width", height=HEIGHT)
        publisher.panes.append(self.pane)
        self.across = kit.choice(list(ACROSS), next(iter(ACROSS)), sx=theme.TABS)
        # What the metric is called, and the difference.
        self.ups = dict(zip((state.session.metric.called(), UP[1]), UP, strict=True))
        self.up = kit.choice(list(self.ups), next(iter(self.ups)), sx=theme.TABS)
        self.name = kit.text("name of the present one", width=190, max_length=LONGEST_NAME)
        self.give = kit.button("Name it", on_click=lambda *_: self._name(), width=82)
        self.words = kit.html(css=CSS, height=20)
        self.list = kit.live(CSS, self._pressed, styles={"flex": "none"})
        self.view = kit.column(
            kit.row(self.across, self.up, height=40, css=theme.STRIP),
            self.words,
            kit.scrolled(self.pane, kit.row(self.name, self.give, kit.spacer(), height=48), self.list),
            styles={"padding": "0 10px"},
        )
        self.name.param.watch(lambda *_: self._name(), "enter_pressed")
        for each in (self.across, self.up):
            each.param.watch(lambda *_: self._show(), "value")
        state.param.watch(lambda *_: self._show(), ["revision", "evaluation"])

    def turn(self, visible: bool) -> None:
        """Come into sight, or leave it."""
        self.visible = visible
        self._show()

    # -- what a user does -------------------------------------------------------------------------

    def _pressed(self, what: str) -> None:
        kind, _, digest = what.partition(":")
        if kind == "back":
            self._back(digest)
        elif digest in self.marked:
            self.marked.remove(digest)
            self._show()
        else:
            self.state.attempt(lambda: self._mark(digest))
            self._show()

    def _mark(self, digest: str) -> None:
        if len(self.marked) >= MOST_BESIDE:
            raise ProjectError(
                f"At most {MOST_BESIDE} configurations are set side by side; unmark one first."
            )
        self.marked.append(digest)

    def _back(self, digest: str) -> None:
        self.state.attempt(lambda: self.state.session.restore(digest))

    def _name(self) -> None:
        self.state.attempt(lambda: self.state.session.name(self.name.value_input or ""))
        # A button's event may come while the page is being written to.
        self.publisher.later(self._show)

    # -- what is shown ----------------------------------------------------------------------------

    def _show(self) -> None:
        """Draw what there is; out of sight nothing is sent."""
        with self.publisher.hold():
            self._draw()

    def _draw(self) -> None:
        """Draw what has changed."""
        session = self.state.session
        now = (session.tried.version, session.recipe.digest, self.across.value, self.up.value, *self.marked)
        if not self.visible or now == self._drawn:
            return
        trials = list(session.tried)
        known = {trial.digest for trial in trials}
        self.marked = [digest for digest in self.marked if digest in known]
        if now[:2] != self._drawn[:2]:
            here = session.tried.get(session.recipe.digest)
            self.name.param.update(value=here.name if here else "", value_input=here.name if here else "")
        if now[:4] != self._drawn[:4]:
            up = self.ups[self.up.value]
            self.plot.update(trials, session.recipe, self.across.value, up, session.changes)
        self._drawn = now
        self.words.object = self._said(len(trials))
        rows = "".join(
            row(
                trial,
                trial.digest in self.marked,
                trial.recipe == session.recipe,
                session.changes(trial.recipe),
                session.metric.unit,
            )
            for trial in reversed(trials)
        )
        self.list.object = (
            f"<table>{head(self.state.session.metric)}{rows}</table>{self._beside()}" if rows else ""
        )

    def _said(self, count: int) -> str:
        project = self.state.session.project
        kept = (
            f"kept in {project.folder.name!r}"
            if project is not None
            else "kept while this page is open (longer: serve with --project)"
        )
        beside = f"{len(self.marked)} side by side, below; " if len(self.marked) > 1 else ""
        some = f"{count:,} configurations" if count != 1 else "1 configuration"
        text = title = escape(f"{beside}{some} tried, {kept}" if count else f"None tried yet; {kept}")
        if project is not None and project.problems:
            title = escape(" ".join(project.problems))
            text = f'<span class="warn">{escape(project.problems[-1])}</span> · {text}'
        return f'<div class="note line" aria-live="polite" title="{title}">{text}</div>'

    @property
    def chosen(self) -> list[Trial]:
        """The configurations that are marked."""
        tried = self.state.session.tried
        return [trial for trial in map(tried.get, self.marked) if trial is not None]

    def _beside(self) -> str:
        session, trials = self.state.session, self.chosen
        if len(trials) < 2:
            return '<div class="note">Mark two or more to set them side by side; press a name to bring it back.</div>'
        return comparison(session.differences_of(trials), session.metric)
