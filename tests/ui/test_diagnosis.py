"""Channels, calibration and diagnosis on the page: what they show, and a change made and taken back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)


def cell(page: Any, row: int, field: str) -> Any:
    return page.locator(f'.tabulator-row >> nth={row} >> [tabulator-field="{field}"]')


def bars(page: Any) -> list[str]:
    """The names of the bars of channels, as the browser holds them."""
    return page.evaluate(
        """() => {
            for (const model of Bokeh.documents[0]._all_models.values())
                if (model.type === "ColumnDataSource" && model.data.facts) return Array.from(model.data.name)
        }"""
    )


def test_channels_and_calibration_of_a_layer(open_page: Callable[[], Any]) -> None:
    page = open_page()
    cell(page, 1, "name").click()
    page.get_by_role("button", name="Channels", exact=True).click()
    caption = page.locator(".caption")
    expect(caption).to_contain_text("each has a scale of its own")
    names = bars(page)
    assert names == [f"channel {number}" for number in range(len(names))] and len(names) > 8
    page.get_by_role("button", name="width", exact=True).click()
    page.wait_for_function(
        """before => [...Bokeh.documents[0]._all_models.values()].some(
            model => model.data?.facts && model.data.name.join() !== before)""",
        arg=",".join(names),
    )
    assert sorted(bars(page)) == sorted(names)
    page.get_by_role("button", name="Calibration", exact=True).click()
    expect(caption).to_contain_text("A weight needs no calibration")
    page.get_by_role("button", name="input", exact=True).click()
    expect(caption).to_contain_text(re.compile("standard error, jackknife over .* (blocks|images)"))
    expect(caption).to_contain_text("of its width from")


def test_a_change_is_proposed_measured_made_and_taken_back(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.get_by_role("combobox", name="recipe").click()
    page.get_by_role("menuitem", name="w2a8", exact=True).click()
    expect(cell(page, 0, "w_format")).to_have_text("int2")
    page.get_by_role("button", name="Diagnosis", exact=True).click()
    finding = page.locator(".finding").filter(has_text="format: int2 → int4")
    expect(finding.first).to_contain_text("mean shift in 4 of 4 layers")
    expect(page.get_by_role("button", name="Diagnose", exact=True)).to_be_visible()
    expect(finding.first).to_contain_text("helps")
    expect(finding.first).to_contain_text(re.compile("images.*KL .* nats.* points"))
    page.get_by_role("combobox", name="order").click()
    page.get_by_role("menuitem", name="by bytes").click()

    def costs() -> list[int]:
        texts = page.locator(".finding .effect").all_inner_texts()
        return [
            int(found[1].replace(",", "")) for text in texts if (found := re.search(r"([+-][\d,]+) B", text))
        ]

    end = time.monotonic() + 20
    while costs() != sorted(costs()) and time.monotonic() < end:
        page.wait_for_timeout(100)
    assert len(costs()) > 1 and costs() == sorted(costs())
    # With the keys alone.
    finding.first.get_by_role("button", name="Apply").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("before the edit: diagnose again")).to_be_visible()
    expect(page.locator('[tabulator-field="w_format"]').filter(has_text="int4").first).to_be_visible()
    # After another edit the change is not offered again.
    page.get_by_role("switch", name="symmetric").first.click()
    expect(finding.first).to_contain_text("in the recipe")
    page.get_by_role("button", name="Undo").first.click()
    page.locator(".finding").get_by_role("button", name="Undo").click()
    expect(page.get_by_text("before the edit: diagnose again")).to_have_count(0)
    expect(page.locator('[tabulator-field="w_format"]').filter(has_text="int4")).to_have_count(0)
