"""The first minute: five steps in a strip that covers nothing, shown until it has been gone through or skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import panel as pn
import param

from explorer.views import theme
from explorer.views.state import PageState


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        title: what to do.
        text: where, and what to look at; plain text.
        place: the class of the region that is framed meanwhile.
        until: what of the page's state changes when it is done; nothing where only the reader knows.
    """

    title: str
    text: str
    place: str
    until: str = ""


STEPS = (
    Step(
        "Choose a layer.",
        "The one with the lowest SQNR is chosen already; which one matters to the network, the column with int4 tells. "
        "A click on a name in the table takes another.",
        "place-table",
        "layer",
    ),
    Step(
        "See what quantization does to it.",
        "Filled: its values before; outlined: after. Tabs show levels, objectives, channels; a question mark explains "
        "each. Switch to its input.",
        "place-tensor",
        "tensor",
    ),
    Step(
        "Change its format.",
        "Click on its cell in the column weight and take int4, or use the menus at the right.",
        "place-table",
        "revision",
    ),
    Step(
        "Watch what it costs.",
        "Accuracy with its interval sharpens image by image; hatched numbers belong to the recipe before.",
        "place-scores",
    ),
    Step(
        "Find the layers that matter, or take it back.",
        "The map below shows which layer suffers at how many bits; Diagnosis says why. Undo is at the top.",
        "place-below",
    ),
)
CSS = (
    theme.TOKENS
    + f"""
:host([hidden]) {{ display: none !important; }}
.minute {{ display: flex; align-items: center; gap: 10px; min-height: 36px; padding: 2px 12px; box-sizing: border-box;
  border: 1px solid var(--line); border-left: 3px solid {theme.CHOSEN}; border-radius: 6px; color: var(--ink);
  background: var(--card); font-size: 12.5px; line-height: 16px; }}
.count {{ color: var(--faint); white-space: nowrap; }} .words {{ flex: 1; }} b {{ font-weight: 600; }}
button {{ font: inherit; min-height: 28px; padding: 0 10px; border-radius: 5px; cursor: pointer; white-space: nowrap;
  border: 1px solid var(--line); background: var(--card); color: var(--ink); }}
button:hover {{ background: var(--wash); }}
button:focus-visible {{ outline: 2px solid {theme.CHOSEN}; outline-offset: 1px; }}
"""
)


class Guide(pn.custom.JSComponent):
    """The strip.  What has been seen is kept by the browser, so a server need not know who is who.

    Args:
        step: which step is shown.
        steps: title, text and place of each.
        shown: whether the strip is there.
        calls: grows when somebody asks for it again.
    """

    step = param.Integer(default=0)
    steps = param.List(default=[])
    shown = param.Boolean(default=False)
    calls = param.Integer(default=0)

    def again(self) -> None:
        """Show the strip from its first step, whoever has seen it."""
        self.calls += 1

    _esm = """
    const SEEN = "quantization-explorer-guide"

    // A browser may refuse to keep anything; then the strip comes again.
    const seen = () => { try { return localStorage.getItem(SEEN) === "seen" } catch { return false } }
    const keep = () => { try { localStorage.setItem(SEEN, "seen") } catch {} }

    function find(root, selector) {
      for (const each of root.querySelectorAll("*")) {
        if (each.matches(selector)) return each
        const inside = each.shadowRoot && find(each.shadowRoot, selector)
        if (inside) return inside
      }
      return null
    }

    export function render({ model }) {
      const strip = document.createElement("div")
      strip.className = "minute"
      strip.setAttribute("role", "region")
      strip.ariaLabel = "The first minute"
      const count = document.createElement("span"), words = document.createElement("span")
      const title = document.createElement("b"), text = document.createElement("span")
      count.className = "count"
      words.className = "words"
      words.ariaLive = "polite"
      words.append(title, " ", text)
      const next = document.createElement("button"), skip = document.createElement("button")
      skip.textContent = "Skip"
      strip.append(count, words, next, skip)
      let framed = null

      const frame = element => {
        if (framed) framed.style.outline = framed.style.outlineOffset = ""
        framed = element
        if (framed) Object.assign(framed.style, { outline: "2px solid #CC79A7", outlineOffset: "0px" })
      }
      const show = () => {
        const host = strip.getRootNode().host
        if (host) host.toggleAttribute("hidden", !model.shown)
        const [head, more, place] = model.steps[model.step]
        const last = model.step === model.steps.length - 1
        count.textContent = `${model.step + 1} of ${model.steps.length}`
        title.textContent = head
        text.textContent = more
        next.textContent = last ? "Done" : "Next"
        skip.hidden = last
        frame(model.shown && host ? find(document, "." + place) : null)
      }
      const end = () => { keep(); model.shown = false; show() }
      next.addEventListener("click", () => {
        if (model.step < model.steps.length - 1) model.step = model.step + 1
        else end()
      })
      skip.addEventListener("click", end)
      const escape = event => {
        if (!strip.isConnected) return window.removeEventListener("keydown", escape)
        // Escape closes what is open first: a menu, a cell's editor, a question mark's words.
        const busy = event.composedPath().some(each => each.matches?.(
          "input, textarea, select, [role=listbox], [role=menu], [role=dialog], [popover], .tabulator-editing"))
        if (event.key !== "Escape" || !model.shown || busy || event.defaultPrevented) return
        if (!find(document, ":popover-open")) end()
      }
      window.addEventListener("keydown", escape)
      model.on("step", show)
      model.on("calls", () => { model.step = 0; model.shown = true; show() })
      setTimeout(() => { model.shown = !seen(); show() })
      return strip
    }
    """


def guide(state: PageState) -> Guide:
    """The strip for a page: each step is over when what it asks for has been done, or when Next is pressed."""
    made: Any = Guide(
        steps=[[step.title, step.text, step.place] for step in STEPS],
        stylesheets=[CSS],
        margin=0,
        sizing_mode="stretch_width",
    )

    def happened(name: str) -> None:
        if made.shown and STEPS[made.step].until == name:
            made.step += 1

    for name in filter(None, (step.until for step in STEPS)):
        state.param.watch(lambda event: happened(event.name), name)
    return made
