"""The page in headless Chromium: how long after a hand has moved the figure is drawn, alone and beside a busy session.

From the browser's own stamp on the input to the end of the frame that painted it.  Needs the extra ``test``, and
Chromium on the path or named by the environment variable ``CHROMIUM``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Line
from tests.browsing import FLAGS, KEPT, free_port, wait_until_up

# Positions of a drag, and the seconds between two of them.
POSITIONS, BETWEEN = 90, 1 / 30
# Where a hand that hesitates stands still, and for how many seconds.
PAUSES, PAUSE = (20, 40, 60), 0.4
# Milliseconds within which the figure is to follow, at the 95th percentile: alone, and beside another session.
ALONE, BESIDE = 100, 200
SERVE = "from explorer.views.app import serve; serve({model!r}, port={port}, show=False, images={images})"
SECONDS = 120

# Notes when each position was put in, and when a frame was over in which levels of which reach were painted.
WATCH = """() => {
    const models = [...Bokeh.documents[0]._all_models.values()]
    const shaded = models.find(model => model.type === "BoxAnnotation" && model.inverted)
    const plot = models.find(model => model.center?.includes(shaded))
    const levels = plot.renderers.find(one => one.glyph.type === "Segment").data_source
    const find = view => view.model === plot ? view : [...view.child_views || []].map(find).find(one => one)
    const view = [...Bokeh.index.roots || Object.values(Bokeh.index)].map(find).find(one => one)
    const first = window.moves === undefined
    Object.assign(window, {moves: [], drawn: []})
    if (first) {
        addEventListener("pointermove", event => { window.input = event.timeStamp }, {capture: true})
        shaded.properties.right.change.connect(() => moves.push([window.input, shaded.right]))
        levels.properties.data.change.connect(() => { window.fresh = true })
    }
    if (view.watched) return
    view.watched = true
    const paint = view._actual_paint.bind(view), over = new MessageChannel()
    over.port1.onmessage = event => drawn.push([performance.now(), event.data])
    view._actual_paint = () => {
        paint()
        if (window.fresh) over.port2.postMessage(Math.max(...levels.data.x))
        window.fresh = false
    }
}"""


@contextmanager
def serving(model: str, images: int) -> Iterator[str]:
    """The page of a network in a process of its own; gives its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-c", SERVE.format(model=model, port=port, images=images)]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_up(url, process, Path(log.name))
            yield url
        finally:
            process.terminate()
            process.wait()


def opened(browser: Any, url: str) -> Any:
    """A page that has evaluated and estimated all that it does by itself."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(SECONDS * 1000)
    page.goto(url)
    page.get_by_text("Evaluated on").wait_for()
    page.locator('.tabulator-cell[tabulator-field="sens"]', has_text=re.compile(r"\d")).first.wait_for()
    page.get_by_text("layers' own shares").wait_for()
    return page


def drag(page: Any, pauses: Sequence[int] = ()) -> np.ndarray:
    """Drag the upper end of the histogram's range inwards; for each position the milliseconds until it was drawn.

    The hand stands still for a while at some positions: the recipe, and all that hangs on it, follows there.
    The levels reach in proportion to the range, and the range only shrinks: the first drawing that reaches no farther
    than a position has taken it, or a later one, into account.
    """
    place, before = page.evaluate(KEPT), None
    while place != before:
        page.wait_for_timeout(500)
        place, before = page.evaluate(KEPT), place
    page.evaluate(WATCH)
    page.mouse.move(place["high"], place["y"])
    page.mouse.down()
    begun = time.monotonic()
    for number in range(1, POSITIONS + 1):
        share = 1 - 0.7 * number / POSITIONS
        page.mouse.move(place["zero"] + (place["high"] - place["zero"]) * share, place["y"])
        time.sleep(max(0.0, begun + number * BETWEEN - time.monotonic()))
        if number in pauses:
            time.sleep(PAUSE)
            begun += PAUSE
    page.wait_for_timeout(2000)
    moves, drawn = (
        np.array(page.evaluate(name), dtype=np.float64).reshape(-1, 2) for name in ("moves", "drawn")
    )
    page.mouse.up()
    if not len(drawn):
        raise RuntimeError(
            f"Nothing was drawn for {len(moves)} positions, from {place} to {page.evaluate(KEPT)}."
        )
    ratio = drawn[-1, 1] / moves[-1, 1]
    # Shares of the range have three digits.
    reached = drawn[None, :, 1] / ratio <= moves[:, None, 1] * 1.003
    late = np.where(reached & (drawn[None, :, 0] >= moves[:, None, 0]), drawn[None, :, 0], np.inf).min(1)
    return late - moves[:, 0]


def measured(page: Any, name: str, bound: int, beside: str) -> Iterator[Line]:
    """Drags in the first and in the last of the layers."""
    rows = page.locator(".tabulator-row")
    for place in (0, rows.count() - 1):
        name_of = rows.nth(place).locator('[tabulator-field="name"]')
        # Once a row further down is chosen, those that are out of sight may be gone.
        layer = name_of.inner_text()
        name_of.click()
        page.wait_for_timeout(3000)
        for pauses in ((), PAUSES):
            taken = drag(page, pauses)
            page.get_by_role("button", name="Undo").click()
            page.wait_for_timeout(1500)
            middle, high = np.percentile(taken, [50, 95])
            how = f", {len(pauses)} pauses" if pauses else ""
            yield Line(
                f"{name} {layer}: drag to histogram, {beside}{how}", high / bound, 1.0,
                f"p50 {middle:.0f} ms, p95 {high:.0f} ms, {len(taken)} positions; of {bound} ms",
            )  # fmt: skip


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """Every figure of this module."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        yield Line(
            "page", "-", note="not measured: it needs the extra test, and Chromium on the path or in CHROMIUM"
        )
        return
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in options.models:
            with serving(name, options.images) as url:
                page = opened(browser, url)
                yield from measured(page, name, ALONE, "alone")
                other = opened(browser, url)
                other.get_by_role("combobox", name="method").click()
                other.get_by_role("menuitem", name="exact", exact=True).click()
                other.get_by_role("button", name="Measure").click()
                stop = other.get_by_role("button", name="Stop")
                stop.wait_for()
                for line in measured(page, name, BESIDE, "another session measures"):
                    still = "still at it" if stop.is_visible() else "done by the end"
                    yield replace(line, note=f"{line.note}; the other is {still}")
                other.close()
                page.close()
        browser.close()
