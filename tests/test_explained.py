"""Every view of the page says what one is seeing, by what formula, and where that is from."""

from __future__ import annotations

import re
from html import unescape

import pytest

import explorer as qx
from explorer.cli import _parser
from explorer.errors import DataError, ExplorerError, ModelError
from explorer.sources import ZOO
from explorer.views.app import Page, failure
from explorer.views.empty import instead
from explorer.views.explained import EXPLAINED, LAYERS, SCORE, explain, markup
from explorer.views.guide import STEPS
from explorer.views.single import FIGURES
from explorer.views.tensorcard import TENSOR_VIEWS
from tests.small import images, tiny

# The kit's buttons are made in a way that Panel wants to leave some day.
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
# A year, an arXiv number, a specification or a page of ours.
CITED = re.compile(r"\b(19|20)\d\d\b|arXiv:\d{4}\.\d{5}|ONNX|docs/")
PAGE_ALONE = {SCORE, LAYERS}


@pytest.fixture(scope="module")
def page() -> Page:
    made = Page(qx.Session(tiny(), data=images(), store_bytes=1 << 24))
    made.cell()
    return made


def test_every_view_is_explained(page: Page) -> None:
    assert {*TENSOR_VIEWS, *page.below, *PAGE_ALONE} == set(EXPLAINED)
    assert {kind.view for kind in FIGURES.values()} <= set(EXPLAINED)


@pytest.mark.parametrize("name", EXPLAINED)
def test_two_sentences_a_formula_and_a_source(name: str) -> None:
    found = EXPLAINED[name]
    for sentence in (found.shown, found.read):
        assert sentence[0].isupper() and sentence.endswith(".") and len(sentence.split()) >= 8
        assert not re.search(r"[.!?] [A-Z]", sentence), "one sentence"
    assert re.search(r"[=:]", found.formula) and found.source
    assert CITED.search(found.source), "no source that can be looked up"
    shown = markup(name)
    assert "<script" not in shown and shown.count("<p>") == 3


def test_the_question_mark_follows_the_tab(page: Page) -> None:
    for tabs in (page.tabs, page.tensor.tabs):
        for name in tabs.parts:
            tabs.show(name)
            assert tabs.help.object == markup(name) and name in tabs.help.title


def test_a_view_without_words_has_no_question_mark(page: Page) -> None:
    explain(page.tabs.help, "no such view")
    assert page.tabs.help.object == ""


def test_the_guide_points_to_regions_that_are_there(page: Page) -> None:
    classes = {name for each in page.cell().select() for name in getattr(each, "css_classes", None) or []}
    assert {step.place for step in STEPS} <= classes


def test_a_step_is_over_when_it_has_been_done(page: Page) -> None:
    strip, state = page.guide, page.state
    strip.shown, strip.step = True, 0
    state.tensor = "input"
    assert strip.step == 0, "that is not what was asked for"
    state.layer = next(name for name in page.session.layer_names if name != state.layer)
    assert strip.step == 1
    state.tensor = "weight"
    assert strip.step == 2
    state.edit([state.layer], weight={"format": "int5"})
    state.revision = page.session.revision
    assert strip.step == 3
    strip.shown = False
    strip.step = 0
    state.layer = next(name for name in page.session.layer_names if name != state.layer)
    assert strip.step == 0, "who has skipped it is left alone"


@pytest.mark.parametrize("kind", [ModelError, DataError])
def test_a_page_without_a_network_says_what_to_do(kind: type[ExplorerError]) -> None:
    text = instead(kind("no such <file>"))
    assert all(name in text for name in ZOO)
    assert ("images could not" in text) == (kind is DataError)
    command = next(line for line in unescape(text).splitlines() if "--model" in line).partition(
        "-m explorer "
    )[2]
    assert _parser().parse_args(re.sub(r"^.*<pre>", "", command).split()).model in ZOO
    page = failure(kind("no such <file>"))
    shown = [str(getattr(each, "object", "")) for each in page.select()]
    assert any("no such &lt;file&gt;" in markup for markup in shown)
