"""A server for a team on loopback: start, sessions held, memory for each, how long edits take, what leavers free.

Visitors speak Bokeh's protocol without a browser; one drag is made in Chromium where there is one.  ``--sessions N``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.page import ALONE, drag, opened
from benchmarks.table import Line
from tests.browsing import FLAGS, free_port
from tests.visiting import Visitor, asked

# Seconds from the command to the first page; edits that are timed.
START, EDITS = 10, 40
# Milliseconds within which an edit is to be seen in the list of layers.
SEEN = 200
SERVE = "from explorer.views.app import serve; serve({model!r}, port={port}, show=False, images={images})"
MIB = 1 << 20


@contextmanager
def served(model: str, images: int) -> Iterator[tuple[str, float]]:
    """The page of a network in a process of its own; its address, and when it was started."""
    port = free_port()
    command = [sys.executable, "-c", SERVE.format(model=model, port=port, images=images)]
    with tempfile.TemporaryFile() as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield f"http://127.0.0.1:{port}/", begun
        finally:
            process.terminate()
            process.wait()


async def first_page(url: str) -> None:
    """Wait until the page is answered."""
    while True:
        try:
            if (await asked(url)).code == 200:
                return
        except OSError:
            await asyncio.sleep(0.05)


async def health(url: str) -> dict[str, Any]:
    """What the server says of itself."""
    return dict(json.loads((await asked(f"{url}healthz")).body))


async def arrived(url: str) -> tuple[Visitor, float]:
    """A visitor whose page has evaluated, and the seconds until it was open."""
    begun = time.monotonic()
    visitor = await Visitor(url).open()
    took = time.monotonic() - begun
    await visitor.until(lambda: visitor.says("Evaluated on"))
    return visitor, took


async def left(url: str, visitors: Sequence[Visitor]) -> None:
    """All leave, one after the other, and the server has noted it."""
    for visitor in visitors:
        await visitor.leave()
    while (await health(url))["sessions"]:
        await asyncio.sleep(0.1)


async def edited(visitor: Visitor) -> tuple[float, float]:
    """Milliseconds from the choice of another recipe until the list of layers shows it, and until it is evaluated."""
    menu = visitor.named("Select", label="recipe")
    wanted = "w4a8" if visitor.models[menu].get("value") != "w4a8" else "w8a8"
    begun = time.monotonic()
    visitor.change(menu, "value", wanted)
    visitor.models[menu]["value"] = wanted
    await visitor.until(lambda: any(event["kind"] == "ColumnsPatched" for event in visitor.heard))
    seen = time.monotonic() - begun
    await visitor.until(lambda: any("Evaluated on" in str(event.get("new")) for event in visitor.heard))
    return 1000 * seen, 1000 * (time.monotonic() - begun)


def times(milliseconds: Sequence[float]) -> str:
    middle, high = np.percentile(milliseconds, [50, 95])
    return f"p50 {middle:.0f} ms, p95 {high:.0f} ms"


async def edits(visitors: Sequence[Visitor], together: bool) -> Line:
    """Edits by visitors in turn, or by all at the same moment."""
    rounds = max(1, EDITS // len(visitors))
    found: list[tuple[float, float]] = []
    for _ in range(rounds):
        if together:
            found += await asyncio.gather(*map(edited, visitors))
        else:
            found += [await edited(visitor) for visitor in visitors]
    seen, known = zip(*found, strict=True)
    how = "all edit at the same moment" if together else "one edits at a time"
    return Line(
        f"{len(visitors)} sessions held, {how}: until it is seen", float(np.percentile(seen, 95)) / SEEN,
        None if together else 1.0,
        f"seen {times(seen)}; evaluated {times(known)}; of {SEEN} ms, {len(found)} edits",
    )  # fmt: skip


def chromium_drag(url: str) -> str | None:
    """The milliseconds from a dragged range to the histogram in a browser, or None without Chromium."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        return None
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        page = opened(browser, url)
        page.locator('.tabulator-row >> nth=0 >> [tabulator-field="name"]').click()
        page.wait_for_timeout(3000)
        taken = drag(page)
        browser.close()
    return times(taken)


async def measured(model: str, images: int, sessions: int) -> AsyncIterator[Line]:
    """Every figure of one network, as soon as it is known."""
    with served(model, images) as (url, begun):
        await first_page(url)
        took = time.monotonic() - begun
        yield Line(f"{model}: command to first page", took / START, 1.0, f"{took:.1f} s of {START} s")
        # The first visitor computes what all share.
        await left(url, [(await arrived(url))[0]])
        before = (await health(url))["resident_bytes"]
        held: list[Visitor] = []
        opening: list[float] = []
        grown = 0.0
        for count in sorted({1, min(5, sessions), sessions}):
            while len(held) < count:
                visitor, took = await arrived(url)
                held.append(visitor)
                opening.append(took)
            grown = ((await health(url))["resident_bytes"] - before) / MIB
            yield await edits(held, together=False)
        yield await edits(held, together=True)
        note = f"{grown:.0f} MiB for {sessions}"
        yield Line(f"{model}: memory of a session, MiB", f"{grown / sessions:.1f}", None, note)
        note = f"median; {opening[0]:.2f} s for the first, {opening[-1]:.2f} s for the last"
        yield Line(f"{model}: until a page is open, s", f"{np.median(opening):.2f}", None, note)
        drawn = await asyncio.to_thread(chromium_drag, url)
        note = f"{drawn}; alone {ALONE} ms are wanted" if drawn else "not measured: no Chromium"
        yield Line(f"{model}: drag in Chromium beside {sessions} sessions held", "", None, note)
        await left(url, held)
        peak = (await health(url))["resident_bytes"]
        again = [(await arrived(url))[0] for _ in range(sessions)]
        more = ((await health(url))["resident_bytes"] - peak) / MIB
        note = f"{more:+.0f} MiB, after {grown:.0f} MiB for the first; 0 is all given back, 1 nothing"
        yield Line(
            f"{model}: growth by {sessions} more once these have left", more / max(grown, 1), None, note
        )
        await left(url, again)


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """Every figure of this module, of the first network."""
    found = measured(options.models[0], options.images, options.sessions)

    async def following() -> Line | None:
        return await anext(found, None)

    with asyncio.Runner() as runner:
        while (line := runner.run(following())) is not None:
            yield line
