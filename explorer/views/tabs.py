"""A card that shows one part of a table, chosen on one line; the others are neither on the page nor at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from explorer.views import kit, theme
from explorer.views.explained import ask, explain


class Part(Protocol):
    """What can stand in a card: something for the page, told when it comes into sight and when it leaves."""

    view: Any

    def turn(self, visible: bool) -> None:
        """Come into sight, or leave it: what nobody sees does no work."""


class Tabs:
    """A table of parts, of which one is in sight.

    Args:
        parts: the names on the line and what they stand for.
        turned: is called with the name of the part that has come into sight.
    """

    def __init__(self, parts: Mapping[str, Part], turned: Callable[[str], None] = lambda name: None) -> None:
        self.parts, self.turned = parts, turned
        self.chosen = next(iter(parts))
        self.choice = kit.choice(list(parts), self.chosen, sx=theme.TABS)
        self.help = ask(self.chosen)
        # A figure that is not in sight has no size and would keep the page from being ready.
        self.place = kit.column(self.part.view)
        self.choice.param.watch(lambda event: self.show(event.new), "value")

    @property
    def part(self) -> Part:
        """What is in sight."""
        return self.parts[self.chosen]

    def show(self, name: str) -> None:
        """Bring a part into sight."""
        if name == self.chosen:
            return
        self.part.turn(False)
        self.chosen = name
        self.choice.value = name
        self.place.objects = [self.part.view]
        self.part.turn(True)
        explain(self.help, name)
        self.turned(name)
