"""A figure as a file: the browser that has drawn it writes it, for nothing else here can.

BokehJS paints a figure once more, on a canvas or as SVG; what is seen is what is saved, zoomed or not.
"""

from __future__ import annotations

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
