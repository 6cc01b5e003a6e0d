"""The list, the keys and the view along the network: what a design review is held on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Locator, expect

from explorer.formats import FORMATS
from explorer.recipe import PRESETS, Recipe
from explorer.session import Session
from explorer.views import depthview, keys
from explorer.views.bulk import AS_IT_IS, BulkBar, with_field
from explorer.views.presets import USUAL, PresetBar
from explorer.views.state import PageState
from explorer.views.table import LayerTable, frame
from explorer.views.tabs import Tabs
from tests.small import images, tiny

from .test_page import cell, choose

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)


@pytest.fixture
def state() -> PageState:
    return PageState(Session(tiny(), data=images(), store_bytes=1 << 24))


def reach(state: PageState, table: LayerTable) -> keys.Reach:
    class Nothing:
        view = None

        def turn(self, visible: bool) -> None: ...

    tabs = Tabs({"one": Nothing(), "two": Nothing()})
    return keys.Reach(state, table, tabs, tabs, lambda: None)


def test_every_key_does_something_and_stands_in_the_list(state: PageState) -> None:
    table = LayerTable(state)
    board = keys.Keys(reach(state, table))
    names = [name for key in keys.KEYS for name in key.names]
    assert len(names) == len(set(names)) == len(board.does)
    for key in keys.KEYS:
        assert key.help in keys.listed()
        for name in key.names:
            board.press(name)
            assert board.view.said and not state.problem


def test_layers_bits_and_history_by_keys(state: PageState) -> None:
    table = LayerTable(state)
    press = keys.Keys(reach(state, table)).press
    state.layer = "stem"
    press("j")
    press("[")
    assert state.layer == "mid" and state.config.weight.format == "int7"
    press("c")
    assert state.config.weight.format == "int8"
    press("c")
    press("ctrl+z")
    assert state.config.weight.format == "int8"
    press("ctrl+shift+z")
    press("t")
    press("]")
    assert state.config.weight.format == "int7" and state.config.input.format == "uint9"
    press("j")
    press("j")
    assert state.layer == "fc"
    state.edit(["fc"], input={"format": "uint16"})
    press("]")
    assert "uint16 has the most bits" in state.problem
    table.show("*t*")
    press("k")
    assert state.layer == "stem"


@pytest.mark.parametrize("name", FORMATS)
def test_the_ladder_of_every_format_climbs_and_holds_it(name: str) -> None:
    steps = keys.ladder(name)
    bits = [FORMATS[step].bits for step in steps]
    assert name in steps and bits == sorted(set(bits))


def test_the_usual_recipes_are_presets_and_one_press_each(state: PageState) -> None:
    bar = PresetBar(state)
    for name in USUAL:
        bar._take(name)
        assert state.session.recipe == PRESETS[name].recipe
    assert {"w8a8", "w4a8", "w4a16", "w2a8", "fp8", "mxfp4", "binary"} <= set(USUAL)


def test_a_pattern_becomes_one_line_and_marked_layers_one_each(state: PageState) -> None:
    bar = BulkBar(state, lambda pattern: None)
    bar._typed("*m*")
    bar.menus["weight"].value = "int4"
    assert bar.menus["weight"].value == AS_IT_IS
    assert [line.pattern for line in state.session.recipe.layers] == ["*m*"]
    assert [state.session.recipe.config(name).weight.format for name in ("stem", "mid", "fc")] == [
        "int4", "int4", "int8",
    ]  # fmt: skip
    state.marks = frozenset({"mid", "fc"})
    bar.menus["input"].value = "fp8_e4m3"
    recipe = state.session.recipe
    assert [recipe.config(name).input.format for name in ("stem", "mid", "fc")] == [
        "uint8",
        "fp8_e4m3",
        "fp8_e4m3",
    ]
    state.session.undo()
    assert state.session.recipe.config("fc").input.format == "uint8"
    bar.menus["weight"].value = "by subchannel:32"
    bar.menus["input"].value = "mode dynamic"
    found = [state.session.recipe.config(name) for name in ("stem", "mid", "fc")]
    assert [config.weight.granularity for config in found] == ["channel", "subchannel:32", "subchannel:32"]
    assert [config.input.mode for config in found] == ["static", "dynamic", "dynamic"]
    # Where the layers are not alike each keeps what it has besides.
    mixed = Recipe.preset("w8a8").with_layer("mid", weight={"granularity": "layer"})
    edited = with_field(mixed, ["stem", "mid"], "*m*", "weight", "format", "kmeans4")
    assert [edited.config(name).weight.granularity for name in ("stem", "mid")] == ["channel", "layer"]


def test_the_list_shows_estimates_as_such_and_bars_from_zero(state: PageState) -> None:
    state.ranking = {"stem": (0.5, "estimate"), "mid": (0.25, "done"), "fc": (0.0, "done")}
    table = frame(state)
    assert list(table["sens_bar"]) == [100, 50, 0]
    assert list(table["sens_text"]) == ["~0.5", "0.25", "< 1e-6"]
    assert list(table["at"]) == [1, 2, 3]
    state.ranking_old = True
    assert list(frame(state)["sens_text"])[1] == "~0.25"


def test_the_words_along_the_network_name_birth_and_growth() -> None:
    table = pd.DataFrame(
        {"layer": ["a", "b", "c"], "local_db": [30.0, 9.0, math.inf], "cumulative_db": [30.0, 8.5, 6.0]}
    )
    assert (
        depthview.describe(table) == "born: b (local 9.0 dB); largest drop: 21.5 dB at b; at the end 6.0 dB"
    )
    none = table.assign(local_db=math.inf, cumulative_db=math.inf)
    assert depthview.describe(none) == "nothing is quantized"


def words(page: Any) -> Locator:
    return page.locator(".two")


def points(page: Any) -> dict[str, list[float]]:
    """What the figure along the network holds in the browser."""
    return page.evaluate(
        """() => {
            const found = {}
            for (const model of Bokeh.documents[0]._all_models.values())
                if (model.type === "GlyphRenderer" && ["local", "cumulative"].includes(model.name))
                    found[model.name] = Array.from(model.data_source.data.value)
            return found
        }"""
    )


def test_a_review_by_the_keyboard_alone(open_page: Callable[[], Any]) -> None:
    page = open_page()
    press = page.keyboard.press
    for _ in range(4):
        press("k")
    expect(page.locator(".head")).to_have_text("conv1")
    press("4")
    expect(words(page)).to_contain_text("95% intervals")
    before = points(page)
    assert len(before["local"]) == len(before["cumulative"]) == 4
    press("j")
    expect(page.locator(".head")).to_have_text("conv2")
    for format in ("int7", "int6"):
        press("[")
        expect(cell(page, 1, "w_format")).to_have_text(format)
    expect(words(page)).not_to_contain_text("before the edit")
    after = points(page)
    assert after["local"][0] == before["local"][0] and after["local"][1] < before["local"][1]
    assert after["cumulative"][1] < before["cumulative"][1]
    press("Control+z")
    expect(cell(page, 1, "w_format")).to_have_text("int7")
    press("Control+Shift+Z")
    expect(cell(page, 1, "w_format")).to_have_text("int6")
    # Letters in a field are letters.
    press("/")
    page.keyboard.type("ip?[")
    expect(page.get_by_label("filter, such as layer3.*")).to_have_value("ip?[")
    expect(cell(page, 0, "name")).to_have_count(0)
    press("Backspace")
    expect(page.locator(".tabulator-row")).to_have_count(2)
    expect(cell(page, 0, "name")).to_contain_text("ip1")
    expect(page.get_by_role("dialog")).to_have_count(0)
    choose(page, "weight, 2 shown", "int3")
    for row in (0, 1):
        expect(cell(page, row, "w_format")).to_have_text("int3")
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("fewer bits")
    press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="MXFP4", exact=True).click()
    expect(cell(page, 0, "w_format")).to_have_text("fp4_e2m1")


def test_the_list_is_sorted_and_still_edited_in_place(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.locator('.tabulator-col[tabulator-field="size"]').click()
    expect(cell(page, 0, "name")).to_contain_text("conv1")
    page.locator('.tabulator-col[tabulator-field="size"]').click()
    expect(cell(page, 0, "name")).to_contain_text("ip1")
    cell(page, 0, "w_format").click()
    page.locator(".tabulator-edit-list-item").get_by_text("int5", exact=True).click()
    row = page.locator(".tabulator-row", has=page.get_by_text("ip1"))
    expect(row.locator('[tabulator-field="w_format"]')).to_have_text("int5")
    expect(page.locator(".head")).to_have_text("ip1")
