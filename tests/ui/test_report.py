"""The report in a browser without a network: its figures are drawn, zoomed and handed out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

from explorer import Session
from explorer.sources import Notes
from explorer.views.report import report_html
from explorer.views.reportfacts import gather
from tests.small import images, tiny

pytestmark = pytest.mark.browser
RANGE = """() => {
    const id = document.querySelector("[data-figure]").dataset.figure
    const view = [...Bokeh.index.roots].find(one => one.model.id === id)
    const range = view.model.x_range, box = view.frame.bbox, place = view.el.getBoundingClientRect()
    return {start: range.start, end: range.end, x: place.left + box.left, y: place.top + box.top, width: box.width,
            height: box.height, ink: view.model.below[0].axis_label_text_color}
}"""


def test_the_report_opens_offline_and_its_figures_are_zoomed(
    new_page: Callable[[], Any], tmp_path: Path
) -> None:
    session = Session(tiny(), images(), recipe="w4a8")
    table = session.sensitivity(["int8", "int2"], method="weight")
    file = tmp_path / "report.html"
    file.write_text(
        report_html(gather(session, sensitivity=table, notes=Notes("<script>document.title = 'x'</script>"))),
        encoding="utf-8",
    )
    page, asked = new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    complaints: list[str] = []
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    page.emulate_media(color_scheme="dark")
    page.goto(file.as_uri())
    page.wait_for_function(
        f"(() => {{ try {{ return ({RANGE})().ink === '#e6e9ec' }} catch {{ return false }} }})()"
    )
    expect(page.locator(".bk-Canvas")).to_have_count(7)
    page.locator("[data-figure]").first.scroll_into_view_if_needed()
    before = page.evaluate(RANGE)
    middle = before["y"] + before["height"] / 2
    page.mouse.move(before["x"] + before["width"] * 0.25, middle - 30)
    page.mouse.down()
    page.mouse.move(before["x"] + before["width"] * 0.5, middle, steps=4)
    page.mouse.move(before["x"] + before["width"] * 0.75, middle + 30, steps=4)
    page.mouse.up()
    page.wait_for_function(f"({RANGE})().start > {before['start']}")
    after, width = page.evaluate(RANGE), before["end"] - before["start"]
    assert after["start"] == pytest.approx(before["start"] + width / 4, abs=width / 40)
    assert after["end"] == pytest.approx(before["start"] + 3 * width / 4, abs=width / 40)
    with page.expect_download() as download:
        page.locator("[data-save=svg]").first.click()
    assert download.value.suggested_filename == "stem-weight.svg"
    drawing = ElementTree.parse(download.value.path()).getroot()
    assert drawing.tag.endswith("svg") and len(list(drawing.iter())) > 50
    with page.expect_download() as download:
        page.locator("[data-save=png]").last.click()
    assert download.value.suggested_filename == "sensitivity.png"
    assert Path(download.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # Paper is white, whatever the screen is.
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_function(f"({RANGE})().ink === '#1d2227'")
    page.emulate_media(media="screen", color_scheme="dark")
    page.wait_for_function(f"({RANGE})().ink === '#e6e9ec'")
    page.emulate_media(media="screen", color_scheme="light")
    page.wait_for_function(f"({RANGE})().ink === '#1d2227'")
    assert page.title().startswith("TinyNet")
    # The file itself, and what the browser has made in its own memory.
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data"}
    assert [url for url in asked if url.startswith("file")] == [file.as_uri()]
    assert not complaints
