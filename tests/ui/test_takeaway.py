"""Taking the page away: its address, its files, its figures, its notes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

from explorer.views.link import Link, state_of

from .test_page import card, cell, pick

pytestmark = pytest.mark.browser


def saved(page: Any, label: str) -> tuple[str, bytes]:
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name=label).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def address(page: Any, complete: Callable[[Link], bool]) -> Link:
    """What the address says, as soon as it says all that is waited for."""
    for _ in range(150):
        text = state_of(page.evaluate("location.search"))
        if text is not None and complete(link := Link.from_text(text)):
            return link
        page.wait_for_timeout(200)
    raise AssertionError(f"the address says {page.url}")


def test_what_is_shown_is_in_the_address_and_in_the_files(
    open_page: Callable[[], Any], new_page: Callable[[], Any], server: str
) -> None:
    page = open_page()
    pick(page, 2, "w_format", "int3")
    page.get_by_role("button", name="Notes", exact=True).click()
    note = page.get_by_label("on ip1")
    note.fill("too <b>low</b>")
    expect(page.get_by_text("Kept.")).to_have_count(0)
    note.press("Tab")
    expect(page.get_by_text("Kept.")).to_be_visible()
    expect(page.locator(".remark").first).to_contain_text("too <b>low</b>")
    page.get_by_text("Evaluated on 600 images").wait_for()
    link = address(page, lambda link: bool(link.notes))
    assert link.layer == "ip1" and link.views[1] == "Notes" and link.notes.layers == {"ip1": "too <b>low</b>"}
    assert link.recipe.config("ip1").weight.format == "int3"
    name, content = saved(page, "Report")
    assert name == "report.html" and b"too &lt;b&gt;low" in content and link.recipe.digest.encode() in content
    name, content = saved(page, "Layers (CSV)")
    assert name == "layers.csv" and content.startswith(b"name,op,") and b"int3 channel sym minmax" in content
    assert len(json.loads(saved(page, "Input SQNR")[1])["graph"]["results"]) == 4
    # The figure of the tensor, whose buttons are in sight while the mouse is over it.
    canvas = page.locator(".bk-Canvas").first
    canvas.hover()
    with page.expect_download() as download:
        page.locator("[title='Save as SVG']").first.click()
    drawing = ElementTree.parse(download.value.path()).getroot()
    assert drawing.tag.endswith("svg") and len(list(drawing.iter())) > 50
    other = new_page()
    other.goto(page.url)
    other.get_by_text("Evaluated on 600 images").wait_for()
    expect(cell(other, 2, "w_format")).to_have_text("int3")
    expect(other.get_by_label("on ip1")).to_have_value("too <b>low</b>")
    expect(card(other, "Size").locator(".value")).to_have_text(
        card(page, "Size").locator(".value").inner_text()
    )
    other.goto(f"{server}?state=0.abc")
    expect(
        other.get_by_text("The address holds a state of version 0; this program reads version 1.")
    ).to_be_visible()
    other.get_by_text("Evaluated on 600 images").wait_for()
    expect(cell(other, 2, "w_format")).to_have_text("int8")
    assert re.search(r"state=0\.abc$", other.url)
