"""A range that a hand moves: when the hand has let go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import explorer as qx
from tests.loops import elsewhere
from tests.small import images, tiny


def ended(hand: Any) -> None:
    """Close it, and wait for what it is at."""
    hand.close()
    for runner in (hand.near, hand.far):
        if runner.worker._thread is not None:
            runner.worker._thread.join()


def test_a_movement_ends_when_the_recipe_is_changed_elsewhere() -> None:
    moving = pytest.importorskip("explorer.views.moving")
    from explorer.views.runs import Publisher
    from explorer.views.state import PageState

    async def drag() -> None:
        session = qx.Session(tiny(), data=images())
        state = PageState(session)
        before = state.config.weight
        hand = moving.Moving(state, Publisher(), lambda markup: None)
        active = []
        session.subscribe(lambda: active.append(hand.active))
        try:
            assert not hand.active
            hand.to(0.5)
            assert hand.active and state.config.weight.objective == "clip:0.5"
            session.undo()
            assert not hand.active and state.config.weight == before
            # The page follows the hand's own change as a movement, and the one that takes it back as its end.
            assert active == [True, False]
        finally:
            ended(hand)

    elsewhere(lambda: asyncio.run(drag()))


def test_a_hand_that_rests_is_still_at_it_while_its_button_is_down() -> None:
    moving = pytest.importorskip("explorer.views.moving")
    from explorer.views.runs import Publisher
    from explorer.views.state import PageState

    class Page(Publisher):
        now = 100.0

        def clock(self) -> float:
            return self.now

    async def drag() -> None:
        session = qx.Session(tiny(), data=images())
        page = Page()
        hand = moving.Moving(PageState(session), page, lambda markup: None)

        def waits(seconds: float) -> bool:
            page.now += seconds
            return hand.active

        try:
            hand.press(True)
            assert not waits(0.0), "nothing has been moved"
            hand.to(0.5)
            assert waits(60.0)
            hand.press(False)
            assert not waits(0.0)
            # A movement by the keyboard, and a press long after it.
            hand.to(0.6)
            assert waits(0.5) and not waits(60.0)
            hand.press(True)
            assert not waits(0.0)
            hand.press(False)
            # While it is on its way only its numbers follow; the recipe does when it rests.
            session = hand.state.session
            page.now += 60.0
            hand.press(True)
            before = session.recipe
            hand.to(0.9)
            assert session.recipe == before and hand.active

            def rests() -> None:
                hand._to -= 2 * moving.REST
                hand._edited = hand._to - 2 * moving.PATIENCE
                hand._again()

            # A server that was busy looks for rest before it has read the movements of the time: it looks twice.
            rests()
            assert session.recipe == before
            hand.to(0.8)
            rests()
            assert session.recipe == before
            hand._again()
            assert hand.state.config.weight.objective == "clip:0.8"
            hand.press(False)
            # A movement that is told before its button.
            page.now += 1.0
            hand.to(0.7)
            hand.press(True)
            assert waits(60.0)
        finally:
            ended(hand)

    elsewhere(lambda: asyncio.run(drag()))


def test_a_range_that_the_browser_says_back_is_no_movement() -> None:
    """A notebook's front end is told of both ends one after the other, and says each of them back later."""
    figures = pytest.importorskip("explorer.views.figures")
    session, heard = qx.Session(tiny(), data=images()), []
    plot = figures.HistogramFigure(moved=lambda low, high: heard.append((low, high)))
    for name in ("minmax", "clip:0.5"):
        session.recipe = session.recipe.with_layer("mid", weight={"objective": name})
        plot.update(session.histogram("mid"))
    (low, high), shown = plot._drawn[-2], plot.shown.clip
    assert (low, high) != shown
    for ends in ((low, high), (shown[0], high), (low, shown[1]), shown):
        plot.clips.data = {"x": list(ends)}
    assert not heard
    moved = (0.5 * shown[0], 0.5 * shown[1])
    plot.clips.data = {"x": list(moved)}
    assert heard == [moved]


def test_what_is_chosen_in_a_cell_outlives_news_of_the_row() -> None:
    """A browser says one after the other that a cell will change, its value, and that it has changed."""
    views = pytest.importorskip("explorer.views.table")
    from panel.models.tabulator import TableEditEvent

    from explorer.views.state import PageState

    state = PageState(qx.Session(tiny(), data=images()))
    table = views.LayerTable(state)
    row = table.names.index("mid")
    table.table._process_event(TableEditEvent(None, "w_format", row, pre=True))
    table.table.value.loc[row, "w_format"] = "int2"
    state.ranking = {name: (0.5, "estimate") for name in table.names}
    assert table.table.value.loc[row, "sens"] == 0.5
    table.table._process_event(TableEditEvent(None, "w_format", row, pre=False))
    assert state.session.recipe.config("mid").weight.format == "int2"
    assert table.table.value.loc[row, "w_format"] == "int2" and table.table.changed is None
