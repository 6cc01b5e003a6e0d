"""A recipe made for another network: which of its lines fit this one, and the offer to take only those."""

from __future__ import annotations

from html import escape

from explorer.recipe import Recipe
from explorer.views import kit, theme
from explorer.views.state import PageState

# So many patterns are listed; the rest is a number.
MOST = 6
CSS = (
    theme.TOKENS
    + """
:host { color: var(--ink); font-size: 12.5px; line-height: 18px; }
b { font-weight: 600; } .left { color: var(--bad); overflow-wrap: anywhere; }
"""
)


def listed(patterns: tuple[str, ...]) -> str:
    """Some of the patterns, and how many more there are.

    >>> listed(("a", "b"))
    'a, b'
    """
    more = f" and {len(patterns) - MOST:,} more" if len(patterns) > MOST else ""
    return ", ".join(patterns[:MOST]) + more


def markup(name: str, recipe: Recipe, left: tuple[str, ...]) -> str:
    """What fits and what does not, as HTML."""
    fit = tuple(line.pattern for line in recipe.layers if line.pattern not in left)
    fits = (
        f"These fit: <b>{escape(listed(fit))}</b>."
        if fit
        else "No line fits; the part that does is the default, for all layers."
    )
    return (
        f'<div role="alert"><b>{escape(name)}</b> is for another network: {len(left):,} of its '
        f"{len(recipe.layers):,} lines name no layer of this one: "
        f'<span class="left">{escape(listed(left))}</span>. {fits}</div>'
    )


class Offer:
    """A bar that is there while a recipe that fits in part waits for an answer."""

    def __init__(self, state: PageState) -> None:
        self.state = state
        self.part: Recipe | None = None
        self.words = kit.html(css=CSS)
        self.take = kit.button("Apply the part that fits", on_click=lambda *_: self._taken())
        self.leave = kit.button("Leave it", variant="text", on_click=lambda *_: self.close())
        self.view = kit.row(
            self.words, self.take, self.leave, visible=False, css=theme.CARD, styles={"padding": "6px 10px"}
        )
        state.param.watch(lambda *_: self.close(), "revision")

    def made(self, name: str, recipe: Recipe) -> bool:
        """Offer the part of a recipe that fits; whether there is a part that does not, so that an answer is needed."""
        part, left = recipe.fitting(self.state.session.layer_names)
        if not left:
            return False
        self.part = part
        self.words.object = markup(name, recipe, left)
        self.view.visible = True
        return True

    def _taken(self) -> None:
        part = self.part
        self.close()
        if part is not None:
            self.state.adopt(part)

    def close(self) -> None:
        """Take the offer away."""
        self.part = None
        self.view.visible = False
