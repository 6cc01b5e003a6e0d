"""The first minute and the question marks, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_the_first_minute_can_be_walked_through_skipped_and_asked_for(open_page: Callable[[], Any]) -> None:
    page = open_page()
    strip = page.get_by_role("region", name="The first minute")
    page.evaluate("localStorage.clear()")
    page.reload()
    page.get_by_text("Evaluated on 600 images").wait_for()
    expect(strip).to_contain_text("1 of 5")
    height = page.evaluate("[document.documentElement.scrollHeight, window.innerHeight]")
    assert height[0] <= height[1], "the strip makes the page scroll"
    page.locator('.tabulator-row >> nth=2 >> [tabulator-field="name"]').click()
    expect(strip).to_contain_text("2 of 5")
    # Escape closes what is open, and only then the strip.
    page.get_by_role("button", name="What am I seeing? Histogram").click()
    words = page.locator("[popover]:popover-open")
    expect(words).to_contain_text("arXiv:1712.05877")
    page.keyboard.press("Escape")
    expect(words).to_have_count(0)
    expect(strip).to_be_visible()
    page.keyboard.press("Escape")
    expect(strip).to_be_hidden()
    page.reload()
    page.get_by_text("Evaluated on 600 images").wait_for()
    expect(strip).to_be_hidden()
    page.get_by_role("button", name="Guide").click()
    expect(strip).to_contain_text("1 of 5")
    for number in range(2, 6):
        strip.get_by_role("button", name="Next").click()
        expect(strip).to_contain_text(f"{number} of 5")
    strip.get_by_role("button", name="Done").click()
    expect(strip).to_be_hidden()
