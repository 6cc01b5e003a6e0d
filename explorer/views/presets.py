"""The usual recipes, one press each."""

from __future__ import annotations

from explorer.recipe import PRESETS, Recipe
from explorer.views import kit, theme
from explorer.views.state import PageState

# What a design review asks about, and how people write it; the menu above has all of them.
USUAL = {
    "w8a8": "W8A8", "w4a8": "W4A8", "w4a16": "W4A16", "w2a8": "W2A8", "fp8": "FP8", "mxfp4": "MXFP4",
    "binary": "binary",
}  # fmt: skip
CSS = (
    theme.TOKENS
    + f"""
.presets {{ display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }}
button {{ font: inherit; font-size: 12px; color: var(--ink); background: var(--card); cursor: pointer;
  border: 1px solid var(--line); border-radius: 5px; padding: 0 9px; min-height: 28px; }}
button:hover {{ background: var(--wash); }}
button[aria-pressed=true] {{ border-color: var(--ink); background: color-mix(in srgb, {theme.BEFORE} 18%, var(--card));
  font-weight: 700; }}
button:focus-visible {{ outline: 2px solid {theme.CHOSEN}; outline-offset: 1px; }}
"""
)


class PresetBar:
    """A button for each of the usual recipes; the one that is in force looks pressed."""

    def __init__(self, state: PageState) -> None:
        self.state = state
        self.view = kit.live(CSS, self._take, height=34)
        state.param.watch(lambda *_: self.refresh(), "revision")
        self.refresh()

    def _take(self, name: str) -> None:
        self.state.adopt(Recipe.preset(name))

    def refresh(self) -> None:
        """Show which one the recipe is, if it is one."""
        buttons = [
            f'<button type="button" data-press="{name}" title="{PRESETS[name].help}" '
            f'aria-pressed="{str(Recipe.preset(name) == self.state.session.recipe).lower()}">{shown}</button>'
            for name, shown in USUAL.items()
        ]
        self.view.object = (
            f'<div class="presets" role="group" aria-label="usual recipes">{"".join(buttons)}</div>'
        )
