"""Run ``docs/explore.ipynb`` again and keep its output small: ``python docs/make_notebook.py`` in a clone.

Live figures become pictures, drawn by Chromium (found on the path, or by ``$CHROMIUM``), for their scripts are MBs.
"""

from __future__ import annotations

import base64
import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

from explorer.views.drawing import bokehjs

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "explore.ipynb"
WIDTH, SCALE, COLOURS = 860, 1.25, 48


def execute(notebook: Any) -> Any:
    """Run all cells, in place, with this clone's package; an error in one ends it."""
    os.environ["PYTHONPATH"] = str(ROOT)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    return notebook


def contents(notebook: Any) -> list[Any]:
    """What the outputs hold, by kind."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data for output in outputs if "data" in output]


def figures(notebook: Any) -> list[Any]:
    """The contents of the outputs that are figures."""
    return [data for data in contents(notebook) if data.get("text/plain", "").startswith("Drawing(")]


def picture(page: Any, markup: str) -> str:
    """A figure as a PNG of few colours, base64."""
    page.set_content(f'<body style="margin:4px">{bokehjs()}<div id="figure">{markup}</div></body>')
    page.locator(".bk-Canvas").wait_for()
    # A figure fades in when all of its parts know their sizes.
    page.wait_for_timeout(500)
    shot = page.locator("#figure").screenshot()
    small = Image.open(BytesIO(shot)).convert("RGB").quantize(COLOURS)
    found = BytesIO()
    small.save(found, "PNG", optimize=True)
    return base64.b64encode(found.getvalue()).decode()


def main() -> None:
    from playwright.sync_api import sync_playwright

    notebook = execute(nbformat.read(NOTEBOOK, as_version=4))
    with sync_playwright() as driver:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 600}, device_scale_factor=SCALE)
        for data in figures(notebook):
            data["image/png"] = picture(page, data.pop("text/html"))
        browser.close()
    for data in contents(notebook):
        # Where there is a table nobody reads the object in full.
        if "text/html" in data:
            data["text/plain"] = data["text/plain"].partition("(")[0]
    for cell in notebook.cells:
        # When a cell was run, and by what, is different each time.
        cell.metadata.pop("execution", None)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
