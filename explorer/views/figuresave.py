"""A figure as a file: the browser that has drawn it writes it, for nothing else here can.

BokehJS paints a figure once more, on a canvas or as SVG; what is seen is what is saved, zoomed or not.
"""

from __future__ import annotations

import base64
from typing import Any

from bokeh.models import CustomAction, CustomJS

# A function of a figure's view: gives a Blob.  The ground is painted first, for figures themselves have none.
SAVE_JS = """
async function figureFile(view, kind, ground) {
  const layer = view.export(kind)
  if (kind === "svg") {
    const svg = layer.canvas.cloneNode(true)
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect")
    for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", ground]])
      rect.setAttribute(name, value)
    svg.insertBefore(rect, svg.firstChild)
    const text = new XMLSerializer().serializeToString(svg)
    return new Blob([text], { type: "image/svg+xml" })
  }
  const canvas = document.createElement("canvas")
  canvas.width = layer.canvas.width
  canvas.height = layer.canvas.height
  const context = canvas.getContext("2d")
  context.fillStyle = ground
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(layer.canvas, 0, 0)
  return new Promise(done => canvas.toBlob(done, "image/png"))
}
function handOut(blob, name) {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
}
"""

# The ground of a figure on the page is that of the first element around it that has one.
ACTION_JS = """
const view = Bokeh.index.find_one(plot)
let ground = "rgb(255, 255, 255)"
for (let at = view.el; at; at = at.parentElement || at.getRootNode().host) {
  const colour = getComputedStyle(at).backgroundColor
  if (colour && !/^(transparent|rgba\\(.*, 0\\))$/.test(colour)) { ground = colour; break }
}
figureFile(view, kind, ground).then(blob => handOut(blob, "figure." + kind))
"""


def _icon(word: str) -> str:
    """A word on a plate that both grounds bear."""
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><rect y="4" width="24" height="16" rx="3" '
        'fill="#5b646d"/><text x="12" y="16" font-size="10.5" font-weight="700" font-family="sans-serif" '
        f'text-anchor="middle" fill="#fff">{word}</text></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()


def save_tools(plot: Any) -> list[Any]:
    """Two buttons for a figure's toolbar that save what is seen, as SVG and as PNG."""
    return [
        CustomAction(
            icon=_icon(kind.upper()),
            description=f"Save as {kind.upper()}",
            callback=CustomJS(args={"plot": plot, "kind": kind}, code=SAVE_JS + ACTION_JS),
        )
        for kind in ("svg", "png")
    ]
