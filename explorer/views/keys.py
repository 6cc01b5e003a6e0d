"""The page by the keyboard: a table of keys, which the help overlay lists, and what each does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

import panel as pn
import param

from explorer.formats import FORMATS
from explorer.views import choices, theme
from explorer.views.bulk import PATTERN
from explorer.views.state import PageState
from explorer.views.tabs import Tabs

CSS = (
    theme.TOKENS
    + f"""
button {{ font: inherit; color: var(--ink); background: none; border: 1px solid var(--line); border-radius: 6px;
  cursor: pointer; padding: 0 9px; height: 32px; font-size: 12.5px; }}
button:hover {{ background: var(--wash); }}
button:focus-visible, input:focus-visible {{ outline: 2px solid {theme.CHOSEN}; outline-offset: 2px; }}
dialog {{ color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 18px; font-size: 13px; line-height: 19px; max-width: min(560px, 92vw); max-height: 86vh; }}
dialog::backdrop {{ background: rgb(0 0 0 / 45%); }}
h2 {{ font-size: 15px; margin: 0 0 8px; }}
table {{ border-collapse: collapse; width: 100%; }} td, th {{ padding: 3px 0; vertical-align: top; text-align: left;
  font-weight: 400; }}
th {{ white-space: nowrap; padding-right: 16px; }}
kbd {{ font: 600 12px/18px ui-monospace, monospace; border: 1px solid var(--line); border-radius: 4px; padding: 0 5px;
  background: var(--wash); }}
.foot {{ display: flex; justify-content: space-between; align-items: center; gap: 12px; margin-top: 12px; }}
.said {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }}
"""
)


class Keyboard(pn.custom.JSComponent):
    """A button that opens a list of keys, and sends those of ``names`` that are pressed outside of fields and menus."""

    names = param.List(doc="for example j, shift+1, ctrl+z")
    help = param.String(doc="markup of our own: the rows of the list")
    finds = param.Dict(doc="for a key the CSS class of what holds the field that it puts the cursor into")
    said = param.String(doc="what a screen reader is told")

    _esm = """
    const WRITTEN = `textarea, select, [contenteditable="true"], [role=listbox], [role=menu], .tabulator-editing,
      input:not([type=checkbox], [type=radio], [type=button], [type=file], [type=range])`
    const MOVED = `[role=slider], [role=combobox], [role=tab], input[type=range], input[type=radio]`

    function nameOf(event) {
      const typed = event.getModifierState("AltGraph")
      if (event.altKey && !typed) return ""
      if ((event.ctrlKey || event.metaKey) && !typed)
        return "ctrl+" + (event.shiftKey ? "shift+" : "") + event.key.toLowerCase()
      const digit = /^Digit([1-9])$/.exec(event.code)
      if (digit && !typed) return (event.shiftKey ? "shift+" : "") + digit[1]
      return event.key
    }

    function* inside(root, name) {
      for (const one of root.querySelectorAll("*")) {
        if (one.classList.contains(name)) yield one
        if (one.shadowRoot) yield* inside(one.shadowRoot, name)
      }
    }

    function find(name) {
      for (const place of inside(document, name))
        for (const root of [place, place.shadowRoot]) {
          const field = root?.querySelector("input")
          if (field) return field.focus()
        }
    }

    export function render({ model, el }) {
      const box = document.createElement("div")
      box.innerHTML = `<button type="button" aria-haspopup="dialog" aria-keyshortcuts="?" title="Keyboard shortcuts (?)"
        aria-label="Keyboard shortcuts">Keys</button><span class="said" aria-live="polite"></span>
        <dialog aria-labelledby="keys-title"><h2 id="keys-title">Keys</h2><table></table>
        <div class="foot"><label><input type="checkbox" checked> single keys act on the page</label>
        <button type="button">Close</button></div></dialog>`
      const [open, shut] = box.querySelectorAll("button"), dialog = box.querySelector("dialog")
      const said = box.querySelector(".said"), single = box.querySelector("input")
      box.querySelector("table").innerHTML = model.help
      single.checked = localStorage.getItem("explorer-single-keys") !== "off"
      single.addEventListener("change", () =>
        localStorage.setItem("explorer-single-keys", single.checked ? "on" : "off"))
      open.addEventListener("click", () => dialog.showModal())
      shut.addEventListener("click", () => dialog.close())
      dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close() })
      model.on("said", () => { said.textContent = model.said })

      const press = event => {
        if (event.defaultPrevented || event.isComposing || dialog.open) return
        const name = nameOf(event), path = event.composedPath().filter(node => node.matches)
        if (path.some(node => node.matches(WRITTEN))) return
        if (name.startsWith("Arrow") && path.some(node => node.matches(MOVED))) return
        if (!single.checked && !name.startsWith("ctrl+")) return
        if (name === "?") dialog.showModal()
        else if (name in model.finds) find(model.finds[name])
        else if (model.names.includes(name)) model.send_msg(name)
        else return
        event.preventDefault()
      }
      document.addEventListener("keydown", press)
      model.on("remove", () => document.removeEventListener("keydown", press))
      return box
    }
    """


class Table(Protocol):
    """What the keys need of the table of layers."""

    def order(self) -> list[str]:
        """The layers in the order in which they stand."""


@dataclass(frozen=True)
class Reach:
    """What the keys act on.

    Args:
        state: of the page.
        table: of layers.
        upper: the views of the chosen tensor.
        lower: the views of all layers.
        evaluate: starts an evaluation anew.
    """

    state: PageState
    table: Table
    upper: Tabs
    lower: Tabs
    evaluate: Callable[[], None]


@dataclass(frozen=True)
class Key:
    """What one or several keys do.

    Args:
        names: of the keys, as :class:`Keyboard` sends them.
        shown: how they stand in the list.
        help: what they do, in words.
        do: does it, and says in a few words what has become of it.
    """

    names: Sequence[str]
    shown: str
    help: str
    do: Callable[[Reach, str], str]


def _kind(name: str) -> str:
    """What formats that differ in their bits have in common."""
    return re.split(r"\d", name, maxsplit=1)[0].replace("bf", "fp")


def ladder(name: str) -> list[str]:
    """The formats of one kind from the fewest bits to the most, ``name`` among them, one for each number of bits.

    >>> ladder("int4")[:3], ladder("fp8_e5m2")
    (['int2', 'int3', 'int4'], ['fp4_e2m1', 'fp6_e2m3', 'fp8_e5m2', 'fp16', 'fp32'])
    """
    steps: dict[int, str] = {FORMATS[name].bits: name}
    for other, number in FORMATS.items():
        if _kind(other) == _kind(name):
            steps.setdefault(number.bits, other)
    return [steps[bits] for bits in sorted(steps)]


def _step(reach: Reach, places: int) -> str:
    state, order = reach.state, reach.table.order()
    if not order:
        return "no layer in the list"
    at = order.index(state.layer) + places if state.layer in order else 0
    state.layer = order[max(0, min(len(order) - 1, at))]
    return f"layer {state.layer}"


def _bits(reach: Reach, places: int) -> str:
    state = reach.state
    if not isinstance(state.facts.get(state.tensor), str):
        return f"{state.layer} has no {state.tensor} to be quantized"
    scheme = getattr(state.config, state.tensor)
    steps = ladder(scheme.format)
    at = steps.index(scheme.format) + places
    if not 0 <= at < len(steps):
        most = "most" if places > 0 else "fewest"
        state.problem = (
            f"{scheme.format} has the {most} bits of its kind; the menu of formats has other kinds."
        )
        return state.problem
    refused = state.edit([state.layer], **{state.tensor: choices.consequences("format", steps[at], scheme)})
    return refused or f"{state.layer} {state.tensor} {steps[at]}"


def _history(reach: Reach, back: bool) -> str:
    session = reach.state.session
    if not (session.can_undo if back else session.can_redo):
        return "nothing to undo" if back else "nothing to redo"
    refused = reach.state.attempt(session.undo if back else session.redo)
    return refused or ("undone" if back else "done again")


def _compare(reach: Reach) -> str:
    """The recipe before the last change, or back again: what both need is in the store, so it is quick."""
    session = reach.state.session
    if session.can_redo:
        return _history(reach, back=False) and "the recipe after the change"
    return (
        "the recipe before the change" if session.can_undo and _history(reach, back=True) else "no change yet"
    )


def _mark(reach: Reach) -> str:
    state = reach.state
    state.toggle(state.layer)
    return f"{state.layer} {'marked' if state.layer in state.marks else 'not marked'}"


def _tensor(reach: Reach) -> str:
    state = reach.state
    state.tensor = "input" if state.tensor == "weight" else "weight"
    return str(state.tensor)


def _view(tabs: Tabs, pressed: str) -> str:
    names, at = list(tabs.parts), int(pressed[-1]) - 1
    if at >= len(names):
        return f"there are {len(names)} views"
    tabs.show(names[at])
    return names[at]


def _evaluate(reach: Reach) -> str:
    reach.evaluate()
    return "evaluating"


DIGITS = tuple("123456789")
KEYS: tuple[Key, ...] = (
    Key(("j", "ArrowDown"), "j \N{DOWNWARDS ARROW}", "next layer of the list", lambda r, _: _step(r, 1)),
    Key(("k", "ArrowUp"), "k \N{UPWARDS ARROW}", "layer before", lambda r, _: _step(r, -1)),
    Key(("[",), "[", "fewer bits: the next format of the same kind for the tensor shown", lambda r, _: _bits(r, -1)),
    Key(("]",), "]", "more bits", lambda r, _: _bits(r, 1)),
    Key(("t",), "t", "weight or input of the layer", lambda r, _: _tensor(r)),
    Key(("x",), "x", "mark the layer for editing many at once, or not", lambda r, _: _mark(r)),
    Key(("ctrl+z",), "Ctrl+Z", "undo", lambda r, _: _history(r, back=True)),
    Key(("ctrl+shift+z", "ctrl+y"), "Ctrl+Shift+Z", "redo", lambda r, _: _history(r, back=False)),
    Key(("c",), "c", "compare with the recipe before the last change, and back", lambda r, _: _compare(r)),
    Key(DIGITS, "1 \N{HORIZONTAL ELLIPSIS} 9", "view of all layers", lambda r, key: _view(r.lower, key)),
    Key(
        tuple(f"shift+{digit}" for digit in DIGITS), "Shift+1 \N{HORIZONTAL ELLIPSIS} 9", "view of the tensor",
        lambda r, key: _view(r.upper, key),
    ),
    Key(("e",), "e", "evaluate again", lambda r, _: _evaluate(r)),
)  # fmt: skip


def listed() -> str:
    """The rows of the help overlay."""
    rows = [(key.shown.split(" "), key.help) for key in KEYS]
    rows += [
        (["?"], "this list"),
        (["Tab"], "the next field, menu or button"),
        (["Esc"], "close a menu or this list"),
    ]
    return "".join(
        f"<tr><th scope='row'>{' '.join(_key(part) for part in parts)}</th><td>{escape(help)}</td></tr>"
        for parts, help in rows
    )


def _key(part: str) -> str:
    return part if part == "\N{HORIZONTAL ELLIPSIS}" else f"<kbd>{escape(part)}</kbd>"


class Keys:
    """The button that lists the keys; the page obeys them while it is in the document."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.does = {name: key.do for key in KEYS for name in key.names}
        self.view = Keyboard(
            names=list(self.does),
            help=listed(),
            finds={"/": PATTERN},
            stylesheets=[CSS],
            width=50,
            height=34,
            margin=0,
        )
        self.view.on_msg(lambda event: self.press(event.data))

    def press(self, name: str) -> None:
        """Do what a key does, and tell a screen reader."""
        if name in self.does:
            self.view.said = self.does[name](self.reach, name)
