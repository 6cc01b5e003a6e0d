"""A clipping range that is being moved: its numbers at once, the recipe and all that hangs on it as they keep up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from explorer.calibrate import Clip
from explorer.hand import HAND
from explorer.recipe import TensorScheme
from explorer.study import Effect, Histogram
from explorer.views.runs import Publisher, Runner
from explorer.views.state import PageState
from explorer.views.text import decibels, percent, sentence

# The least and the largest share of the full range that can be taken hold of.
LEAST, MOST = 0.02, 1.0
# Seconds: between two edits, until a hand rests, until an edit no longer waits for the estimate of the one before, and
# until what follows is another movement.
BETWEEN, REST, PATIENCE, PAUSE = 0.15, 0.15, 1.0, 1.0
# Seconds in which movements are read that had to wait, for the server was busy.
UNREAD = 0.05
# Calibration images of the layer's output.
IMAGES = 32


class Moving:
    """Follows a range that a hand moves.

    SQNR and clipped share of the tensor are measured for one position after the other, always the latest.  The
    recipe takes up a position when a hand that holds it rests, and when the position before has its first estimate
    of accuracy, or after a second; all positions of one movement are one step of history.

    Args:
        state: of the page.
        publisher: where results go.
        say: shows the numbers in words.
        measure: a tensor of a layer under a scheme, with its SQNR and clipped share; None takes the session's.
        draw: shows more of what was measured.
    """

    def __init__(
        self,
        state: PageState,
        publisher: Publisher,
        say: Callable[[str], None],
        measure: Callable[[str, str, TensorScheme], Effect | Histogram] | None = None,
        draw: Callable[[Any], None] | None = None,
    ) -> None:
        self.state, self.publisher, self.say = state, publisher, say
        self.measure, self.draw = measure or state.session.effect, draw
        self.near, self.far = Runner("moving", publisher, background=False), Runner("output", publisher)
        self._wish: Clip | None = None
        self._measured: Clip | None = None
        self._busy = self._scheduled = self._editing = False
        # By the page's own clock.
        self._moved = self._released = -math.inf
        self._held = False
        self._to = self._edited = -math.inf
        # The last movement, if what may have come after it has had time to be read.
        self._last = -math.inf
        self._between = BETWEEN
        self._movement = self._revision = 0
        self._effect = self._output = ""

    @property
    def active(self) -> bool:
        """Whether a hand is at it, or has been a moment ago and nobody has changed the recipe since."""
        own = self._editing or self._revision == self.state.session.revision
        held = self._held and self._moved >= self._released
        return own and (held or self.publisher.clock() - self._moved < PAUSE)

    @property
    def stands(self) -> bool:
        """Whether the recipe is as the hand has left it: nobody has changed anything since."""
        return self._wish is not None and (self._editing or self._revision == self.state.session.revision)

    def press(self, down: bool) -> None:
        """A button has gone down, so that a hand that has moved and rests is still at it; or up."""
        self._held = down
        now = self.publisher.clock()
        # The first movement may be told before the button; what was long before belongs to another.
        if not down or now - self._moved >= PAUSE:
            self._released = now

    def to(self, low: float, high: float | None = None) -> None:
        """Move to these shares of the full range, one for both ends or one for each."""
        if not self.active:
            self._movement += 1
            self._output = ""
            self._revision = self.state.session.revision
        self._moved = self.publisher.clock()
        self._to = time.monotonic()
        HAND.moves()
        shares = [round(min(max(share, LEAST), MOST), 3) for share in (low, low if high is None else high)]
        self._wish = Clip(*shares)
        if not self._busy:
            self._measure()
        self._edit()

    def _measure(self) -> None:
        wish, state = self._wish, self.state
        assert wish is not None
        layer, tensor = state.layer, state.tensor
        scheme = replace(getattr(state.config, tensor), objective=wish.name)
        self._busy, self._measured = True, wish

        def steps() -> Iterator[Effect | Histogram]:
            yield self.measure(layer, tensor, scheme)

        def show(found: Effect | Histogram) -> None:
            if self.draw is not None:
                self.draw(found)
            share = " and ".join(f"{share:g}" for share in dict.fromkeys(wish.shares))
            self._effect = (
                f"kept <b>{share}</b> of the range · clipped <b>{percent(found.clipped_fraction, 3)}</b> · "
                f"SQNR <b>{decibels(found.sqnr_db)}</b>"
            )
            self._show()

        self.near.start(steps, show, self._next, self._failed)

    def _next(self) -> None:
        self._busy = False
        if self._wish is not None and self._wish != self._measured:
            self._measure()

    def _failed(self, error: Exception) -> None:
        self._busy = False
        self.say(sentence(error))

    def _show(self) -> None:
        self.say(self._effect + (f" · layer's output <b>{self._output}</b>" if self._output else ""))

    def _edit(self) -> None:
        """Take the wish into the recipe, now or when the page has kept up."""
        wish, state, now = self._wish, self.state, time.monotonic()
        if self._scheduled or wish is None:
            return
        # An edit is felt all over the page, a hand on its way everywhere.
        rests = now - self._to >= REST
        travels = self._held and not (rests and self._last == self._to)
        behind = state.evaluation_revision != state.session.revision and now - self._edited < PATIENCE
        if travels or behind or now - self._edited < self._between:
            self._scheduled = True
            if rests:
                self._last = self._to
            self.publisher.after(UNREAD if travels and rests else BETWEEN, self._again)
            return
        if getattr(state.config, state.tensor).objective == wish.name:
            return
        changed = {state.tensor: {"objective": wish.name}}
        self._editing = True
        try:
            refused = state.edit([state.layer], **changed, join=f"movement {id(self)} {self._movement}")
        finally:
            self._editing = False
            self._revision = state.session.revision
        if not refused:
            self._measure_output()
        self._edited = time.monotonic()
        # What follows an edit on the page may take at most a quarter of its time: the hand comes first.
        self._between = max(BETWEEN, 3 * (self._edited - now))

    def _again(self) -> None:
        self._scheduled = False
        # Somebody has changed the recipe meanwhile, or taken the movement back: that is the last word.
        if self._revision == self.state.session.revision:
            self._edit()

    def _measure_output(self) -> None:
        session, layer, recipe = self.state.session, self.state.layer, self.state.session.recipe

        def steps() -> Iterator[float]:
            yield session.output_sqnr(layer, IMAGES, recipe)

        def show(found: float) -> None:
            self._output = f"{decibels(found)}</b> ({IMAGES} images)<b>"
            self._show()

        # The other numbers stand without it.
        self.far.start(steps, show, lambda: None, lambda error: None)

    def forget(self) -> None:
        """Stop: another tensor is looked at."""
        self._wish = None
        self._busy = False
        self._moved = -math.inf
        self.near.cancel()
        self.far.cancel()

    def close(self) -> None:
        """Stop for good."""
        self.near.close()
        self.far.close()
