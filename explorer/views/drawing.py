"""A figure by itself, in a notebook's cell or in a file, with all it needs from this machine.

BokehJS is 1.3 MB and a figure 20 to 80 kB, so a notebook gets the former once: with the first figure, and again
whenever that figure's cell is run again, since its output is where the notebook keeps it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from bokeh import __version__ as VERSION
from bokeh.document import Document
from bokeh.embed import json_item
from bokeh.resources import Resources

from explorer.sources.files import atomic_write
from explorer.views import notebook

# The cell whose output has BokehJS in it, and its run.
_carrier: tuple[str, int] | None = None
# Figures are drawn on white: their lines and letters are made for it, whatever the notebook's theme.
PAPER = (
    "background:#fff;color:#222;border:1px solid #0002;border-radius:6px;padding:6px 10px;max-width:820px;"
    "font:12px/17px Roboto,'Helvetica Neue',Arial,sans-serif"
)
# BokehJS by itself, and the page's where that is there.
OWN = "QuantizationExplorerBokeh"
# A cell may be drawn before the one with BokehJS in it.
SHOW = """(function show(turns) {
  const place = document.getElementById("%(id)s"), bokeh = window.%(own)s || window.Bokeh
  if (place && bokeh) bokeh.embed.embed_item(%(item)s, "%(id)s")
  else if (turns) setTimeout(show, 100, turns - 1)
  else if (place) place.textContent = "The figure needs BokehJS: run the cell with the notebook's first figure again."
})(100)"""


def by_themselves(figures: Sequence[Any]) -> tuple[Any, ...]:
    """The figures in a document of their own.

    Without one Bokeh takes callbacks over from the session that the process is busy with at the moment, which in
    another thread may be one that is being taken down.
    """
    document = Document()
    for figure in figures:
        document.add_root(figure)
    return tuple(figures)


def bokehjs() -> str:
    """BokehJS as markup, under a name of its own, to be skipped by a notebook that has it already."""
    code = "\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw)
    # The page's loader takes a Bokeh that it finds for one with all its parts, so it is to find none.
    return (
        f'<script>if (!(window.{OWN} && window.{OWN}.version === "{VERSION}")) {{\n'
        f"const before = window.Bokeh\n{code}\nwindow.{OWN} = window.Bokeh\n"
        "if (before) window.Bokeh = before; else delete window.Bokeh\n}</script>"
    )


def carried() -> str:
    """BokehJS where the cell that is being run has to bring it, else nothing."""
    global _carrier
    if notebook.has_page():
        return ""
    run = notebook.cell()
    again = _carrier is not None and run[0] != "" and run[0] == _carrier[0] and run[1] != _carrier[1]
    if _carrier is None or again:
        _carrier = run
        return bokehjs()
    return ""


class Drawing:
    """A Bokeh figure with its title, key and caption.

    Args:
        figure: the Bokeh model.
        title: in plain words.
        key: the meaning of the colours, HTML of our own making.
        words: the caption, HTML of our own making.
        help: what one is seeing, HTML of our own making.
    """

    def __init__(self, figure: Any, title: str, key: str = "", words: str = "", help: str = "") -> None:
        self.figure, self.title, self.key, self.words, self.help = figure, title, key, words, help

    def __repr__(self) -> str:
        return f"Drawing({self.title!r})"

    def html(self) -> str:
        """The figure and its words, without BokehJS."""
        name = f"figure-{uuid.uuid4().hex}"
        if self.figure.document is None:
            by_themselves([self.figure])
        item = json_item(self.figure)
        # Panel's own kinds of models, of which a figure has none; they are twice as long as it.
        item["doc"].pop("defs", None)
        # No text in it can end the script.
        text = json.dumps(item).replace("<", "\\u003c")
        return (
            f'<div style="{PAPER}"><div><b>{escape(self.title)}</b></div><div>{self.key}</div><div id="{name}"></div>'
            f'<div style="color:#555">{self.words}</div>{self.help}</div>'
            f"<script>{SHOW % {'id': name, 'item': text, 'own': OWN}}</script>"
        )

    def _repr_html_(self) -> str:
        return carried() + self.html()

    def save(self, path: Any) -> Path:
        """Write one HTML file that needs nothing else; gives its path.

        Raises:
            OSError: when it cannot be written; what was there before then stays.
        """
        target = Path(path)
        text = f'<!doctype html><meta charset="utf-8"><title>{escape(self.title)}</title>{bokehjs()}{self.html()}'
        atomic_write(target, text)
        return target
