"""The row of the page that acts on the recipe as a whole: presets, history, files."""

from __future__ import annotations

from io import StringIO
from typing import Any

from explorer.errors import RecipeError
from explorer.recipe import PRESETS, Recipe
from explorer.views import choices, kit
from explorer.views.offer import Offer
from explorer.views.state import PageState

OWN = "(edited)"


def read_recipe(text: bytes, name: str) -> Recipe:
    """A recipe from an uploaded file.

    Raises:
        RecipeError: when it is no recipe.
    """
    try:
        words = text.decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"The file {name!r} is not text, so it is no recipe.") from None
    return Recipe.from_json(words) if name.lower().endswith(".json") else Recipe.from_yaml(words)


class Toolbar:
    """Preset menu, undo, redo, download, upload.

    Args:
        state: of the page.
        offer: takes a recipe of which some lines fit no layer.
    """

    def __init__(self, state: PageState, offer: Offer) -> None:
        self.state, self.offer = state, offer
        self._quiet = False
        self.preset = kit.select("recipe", self._options(), None, width=150)
        self.undo = kit.icon("undo", "Undo", on_click=lambda *_: state.session.undo())
        self.redo = kit.icon("redo", "Redo", on_click=lambda *_: state.session.redo())
        self.save = kit.download("Save", "recipe.yaml", lambda: StringIO(state.session.recipe.to_yaml()))
        self.load = kit.upload("Load", ".yaml,.yml,.json")
        self.view = kit.row(self.preset, self.undo, self.redo, self.save, self.load, width=360, height=44)
        self.preset.param.watch(self._picked, "value")
        self.load.param.watch(self._loaded, "value")
        state.param.watch(lambda *_: self.refresh(), "revision")
        self.refresh()

    def _options(self) -> list[str]:
        return [*choices.presets(), OWN]

    def _picked(self, event: Any) -> None:
        if not self._quiet and event.new in PRESETS:
            self.state.adopt(Recipe.preset(event.new))
            self.refresh()

    def _loaded(self, event: Any) -> None:
        if not event.new:
            return
        name = str(self.load.filename or "recipe.yaml")
        self.state.attempt(lambda: self._take(event.new, name))

    def _take(self, text: bytes, name: str) -> None:
        recipe = read_recipe(text, name)
        self.offer.close()
        if not self.offer.made(name, recipe):
            self.state.session.recipe = recipe

    def refresh(self) -> None:
        """Show which preset the recipe is, if it is one, and whether there is something to undo."""
        session = self.state.session
        self._quiet = True
        try:
            known = [name for name in choices.presets() if Recipe.preset(name) == session.recipe]
            self.preset.value = known[0] if known else OWN
        finally:
            self._quiet = False
        self.undo.disabled = not session.can_undo
        self.redo.disabled = not session.can_redo
