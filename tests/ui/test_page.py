"""The page in a real browser: what a user does, and what must move."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Locator, expect

from explorer.errors import JobError
from explorer.recipe import Recipe
from explorer.views.app import STOPS
from tests.browsing import KEPT, free_port

from .conftest import LONG

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)
WIDE = next(name for name, width in STOPS.items() if width)


# Writes cells of the list of layers: by column, each a row and its value.
PATCH = """cells => {
    const models = [...Bokeh.documents[0]._all_models.values()]
    models.find(model => model.type.endsWith("DataTabulator")).source.patch(new Map(Object.entries(cells)))
}"""


def cell(page: Any, row: int, field: str) -> Locator:
    return page.locator(f'.tabulator-row >> nth={row} >> [tabulator-field="{field}"]')


def card(page: Any, name: str) -> Locator:
    return page.locator(".card", has=page.locator(".name", has_text=name))


def caption(page: Any) -> Locator:
    return page.locator(".caption")


def pick(page: Any, row: int, field: str, value: str) -> None:
    """Choose from a cell's menu, as a user does."""
    cell(page, row, field).click()
    page.locator(".tabulator-edit-list-item").get_by_text(value, exact=True).click()


def choose(page: Any, label: str, value: str, which: int = 0) -> None:
    """Choose from a menu of the inspector; ``which`` 0 is the weight's, 1 the input's."""
    page.get_by_role("combobox", name=label).nth(which).click()
    page.get_by_role("menuitem", name=value, exact=True).click()


def drawn(page: Any) -> list[float]:
    """The counts after quantization that the histogram holds in the browser."""
    return page.evaluate(
        """() => {
            for (const model of Bokeh.documents[0]._all_models.values())
                if (model.type === "ColumnDataSource" && model.data.after) return Array.from(model.data.after)
        }"""
    )


def test_the_app_comes_up(launch: Callable[..., Path], new_page: Callable[[], Any]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/main"
    launch(
        [
            sys.executable,
            "-m",
            "panel",
            "serve",
            "apps/main.py",
            "--port",
            str(port),
            "--address",
            "127.0.0.1",
        ],
        f"http://127.0.0.1:{port}/",
    )
    page = new_page()
    page.goto(url)
    expect(page.locator(".bk-Canvas").first).to_be_visible(timeout=LONG)
    expect(page.locator(".tabulator-row").first).to_be_visible()
    expect(card(page, "Top-1")).to_contain_text("%", timeout=LONG)
    height = page.evaluate("[document.documentElement.scrollHeight, window.innerHeight]")
    assert height[0] <= height[1], "the page scrolls at 1440 x 900"


def test_a_new_format_moves_histogram_size_and_accuracy(open_page: Callable[[], Any]) -> None:
    page = open_page()
    cell(page, 2, "name").click()
    expect(page.locator(".head")).to_have_text("ip1")
    before, size = drawn(page), card(page, "Size").inner_text()
    accuracy = card(page, "Difference").inner_text()
    pick(page, 2, "w_format", "int2")
    expect(caption(page)).to_contain_text("int2 channel sym minmax")
    expect(card(page, "Size")).not_to_have_text(re.compile(re.escape(size.split("\n")[1])))
    assert drawn(page) != before
    expect(cell(page, 2, "w_format")).to_have_text("int2")
    page.get_by_text("Evaluated on 600 images").wait_for()
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    expect(card(page, "Difference")).not_to_contain_text("stale")
    assert card(page, "Difference").inner_text() != accuracy
    page.get_by_role("button", name="Undo").click()
    expect(caption(page)).to_contain_text("int8 channel sym minmax")
    expect(cell(page, 2, "w_format")).to_have_text("int8")


def test_a_refused_scheme_says_why_and_changes_nothing(open_page: Callable[[], Any]) -> None:
    page = open_page()
    choose(page, "mode", "dynamic")
    expect(cell(page, 1, "a_mode")).to_have_text("dynamic")
    expect(page.get_by_role("combobox", name="objective").nth(1)).to_have_text("minmax")
    choose(page, "objective", "kl", which=1)
    expect(page.get_by_role("alert").filter(has_text="Dynamic ranges")).to_be_visible()
    expect(page.get_by_role("combobox", name="objective").nth(1)).to_have_text("minmax")
    expect(cell(page, 1, "a_mode")).to_have_text("dynamic")


def test_an_objective_shows_the_numbers_it_takes(open_page: Callable[[], Any]) -> None:
    page = open_page()
    choose(page, "objective", "clip:F")
    weight = page.get_by_label("F", exact=True)
    expect(weight).to_have_value("0.9")
    expect(caption(page)).to_contain_text("sym clip:0.9")
    weight.fill("0.75")
    weight.press("Enter")
    expect(caption(page)).to_contain_text("sym clip:0.75")
    choose(page, "objective", "clip:F", which=1)
    page.get_by_label("F low", exact=True).fill("0.5")
    page.get_by_label("F low", exact=True).press("Enter")
    expect(page.get_by_label("F high", exact=True)).to_have_value("0.9")
    choose(page, "rounding", "stochastic:SEED")
    page.get_by_label("seed", exact=True).first.fill("7")
    page.get_by_label("seed", exact=True).first.press("Enter")
    expect(caption(page)).to_contain_text("sym clip:0.75 stochastic:7")
    choose(page, "objective", "percentile:P", which=1)
    expect(page.get_by_label("P", exact=True)).to_have_value("99.9")
    expect(page.get_by_label("F high", exact=True)).to_be_hidden()


def test_marked_layers_are_edited_together(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.get_by_role("button", name="mark all layers").click()
    expect(page.get_by_role("button", name="Apply to marked (4)")).to_be_enabled()
    choose(page, "format", "int5")
    expect(cell(page, 1, "w_format")).to_have_text("int5")
    expect(cell(page, 0, "w_format")).to_have_text("int8")
    page.get_by_role("button", name="Apply to marked (4)").click()
    for row in range(4):
        expect(cell(page, row, "w_format")).to_have_text("int5")


def test_recipes_are_loaded_and_bad_ones_refused(open_page: Callable[[], Any], tmp_path: Path) -> None:
    page = open_page()
    good, bad, binary = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "binary.yaml"
    recipe = Recipe.preset("w4a8").with_layer("ip1", weight={"format": "int3"})
    good.write_text(recipe.to_yaml())
    bad.write_text(recipe.to_yaml().replace("int3", "int33"))
    binary.write_bytes(b"\xff\xfe\x00")
    chooser = page.locator('input[type="file"]')
    chooser.set_input_files(good)
    expect(cell(page, 2, "w_format")).to_have_text("int3")
    chooser.set_input_files(bad)
    expect(page.get_by_text("There is no format 'int33'")).to_be_visible()
    expect(page.get_by_text("Uploaded")).to_have_count(0)
    expect(cell(page, 2, "w_format")).to_have_text("int3")
    chooser.set_input_files(binary)
    expect(page.get_by_text("'binary.yaml' is not text")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert Recipe.from_yaml(Path(download.value.path()).read_text()) == recipe


@pytest.mark.parametrize("ordered", [False, True])
def test_a_change_of_the_table_loses_no_press_and_closes_no_menu(
    open_page: Callable[[], Any], ordered: bool
) -> None:
    """Also where the rows stand in the order of the column that changes."""
    page = open_page()
    undo = page.get_by_role("button", name="Undo")

    def at(layer: str, field: str) -> Locator:
        row = page.locator(".tabulator-row", has=page.get_by_text(layer, exact=True))
        return row.locator(f'[tabulator-field="{field}"]')

    if ordered:
        page.locator('.tabulator-col[tabulator-field="w_format"]').click()
    pick(page, 3, "w_format", "int4")
    expect(at("ip2", "w_format")).to_have_text("int4")
    expect(cell(page, 0, "name")).to_have_text("ip2" if ordered else "conv1")
    at("ip1", "name").hover()
    page.mouse.down()
    expect(undo).to_be_enabled()
    undo.dispatch_event("click")
    expect(at("ip2", "w_format")).to_have_text("int8")
    page.mouse.up()
    expect(page.locator(".head")).to_have_text("ip1")
    expect(cell(page, 0, "name")).to_have_text("conv1")
    page.get_by_role("button", name="Redo").click()
    expect(at("ip2", "w_format")).to_have_text("int4")
    expect(cell(page, 0, "name")).to_have_text("ip2" if ordered else "conv1")
    at("ip1", "w_format").click()
    offered = page.locator(".tabulator-edit-list-item").get_by_text("int3", exact=True)
    expect(offered).to_be_visible()
    # As the server does it, which may write the cells itself meanwhile; a click on a button would close the menu.
    for _ in range(50):
        page.evaluate(PATCH, {"w_format": [[3, "int8"]], "sens_text": [[0, "~1.5"]]})
        if [at("ip2", "w_format").inner_text(), at("conv1", "sens").inner_text()] == ["int8", "~1.5"]:
            break
        page.wait_for_timeout(200)
    else:
        raise AssertionError("The table was not changed.")
    offered.click()
    expect(at("ip1", "w_format")).to_have_text("int3")
    expect(cell(page, 0, "name")).to_have_text("ip1" if ordered else "conv1")


def test_sessions_do_not_see_each_others_recipe(open_page: Callable[[], Any]) -> None:
    one, other = open_page(), open_page()
    pick(one, 0, "w_format", "int4")
    expect(cell(one, 0, "w_format")).to_have_text("int4")
    pick(other, 1, "w_format", "int6")
    expect(cell(other, 1, "w_format")).to_have_text("int6")
    expect(cell(other, 0, "w_format")).to_have_text("int8")
    expect(cell(one, 1, "w_format")).to_have_text("int8")


def tiers(page: Any) -> dict[str, int]:
    """How many cells of the map are drawn as estimates, as exact but open, and as done."""
    counts: dict[str, int] = page.evaluate(
        """() => {
            for (const model of Bokeh.documents[0]._all_models.values())
                if (model.type === "ColumnDataSource" && model.data.look) {
                    const found = {}
                    for (const look of model.data.look) found[look] = (found[look] || 0) + 1
                    return found
                }
        }"""
    )
    return counts


def words(page: Any) -> Locator:
    """What the map says of itself."""
    return page.locator(".line").first


def test_estimates_come_by_themselves_and_give_way_to_exact_values(open_page: Callable[[], Any]) -> None:
    page = open_page()
    expect(words(page)).to_contain_text("most sensitive at int8")
    assert set(tiers(page)) <= {"estimate", "done"}
    page.get_by_role("button", name="Measure").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_role("button", name="Measure")).to_be_visible()
    assert set(tiers(page)) == {"done"}
    page.get_by_role("button", name="Estimates", exact=True).click()
    expect(
        page.get_by_text(re.compile(r"values both estimated and exact|A point for each value"))
    ).to_be_visible()
    page.get_by_role("button", name="Sensitivity", exact=True).click()
    # A format does not enter the map, the granularity does; with the edit taken back it is good again.
    pick(page, 1, "w_format", "int5")
    expect(cell(page, 1, "w_format")).to_have_text("int5")
    expect(words(page)).not_to_contain_text("before the edit")
    expect(cell(page, 1, "sqnr")).to_contain_text(re.compile(r"\d"))
    page.get_by_text("Evaluated on 600 images").wait_for()
    pick(page, 1, "w_grain", "layer")
    expect(words(page)).to_contain_text("before the edit: measure again")
    page.get_by_role("button", name="Undo").click()
    expect(words(page)).not_to_contain_text("before the edit")


def test_menus_without_effect_are_off_and_each_method_draws_its_columns(open_page: Callable[[], Any]) -> None:
    page = open_page()
    expect(words(page)).to_contain_text("most sensitive at int8")
    choose(page, "method", "weight")
    for label, value in (("measure", "sqnr"), ("tensor", "weight")):
        menu = page.get_by_role("combobox", name=label)
        expect(menu).to_have_text(value)
        expect(menu).to_have_attribute("aria-disabled", "true")
    choose(page, "method", "leave_one_out")
    expect(page.get_by_role("combobox", name="tensor")).not_to_have_attribute("aria-disabled", "true")
    page.get_by_role("button", name="Measure").click()
    expect(words(page)).to_contain_text("most sensitive (left out)")
    page.get_by_role("button", name="Stop").or_(page.get_by_role("button", name="Measure")).click()
    page.get_by_role("button", name="input", exact=True).click()
    expect(caption(page)).to_contain_text("uint8 layer asym mse")
    page.get_by_role("button", name="SQNR", exact=True).click()
    expect(page.get_by_text("input (once evaluated)")).to_be_visible()


def test_flips_are_shown_and_an_evaluation_stops_when_it_is_narrow(open_page: Callable[[], Any]) -> None:
    page = open_page()
    page.locator("[data-press=flips]").click()
    expect(page.get_by_text(re.compile("No image changed|lost|won")).first).to_be_visible()
    for row in (1, 2):
        pick(page, row, "w_format", "int2")
    expect(page.locator("h4 .lost")).to_be_visible()
    expect(page.get_by_text("and ").filter(has_text=" more").first).to_be_visible()
    pictures = page.locator("figure img:visible")
    expect(pictures.first).to_be_visible()
    assert pictures.first.evaluate("image => image.naturalWidth") == 28
    expect(page.locator("figcaption:visible").first).to_contain_text("→")
    expect(page.locator(".sum")).to_contain_text("add up to")
    choose(page, "recipe", "w8a8")
    choose(page, "stop at", WIDE)
    expect(page.get_by_text("narrow enough, the interval is")).to_be_visible()
    expect(card(page, "Top-1")).to_contain_text("narrow enough at")


def test_a_job_that_fails_keeps_the_last_result_and_says_what_failed(open_page: Callable[[], Any]) -> None:
    page = open_page()
    value = card(page, "Top-1").locator(".value").inner_text()
    # The server of these tests cannot evaluate int7.
    pick(page, 0, "w_format", "int7")
    alert = page.get_by_role("alert").filter(
        has_text="The evaluation failed: RuntimeError: no room for int7."
    )
    expect(alert).to_contain_text("What is shown is the last that was evaluated.")
    expect(card(page, "Top-1").locator(".value")).to_have_text(value)
    expect(card(page, "Top-1")).to_contain_text("stale")
    expect(cell(page, 0, "w_format")).to_have_text("int7")


def test_a_browser_that_leaves_leaves_no_trace(new_page: Callable[[], Any], server: str, log: Path) -> None:
    page = new_page()
    page.goto(server)
    pick(page, 0, "w_format", "int3")
    page.close()
    page = new_page()
    page.goto(server)
    page.get_by_text("Evaluated on 600 images").wait_for()
    assert "Traceback" not in log.read_text()


def test_a_port_in_use_is_one_sentence(server: str) -> None:
    from explorer.views.app import serve

    port = int(server.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(JobError, match=f"The port {port} cannot be used"):
        serve("fashion-lenet5", port=port, show=False)


def test_the_number_line_and_a_format_taken_from_it(open_page: Callable[[], Any]) -> None:
    page = open_page()
    cell(page, 2, "name").click()
    pick(page, 2, "w_format", "int4")
    page.get_by_role("button", name="Number line", exact=True).click()
    expect(caption(page)).to_contain_text("of 15 levels used")
    expect(caption(page)).to_contain_text("all 500 groups")
    page.get_by_role("button", name="one group").click()
    expect(caption(page)).to_contain_text(re.compile(r"group \d+ of 500"))
    titles = """() => {
        for (const model of Bokeh.documents[0]._all_models.values())
            if (model.type === "ColumnDataSource" && model.data.clipped && model.data.name.length)
                return Array.from(model.data.name)
    }"""
    expect(page.get_by_text("a click takes one")).to_be_visible()
    page.wait_for_function(f"(() => {{ const found = ({titles})(); return found && found.length > 8 }})()")
    best = page.evaluate(titles)[0].split(" ")[0]
    figure = page.locator(".bk-Canvas").nth(1)
    figure.scroll_into_view_if_needed()
    count = len(page.evaluate(titles))
    expect(figure).to_have_css("height", f"{26 + 17 * (count + 1)}px")
    # Below the axis and the line of titles comes the row of the best.
    row = {"x": 200, "y": 26 + 17 + 8}
    figure.click(position=row)
    expect(cell(page, 2, "w_format")).to_have_text(best)
    # A slow hand clicks as well as a quick one.
    page.get_by_role("button", name="Undo").click()
    expect(cell(page, 2, "w_format")).to_have_text("int4")
    expect(page.get_by_text("a click takes one")).to_be_visible()
    figure.click(position=row, delay=700)
    expect(cell(page, 2, "w_format")).to_have_text(best)


def test_conventions_and_another_tools_parameters(open_page: Callable[[], Any], tmp_path: Path) -> None:
    page = open_page()
    cell(page, 1, "name").click()
    page.get_by_role("button", name="Conventions", exact=True).click()
    expect(page.get_by_role("cell", name="torch symmetric", exact=True)).to_be_visible()
    expect(page.locator("tr.present")).to_contain_text("onnx symmetric")
    choose(page, "convention", "aimet")
    expect(page.locator("tr.present")).to_contain_text("aimet symmetric")
    name = cell(page, 1, "name").inner_text().strip()
    encoding = {"bitwidth": 8, "dtype": "int", "is_symmetric": "True", "scale": 0.003, "offset": -128}
    file = tmp_path / "net.encodings"
    params = {f"{name}.weight": [encoding], "<b>odd</b>.weight": [encoding]}
    file.write_text(
        json.dumps({"version": "0.6.1", "param_encodings": params, "activation_encodings": {}}),
        encoding="utf-8",
    )
    page.locator("input[type=file][accept*=onnx]").set_input_files(str(file))
    expect(page.get_by_role("cell", name="theirs")).to_be_visible()
    page.get_by_text("1 that belong nowhere").click()
    expect(page.get_by_text("<b>odd</b>.weight: no layer is called")).to_be_visible()
    page.get_by_role("button", name="Histogram", exact=True).click()
    expect(page.locator(".other")).to_contain_text("aimet int8 layer, range \N{MINUS SIGN}0.384 to 0.381")
    page.get_by_role("button", name="Conventions", exact=True).click()
    bad = tmp_path / "bad.json"
    bad.write_text("{", encoding="utf-8")
    page.locator("input[type=file][accept*=onnx]").set_input_files(str(bad))
    expect(page.get_by_text("bad.json is no JSON")).to_be_visible()
    expect(page.get_by_role("cell", name="theirs")).to_be_visible()


FRAME = """() => {
    const found = []
    const walk = view => {
        if (view.frame && view.frame.bbox) {
            const box = view.el.getBoundingClientRect(), inner = view.frame.bbox
            const at = view.frame.x_scale
            found.push({y: box.top + (inner.top + inner.bottom) / 2, full: box.left + at.compute(1),
                        half: box.left + at.compute(0.5), label: view.model.left[0].axis_label})
        }
        for (const child of view.child_views || []) walk(child)
    }
    for (const view of Bokeh.index.roots || Object.values(Bokeh.index)) walk(view)
    return found.find(frame => frame.label === "relative cost")
}"""


def test_a_range_is_dragged_and_everything_follows(open_page: Callable[[], Any]) -> None:
    page = open_page()
    cell(page, 1, "name").click()
    pick(page, 1, "w_format", "int4")
    page.get_by_role("button", name="Objective", exact=True).click()
    expect(caption(page)).to_contain_text("int4 channel sym minmax")
    expect(page.locator(".key")).to_contain_text(re.compile(r"mse 0\.\d+"))
    expect(page.get_by_text("Drag the dashed edge")).to_be_visible()
    frame = page.evaluate(FRAME)
    page.mouse.move(frame["full"], frame["y"])
    page.mouse.down()
    for step in range(1, 11):
        page.mouse.move(frame["full"] + (frame["half"] - frame["full"]) * step / 10, frame["y"])
        if step == 5:
            # While the button is still down.
            expect(page.locator(".moved")).to_contain_text(re.compile(r"clipped .*% · SQNR .* dB"))
            expect(cell(page, 1, "w_goal")).to_have_text(re.compile(r"clip:0\.\d+"))
    page.mouse.up()
    expect(cell(page, 1, "w_goal")).to_have_text(re.compile(r"clip:0\.(49|50)\d*|clip:0\.5"))
    expect(caption(page)).to_contain_text("sym clip:0.")
    expect(page.locator(".moved")).to_contain_text("layer's output")
    page.get_by_text("Evaluated on 600 images").wait_for()
    expect(card(page, "Difference")).not_to_contain_text("stale")
    # One movement is one step.
    page.get_by_role("button", name="Undo").click()
    expect(cell(page, 1, "w_goal")).to_have_text("minmax")
    # The same by the keyboard.
    slider = page.get_by_role("slider")
    expect(slider).to_have_value("1")
    slider.press("ArrowLeft")
    expect(cell(page, 1, "w_goal")).to_have_text("clip:0.995")


def test_the_ends_of_a_range_are_dragged_in_the_histogram(open_page: Callable[[], Any]) -> None:
    page = open_page()
    cell(page, 1, "name").click()
    pick(page, 1, "w_format", "int4")
    expect(caption(page)).to_contain_text("int4 channel sym minmax")
    page.get_by_text("Evaluated on 600 images").wait_for()

    def drag(end: str, share: float, during: Callable[[], None] = lambda: None, still: int = 0) -> None:
        """Move an end to a share of the way from zero to where it is, after so many ms of holding still."""
        at, before = page.evaluate(KEPT), None
        while at != before:
            # Until the figure has its place.
            page.wait_for_timeout(400)
            at, before = page.evaluate(KEPT), at
        page.mouse.move(at[end], at["y"])
        page.mouse.down()
        page.wait_for_timeout(still)
        for step in (0.25, 0.5, 0.75, 1.0):
            page.mouse.move(at[end] + (at["zero"] - at[end]) * (1 - share) * step, at["y"])
        during()
        page.mouse.up()

    def follows() -> None:
        expect(caption(page)).to_contain_text(
            re.compile(r"kept 0\.\d+ of the range · clipped .*% · SQNR .* dB")
        )
        expect(cell(page, 1, "w_goal")).to_have_text(re.compile(r"clip:0\.5$|clip:0\.(49|50)\d"))
        # Both ends of a symmetric range move, and the axis does not.
        ends = page.evaluate(KEPT)
        assert abs(ends["left"] + ends["right"]) < 0.02 * ends["right"]

    drag("high", 0.5, follows)
    expect(caption(page)).to_contain_text("layer's output")
    page.get_by_text("Evaluated on 600 images").wait_for()
    page.get_by_role("button", name="Undo").click()
    expect(cell(page, 1, "w_goal")).to_have_text("minmax")
    expect(caption(page)).to_contain_text("int4 channel sym minmax")
    page.get_by_role("switch", name="symmetric").first.click()
    expect(caption(page)).to_contain_text("int4 channel asym minmax")
    drag("low", 0.5, still=700)
    expect(cell(page, 1, "w_goal")).to_have_text(re.compile(r"clip:0\.(5|49\d|50\d):1$"))
    # What comes after a ReLU has one end to be moved; the range of each example none.
    page.get_by_role("button", name="input", exact=True).click()
    expect(caption(page)).to_contain_text("uint8 layer asym mse")
    assert page.evaluate(KEPT)["edges"] == "right"
    drag("high", 0.5)
    expect(caption(page)).to_contain_text(re.compile(r"kept 0\.\d+ of the range"))
    choose(page, "mode", "dynamic")
    expect(caption(page)).to_contain_text("dynamic")
    assert page.evaluate(KEPT)["edges"] == "none"
    page.get_by_role("button", name="Objective", exact=True).click()
    expect(caption(page)).to_contain_text("takes its ranges from each example")
    expect(page.get_by_role("slider")).to_be_hidden()
