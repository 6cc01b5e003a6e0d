"""Colours and style sheets: one meaning for a colour everywhere, in the light and in the dark."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's palette, told apart by colour-blind eyes as well: https://jfly.uni-koeln.de/color/
BEFORE = "#0072B2"
AFTER = "#009E73"
RANGE = "#D55E00"
SENSITIVE = "#E69F00"
CHOSEN = "#CC79A7"
NEUTRAL = "#7F8790"

THEME: dict[str, Any] = {
    mode: {
        "palette": {
            "primary": {"main": main},
            "background": {"default": ground, "paper": paper},
        },
        "typography": {"fontSize": 12.5, "button": {"textTransform": "none"}},
        "shape": {"borderRadius": 6},
    }
    for mode, main, ground, paper in (
        ("light", BEFORE, "#F3F5F7", "#FFFFFF"),
        ("dark", "#56B4E9", "#14181C", "#1D2227"),
    )
}

# The app bar is part of the page and no banner.
BAR = {
    # The kit takes this very pair as a sign to leave the bar's widgets in the page's colours.
    ".MuiAppBar-root": {"bgcolor": "primary.contrastText", "color": "primary.main"},
    "& .MuiAppBar-root.MuiAppBar-root": {
        "backgroundColor": "background.paper",
        "color": "text.primary",
        "boxShadow": "none",
        "borderBottom": "1px solid",
        "borderColor": "divider",
        "backgroundImage": "none",
    },
    "& .MuiToolbar-root.MuiToolbar-root": {
        "minHeight": "52px",
        "height": "52px",
        "margin": "0",
        "padding": "0 12px",
    },
    "& .MuiAppBar-root .title": {"fontSize": "1.05rem", "fontWeight": 600, "color": "text.primary"},
    "& main.main": {"backgroundColor": "background.default"},
}

# Lines, faint text and words in a colour follow the ground, whichever it is: letters need more contrast than areas.
TOKENS = """
:host {
  --line: color-mix(in srgb, var(--panel-on-background-color, #222) 16%, transparent);
  --faint: color-mix(in srgb, var(--panel-on-background-color, #222) 66%, transparent);
  --wash: color-mix(in srgb, var(--panel-on-background-color, #222) 5%, transparent);
  --ink: var(--panel-on-background-color, #222);
  --good: color-mix(in srgb, #009E73 66%, var(--panel-on-background-color, #222));
  --bad: color-mix(in srgb, #D55E00 74%, var(--panel-on-background-color, #222));
  --card: var(--panel-surface-color, #fff);
  font-family: Roboto, "Helvetica Neue", Arial, sans-serif;
}
"""

CARD = (
    TOKENS
    + """
:host {
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; box-sizing: border-box;
  color: var(--ink); overflow: hidden;
}
"""
)

# A menu that opens in a cell may stand out of the table.
OPEN_CARD = CARD + ":host { overflow: visible; }"

# The page's grid; it asks for the width that it is given, since a notebook's cell is narrower than its window.
FRAME = TOKENS + ":host { container-type: inline-size; gap: 6px; padding: 8px 8px 2px; }"


def grid(room: str) -> str:
    """Table, figures and inspector beside each other, below each other where it is narrow.

    Args:
        room: the CSS ``flex`` of the grid in the frame when it is wide.
    """
    return f"""
:host {{
  display: grid !important; gap: 8px; min-height: 0; flex: {room} !important;
  grid-template-columns: minmax(420px, 47fr) minmax(380px, 35fr) 292px;
  grid-template-rows: minmax(0, 1fr);
}}
@container (max-width: 1180px) {{
  :host {{ grid-template-columns: minmax(0, 1fr) 292px; grid-template-rows: 330px 700px;
    flex: none !important; height: max-content !important; min-height: max-content !important; }}
  .place-table {{ grid-column: 1 / -1; }}
}}
@container (max-width: 700px) {{
  :host {{ grid-template-columns: minmax(0, 1fr); grid-template-rows: 330px 760px auto; }}
}}
"""


def halves(wanted: int) -> str:
    """Two cards below each other: the lower takes what it wants, the upper the rest, but its least.

    With the class ``even`` the upper one has somewhat more than half, with ``below`` the lower one most.

    Args:
        wanted: the height at which nothing in the lower one scrolls, pixels.
    """
    return f"""
:host {{ display: grid !important; min-height: 0; grid-template-columns: minmax(0, 1fr);
  grid-template-rows: minmax(max(244px, 38%), 1fr) minmax(54%, {wanted}px); }}
:host(.below) {{ grid-template-rows: minmax(244px, 1fr) minmax(54%, 1.6fr); }}
:host(.even) {{ grid-template-rows: minmax(0, 5fr) minmax(0, 4fr); }}
"""


TABLE = (
    TOKENS
    + """
.pnx-tabulator.tabulator.tabulator.tabulator {
  font-size: 12px; border: none; background: transparent; color: var(--ink);
  .tabulator-header { background: var(--wash); color: var(--faint); border-bottom: 1px solid var(--line); }
  .tabulator-header .tabulator-col { background: transparent; border-right: none; font-weight: 500;
    height: 28px !important; min-height: 28px; }
  .tabulator-header .tabulator-headers { background: transparent; height: 28px; min-height: 28px; }
  .tabulator-header .tabulator-col .tabulator-col-content { padding: 6px 4px; }
  .tabulator-header .tabulator-col .tabulator-col-content .tabulator-col-title { padding-right: 0; font-size: 11.5px;
    white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
  .tabulator-col[tabulator-field="sqnr"] .tabulator-col-title { text-align: right; }
  .tabulator-col:is([tabulator-field="size"], [tabulator-field="sens"], [tabulator-field="at"]) .tabulator-col-title {
    text-align: right; }
  .tabulator-row .tabulator-cell[tabulator-field="at"] { color: var(--faint); }
  .tabulator-header .tabulator-col .tabulator-col-sorter { display: none; right: 0; }
  .tabulator-header .tabulator-col:is([aria-sort=ascending], [aria-sort=descending]) .tabulator-col-sorter {
    display: flex; }
  .tabulator-header .tabulator-col:is([aria-sort=ascending], [aria-sort=descending]) .tabulator-col-content
    .tabulator-col-title { padding-right: 12px; }
  .tabulator-header .tabulator-col:focus-visible { outline: 2px solid #CC79A7; outline-offset: -2px; }
  .tabulator-cell .bar { position: relative; height: 18px; pointer-events: none; }
  .tabulator-cell .bar.old { opacity: .45; font-style: italic; }
  .tabulator-cell .bar i { position: absolute; left: 0; top: 1px; bottom: 1px; opacity: .38; border-radius: 2px; }
  .tabulator-cell .bar span { position: relative; padding-right: 2px; }
  .tabulator-row, .tabulator-row.tabulator-row-even {
    min-height: 26px; background: transparent; color: var(--ink); border: none;
    border-bottom: 1px solid var(--wash); }
  .tabulator-row .tabulator-cell { padding: 4px; height: 26px; min-height: 26px; border-right: none;
    font-size: 12px; line-height: 18px; }
  .tabulator-row .tabulator-frozen { border-right: none; background: var(--card); }
  .tabulator-row:hover, .tabulator-row:hover .tabulator-frozen {
    background: color-mix(in srgb, #CC79A7 10%, var(--card)) !important; color: var(--ink) !important; }
  .tabulator-row.tabulator-selected, .tabulator-row.tabulator-selected .tabulator-frozen,
  .tabulator-row:has(.tabulator-editing), .tabulator-row:has(.tabulator-editing) .tabulator-frozen {
    background: color-mix(in srgb, #CC79A7 30%, var(--card)) !important; color: var(--ink) !important; }
  .tabulator-row:hover .tabulator-cell, .tabulator-row.tabulator-selected .tabulator-cell { color: inherit; }
  .tabulator-table:has(.tabulator-editing) .tabulator-row.tabulator-selected:not(:has(.tabulator-editing)),
  .tabulator-table:has(.tabulator-editing) .tabulator-row.tabulator-selected:not(:has(.tabulator-editing))
    .tabulator-frozen { background: var(--card) !important; }
  .tabulator-cell[tabulator-field="name"] > div { direction: rtl; font-weight: 500; overflow: hidden;
    text-overflow: ellipsis; }
  .tabulator-cell[tabulator-field="name"] > div::before, .tabulator-cell[tabulator-field="name"] > div::after {
    content: "\\200e"; }
  .tabulator-row .tabulator-cell[tabulator-field="mark"] { cursor: pointer; font-size: 15px; padding: 3px 4px; }
  .tabulator-cell.tabulator-editable { cursor: pointer; }
  .tabulator-row .tabulator-cell.tabulator-editing { padding: 0 4px; background: var(--card);
    border: 1px solid var(--panel-primary-color, #0072B2); }
  .tabulator-cell.tabulator-editing input { font-size: 12px; color: var(--ink); }
  .tabulator-tableholder, .tabulator-tableholder .tabulator-table { background: transparent; color: var(--ink); }
}
.tabulator-edit-list.tabulator-edit-list { min-width: 96px; max-height: 320px; font-size: 12px; border-radius: 4px;
  background: var(--card); border: 1px solid var(--line); box-shadow: 0 4px 14px rgb(0 0 0 / 25%); }
.tabulator-edit-list.tabulator-edit-list .tabulator-edit-list-item { padding: 3px 8px; font-size: 12px;
  color: var(--ink); }
.tabulator-edit-list.tabulator-edit-list .tabulator-edit-list-item.active,
.tabulator-edit-list.tabulator-edit-list .tabulator-edit-list-item:hover {
  background: color-mix(in srgb, #CC79A7 30%, var(--card)); color: var(--ink); border: none; }
"""
)


# A line of choices between views, which scrolls where it is narrow.
TABS = {
    "& .MuiToggleButton-root": {
        "whiteSpace": "nowrap", "padding": "4px 6px", "fontSize": "11px", "lineHeight": 1.4, "minHeight": "26px",
    },
}  # fmt: skip
STRIP = ":host { overflow-x: auto; overflow-y: hidden; scrollbar-width: none; }"

LABEL = (
    TOKENS
    + """
:host { color: var(--faint); font-size: 12px; line-height: 18px; }
"""
)
