"""What can be taken away from the page: the report, tables, node data, notes; each a line in a table."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from explorer.errors import ExplorerError
from explorer.session import Session
from explorer.sources import Notes, csv_bytes, node_data, parquet_bytes
from explorer.study import Diagnosis, Evaluation, Trial
from explorer.views import kit
from explorer.views.report import report_html
from explorer.views.reportfacts import gather
from explorer.views.runs import Publisher, Runner
from explorer.views.state import PageState
from explorer.views.text import sentence


@dataclass(frozen=True, eq=False)
class Material:
    """What files are made of, as it was when one was asked for.

    Args:
        session: one of its own, on the recipe that was shown.
        evaluation: the latest, or None.
        sensitivity: what the map shows, or None.
        diagnosis: the latest, or None.
        stale: which of these are of another recipe.
        marks: the layers whose histograms the report has; none takes the worst.
        notes: the reviewer's.
        trials: configurations that the report sets side by side.
    """

    session: Session
    evaluation: Evaluation | None = None
    sensitivity: pd.DataFrame | None = None
    diagnosis: Diagnosis | None = None
    stale: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    notes: Notes = field(default_factory=Notes)
    trials: tuple[Trial, ...] = ()


def _report(m: Material) -> bytes:
    facts = gather(m.session, m.evaluation, m.sensitivity, m.diagnosis, m.stale, m.marks, m.notes, m.trials)
    return report_html(facts).encode()


def _sensitivities(m: Material) -> bytes:
    if m.sensitivity is None or m.sensitivity.empty:
        raise ExplorerError("No sensitivity has been measured yet.")
    if "sensitivity" in m.stale:
        raise ExplorerError("The map is from before the last edits; measure again, then save it.")
    return csv_bytes(m.sensitivity)


def _weights(m: Material) -> bytes:
    table = m.session.layers()
    return node_data(m.session.graph, _known(table["name"], table["weight_sqnr_db"])).encode()


def _inputs(m: Material) -> bytes:
    if m.evaluation is None or "evaluation" in m.stale:
        raise ExplorerError("The SQNR of inputs is known once this recipe has been evaluated.")
    reports = m.evaluation.layers
    names, values = [report.name for report in reports], [report.input_sqnr_db for report in reports]
    return node_data(m.session.graph, _known(names, values)).encode()


def _known(names: Any, values: Any) -> Mapping[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True) if not pd.isna(value)}


# In the menu's order: what it is, the file's name, and what is in it.
FILES: dict[str, tuple[str, Callable[[Material], bytes]]] = {
    "Report (HTML, offline)": ("report.html", _report),
    "Layers (CSV)": ("layers.csv", lambda m: csv_bytes(m.session.layers())),
    "Layers (Parquet)": ("layers.parquet", lambda m: parquet_bytes(m.session.layers())),
    "Sensitivities (CSV)": ("sensitivities.csv", _sensitivities),
    "Weight SQNR (Model Explorer)": ("weight_sqnr_db.json", _weights),
    "Input SQNR (Model Explorer)": ("input_sqnr_db.json", _inputs),
    "Notes (YAML)": ("notes.yaml", lambda m: m.notes.to_yaml().encode()),
}


class Export:
    """The menu of ``FILES``; a file is made in the background and handed to the browser.

    Args:
        state: of the page.
        publisher: where results go.
        material: gives what files are made of.
    """

    def __init__(self, state: PageState, publisher: Publisher, material: Callable[[], Material]) -> None:
        self.state, self.material = state, material
        self.runner = Runner("export", publisher)
        self.menu = kit.menu("Export", list(FILES), self.start)
        self.hand = kit.HandOut(width=0, height=0, margin=0)
        self.view = kit.row(self.menu, self.hand, width=88, height=44)

    def start(self, label: str) -> None:
        """Make one of the files; a refusal is a sentence at the top of the page."""
        name, make = FILES[label]
        material = self.material()
        self.menu.param.update(label="Making …", disabled=True)

        def steps() -> Iterator[bytes]:
            yield make(material)

        def show(content: bytes) -> None:
            self.state.problem = ""
            self.hand.file = {"name": name, "data": base64.b64encode(content).decode()}

        self.runner.start(steps, show, self._ready, self._failed)

    def _ready(self) -> None:
        self.menu.param.update(label="Export", disabled=False)

    def _failed(self, error: Exception) -> None:
        self._ready()
        self.state.problem = f"Not saved: {sentence(error)}"
