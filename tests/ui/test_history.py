"""The history on the page: it outlives a reload and a killed server, and belongs to its tab."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

from explorer.recipe import Recipe
from explorer.study import Outcome, Trial
from explorer.views.historyview import row
from explorer.views.trialfigure import ACROSS, UP, TrialsFigure
from tests.browsing import free_port, wait_until_up

from .conftest import ROOT, environment

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)
SERVE = """
from explorer.views.app import serve
serve("fashion-lenet5", port={port}, show=False, images=600, project={project!r})
"""


@contextmanager
def serving(port: int, project: Path) -> Iterator[str]:
    """A server that is killed at the end, as no server wants to be."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE.format(port=port, project=str(project))],
            cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_until_up(url, process, Path(log.name))
            yield url
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(30)


def cell(page: Any, row: int, field: str = "w_format") -> Any:
    return page.locator(f'.tabulator-row >> nth={row} >> [tabulator-field="{field}"]')


def pick(page: Any, row: int, value: str) -> None:
    """Choose a format, and wait until the server has heard of it."""
    size = page.locator(".card", has=page.locator(".name", has_text="Size")).locator(".value")
    before = size.inner_text()
    cell(page, row).click()
    page.locator(".tabulator-edit-list-item").get_by_text(value, exact=True).click()
    expect(size).not_to_have_text(before)


def history(page: Any) -> Any:
    page.get_by_role("button", name="History", exact=True).click()
    return page.locator("tr", has=page.locator("button.mark"))


def test_a_history_outlives_a_reload_and_a_killed_server(new_page: Callable[[], Any], tmp_path: Path) -> None:
    port, page = free_port(), new_page()
    with serving(port, tmp_path) as url:
        page.goto(url)
        page.get_by_text("Evaluated on 600 images").wait_for()
        # The sensitivities come last, and the list of layers draws itself anew with them.
        page.locator('.tabulator-cell[tabulator-field="sens"]', has_text=re.compile(r"\d")).first.wait_for()
        pick(page, 2, "int4")
        rows = history(page)
        expect(rows).to_have_count(2)
        page.get_by_role("textbox", name="name of the present one").fill("<b>../mine</b>")
        page.get_by_role("button", name="Name it").click()
        expect(rows.first).to_contain_text("<b>../mine</b>")
        pick(page, 1, "int2")
        # Loaded again, and killed, in the middle of the evaluation.
        page.reload()
        expect(cell(page, 1)).to_have_text("int2")
        expect(cell(page, 2)).to_have_text("int4")
        pick(page, 0, "int3")
    with serving(port, tmp_path) as url:
        page.reload()
        for place, name in enumerate(("int3", "int2", "int4", "int8")):
            expect(cell(page, place)).to_have_text(name)
        rows = history(page)
        expect(rows.filter(has_text="the present one")).to_have_count(1)
        page.get_by_role("button", name="<b>../mine</b>").click()
        expect(cell(page, 1)).to_have_text("int8")
        page.get_by_role("button", name="Undo").click()
        expect(cell(page, 1)).to_have_text("int2")
        page.get_by_role("button", name="Undo").click()
        expect(cell(page, 0)).to_have_text("int8")
        expect(cell(page, 1)).to_have_text("int2")
        # Another tab has the history of the project and a recipe of its own.
        other = new_page()
        other.goto(url)
        expect(cell(other, 1)).to_have_text("int8")
        history(other)
        for name in ("compare w8a8", "compare <b>../mine</b>"):
            box = other.get_by_role("checkbox", name=name)
            box.click()
            expect(box).to_be_checked()
        expect(other.get_by_text("w8a8 minus <b>../mine</b>")).to_be_visible()
        expect(
            other.get_by_text(re.compile("not distinguishable on 600 images|is more accurate"))
        ).to_be_visible()
        expect(cell(page, 1)).to_have_text("int2")


def test_a_recipe_for_another_network_is_offered_in_part(
    open_page: Callable[[], Any], tmp_path: Path
) -> None:
    page = open_page()
    file = tmp_path / "other.yaml"
    recipe = Recipe.preset("w4a8").with_layer("ip1", weight={"format": "int3"})
    file.write_text(recipe.with_layer("<i>head</i>", weight={"format": "int2"}).to_yaml())
    page.locator('input[type="file"]').first.set_input_files(file)
    offer = page.get_by_role("alert").filter(has_text="is for another network")
    expect(offer).to_contain_text("1 of its 2 lines name no layer of this one: <i>head</i>. These fit: ip1.")
    expect(cell(page, 2)).to_have_text("int8")
    page.get_by_role("button", name="Apply the part that fits").click()
    expect(cell(page, 2)).to_have_text("int3")
    expect(cell(page, 1)).to_have_text("int4")
    expect(offer).to_be_hidden()
    # Without a project folder the tab says how long its history lives.
    history(page)
    expect(page.get_by_text("kept while this page is open (longer: serve with --project)")).to_be_visible()


def trial(number: int, size: int, right: float) -> Trial:
    recipe = Recipe.preset("w8a8").with_layer(f"l{number}", weight={"format": "int4"})
    low_high, below_above = (right - 0.05, right + 0.05), (right - 1, right - 0.8)
    found = Outcome(400, 400, False, right, low_high, 0.9, right - 0.9, below_above, 0.0, (), ())
    return Trial(recipe, size, 4000, size * 10, 40000, found, float(number))


def test_the_scatter_holds_what_was_tried() -> None:
    taken: list[str] = []
    figure = TrialsFigure(taken.append)
    trials = [
        trial(0, 1000, 0.8),
        trial(1, 2000, 0.7),
        trial(2, 3000, 0.9),
        replace(trial(3, 1, 0.1), outcome=None),
    ]
    for across in ACROSS:
        for up in UP:
            figure.update(trials, trials[1].recipe, across, up, lambda recipe: "")
            dots = figure.dots.data
            assert list(dots["digest"]) == [each.digest for each in trials[:3]]
            assert all(
                low <= y <= high for low, y, high in zip(dots["low"], dots["y"], dots["high"], strict=True)
            )
            assert list(figure.ring.data["x"]) == [dots["x"][1]]
            assert list(figure.front.data["x"]) == [dots["x"][0], dots["x"][2]]
            assert figure.x_range.start < min(dots["x"]) and figure.x_range.end > figure.floats.data["x"][0]
            assert figure.level.location == (90 if up == UP[0] else 0)
    for count in (1, 2):
        figure.clicks.data = {"count": [count], "name": [trials[2].digest]}
    assert taken == [trials[2].digest] * 2
    figure.update([], trials[1].recipe, "size", UP[0], lambda recipe: "")
    assert not figure.level.visible and list(figure.dots.data["x"]) == []


def test_what_a_user_types_is_escaped() -> None:
    text = row(replace(trial(0, 1000, 0.8), name="<script>'\""), False, False, "<i>")
    assert "<script>" not in text and "<i>" not in text and "&lt;script&gt;" in text
