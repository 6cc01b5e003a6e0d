"""Accessibility by axe-core (https://github.com/dequelabs/axe-core): nothing serious or critical, light or dark."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

pytestmark = pytest.mark.browser
GRAVE = ("serious", "critical")


def violations(page: Any) -> list[str]:
    """What axe-core finds that keeps somebody from using the page, one line each."""
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"], "axe-core has looked at nothing"
    return [
        f"{one['impact']} {one['id']}: {node['html'][:160]}"
        for one in found["violations"]
        if one["impact"] in GRAVE
        for node in one["nodes"]
    ]


def settled(page: Any) -> list[str]:
    """The violations once nothing moves any more: colours fade when the theme or a view changes."""
    found = violations(page)
    for _ in range(5):
        if not found:
            break
        page.wait_for_timeout(1000)
        found = violations(page)
    return found


def test_nothing_serious_in_light_and_dark(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    assert settled(page) == []
    # The views with the most words and marks of their own.
    page.get_by_role("button", name="Conventions", exact=True).click()
    page.get_by_role("button", name="Flips", exact=True).click()
    expect(page.locator("tr.present")).to_be_visible()
    assert settled(page) == []
    page.get_by_role("button", name="Number line", exact=True).click()
    page.get_by_role("button", name="one group", exact=True).click()
    expect(page.get_by_label("group", exact=True)).to_be_visible()
    assert settled(page) == []
    card = page.locator(".card").first
    light = card.evaluate("one => getComputedStyle(one).backgroundColor")
    page.get_by_role("button", name="theme").click()
    expect(card).not_to_have_css("background-color", light)
    assert settled(page) == []
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    assert settled(page) == []
