"""A page that is opened again goes on where its tab has left off."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import ClassVar

import pytest

import explorer as qx
from tests.loops import elsewhere
from tests.small import images, tiny


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_hand_that_is_quicker_than_the_history_is_its_last_step(tmp_path: Path) -> None:
    app = pytest.importorskip("explorer.views.app")
    owner = "0" * 16

    async def open_again() -> None:
        first = qx.Session(tiny(), data=images(), project=tmp_path)
        name = first.layer_names[0]
        first.resume(owner)
        first.edit([name], weight={"format": "int4"})
        again = qx.Session(subject=first.subject, project=tmp_path)
        before = set(threading.enumerate())
        page = app.Page(again, resume=True)
        page.cell()
        try:
            page.drawn.tab = owner
            again.edit([name], weight={"format": "int2"})
            assert page._resumed()
            assert again.recipe.config(name).weight.format == "int2"
            again.undo()
            assert again.recipe == first.recipe
        finally:
            page.close()
            for thread in set(threading.enumerate()) - before:
                thread.join(30)

    elsewhere(lambda: asyncio.run(open_again()))


def test_a_connection_to_a_browser_sends_each_message_at_once() -> None:
    runs = pytest.importorskip("explorer.views.runs")
    from bokeh.protocol.exceptions import ProtocolError

    class Connection:
        current_user, selected_subprotocol = "somebody", "another"
        _token = None
        asked: ClassVar[list[bool]] = []

        def set_nodelay(self, value: bool) -> None:
            self.asked.append(value)

        def close(self) -> None:
            pass

    runs.send_at_once()
    opens = runs.WSHandler.open
    runs.send_at_once()
    assert runs.WSHandler.open is opens
    with pytest.raises(ProtocolError):
        opens(Connection())
    assert Connection.asked == [True]
