"""What does not suit the tensors, what to change, what that does; one press makes the change, another takes it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape

from explorer.recipe import Recipe
from explorer.session import Session
from explorer.study import METRICS, Diagnosis, Finding, Metric
from explorer.study.diagnosis import IMAGES
from explorer.views import kit, theme
from explorer.views.runs import Publisher, Runner
from explorer.views.state import PageState
from explorer.views.text import change, decibels, duration, number, sentence

VERDICTS = {
    "helps": ("helps", "good"),
    "hurts": ("does not help here: worse", "bad"),
    "no difference seen": ("no difference seen", "open"),
    "not tried": ("not tried yet", "open"),
}
CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--ink); font-size: 12px; line-height: 16px; }}
.note {{ color: var(--faint); }}
.finding {{ display: grid; grid-template-columns: minmax(0, 1fr) 172px 62px; gap: 1px 10px; align-items: start;
  padding: 5px 2px; border-top: 1px solid var(--line); }}
.where button {{ font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; text-decoration: underline dotted; }}
.why {{ grid-column: 1 / -1; color: var(--faint); }} .why span {{ color: var(--ink); white-space: nowrap; }}
.where b {{ font-weight: 600; }} .change {{ color: var(--ink); }} .small {{ color: var(--faint); }}
.effect b {{ font-weight: 600; }} .good b {{ color: var(--good); }} .bad b {{ color: var(--bad); }}
.open b {{ color: var(--faint); }}
.act {{ font: inherit; font-size: 12px; min-height: 28px; width: 62px; border-radius: 5px; cursor: pointer;
  border: 1px solid var(--line); background: var(--card); color: var(--ink); }}
.act:hover {{ background: var(--wash); }}
button:focus-visible {{ outline: 2px solid {theme.CHOSEN}; outline-offset: 1px; }}
.old .finding > div {{ opacity: .55; }}
.aged {{ color: var(--ink); background: color-mix(in srgb, #E69F00 28%, transparent); border-radius: 3px;
  padding: 0 4px; }}
"""
)


def _where(finding: Finding) -> str:
    """The layers of a finding; one of them can be chosen by it."""
    if len(finding.layers) > 1:
        names = escape(", ".join(finding.layers))
        return f'<b title="{names}">{len(finding.layers)} layers together</b>'
    name = escape(finding.layers[0])
    return f'<button data-press="layer:{name}" title="choose this layer">{name}</button>'


def _local(finding: Finding) -> str:
    """What the change does to the tensor and to the layer's own output."""
    if finding.output_before is None or finding.output_after is None:
        return ""
    return (
        f" · <span>{finding.tensor} SQNR {decibels(finding.sqnr_before)} → {decibels(finding.sqnr_after)}</span>, "
        f"<span>layer's output {decibels(finding.output_before)} → {decibels(finding.output_after)}</span>"
    )


def _effect(finding: Finding, metric: Metric, name: str) -> str:
    """What the change does to the network; the difference is with it minus without it."""
    words, kind = VERDICTS[finding.verdict]
    text = f'<div class="effect {kind}"><b>{words}</b>'
    if finding.harm_delta is not None and finding.top1_delta is not None:
        low, high = finding.harm_interval
        sign = "+" if finding.harm_delta > 0 else ""
        measure, nats = ("error", "") if finding.kl_delta is None else ("KL", " nats")
        points = " points" if metric.unit == "%" else ""
        text += (
            f'<span class="small"> · {finding.images:,} images</span>'
            f"<br>{measure} {sign}{number(float(f'{finding.harm_delta:.3g}'))}{nats}"
            f'<div class="small">{number(float(f"{low:.2g}"))} … {number(float(f"{high:.2g}"))}<br>'
            f"{escape(name)} {change(finding.top1_delta, metric.unit)}{points}, {finding.size_delta:+,} B</div>"
        )
    return text + "</div>"


ORDERS: dict[str, Callable[[Finding], float]] = {
    "by effect": lambda finding: 0.0,  # they come so
    "by bytes": lambda finding: finding.size_delta,
}
"""In which order the findings are listed, the least first."""


def markup(
    found: Diagnosis,
    layer: str | None,
    applied: str,
    recipe: Recipe,
    order: str = "by effect",
    metric: Metric = METRICS["top1"],
) -> str:
    """The findings as HTML.

    Args:
        found: the diagnosis.
        layer: show those of this layer only; None for all.
        applied: the name of the finding whose change has just been made, or nothing.
        recipe: the present one; a change that it has already is not offered.
        order: one of ``ORDERS``.
        metric: what the network is measured by.
    """
    rows = []
    for finding in sorted(found.findings, key=ORDERS[order]):
        if layer is not None and layer not in finding.layers:
            continue
        done = finding.name == applied
        act = (
            '<button class="act" data-press="undo">Undo</button>'
            if done
            else '<span class="small">in the recipe</span>'
            if finding.made(recipe)
            else f'<button class="act" data-press="apply:{escape(finding.name)}">Apply</button>'
        )
        evidence = "; ".join(map(escape, finding.evidence))
        effect = _effect(finding, metric, metric.called(found.agreement))
        rows.append(
            f'<div class="finding"><div class="where">{_where(finding)} · {finding.tensor}<br>'
            f'<span class="change">{escape(finding.change)}</span></div>{effect}{act}'
            f'<div class="why">{evidence}{_local(finding)}</div></div>'
        )
    where = "in this layer" if layer is not None else "in this network"
    return "".join(rows) or f'<div class="note">The rules find nothing to change {where}.</div>'


class DiagnosisView:
    """The region with the findings: made in the background when it is first looked at, and on demand.

    Args:
        state: of the page.
        publisher: where results go.
        images: how many evaluation images changes are tried on at most.
    """

    def __init__(self, state: PageState, publisher: Publisher, images: int = IMAGES) -> None:
        self.state, self.images = state, images
        self.runner = Runner("diagnosis", publisher)
        self.running, self.visible = False, False
        self.start = kit.button("Diagnose", "start", on_click=lambda *_: self.toggle(), width=104)
        self.only = kit.switch("chosen layer only")
        self.only.param.watch(lambda *_: self._show(), "value")
        self.order = kit.select("order", list(ORDERS), next(iter(ORDERS)), width=104)
        self.order.param.watch(lambda *_: self._show(), "value")
        self.words = kit.html(css=CSS, min_height=18)
        self.list = kit.live(CSS, self._pressed)
        self.view = kit.column(
            kit.row(self.start, self.only, self.order, kit.spacer(), height=50),
            self.words,
            kit.scrolled(self.list),
            styles={"padding": "0 10px"},
        )
        state.param.watch(lambda *_: self._show(), ["layer", "revision"])

    found: Diagnosis | None = None
    recipe: Recipe | None = None
    # The change that was made last, and the recipe that it made.
    applied: tuple[str, Recipe] | None = None

    def turn(self, visible: bool) -> None:
        """Come into sight, or leave it; a diagnosis that was asked for goes on out of sight."""
        self.visible = visible
        if visible and self.recipe is None:
            self.diagnose()
        self._show()

    def toggle(self) -> None:
        """Start a diagnosis, or stop it; what it has found stays."""
        if self.running:
            self.runner.cancel()
            self._end()
        else:
            self.diagnose()

    def diagnose(self) -> None:
        """Look at the network under the present recipe."""
        session = self.state.session
        self.recipe, self.found, self.running = session.recipe, None, True
        self.start.param.update(label="Stop", icon=kit.picture("stop"))
        # A session of its own: the page's may have moved on while this one looks.
        own = Session(subject=session.subject, recipe=session.recipe)

        def steps() -> Iterator[Diagnosis]:
            yield from own.diagnose_steps(images=self.images)

        self.runner.start(steps, self._found, self._end, self._failed, lambda d: (d.images, d.total_images))
        self._show()

    def _found(self, found: Diagnosis) -> None:
        self.found = found
        self._show()

    def _end(self) -> None:
        self.running = False
        self.start.param.update(label="Diagnose", icon=kit.picture("start"))
        self._show()

    def _failed(self, error: Exception) -> None:
        self._end()
        self.words.object = f'<div class="note" role="alert">Not diagnosed: {escape(sentence(error))}</div>'

    def _say(self) -> str:
        found = self.found
        if found is None:
            return "Looking at the tensors …" if self.running else ""
        changes = f"{len(found.findings):,} changes for {found.tensors:,} tensors"
        if not found.findings:
            return f"{found.tensors:,} tensors looked at on {found.looked} calibration images"
        if found.images == 0:
            return (
                f"{changes}; trying them …" if self.running else f"{changes}; stopped before they were tried"
            )
        left = duration(self.runner.progress.left) if self.running and self.runner.progress else ""
        tried = f"tried on up to {found.images:,} images" + (f", {left} left" if left else "")
        return f"{changes}, {tried}; differences are with the change minus without it, intervals 95%"

    def _show(self) -> None:
        """Draw what there is; out of sight nothing is sent."""
        if not self.visible:
            return
        session = self.state.session
        aged = self.recipe is not None and self.recipe != session.recipe
        before = '<span class="aged">before the edit: diagnose again</span> ' if aged else ""
        text = escape(self._say())
        self.words.object = f'<div class="note" aria-live="polite">{before}{text}</div>'
        applied = self.applied[0] if self.applied and self.applied[1] == session.recipe else ""
        layer = self.state.layer if self.only.value else None
        text = (
            markup(self.found, layer, applied, session.recipe, self.order.value, session.metric)
            if self.found is not None
            else ""
        )
        self.list.object = f'<div class="{"old" if aged else "new"}">{text}</div>'

    def _pressed(self, what: str) -> None:
        kind, _, name = what.partition(":")
        if kind == "layer":
            self.state.layer = name
        elif kind == "undo":
            self.state.attempt(self.state.session.undo)
        elif self.found is not None:
            self._apply(next(each for each in self.found.findings if each.name == name))

    def _apply(self, finding: Finding) -> None:
        session = self.state.session

        def change() -> None:
            recipe = finding.apply(session.recipe)
            self.applied = finding.name, recipe
            session.recipe = recipe

        self.state.attempt(change)
