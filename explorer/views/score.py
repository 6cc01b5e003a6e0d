"""The score strip: accuracy, size and bit operations, the float network's beside them."""

from __future__ import annotations

from collections.abc import Callable

from explorer.recipe import Recipe
from explorer.study import Evaluation, Metric
from explorer.views import kit, theme
from explorer.views.state import PageState
from explorer.views.text import (
    NOTHING,
    added_up,
    change,
    decibels,
    heading,
    in_points,
    kilobytes,
    large,
    ratio,
    score,
    seen,
)

CSS = (
    theme.TOKENS
    + """
.strip { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 6px 12px 7px;
  color: var(--ink); min-width: 0; position: relative; }
.name { font-size: 11.5px; color: var(--faint); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.main { display: flex; align-items: baseline; gap: 8px; white-space: nowrap; line-height: 26px; }
.value { font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.side { font-size: 12px; color: var(--faint); font-variant-numeric: tabular-nums; overflow: hidden;
  text-overflow: ellipsis; }
.note { font-size: 11.5px; color: var(--faint); white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  font-variant-numeric: tabular-nums; }
.worse { color: var(--bad); } .better { color: var(--good); }
.stale { background-image: repeating-linear-gradient(135deg, transparent 0 6px, var(--line) 6px 7px); }
.stale .value, .stale .side { opacity: .45; }
.early .value { font-style: italic; font-weight: 500; opacity: .8; }
.link { all: unset; cursor: pointer; color: var(--ink); text-decoration: underline; text-decoration-style: dotted;
  text-underline-offset: 2px; }
.link:hover, .link:focus-visible { text-decoration-style: solid; }
.sum { grid-column: 1 / -1; font-size: 11.5px; line-height: 15px; min-height: 15px; color: var(--faint);
  padding: 0 2px; margin-top: -3px; }
.sum.old { opacity: .55; font-style: italic; }
.badge { position: absolute; right: 8px; top: 6px; font-size: 10.5px; font-weight: 600; padding: 0 6px;
  border-radius: 8px; line-height: 16px; background: #E69F00; color: #111; }
@container (max-width: 1000px) { .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@container (max-width: 560px) { .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""
)


def card(name: str, value: str, side: str, note: str, look: str = "", mood: str = "") -> str:
    """One figure with its reference; no text of a user's comes in here.

    ``look`` is ``stale`` for another recipe's figure, ``early`` for one that is from some of the images yet.
    """
    badge = '<span class="badge">stale</span>' if look == "stale" else ""
    return (
        f'<div class="card {look}">{badge}<div class="name">{name}</div>'
        f'<div class="main"><span class="value {mood}">{value}</span><span class="side">{side}</span></div>'
        f'<div class="note">{note}</div></div>'
    )


def _accuracy(e: Evaluation | None, look: str, metric: Metric) -> list[str]:
    if e is None:
        return [
            card(heading(metric.called()), NOTHING, "", "being evaluated"),
            card("Difference to float", NOTHING, "", "paired, on the same images"),
        ]
    low, high = (score(end, e.unit) for end in e.top1_interval)
    below, above = e.delta_interval
    mood = "worse" if above < 0 else "better" if below > 0 else ""
    words = f"{e.won:,} won, {e.lost:,} lost" if metric.binary else f"{e.won:,} better, {e.lost:,} worse"
    return [
        card(
            heading(e.score_name),
            score(e.top1, e.unit),
            f"{low.removesuffix('%')} … {high}",
            f"float {score(e.top1_float, e.unit)} · {seen(e)}",
            look,
        ),
        card(
            in_points("Difference to float", e.unit),
            change(e.delta, e.unit),
            f"{change(below, e.unit)} … {change(above, e.unit)}",
            f'paired: <button class="link" data-press="flips" title="show the images">{words}</button>',
            look,
            mood,
        ),
    ]


def _far(e: Evaluation | None, metric: Metric) -> str:
    """How far the result is from float's, in words."""
    if not metric.classes:
        return "KL: none, results are no class scores"
    return f"KL {e.kl:.2g} nats to float" if e is not None and e.kl is not None else "of the class scores"


def markup(state: PageState) -> str:
    """The strip for the present recipe; what is not of this recipe is hatched and called stale."""
    e = state.evaluation
    look = "stale" if state.stale else "early" if e and not e.stopped else ""
    now, floats = state.cost(), state.cost(Recipe.preset("fp32"))
    cards = [
        *_accuracy(e, look, state.session.metric),
        card(
            "Output SQNR",
            decibels(e.output_sqnr_db) if e else NOTHING,
            "",
            _far(e, state.session.metric),
            look,
        ),
        card(
            "Size",
            kilobytes(now.size),
            f"{ratio(floats.size, now.size)} smaller",
            f"float {kilobytes(floats.size)}",
        ),
        card(
            "Bit operations",
            large(now.bops),
            f"{ratio(floats.bops, now.bops)} fewer",
            f"float {large(floats.bops)} · for one image",
        ),
    ]
    return f'<div class="strip" aria-live="polite">{"".join(cards)}{_sum(state)}</div>'


def _sum(state: PageState) -> str:
    """Whether the layers' shares add up, in one line below the figures."""
    if state.additivity is None:
        return '<div class="sum"></div>'
    old = state.additivity_revision != state.session.revision
    before = "Before the edit: " if old else ""
    return f'<div class="sum {"old" if old else ""}">{before}{added_up(state.additivity)}</div>'


class ScoreStrip:
    """The region at the top.

    Args:
        state: of the page.
        show_flips: opens the pictures of the images won and lost.
    """

    def __init__(self, state: PageState, show_flips: Callable[[], None]) -> None:
        self.state = state
        self.view = kit.live(CSS, lambda _: show_flips(), min_height=98)
        parts = ["revision", "evaluation", "evaluation_revision", "additivity", "additivity_revision"]
        state.param.watch(lambda *_: self.refresh(), parts)
        self.refresh()

    def refresh(self) -> None:
        self.view.object = markup(self.state)
