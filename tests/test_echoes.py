"""What a widget sends back is told from what is typed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


def test_an_echo_is_heard_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kit = pytest.importorskip("explorer.views.kit")
    now = [100.0]
    monkeypatch.setattr(kit.time, "monotonic", lambda: now[0])
    echoes, field, other = kit.Echoes(), SimpleNamespace(name="a"), SimpleNamespace(name="b")
    echoes.give(field, 0.95)
    echoes.give(field, 0.9)
    assert echoes.hears(field, 0.95) and echoes.hears(field, 0.9)
    assert not echoes.hears(field, 0.8) and not echoes.hears(other, 0.95)
    now[0] += echoes.SECONDS
    assert not echoes.hears(field, 0.95)
