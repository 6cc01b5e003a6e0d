"""The regions on all layers at once: the sensitivity map and the bars."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import pandas as pd

from explorer.errors import ExplorerError
from explorer.study import MEASURES, TENSOR_CHOICES
from explorer.views import choices, kit, theme
from explorer.views.maps import LayersFigure, SensitivityFigure, describe
from explorer.views.runs import Publisher, Runner
from explorer.views.state import PageState

FORMATS = ("int8", "int6", "int4", "int3", "int2")
IMAGES = 1000
CSS = theme.TOKENS + ":host { color: var(--faint); font-size: 12px; line-height: 17px; }"


class SensitivityMap:
    """Layers by formats: measured on demand, streaming in, a click chooses the layer.

    Args:
        state: of the page.
        publisher: where results go.
        images: how many evaluation images a measurement takes.
    """

    def __init__(self, state: PageState, publisher: Publisher, images: int = IMAGES) -> None:
        self.state, self.images = state, images
        self.runner = Runner("sensitivity", publisher)
        self.names = list(state.session.layer_names)
        self.plot = SensitivityFigure(self.names, self._choose)
        self.measure = kit.select("measure", list(MEASURES), "kl", width=92)
        self.tensor = kit.select("tensor", list(TENSOR_CHOICES), "weight", width=100)
        self.start = kit.button("Measure sensitivity", "start", on_click=lambda *_: self.toggle())
        self.words = kit.html(css=CSS, min_height=18)
        self.pane: Any = kit.bokeh(
            self.plot.figure, sizing_mode="stretch_width", height=self.plot.figure.min_height
        )
        publisher.panes.append(self.pane)
        self.running = False
        self.view = kit.column(
            kit.row(self.start, self.measure, self.tensor, kit.spacer(), height=52),
            self.words,
            kit.scrolled(self.pane),
            styles={"padding": "0 10px"},
        )
        self.plot.blank(self._formats())
        self._help()
        self.measure.param.watch(lambda *_: self._help(), "value")
        state.param.watch(lambda *_: self.plot.select(state.layer), "layer")
        self.plot.select(state.layer)

    def _choose(self, name: str) -> None:
        self.state.layer = name

    def _help(self) -> None:
        what = escape(MEASURES[self.measure.value].help)
        self.words.object = (
            f"One layer at a time is quantized, the rest stays float; {self.images:,} images. Value: {what}."
        )

    def toggle(self) -> None:
        """Start measuring, or stop."""
        if self.running:
            self.runner.cancel()
            self._end("Stopped; hatched cells are from fewer images.")
            return
        self.running = True
        self.start.param.update(label="Stop", icon=kit.picture("stop"))
        self.words.object = "Measuring …"
        measure, tensor, session = self.measure.value, self.tensor.value, self.state.session

        def steps() -> Iterator[pd.DataFrame]:
            return session.sensitivity_steps(self._formats(), measure, "exact", tensor, images=self.images)

        self.runner.start(steps, self.show, self._done, self._failed)

    def _formats(self) -> list[str]:
        return [name for name in FORMATS if name in choices.formats()]

    def show(self, table: pd.DataFrame) -> None:
        """Draw a table, complete or not."""
        self.table = table
        self.plot.update(table)
        done = int(table["images"].sum())
        share = 100 * done / max(1, len(table) * min(self.images, self.state.session.total_images))
        self.words.object = f"{share:.0f}% measured · {escape(describe(table))}"

    def _done(self) -> None:
        self._end(escape(describe(self.table)))

    def _failed(self, error: Exception) -> None:
        text = str(error) if isinstance(error, ExplorerError) else f"{type(error).__name__}: {error}"
        self._end(escape(text))

    def _end(self, words: str) -> None:
        self.running = False
        self.start.param.update(label="Measure sensitivity", icon=kit.picture("start"))
        self.words.object = words


class LayerBars:
    """What is left of each layer's weight and input, in decibels."""

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        self.state = state
        names = list(state.session.layer_names)
        self.plot = LayersFigure(names, self._choose)
        self.pane: Any = kit.bokeh(
            self.plot.figure, sizing_mode="stretch_width", height=self.plot.figure.min_height
        )
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
        state.param.watch(lambda *_: self.refresh(), ["layers", "evaluation"])
        state.param.watch(lambda *_: self.plot.select(state.layer), "layer")
        self.refresh()
        self.plot.select(state.layer)

    def _choose(self, name: str) -> None:
        self.state.layer = name

    def refresh(self) -> None:
        """Draw the present recipe; the inputs' noise is known once their recipe is evaluated."""
        e = self.state.evaluation
        inputs: dict[str, Any] = {}
        if e is not None and not self.state.stale:
            inputs = {report.name: report.input_sqnr_db for report in e.layers}
        self.plot.update(self.state.layers, inputs)
