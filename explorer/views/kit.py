"""The widgets of the page by our own names, so that another kit is a change of one file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel_material_ui.template.base import Page

from explorer.views.figuresave import save_tools
from explorer.views.limits import limits

Viewable = pn.viewable.Viewable
Column = pn.Column
Row = pn.Row
# Bytes of the pieces in which a file is sent.
PIECE = 1 << 20

# Drawn here: the kit's own pictures are letters of a font, which a notebook does not load.
_LINES = {
    "undo": "M9 5 4 10l5 5M4 10h10a5 5 0 0 1 5 5v3",
    "redo": "M15 5l5 5-5 5M20 10H10a5 5 0 0 0-5 5v3",
    "start": "M8 5v14l11-7z",
    "stop": "M7 7h10v10H7z",
    "again": "M19 12a7 7 0 1 1-2-5M18 3v5h-5",
    "reset": "M5 12a7 7 0 1 0 2-5M6 3v5h5",
    "all": "M2 13l4 4L16 7M12 17L22 7",
}


def picture(name: str) -> str:
    """A small drawing in the colour of the text around it."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="black" '
        f'stroke-width="2.4" stroke-linejoin="round" stroke-linecap="round"><path d="{_LINES[name]}"/></svg>'
    )


# The buttons of a figure lie on it without a ground of their own, and what is between them is the figure's.
CORNER = """
:host(.bk-inner) { background: none; opacity: 1; pointer-events: none; }
div { pointer-events: auto; }
"""


class Drawn(pn.custom.JSComponent):
    """Says ``ready`` once the browser has drawn everything around it, and in which ``tab`` that is.

    What is sent before that can be missed: by a notebook altogether, by widgets that are being made.

    ``tab`` is a random digest that stays the same when the page is loaded again and is no other tab's; a tab that
    was duplicated asks its original and gets one of its own.  ``again`` says that the address is the one that this
    tab had written: the page was loaded again.

    It also gives screen readers what the kits leave out: names of progress bars and of fields for numbers with their
    buttons, the role of the marks that hold a menu's help, and rows that are children of their table.
    """

    ready = param.Boolean(default=False)
    tab = param.String(default="")
    again = param.Boolean(default=False)
    _esm = """
    const GIVEN = {
      "[role=progressbar]:not([aria-label])": one => one.setAttribute("aria-label", "progress"),
      "span[aria-label]:not([role])": one => one.setAttribute("role", "img"),
      ".MuiTextField-root input:not([id])": one => {
        const label = one.closest(".MuiTextField-root").querySelector("label")
        if (label) one.setAttribute("aria-label", label.textContent)
      },
      ".MuiInputAdornment-positionStart > button:not([aria-label])": one => one.setAttribute("aria-label", "less"),
      ".MuiInputAdornment-positionEnd > button:not([aria-label])": one => one.setAttribute("aria-label", "more"),
      ".tabulator-tableholder:not([role])": one => one.setAttribute("role", "rowgroup"),
      ".tabulator-tableholder > .tabulator-table": one => one.setAttribute("role", "presentation"),
    }

    function give(root) {
      for (const [which, what] of Object.entries(GIVEN)) root.querySelectorAll(which).forEach(what)
      for (const one of root.querySelectorAll("*")) if (one.shadowRoot) give(one.shadowRoot)
    }

    export function render({ model, view }) {
      const waiting = []
      const named = () => {
        const top = view.root?.el
        for (const root of [top, top?.shadowRoot]) if (root) give(root)
      }
      // Once what is shown at once is there, and once more for what has to be computed.
      const soon = () => {
        waiting.splice(0).forEach(clearTimeout)
        for (const time of [400, 3000]) waiting.push(setTimeout(named, time))
      }
      // What comes into sight later comes after a press.
      for (const name of ["click", "keyup"]) document.addEventListener(name, soon, true)
      model.on("remove", () => {
        for (const name of ["click", "keyup"]) document.removeEventListener(name, soon, true)
      })
      let turns = 0
      const look = () => {
        const busy = view.root && view.root.is_idle === false
        turns = busy ? 0 : turns + 1
        if (turns < 3 && performance.now() - start < 20000) setTimeout(look, 150)
        else {
          model.ready = true
          soon()
        }
      }
      const start = performance.now()
      const name = "explorer-tab"
      const fresh = () =>
        [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("")
      try {
        let tab = sessionStorage.getItem(name) || fresh(), mine = false
        const [last, before, time] = JSON.parse(sessionStorage.getItem("explorer-address") || "[]")
        // A page that is being left may still write: what it is loaded from is then the address before.
        const late = before === location.search && performance.timeOrigin - time < 5000
        const again = last === location.search || late
        const others = new BroadcastChannel(name)
        others.onmessage = ({ data }) => {
          if (mine && data.asked === tab) others.postMessage({ taken: tab })
          else if (!mine && data.taken === tab) tab = fresh()
        }
        others.postMessage({ asked: tab })
        setTimeout(() => {
          mine = true
          sessionStorage.setItem(name, tab)
          model.again = again
          model.tab = tab
        }, 120)
      } catch { /* a browser that keeps nothing: the page begins anew each time */ }
      setTimeout(look, 150)
      return document.createElement("span")
    }
    """


class Hand(pn.custom.JSComponent):
    """Says whether a button of the mouse, or a finger, that went ``down`` beside it is still down.

    A figure beside it can be dragged after a while of holding still as well, which Bokeh takes for another gesture.
    """

    down = param.Boolean(default=False)
    _esm = """
    function* gestures(view) {
      const found = view.canvas_view?.ui_event_bus?.ui_gestures
      if (found) yield found
      for (const child of view.child_views || []) yield* gestures(child)
    }

    export function render({ model, view }) {
      const up = () => { model.down = false }
      const down = () => {
        for (const one of gestures(view.parent)) one._start_timeout = () => {}
        model.down = true
        for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, up, { once: true })
      }
      const made = document.createElement("span")
      setTimeout(() => made.getRootNode().host?.parentNode?.addEventListener("pointerdown", down, true))
      return made
    }
    """


class Steady(pn.custom.JSComponent):
    """Has the table beside it change in place.

    Panel makes all rows of a table anew for a single changed cell: a press that began on the old row is lost, and a
    menu that is open in a cell is closed.  Here the cells that differ are written; rows of a table
    that is ordered by a column change places when no button is down and no menu is open.

    Panel also waits, in a loop that takes all of the browser's time, for the news that each style sheet is there,
    which it misses when it comes early.  Here it looks whether they are there, and rests between two looks.
    """

    _esm = """
    function* tables(view) {
      if (view.tabulator && view.updateOrAddData) yield view
      for (const child of view.child_views || []) yield* tables(child)
    }

    // Rows are of one height: not measuring them saves the browser a layout of the page for each.
    function write(table, fresh) {
      for (const record of fresh) {
        const row = table.getRow(record._index), data = row.getData()
        const news = Object.keys(record).filter(name => !Object.is(record[name], data[name]))
        // A cell that is drawn from others has not changed itself.
        const drawn = news.map(name => name.replace(/_(bar|text|kind)$/, "")).filter(name => !news.includes(name))
        for (const name of news) data[name] = record[name]
        for (const name of news) row.getCell(name)?._cell.setValueProcessData(record[name])
        for (const name of new Set(drawn)) row.getCell(name)._cell.layoutElement()
      }
    }

    function calm(view) {
      const edits = view._has_active_editor.bind(view)
      // Asked in each turn of the loop, of one too that runs already.
      view._has_active_editor = () => {
        const links = view._applied_stylesheets.map(sheet => sheet.el).filter(one => one.tagName === "LINK")
        for (const one of links) if (one.sheet) view._initialized_stylesheets.set(one.href, true)
        return edits()
      }
      view._flush_resize_when_root_ready = async () => {
        await view.root.ready
        const waits = () => view._is_scrolling || view._initializing || !view.container || view.is_drawing ||
          view._has_active_editor() || ![...view._initialized_stylesheets.values()].every(Boolean)
        while (view._resize_pending && waits()) await new Promise(look => setTimeout(look, 50))
        if (!view._resize_pending) return
        view._resize_pending = false
        view._resize_redraw()
      }
    }

    function steady(view, held) {
      const anew = { patched: view.updateOrAddData.bind(view), given: view.setData.bind(view) }
      let due = false
      const order = () => {
        if (held.down || view.container.querySelector(".tabulator-editing")) return setTimeout(order, 50)
        due = false
        view._selection_updating = view._updating_scroll = true
        anew.given().then(() => {
          view._selection_updating = view._updating_scroll = false
          view.postUpdate()
          view.restore_scroll()
        })
      }
      const inPlace = way => () => {
        if (view._tabulator_cell_updating || view._initializing || !view.tabulator?.initialized) return way()
        const table = view.tabulator, fresh = view.getData()
        if (fresh.length !== table.getDataCount() || !fresh.every(one => table.getRow(one._index))) return way()
        write(table, fresh)
        if (!due && table.getSorters().length) {
          due = true
          order()
        }
        return Promise.resolve()
      }
      view.updateOrAddData = inPlace(anew.patched)
      view.setData = inPlace(anew.given)
    }

    export function render({ model, view }) {
      const held = { down: false }
      const down = () => { held.down = true }
      // The click comes after the button has gone up.
      const up = () => setTimeout(() => { held.down = false })
      const names = { pointerdown: down, pointerup: up, pointercancel: up }
      for (const name in names) window.addEventListener(name, names[name], true)
      model.on("remove", () => {
        for (const name in names) window.removeEventListener(name, names[name], true)
      })
      let turns = 0
      const look = () => {
        const [table] = tables(view.parent)
        if (table) {
          steady(table, held)
          calm(table)
        } else if (++turns < 400) setTimeout(look, 50)
      }
      look()
      return document.createElement("span")
    }
    """


class Live(pn.custom.JSComponent):
    """Markup of our own making with buttons in it: ``pressed`` says which one, by its ``data-press``."""

    object = param.String(default="")
    pressed = param.String(default="")
    _esm = """
    export function render({ model, el }) {
      const box = document.createElement("div")
      const show = () => {
        // New markup is a new button: who stood on the old one stays.
        const held = box.getRootNode().activeElement?.dataset?.press
        box.innerHTML = model.object
        if (held) [...box.querySelectorAll("[data-press]")].find(one => one.dataset.press === held)?.focus()
      }
      show()
      model.on("object", show)
      box.addEventListener("click", event => {
        const button = event.target.closest("[data-press]")
        if (button) model.pressed = button.dataset.press
      })
      return box
    }
    """


class Help(pn.custom.JSComponent):
    """A ``sign`` that opens words beside it; the browser closes them at Escape and at a click elsewhere."""

    object = param.String(default="")
    title = param.String(default="")
    sign = param.String(default="?")
    warn = param.Boolean(default=False)
    _esm = """
    export function render({ model }) {
      const made = document.createElement("span")
      const button = document.createElement("button"), box = document.createElement("div")
      box.popover = "auto"
      button.popoverTargetElement = box
      const show = () => {
        box.innerHTML = model.object
        button.textContent = model.sign
        button.className = model.warn ? "warn" : ""
        button.title = button.ariaLabel = model.title
        made.hidden = !model.object
      }
      box.addEventListener("toggle", () => {
        const at = button.getBoundingClientRect(), room = document.documentElement
        box.style.left = Math.max(8, Math.min(at.left, room.clientWidth - box.offsetWidth - 8)) + "px"
        const below = at.bottom + 4, height = box.offsetHeight
        box.style.top = (below + height < room.clientHeight ? below : Math.max(8, at.top - height - 4)) + "px"
      })
      model.on("object", show)
      model.on("title", show)
      model.on("sign", show)
      show()
      made.append(button, box)
      return made
    }
    """


def help(css: str, width: int | None = 24) -> Help:
    """A question mark that opens an explanation, set by its ``object``; ``width`` is None for a longer ``sign``."""
    return Help(stylesheets=[css], width=width, height=24, margin=0)


class Address(pn.custom.JSComponent):
    """Puts ``search`` in place of the query of the page's address, without a new entry in the browser's history."""

    search = param.String(default="")
    _esm = """
    export function render({ model }) {
      model.on("search", () => {
        const before = location.search
        history.replaceState(history.state, "", location.pathname + model.search + location.hash)
        // So that a page that is loaded again can tell its own address from one that was opened.
        const written = JSON.stringify([location.search, before, Date.now()])
        try { sessionStorage.setItem("explorer-address", written) } catch { /* nothing is kept */ }
      })
      return document.createElement("span")
    }
    """


class HandOut(pn.custom.JSComponent):
    """Hands a ``file`` to the browser as a download: its ``name``, and its bytes as base64 in ``data``."""

    file = param.Dict(default={})
    _esm = """
    export function render({ model }) {
      model.on("file", () => {
        const { name, data } = model.file
        const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0))
        const link = document.createElement("a")
        link.href = URL.createObjectURL(new Blob([bytes]))
        link.download = name
        link.click()
        setTimeout(() => URL.revokeObjectURL(link.href), 60000)
      })
      return document.createElement("span")
    }
    """


def live(css: str, press: Callable[[str], None], **options: Any) -> Live:
    """Markup whose buttons call ``press`` with their name."""
    _fill(options)
    made = Live(stylesheets=[css], **options)

    def pressed(event: Any) -> None:
        if event.new:
            # So that the same button can be pressed again.
            made.pressed = ""
            press(event.new)

    made.param.watch(pressed, "pressed")
    return made


def hand(press: Callable[[bool], None]) -> Hand:
    """Calls ``press`` with True when a button goes down on what stands in the same column, and with False when up."""
    made = Hand(width=0, height=0, margin=0)
    made.param.watch(lambda event: press(event.new), "down")
    return made


def steady() -> Steady:
    """What has the table in the same column change in place."""
    return Steady(width=0, height=0, margin=0)


def _fill(options: dict[str, Any]) -> None:
    """No margin, and as wide as there is room unless a width is given."""
    options.setdefault("margin", 0)
    if "width" not in options:
        options.setdefault("sizing_mode", "stretch_width")


def html(text: str = "", css: str = "", **options: Any) -> pn.pane.HTML:
    """Markup of our own making; what comes from elsewhere has been escaped."""
    _fill(options)
    return pn.pane.HTML(text, stylesheets=[css], **options)


def bokeh(figure: Any, **options: Any) -> pn.pane.Bokeh:
    """A Bokeh figure as a part of the page, with buttons that save it."""
    options.setdefault("sizing_mode", "stretch_both")
    options.setdefault("margin", 0)
    # In the corner over the figure, and in sight only while the mouse is on it.
    figure.update(toolbar_location="above", toolbar_inner=True)
    figure.toolbar.update(logo=None, autohide=True, stylesheets=[CORNER])
    for tool in figure.toolbar.tools:
        tool.visible = False
    figure.add_tools(*save_tools(figure))
    return pn.pane.Bokeh(figure, **options)


def column(*items: Any, css: str = "", **options: Any) -> pn.Column:
    """Items below each other."""
    options.setdefault("sizing_mode", "stretch_both")
    options.setdefault("margin", 0)
    return pn.Column(*items, stylesheets=[":host { min-height: 0; min-width: 0; }" + css], **options)


def themed(*items: Any, theme_config: dict[str, Any]) -> Any:
    """Items below each other in a theme of their own, where there is no page to set one."""
    return pmui.Column(*items, theme_config=theme_config, margin=0)


def scrolled(*items: Any) -> pn.Column:
    """Items below each other that scroll where there is not enough room for them."""
    return column(*items, css=":host { flex: 1 1 0 !important; overflow-y: auto; }")


def row(*items: Any, css: str = "", **options: Any) -> pn.Row:
    """Items beside each other, centred on one line."""
    _fill(options)
    for item in items:
        item.align = "center"
    return pn.Row(*items, stylesheets=[":host { gap: 6px; }" + css], **options)


def show(part: Any, seen: bool) -> Any:
    """Let a part take its place on the page, or none; gives the part.

    With ``visible`` Bokeh would lay out the whole page anew for it, a quarter of a second in which nothing moves.
    """
    if shown(part) != seen:
        part.styles = {**part.styles, "display": "" if seen else "none"}
    return part


def shown(part: Any) -> bool:
    """Whether a part takes its place on the page, by :func:`show`."""
    return bool(part.styles.get("display") != "none")


def spacer() -> pn.Spacer:
    """What pushes the rest of a row to the right."""
    return pn.Spacer(sizing_mode="stretch_width", height=1)


class Echoes:
    """Tells what a widget sends back of what it has just been given from what a user has entered.

    A field that is given one value after the other says each of them a moment later, as if somebody had typed it.
    """

    SECONDS = 2.0

    def __init__(self) -> None:
        self._given: dict[Any, float] = {}

    def give(self, widget: Any, value: Any) -> None:
        """Note that a widget is being given a value."""
        now = time.monotonic()
        self._given = {key: then for key, then in self._given.items() if now - then < self.SECONDS}
        self._given[widget.name, value] = now

    def hears(self, widget: Any, value: Any) -> bool:
        """Whether this is the echo of a value that was given a moment ago."""
        return time.monotonic() - self._given.get((widget.name, value), -math.inf) < self.SECONDS


def select(label: str, options: Any, value: Any = None, **more: Any) -> pmui.Select:
    """A menu."""
    _fill(more)
    return pmui.Select(label=label, options=options, value=value, size="small", **more)


def switch(label: str, value: bool = False, **more: Any) -> pmui.Switch:
    """Yes or no."""
    more.setdefault("margin", 0)
    return pmui.Switch(label=label, value=value, size="small", **more)


def text(label: str, value: str = "", **more: Any) -> pmui.TextInput:
    """A field for words; ``value_input`` follows each letter."""
    _fill(more)
    return pmui.TextInput(label=label, value=value, size="small", **more)


def whole(label: str, value: int, **more: Any) -> pmui.IntInput:
    """A field for a whole number."""
    _fill(more)
    return pmui.IntInput(label=label, value=value, size="small", **more)


def real(label: str, value: float, **more: Any) -> pmui.FloatInput:
    """A field for a number."""
    _fill(more)
    return pmui.FloatInput(label=label, value=value, size="small", **more)


def slider(label: str, start: float, end: float, step: float, value: float, **more: Any) -> pmui.FloatSlider:
    """A number to be moved, by the mouse or by the arrow keys."""
    _fill(more)
    return pmui.FloatSlider(label=label, start=start, end=end, step=step, value=value, size="small", **more)


def button(label: str, icon: str = "", **more: Any) -> pmui.Button:
    """A button with words."""
    more.setdefault("variant", "outlined")
    more.setdefault("margin", 0)
    return pmui.Button(label=label, icon=picture(icon) if icon else None, size="small", **more)


def icon(name: str, description: str, **more: Any) -> pmui.IconButton:
    """A button with a picture, and its words on hovering."""
    more.setdefault("margin", 0)
    return pmui.IconButton(icon=picture(name), description=description, size="small", **more)


def choice(options: Any, value: Any, label: str = "", **more: Any) -> pmui.RadioButtonGroup:
    """One of a few, all in sight."""
    more.setdefault("margin", 0)
    return pmui.RadioButtonGroup(label=label, options=options, value=value, size="small", **more)


def progress(**more: Any) -> pmui.LinearProgress:
    """How far a computation is, 0 to 100."""
    _fill(more)
    return pmui.LinearProgress(value=0, variant="determinate", **more)


def alert(**more: Any) -> pmui.Alert:
    """A message that can be dismissed; hidden until there is one."""
    _fill(more)
    return pmui.Alert(severity="error", closeable=True, visible=False, **more)


def download(label: str, filename: str, callback: Any, **more: Any) -> pmui.FileDownload:
    """A button that hands a file to the browser."""
    more.setdefault("margin", 0)
    return pmui.FileDownload(
        callback=callback,
        filename=filename,
        label=label,
        variant="text",
        size="small",
        **more,
    )


class Upload(pmui.FileInput):
    """A field for a file whose limit holds on the server as well: a browser may leave its own check out."""

    def _process_chunk(self, msg: dict[str, Any]) -> None:
        coming = sum(len(piece) for held in self._file_buffer.values() for piece in held["chunks"].values())
        most = self.max_file_size or 0
        if coming + len(msg["data"]) > most:
            self._file_buffer.clear()
            self._buffer.clear()
            self._send_msg({"status": "error", "error": too_large(most)})
            return
        super()._process_chunk(msg)


def too_large(most: int) -> str:
    """Why a file is not taken.

    >>> too_large(1 << 20)
    'The file is larger than the 1,048,576 bytes that are taken.'
    """
    return f"The file is larger than the {most:,} bytes that are taken."


def upload(label: str, accept: str, most: int = 1 << 20, **more: Any) -> pmui.FileInput:
    """A button that takes a file of at most ``most`` bytes, or of what the server takes at most."""
    more.setdefault("margin", 0)
    return Upload(
        label=label,
        uploaded_label=label,  # whether it is a recipe is said by the page
        accept=accept,
        multiple=False,
        max_file_size=min(most, limits().upload or most),
        chunk_size=PIECE,
        variant="text",
        size="small",
        **more,
    )


def menu(label: str, items: list[str], pick: Callable[[str], None], **more: Any) -> pmui.MenuButton:
    """A button with a menu; ``pick`` gets the words of an entry."""
    more.setdefault("margin", 0)
    made = pmui.MenuButton(
        label=label, items=[{"label": item} for item in items], variant="text", size="small", **more
    )

    def clicked(item: Any) -> None:
        pick(item["label"])

    made.on_click(clicked)
    return made


def text_area(label: str, **more: Any) -> pmui.TextAreaInput:
    """A field for some lines; its value is taken when the field is left."""
    _fill(more)
    return pmui.TextAreaInput(label=label, value="", rows=3, auto_grow=True, max_rows=8, size="small", **more)


class Table(pn.widgets.Tabulator):
    """Knows which cell is being ``changed``, its row and its column, or None.

    A browser says three things one after the other: that a cell will change, its new value, and that it has changed;
    Panel reads the value at the third.  What is written into the cell in between is taken for the user's.
    """

    def __init__(self, value: Any, **options: Any) -> None:
        self.changed: tuple[int, str] | None = None
        super().__init__(value, **options)

    def _process_event(self, event: Any) -> None:
        edit = event.event_name == "table-edit"
        if edit:
            self.changed = None
        super()._process_event(event)
        if edit and event.pre:
            self.changed = event.row, event.column


def table(frame: Any, **more: Any) -> Table:
    """A table with cells that can be edited."""
    more.setdefault("sizing_mode", "stretch_both")
    more.setdefault("margin", 0)
    return Table(frame, **more)


def page(**more: Any) -> Any:
    """The whole browser window, without the sign that the server is busy.

    That sign is one for all sessions of a server: at each event of any of them Panel would walk through all models of
    every page, twice.
    """
    made = Page(busy_indicator=None, **more)
    with param.edit_constant(made):
        made.busy = False
    return made
