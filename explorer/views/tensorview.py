"""One way of looking at the chosen tensor: what its kinds share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, ClassVar

from explorer.errors import ExplorerError
from explorer.study import by_loss
from explorer.views import kit, theme
from explorer.views.runs import Publisher, Runner, settled
from explorer.views.state import PageState
from explorer.views.text import sentence

CSS = (
    theme.TOKENS
    + """
:host { color: var(--ink); font-size: 12px; line-height: 17px; }
.caption { padding: 2px 12px 8px; color: var(--faint); }
.waiting { animation: wait .2s .3s forwards; } @keyframes wait { to { opacity: .35; } }
.caption b { color: var(--ink); font-weight: 600; }
"""
)


class TensorView(ABC):
    """A view of the chosen tensor under the present recipe.

    Answers come from the background, since ranges may have to be searched for and images to be run; what was
    drawn stays until then.  A subclass builds ``view`` with ``caption`` in it, says in :meth:`steps` what is
    to be computed, and draws it in :meth:`draw`.

    Args:
        state: of the page.
        publisher: where results go.
    """

    # Whether the switch to a logarithmic axis has an effect.
    logarithmic: ClassVar[bool] = False
    # Whether it asks for as much room as the card below.
    tall: ClassVar[bool] = False
    view: Any

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        self.state, self.publisher = state, publisher
        self.runner = Runner(type(self).__name__.lower(), publisher, background=False)
        self.caption = kit.html(css=CSS, min_height=52)
        self.visible = False
        state.param.watch(lambda *_: self._changed(), ["layer", "tensor", "revision"])

    @abstractmethod
    def steps(self) -> Callable[[], Iterator[Any]]:
        """What to compute for what is chosen now, to be begun in the background."""

    @abstractmethod
    def draw(self, found: Any) -> None:
        """Draw a result of :meth:`steps`."""

    @property
    def scheme(self) -> Any:
        """The present scheme of the chosen tensor."""
        return getattr(self.state.config, self.state.tensor)

    def turn(self, visible: bool, at_once: bool = False) -> None:
        """Come into sight, or leave it; ``at_once`` while there is nothing to look at yet."""
        self.visible = visible
        if not visible:
            self.runner.cancel()
        elif at_once and not by_loss(self.scheme):
            try:
                self.draw(next(self.steps()()))
            except ExplorerError as error:
                self.failed(error)
        else:
            self.refresh()

    def _changed(self) -> None:
        if self.visible:
            self.refresh()

    def refresh(self) -> None:
        """Ask again."""
        if self.caption.object:
            self.caption.object = self.caption.object.replace('class="caption', 'class="caption waiting')
        else:
            self.say("Working …")
        steps = self.steps()
        if by_loss(self.scheme):
            steps = settled(self.state.session, self.state.session.recipe, steps)
        self.runner.start(steps, self.draw, lambda: None, self.failed)

    def close(self) -> None:
        """Stop all work."""
        self.runner.close()

    def say(self, markup: str) -> None:
        """Words below the figure, HTML of our own making."""
        self.caption.object = f'<div class="caption" aria-live="polite">{markup}</div>'

    def failed(self, error: Exception) -> None:
        """Say what went wrong."""
        self.say(escape(f"Not drawn: {sentence(error)}"))
