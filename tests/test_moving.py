"""A range that a hand moves: when the hand has let go."""

from __future__ import annotations

import asyncio

import pytest

import explorer as qx
from tests.small import images, tiny


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
            hand.close()

    asyncio.run(drag())
