"""The table of layers: schemes that are edited in place, a click that chooses, marks for many at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from bokeh.models.widgets.tables import HTMLTemplateFormatter, NumberFormatter

from explorer.views import choices, kit, theme
from explorer.views.bulk import BulkBar, matching
from explorer.views.explained import LAYERS, ask
from explorer.views.maps import cell_text, estimated
from explorer.views.presets import PresetBar
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
# The columns in their order, and how wide they are.
TITLES = {
    "mark": "\N{BALLOT BOX WITH CHECK}", "at": "#", "name": "layer", "w_format": "weight", "w_grain": "granularity",
    "w_goal": "objective", "w_sym": "sym", "sqnr": "SQNR dB", "sens": "KL if int4", "a_format": "input",
    "a_mode": "mode", "size": "kB", "op": "op",
}  # fmt: skip
WIDTHS = {
    "mark": 24, "at": 24, "name": 98, "w_format": 53, "w_grain": 66, "w_goal": 57, "w_sym": 30, "sqnr": 50, "sens": 58,
    "a_format": 50, "a_mode": 45, "size": 38, "op": 44,
}  # fmt: skip
# These stay as narrow; the others share what room there is in proportion, and below their widths the list scrolls.
NARROW = ("mark", "at")
GROWING = [
    {"field": name, "minWidth": width, "widthGrow": round(width / 10)}
    for name, width in WIDTHS.items()
    if name not in NARROW
]
TIPS = {
    "mark": "marked layers are edited together in the inspector",
    "at": "place in the order of execution; a click on a header sorts, this one brings the order back",
    "name": "as in the network; a click chooses the layer",
    "w_format": "number format of the weight",
    "w_grain": "which elements of the weight share a scale",
    "w_goal": "what the weight's clipping range minimises",
    "w_sym": "whether the weight's range is centred on zero",
    "sqnr": "signal to quantization noise of the weight, dB; more is better; the bar is of the best in the list",
    "sens": "sensitivity: what the network's divergence from float would be, nats, if this layer's weight alone were "
    "int4; less is better; ~ is an estimate, faint is from before the last edits, the bar is of the largest",
    "a_format": "number format of the input activation",
    "a_mode": "when the input's range is set",
    "size": "what the layer takes to store, 1 kB = 1,000 bytes",
    "op": "kind of layer",
}
# Where results are no scores of classes.
WITHOUT_CLASSES = (
    "divergence from float would be, nats,",
    "squared error would be, as a share of the float network's result,",
)
# What the bars are drawn from: for each column with bars how long they are, percent, and what stands on them.
BARS = {"sqnr": "#009E73", "sens": "#E69F00"}
HIDDEN = [f"{column}_{part}" for column in BARS for part in ("bar", "text", "kind")]
BAR = (
    '<div class="bar <%= {0}_kind %>"><i style="width:<%= {0}_bar %>%;background:{1}"></i>'
    "<span><%= {0}_text %></span></div>"
)
MARKED, UNMARKED, NONE = "\N{BALLOT BOX WITH CHECK}", "\N{BALLOT BOX}", "–"  # noqa: RUF001


CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--faint); font-size: 12px; }}
.marks {{ display: flex; align-items: center; gap: 4px; white-space: nowrap; }}
.marks span {{ margin-left: auto; }}
button {{ font: inherit; color: var(--ink); background: none; border: 1px solid transparent; border-radius: 5px;
  cursor: pointer; padding: 0 6px; min-height: 28px; text-decoration: underline dotted; }}
button:hover {{ background: var(--wash); }}
button:focus-visible {{ outline: 2px solid {theme.CHOSEN}; outline-offset: 1px; }}
"""
)


def frame(state: PageState) -> pd.DataFrame:
    """The table's values; plain text, float and int columns only."""
    rows = []
    for at, facts in enumerate(state.rows(), 1):
        name = str(facts["name"])
        row: dict[str, Any] = {
            "mark": UNMARKED, "at": at, "name": name, **dict.fromkeys(FIELDS, NONE),
            "sqnr": math.nan, "sens": state.ranking.get(name, (math.nan,))[0], "size": facts["size_bytes"] / 1000,
            "op": facts["op"],
        }  # fmt: skip
        if facts["quantizable"]:
            row.update(_schemes(state, name, facts))
        else:
            row["mark"] = ""
        rows.append(row)
    return _barred(pd.DataFrame(rows, columns=[*TITLES]), state)


def _barred(table: pd.DataFrame, state: PageState) -> pd.DataFrame:
    """The table with the lengths of its bars, all from zero, and the numbers that stand on them."""
    for column in BARS:
        values = table[column].astype(float)
        most = values.max()
        table[f"{column}_bar"] = (100 * values.clip(lower=0) / most).fillna(0.0) if most > 0 else 0.0
    table["sqnr_kind"], table["sens_kind"] = "", "old" if state.ranking_old else ""
    table["sqnr_text"] = [NONE if math.isnan(value) else f"{value:.1f}" for value in table["sqnr"]]
    looks = [state.ranking.get(name, (math.nan, ""))[1] for name in table["name"]]
    texts = [NONE if math.isnan(value) else cell_text(value, "kl") for value in table["sens"]]
    table["sens_text"] = [
        estimated(text) if text != NONE and (look == "estimate" or state.ranking_old) else text
        for text, look in zip(texts, looks, strict=True)
    ]
    return table


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
        self._clicking = False
        classes = state.session.metric.classes
        self.all = self.names = [str(name) for name in state.layers["name"]]
        self.reasons = dict(zip(state.layers["name"], state.layers["reason"], strict=True))
        self.table: Any = kit.table(
            frame(state),
            hidden_columns=HIDDEN,
            titles=TITLES if classes else TITLES | {"sens": "err. int4"},
            widths={name: WIDTHS[name] for name in NARROW},
            editors=self._editors(),
            formatters=self._formatters(),
            text_align={"at": "right", "sqnr": "right", "sens": "right", "size": "right", "mark": "center"},
            header_tooltips=TIPS if classes else TIPS | {"sens": TIPS["sens"].replace(*WITHOUT_CLASSES)},
            show_index=False,
            selectable=1,
            layout="fit_columns",
            theme="simple",
            stylesheets=[theme.TABLE],
            frozen_columns=["mark", "at", "name"],
            configuration={"rowHeight": 26, "columnDefaults": {"minWidth": 24}, "columns": GROWING},
        )
        # All of it is worked out at each change of the table.
        if any(self.reasons.values()):
            styler: Any = self.table.style
            styler.apply(self._grey, axis=1)
        self.table.on_click(self._clicked)
        self.table.on_edit(self._edited)
        self.count = kit.live(CSS, self._mark, height=28)
        self.bulk = BulkBar(state, self.show)
        self.view = kit.column(
            kit.row(PresetBar(state).view, ask(LAYERS), height=40, styles={"padding": "0 8px"}),
            kit.row(self.bulk.view, self.count, height=50, styles={"padding": "0 8px"}),
            self.table,
            kit.steady(),
            css=theme.CARD + ":host { overflow: visible; }",
            css_classes=["place-table"],
        )
        state.param.watch(
            lambda *_: self.refresh(), ["revision", "marks", "layers", "ranking", "ranking_old"]
        )
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
            **{
                name: HTMLTemplateFormatter(template=BAR.format(name, colour))
                for name, colour in BARS.items()
            },
            "size": NumberFormatter(format="0,0.0"),
        }

    def _grey(self, row: pd.Series) -> list[str]:
        if self.reasons.get(row["name"]):
            return ["color: #7F8790; font-style: italic"] * len(row)
        return [""] * len(row)

    def _mark(self, which: str) -> None:
        self.state.marks = frozenset(self.state.quantizable(MARKS[which][1](self)))

    def alike(self) -> list[str]:
        """The layers of the chosen one's kind."""
        op = self.state.facts.get("op")
        return list(self.state.layers.loc[self.state.layers["op"] == op, "name"])

    def _clicked(self, event: Any) -> None:
        name = self.names[event.row]
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
        name = self.names[event.row]
        tensor, field = FIELDS[event.column]
        value = {"yes": True, "no": False}[event.value] if event.column == "w_sym" else event.value
        if self.reasons[name]:
            self.state.problem = f"The layer {name!r} stays in float: {self.reasons[name]}."
        else:
            scheme = getattr(self.state.session.recipe.config(name), tensor)
            self.state.edit([name], **{tensor: choices.consequences(field, value, scheme)})
        self.state.layer = name
        # Whatever became of it: the cell shows the recipe again.
        self.refresh(force=event.row)
        self.select()

    def _rows(self) -> pd.DataFrame:
        """The values of the layers in the list."""
        rows = frame(self.state)
        return rows[rows["name"].isin(set(self.names))].reset_index(drop=True)

    def show(self, pattern: str) -> None:
        """List those layers only whose names a pattern stands for."""
        names = matching(self.all, pattern)
        if names != self.names:
            self.names = names
            self.table.value = self._rows()
            self.select()

    def order(self) -> list[str]:
        """The layers in the order in which they stand."""
        return [str(name) for name in self.table.current_view["name"]]

    def select(self) -> None:
        """Show which layer is chosen; before the table is drawn it would be forgotten."""
        if not self._clicking:
            self.table.selection = (
                [self.names.index(self.state.layer)] if self.state.layer in self.names else []
            )

    def _count(self) -> None:
        buttons = "".join(
            f'<button type="button" data-press="{name}" title="{help}" aria-label="{help}">{name}</button>'
            for name, (help, _) in MARKS.items()
        )
        marked = f'<span aria-live="polite">{len(self.state.marks)} marked</span>'
        self.count.object = f'<div class="marks">Mark {buttons}{marked}</div>'

    def refresh(self, force: int | None = None) -> None:
        """Patch the cells that differ from the recipe; ``force`` names a row that is written anyhow.

        Not the one that a user is changing: what stands there is on its way into the recipe.
        """
        new, old = self._rows(), self.table.value
        patch: dict[str, list[tuple[int, Any]]] = {}
        for name in new.columns:
            for row, (a, b) in enumerate(zip(new[name], old[name], strict=True)):
                same = a == b or (
                    isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
                )
                if (row, name) != self.table.changed and (not same or (row == force and name in FIELDS)):
                    patch.setdefault(name, []).append((row, a))
        if patch:
            self.table.patch(patch)
        self._count()


# Whom a press marks.
MARKS: dict[str, tuple[str, Callable[[LayerTable], list[str]]]] = {
    "all": ("mark all layers in the list", lambda table: table.names),
    "none": ("mark no layer", lambda table: []),
    "same op": ("mark the layers of the chosen one's kind", LayerTable.alike),
}
