"""The regions on all layers at once: the sensitivity map and the bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from explorer.recipe import Recipe
from explorer.session import Session
from explorer.study import MEASURES, METHODS, TENSOR_CHOICES, measures_for, rows_for
from explorer.study.instant import INSTANT
from explorer.study.sensitivity import WEIGHT
from explorer.views import choices, kit, theme
from explorer.views.estimates import Estimates
from explorer.views.maps import LayersFigure, SensitivityFigure, describe, look
from explorer.views.runs import Publisher, Runner
from explorer.views.state import PageState
from explorer.views.text import duration, sentence

FORMATS = ("int8", "int6", "int4", "int3", "int2")
DEFAULT_METHOD = "live"
# The one column of a method that takes each layer as the recipe has it.
LEFT_OUT = "left out"
IMAGES = 1000
# The format at which the list of layers shows sensitivities: most networks begin to suffer there.
RANKED = "int4"
CSS = (
    theme.TOKENS
    + """
:host { color: var(--faint); font-size: 12px; line-height: 17px; }
.line { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.old { color: var(--ink); background: color-mix(in srgb, #E69F00 28%, transparent);
  border-radius: 3px; padding: 0 4px; }
.tiers i { display: inline-block; width: 15px; height: 10px; margin: 0 4px 0 12px; background-color: #575d6d;
  vertical-align: -1px; }
.tiers i:first-child { margin-left: 0; }
.estimate { background-image: radial-gradient(#fff 1px, transparent 1.3px); background-size: 5px 5px; }
.open { background-image: repeating-linear-gradient(135deg, transparent 0 3px, rgb(255 255 255 / 60%) 3px 4px); }
"""
)
LEGEND = (
    '<div class="line tiers"><i class="estimate"></i><em>~0.01</em>&nbsp; estimate<i class="open"></i>'
    'exact, still sharpening<i class="done"></i>done</div>'
)


def offered_formats() -> list[str]:
    """The columns of a map."""
    return [name for name in FORMATS if name in choices.formats()]


@dataclass(frozen=True)
class Question:
    """What a map is of.

    Args:
        method: a name in ``METHODS``.
        measure: a name in ``MEASURES``.
        tensor: what of each layer is quantized.
        recipe: its granularity, symmetry and objective enter the map; the format only where none is tried.
    """

    method: str
    measure: str
    tensor: str
    recipe: Recipe

    @property
    def formats(self) -> list[str] | None:
        """The formats that are tried; None where the layers are as the recipe has them."""
        return offered_formats() if METHODS[self.method].formats else None

    def holds(self, session: Session) -> bool:
        """Whether the present recipe would give the same map."""
        if self.formats is None or self.recipe == session.recipe:
            return self.recipe == session.recipe
        layers = [session.graph.by_layer[name] for name in session.layer_names]
        before, now = (
            rows_for(layers, self.formats, self.tensor, recipe) for recipe in (self.recipe, session.recipe)
        )
        return before == now

    def steps(self, session: Session, images: int) -> Iterator[pd.DataFrame]:
        """Better and better tables under the question's own recipe."""
        own = Session(subject=session.subject, recipe=self.recipe)
        for table in own.sensitivity_steps(self.formats, self.measure, self.method, self.tensor, images):
            yield table if self.formats is not None else table.assign(format=LEFT_OUT)


def rows_pane(figure: Any) -> Any:
    """A figure with a row for each layer, which may scroll but not stretch without end."""
    return kit.bokeh(figure, min_height=figure.min_height, max_height=figure.max_height)


class SensitivityMap:
    """Layers by formats: estimates at once, exact values on demand; a click chooses the layer.

    Args:
        state: of the page.
        publisher: where results go.
        estimates: sees each table.
        images: how many evaluation images a measurement takes.
    """

    def __init__(
        self, state: PageState, publisher: Publisher, estimates: Estimates, images: int = IMAGES
    ) -> None:
        self.state, self.images = state, images
        self.estimates = estimates
        self.runner = Runner("sensitivity", publisher)
        self.names = list(state.session.layer_names)
        self.plot = SensitivityFigure(self.names, self._choose)
        self.table, self.question = pd.DataFrame(), None
        self.running = False
        # The last question and recipe that were compared, and whether the map is of another recipe.
        self._compared: tuple[tuple[Question | None, Recipe | None], bool] = (None, None), False
        self._menus()
        self.words = kit.html(css=CSS, height=18)
        self.pane = rows_pane(self.plot.figure)
        publisher.panes.append(self.pane)
        self.view = kit.column(
            kit.row(self.start, self.method, self.measure, self.tensor, kit.spacer(), height=46),
            self.words,
            kit.html(LEGEND, css=CSS, height=18),
            kit.scrolled(self.pane),
            styles={"padding": "0 10px"},
        )
        self.plot.blank(offered_formats())
        self._offer()
        state.param.watch(lambda *_: self.plot.select(state.layer), "layer")
        state.param.watch(lambda *_: self.check(), "revision")
        self.plot.select(state.layer)

    table: pd.DataFrame
    question: Question | None

    @property
    def offered(self) -> list[str]:
        """The measures that go with the session's metric, the one that says how far from float first."""
        return measures_for(self.state.session.metric)

    def _menus(self) -> None:
        self.start = kit.button("Measure", "start", on_click=lambda *_: self.toggle(), width=96)
        self.method = kit.select("method", list(METHODS), DEFAULT_METHOD, width=124)
        self.measure = kit.select("measure", self.offered, self.offered[0], width=84, description="its unit")
        self.tensor = kit.select(
            "tensor", list(TENSOR_CHOICES), next(iter(TENSOR_CHOICES)), width=92, description="of it"
        )
        self.method.param.watch(lambda *_: self._offer(), "value")
        self.measure.param.watch(lambda *_: self._help(), "value")

    def turn(self, visible: bool) -> None:
        """Nothing changes: a measurement that was asked for goes on out of sight."""

    def _choose(self, name: str) -> None:
        self.state.layer = name

    def _offer(self) -> None:
        """Let the menus offer what goes with the method; one that has no effect is off and says why."""
        name, method = self.method.value, METHODS[self.method.value]
        measures = [measure for measure in self.offered if measure in method.measures]
        value = self.measure.value if self.measure.value in measures else measures[0]
        only = len(measures) == 1
        what = f"The method {name} takes the measure {value} only." if only else MEASURES[value].help
        self.measure.param.update(options=measures, value=value, disabled=only, description=what)
        alone = name == WEIGHT
        if alone:
            self.tensor.value = "weight"
        what = f"The method {name} looks at weights only." if alone else TENSOR_CHOICES[self.tensor.value]
        self.tensor.param.update(disabled=alone, description=what)
        self._help()

    def _help(self) -> None:
        method, measure = METHODS[self.method.value], MEASURES[self.measure.value]
        fixed = "" if method.formats else "; formats have no effect"
        self._say(f"{method.help}{fixed}. Value: {measure.help}; {self.images:,} images.")

    def _say(self, text: str) -> None:
        """One line of words of our own or of names; the whole of it on hovering."""
        self._text = text
        text = escape(text)
        old = self.outdated
        before = '<span class="old">before the edit: measure again</span> ' if old else ""
        self.words.object = f'<div class="line" title="{text}" aria-live="polite">{before}{text}</div>'
        self.pane.styles = {"opacity": "0.45" if old else "1"}

    @property
    def outdated(self) -> bool:
        """Whether the present recipe's granularity, symmetry or objectives would give another map."""
        asked = (self.question, self.state.session.recipe)
        if asked != self._compared[0]:
            self._compared = asked, self.question is not None and not self.question.holds(self.state.session)
        return self._compared[1]

    def check(self) -> None:
        """Say so if the map is from before an edit that enters into it."""
        if self.question is not None:
            self._say(self._text)
            self.state.ranking_old = self.outdated

    def _asked(self, method: str) -> Question:
        return Question(method, self.measure.value, self.tensor.value, self.state.session.recipe)

    def toggle(self) -> None:
        """Start measuring, or stop."""
        if self.running:
            self.runner.cancel()
            self._end(f"Stopped. {describe(self.table)}")
            return
        self.running = True
        self.start.param.update(label="Stop", icon=kit.picture("stop"))
        self._say("Measuring …")
        self.estimates.reset()
        self._run(self.runner, self._asked(self.method.value), self._done, self._failed)

    def fill(self, runner: Runner) -> None:
        """Show instant estimates, computed by a runner of the page's; not where there is something."""
        if self.running or self.question is not None:
            return
        asked = Question(INSTANT, self.offered[0], "weight", self.state.session.recipe)

        def filled() -> None:
            if self.question is asked and not self.running:
                self._say(describe(self.table))

        # Nobody has asked for it: the line says what there is to be had, and pressing the button why not.
        self._run(runner, asked, filled, lambda error: None)

    def _run(
        self, runner: Runner, asked: Question, done: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        session, mine = self.state.session, runner is self.runner

        def show(table: pd.DataFrame) -> None:
            if mine or not self.running:
                self.question = asked
                self.show(table)

        runner.start(
            lambda: asked.steps(session, self.images), show, done, failed, lambda table: settled(table, asked)
        )

    def show(self, table: pd.DataFrame) -> None:
        """Draw a table, complete or not."""
        self.table = table
        self.plot.update(table)
        self.estimates.read(table)
        # The list draws all of itself at a change, which closes a menu: it is told once.
        if bool(table["complete"].all()):
            self._tell()
        if self.running:
            assert self.question is not None
            done, total = settled(table, self.question)
            progress = self.runner.progress
            left = duration(progress.left) if progress is not None else ""
            rest = f", {left} left" if left and done < total else ""
            self._say(f"{done} of {total} values done{rest} · {describe(table)}")

    def _tell(self) -> None:
        """Let the list of layers show what is known by now."""
        found = ranking(self.table) if len(self.table) else {}
        if found:
            self.state.param.update(ranking=found, ranking_old=self.outdated)

    def _done(self) -> None:
        self._end(describe(self.table))

    def _failed(self, error: Exception) -> None:
        kept = " The map is the last that was measured." if len(self.table) else ""
        self._end(f"Not measured: {sentence(error)}{kept}")

    def _end(self, words: str) -> None:
        self.running = False
        self._tell()
        self.start.param.update(label="Measure", icon=kit.picture("start"))
        self._say(words)


def ranking(table: pd.DataFrame) -> dict[str, tuple[float, str]]:
    """For each layer the divergence that its weight costs in ``RANKED``, nats, and how it is drawn; empty if not asked.

    Where results are no scores of classes it is the error of the result.

    >>> row = {"layer": "fc", "format": "int4", "tensor": "weight", "method": "instant", "measure": "kl"}
    >>> ranking(pd.DataFrame([{**row, "value": 0.5, "complete": True}]))
    {'fc': (0.5, 'estimate')}
    """
    rows = table[
        (table["format"] == RANKED) & table["measure"].isin(("kl", "error")) & (table["tensor"] == "weight")
    ]
    columns = (rows[name] for name in ("layer", "value", "method", "complete"))
    return {
        layer: (float(value), look(method, complete))
        for layer, value, method, complete in zip(*columns, strict=True)
        if not math.isnan(value)
    }


def settled(table: pd.DataFrame, asked: Question) -> tuple[int, int]:
    """How many values will not change any more, and how many there are."""
    if asked.method == INSTANT:
        return int(table["complete"].sum()), len(table)
    looks = [look(*each) for each in zip(table["method"], table["complete"], strict=True)]
    return looks.count("done"), len(looks)


class LayerBars:
    """What is left of each layer's weight and input, in decibels."""

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        self.state = state
        names = list(state.session.layer_names)
        self.plot = LayersFigure(names, self._choose)
        self.pane = rows_pane(self.plot.figure)
        publisher.panes.append(self.pane)
        key = (
            f'<span style="color:{theme.AFTER}">\N{BLACK SQUARE}</span> weight &nbsp; '
            f'<span style="color:{theme.SENSITIVE}">\N{BLACK DIAMOND}</span> input (once evaluated)'
        )
        self.view = kit.column(
            kit.html(key, css=CSS, styles={"padding": "6px 2px 0"}, height=26),
            kit.scrolled(self.pane),
            styles={"padding": "0 10px"},
        )
        self.visible = False
        state.param.watch(lambda *_: self.refresh(), ["layers", "evaluation"])
        state.param.watch(lambda *_: self.plot.select(state.layer), "layer")
        self.plot.select(state.layer)

    def _choose(self, name: str) -> None:
        self.state.layer = name

    def turn(self, visible: bool) -> None:
        """Come into sight, or leave it."""
        self.visible = visible
        self.refresh()

    def refresh(self) -> None:
        """Draw the present recipe; the inputs' noise is known once their recipe is evaluated."""
        if not self.visible:
            return
        e = self.state.evaluation
        inputs: dict[str, Any] = {}
        if e is not None and not self.state.stale:
            inputs = {report.name: report.input_sqnr_db for report in e.layers}
        self.plot.update(self.state.layers, inputs)
