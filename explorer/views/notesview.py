"""A reviewer's notes: on the whole, on the chosen layer; they go into the address and into the report."""

from __future__ import annotations

from html import escape

from explorer.sources import Notes
from explorer.sources.notes import LONGEST_NOTE
from explorer.views import kit, theme
from explorer.views.state import PageState

CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--ink); font-size: 12px; line-height: 17px; }}
.remark {{ border-top: 1px solid var(--line); padding: 5px 2px; white-space: pre-wrap; overflow-wrap: anywhere; }}
.remark button {{ font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; text-decoration: underline dotted; }}
button:focus-visible {{ outline: 2px solid {theme.CHOSEN}; outline-offset: 1px; }}
.faint {{ color: var(--faint); }}
"""
)


class NotesView:
    """The region with the notes; what is written stays in the session, in the page's address and in the report."""

    def __init__(self, state: PageState) -> None:
        self.state = state
        self._quiet = False
        self.overall = kit.text_area("on the whole")
        self.layer = kit.text_area("on the layer")
        self.list = kit.live(CSS, self._pressed)
        self.view = kit.column(
            kit.scrolled(
                kit.column(
                    self.overall, self.layer, self.list, sizing_mode="stretch_width", css=":host { gap: 10px; }",
                )
            ),
            styles={"padding": "10px"},
        )  # fmt: skip
        for widget in (self.overall, self.layer):
            widget.param.watch(lambda *_: self._written(), "value")
        state.param.watch(lambda *_: self.refresh(), ["layer", "notes"])
        self.refresh()

    def turn(self, visible: bool) -> None:
        """Nothing changes: there is no work to be done."""

    def _written(self) -> None:
        if self._quiet:
            return
        layers = {**self.state.notes.layers, self.state.layer: self.layer.value}
        refused = self.state.attempt(lambda: self._keep(Notes(self.overall.value, layers)))
        self._list(kept=not refused)

    def _keep(self, notes: Notes) -> None:
        self.state.notes = notes

    def _pressed(self, name: str) -> None:
        self.state.layer = name

    def refresh(self) -> None:
        """Show the notes that there are."""
        notes, state = self.state.notes, self.state
        self._quiet = True
        try:
            self.overall.value = notes.overall
            self.layer.param.update(label=f"on {state.layer}", value=notes.layers.get(state.layer, ""))
        finally:
            self._quiet = False
        self._list()

    def _list(self, kept: bool = False) -> None:
        self.list.object = markup(self.state.notes, [str(name) for name in self.state.layers["name"]], kept)


def markup(notes: Notes, names: list[str], kept: bool = False) -> str:
    """The notes on layers as HTML, in the order of execution; a name is a button that chooses its layer.

    ``kept`` says that what was written last has been taken down.
    """
    rows = [
        f'<div class="remark"><button data-press="{escape(name)}">{escape(name)}</button> '
        f"{escape(notes.layers[name])}</div>"
        for name in names
        if name in notes.layers
    ]
    sign = '<b role="status">Kept.</b> ' if kept else ""
    hint = (
        f'<div class="remark faint">{sign}Notes go into the report, and into the address of this page, when '
        f"their field is left. Up to {LONGEST_NOTE:,} characters each.</div>"
    )
    return "".join(rows) + hint
