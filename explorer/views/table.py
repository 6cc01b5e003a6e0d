"""The table of layers: schemes that are edited in place, a click that chooses, marks for many at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
from bokeh.models.widgets.tables import NumberFormatter

from explorer.views import choices, kit, theme
from explorer.views.explained import LAYERS, ask
from explorer.views.state import PageState

# Columns that are a field of a scheme.
FIELDS: dict[str, tuple[str, str]] = {
    "w_format": ("weight", "format"),
    "w_grain": ("weight", "granularity"),
    "w_sym": ("weight", "symmetric"),
    "w_goal": ("weight", "objective"),
    "a_format": ("input", "format"),
    "a_mode": ("input", "mode"),
}
TITLES = {
    "mark": "\N{BALLOT BOX WITH CHECK}", "name": "layer", "w_format": "weight", "w_grain": "granularity",
    "w_goal": "objective", "w_sym": "sym", "a_format": "input", "a_mode": "mode", "sqnr": "SQNR",
    "size": "kB", "op": "op",
}  # fmt: skip
WIDTHS = {
    "mark": 26, "name": 112, "w_format": 60, "w_grain": 88, "w_goal": 64, "w_sym": 30, "a_format": 60, "a_mode": 54,
    "sqnr": 48, "size": 46, "op": 48,
}  # fmt: skip
TIPS = {
    "mark": "marked layers are edited together in the inspector",
    "name": "as in the network; a click chooses the layer",
    "w_format": "number format of the weight",
    "w_grain": "which elements of the weight share a scale",
    "w_goal": "what the weight's clipping range minimises",
    "w_sym": "whether the weight's range is centred on zero",
    "a_format": "number format of the input activation",
    "a_mode": "when the input's range is set",
    "sqnr": "signal to quantization noise of the weight, dB; more is better",
    "size": "what the layer takes to store, 1 kB = 1,000 bytes",
    "op": "kind of layer",
}
# So long a menu may be open after a click that chose nothing; then what the background found is shown all the same.
MENU_SECONDS = 8.0
MARKED, UNMARKED, NONE = "\N{BALLOT BOX WITH CHECK}", "\N{BALLOT BOX}", "–"  # noqa: RUF001


def frame(state: PageState) -> pd.DataFrame:
    """The table's values; plain text, float and int columns only."""
    rows = []
    for facts in state.rows():
        name = str(facts["name"])
        row: dict[str, Any] = {
            "mark": UNMARKED, "name": name, **dict.fromkeys(FIELDS, NONE),
            "sqnr": math.nan, "size": facts["size_bytes"] / 1000, "op": facts["op"],
        }  # fmt: skip
        if facts["quantizable"]:
            row.update(_schemes(state, name, facts))
        else:
            row["mark"] = ""
        rows.append(row)
    return pd.DataFrame(rows)


def _schemes(state: PageState, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    config = state.session.recipe.config(name)
    row: dict[str, Any] = {"mark": MARKED if name in state.marks else UNMARKED}
    for column, (tensor, field) in FIELDS.items():
        if facts[tensor] is None or pd.isna(facts[tensor]):
            continue
        scheme = getattr(config, tensor)
        value = getattr(scheme, field)
        if column == "w_sym":
            value = "yes" if value else "no"
        if field in ("format", "mode") or scheme.scaled:
            row[column] = value
    sqnr = facts["weight_sqnr_db"]
    row["sqnr"] = math.nan if pd.isna(sqnr) or math.isinf(sqnr) else round(float(sqnr), 1)
    return row


class LayerTable:
    """The region with the table and the chips for marks."""

    def __init__(self, state: PageState) -> None:
        self.state = state
        self._clicking, self._menu_until = False, 0.0
        self.names = [str(name) for name in state.layers["name"]]
        self.reasons = dict(zip(state.layers["name"], state.layers["reason"], strict=True))
        self.table: Any = kit.table(
            frame(state)[list(TITLES)],
            titles=TITLES,
            widths=WIDTHS,
            editors=self._editors(),
            formatters=self._formatters(),
            text_align={"sqnr": "right", "size": "right", "mark": "center"},
            header_tooltips=TIPS,
            show_index=False,
            selectable=1,
            layout="fit_data",
            theme="simple",
            stylesheets=[theme.TABLE],
            frozen_columns=["mark", "name"],
            configuration={"rowHeight": 26, "columnDefaults": {"minWidth": 24}},
        )
        styler: Any = self.table.style
        styler.apply(self._grey, axis=1)
        self.table.on_click(self._clicked)
        self.table.on_edit(self._edited)
        self.count = kit.html(css=theme.LABEL, width=84, height=18)
        self.view = kit.column(
            self._chips(),
            self.table,
            css=theme.CARD + ":host { overflow: visible; }",
            css_classes=["place-table"],
        )
        state.param.watch(lambda *_: self.refresh(), ["revision", "marks"])
        state.param.watch(lambda *_: self._news(), "layers")
        state.param.watch(lambda *_: self.select(), "layer")
        self._count()

    def _editors(self) -> dict[str, Any]:
        menus = {
            "w_format": choices.formats(),
            "w_grain": choices.granularities("weight"),
            "w_goal": choices.objectives(),
            "w_sym": ["yes", "no"],
            "a_format": choices.formats(),
            "a_mode": choices.modes(),
        }
        fixed = dict.fromkeys(TITLES)
        return {**fixed, **{name: {"type": "list", "values": values} for name, values in menus.items()}}

    def _formatters(self) -> dict[str, Any]:
        return {
            "sqnr": NumberFormatter(format="0.0", nan_format=NONE),
            "size": NumberFormatter(format="0,0.0"),
        }

    def _grey(self, row: pd.Series) -> list[str]:
        if self.reasons.get(row["name"]):
            return ["color: #7F8790; font-style: italic"] * len(row)
        return [""] * len(row)

    def _chips(self) -> kit.Row:
        def chip(label: str, tip: str, names: Callable[[], list[str]]) -> Any:
            def mark(_: Any) -> None:
                self.state.marks = frozenset(self.state.quantizable(names()))

            return kit.button(label, variant="text", description=tip, on_click=mark)

        return kit.row(
            kit.html("Mark", css=theme.LABEL, width=38),
            chip("All", "mark all layers", lambda: self.names),
            chip("None", "mark no layer", list),
            chip("Same op", "mark the layers of the chosen one's kind", self._alike),
            kit.spacer(),
            self.count,
            ask(LAYERS),
            height=36,
            styles={"padding": "0 8px"},
        )

    def _alike(self) -> list[str]:
        op = self.state.facts.get("op")
        return list(self.state.layers.loc[self.state.layers["op"] == op, "name"])

    def _clicked(self, event: Any) -> None:
        name = self.names[event.row]
        self._menu_until = time.monotonic() + MENU_SECONDS if event.column in FIELDS else 0.0
        if event.column == "mark":
            self.state.toggle(name)
        # To select the row from here would close the menu that the click has opened in its cell; the
        # browser selects it by itself, and where a menu was opened it is selected after the choice.
        self._clicking = True
        try:
            self.state.layer = name
        finally:
            self._clicking = False

    def _edited(self, event: Any) -> None:
        self._menu_until = 0.0
        name = self.names[event.row]
        tensor, field = FIELDS[event.column]
        value = {"yes": True, "no": False}[event.value] if event.column == "w_sym" else event.value
        if self.reasons[name]:
            self.state.problem = f"The layer {name!r} stays in float: {self.reasons[name]}."
        else:
            scheme = getattr(self.state.session.recipe.config(name), tensor)
            self.state.edit([name], **{tensor: choices.consequences(field, value, scheme)})
        # Whatever became of it: the cell shows the recipe again.
        self.refresh(force=event.row)
        self.select()

    def select(self) -> None:
        """Show which layer is chosen; before the table is drawn it would be forgotten."""
        if self.state.layer in self.names and not self._clicking:
            self.table.selection = [self.names.index(self.state.layer)]

    def _count(self) -> None:
        self.count.object = f"{len(self.state.marks)} marked"

    def _news(self) -> None:
        """Show what the background has found: later if a menu may be open, which any change of the table closes."""
        left = self._menu_until - time.monotonic()
        if left <= 0 or not kit.after(left, self._news):
            self.refresh()

    def refresh(self, force: int | None = None) -> None:
        """Patch the cells that differ from the recipe; ``force`` names a row that is written anyhow."""
        new, old = frame(self.state)[list(TITLES)], self.table.value
        patch: dict[str, list[tuple[int, Any]]] = {}
        for name in new.columns:
            for row, (a, b) in enumerate(zip(new[name], old[name], strict=True)):
                same = a == b or (
                    isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
                )
                if not same or (row == force and name in FIELDS):
                    patch.setdefault(name, []).append((row, a))
        if patch:
            self.table.patch(patch)
        self._count()
