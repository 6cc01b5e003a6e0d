"""Which layers the list shows, by a pattern, and one setting for all of them or for the marked ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from explorer.recipe import TENSORS, Line, Recipe
from explorer.views import choices, kit
from explorer.views.state import PageState

EVERY = "*"
# The CSS class of the field with the pattern.
PATTERN = "place-pattern"
# What a menu shows that edits others and is no display of theirs.
AS_IT_IS = "set to …"


def pattern_of(text: str) -> str:
    """What a user typed as a pattern of a recipe; without ``*`` or ``?`` it may stand anywhere in the name.

    >>> pattern_of("layer3.*"), pattern_of("conv"), pattern_of(" ")
    ('layer3.*', '*conv*', '*')
    """
    text = text.strip()
    return text if any(c in text for c in "*?") else f"*{text}*" if text else EVERY


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern stands for, in order.

    >>> matching(["conv1", "layer1.0.conv1", "fc"], "*conv?")
    ['conv1', 'layer1.0.conv1']
    """
    line = Line(pattern)
    return [name for name in names if line.matches(name)]


def with_field(
    recipe: Recipe, names: Sequence[str], pattern: str, tensor: str, field: str, value: object
) -> Recipe:
    """The recipe with one setting for some layers: one line if they are those of a pattern and alike, else one each.

    Args:
        recipe: to begin with.
        names: the layers.
        pattern: stands for exactly these layers; empty where there is none.
        tensor: ``weight`` or ``input``.
        field: of the scheme.
        value: what it becomes.

    Raises:
        RecipeError: when it does not go with what the recipe says of a layer.
    """
    schemes = {name: getattr(recipe.config(name), tensor) for name in names}
    lines = {name: choices.consequences(field, value, scheme) for name, scheme in schemes.items()}
    if pattern and len(set(schemes.values())) == 1:
        lines = {pattern: next(iter(lines.values()))}
    for where, fields in lines.items():
        recipe = recipe.with_layer(where, **{tensor: fields})
    return recipe


def settings(tensor: str) -> dict[str, tuple[str, object]]:
    """What a menu offers for many layers at once, formats first: its words, the field and the value.

    >>> offered = settings("weight")
    >>> offered["int4"], offered["by subchannel:32"], offered["asymmetric"]
    (('format', 'int4'), ('granularity', 'subchannel:32'), ('symmetric', False))
    """
    found: dict[str, tuple[str, object]] = {name: ("format", name) for name in choices.formats()}
    found |= {f"by {name}": ("granularity", name) for name in choices.granularities(tensor)}
    found |= {"symmetric": ("symmetric", True), "asymmetric": ("symmetric", False)}
    found |= {f"range by {name}": ("objective", name) for name in choices.objectives()}
    if tensor == "input":
        found |= {f"mode {name}": ("mode", name) for name in choices.modes()}
    return found


class BulkBar:
    """The field with the pattern and the menus of settings.

    Args:
        state: of the page.
        filtered: is called with the pattern when it changes.
    """

    def __init__(self, state: PageState, filtered: Callable[[str], None]) -> None:
        self.state, self.filtered = state, filtered
        self.names = [str(name) for name in state.layers["name"]]
        self.field = kit.text("filter, such as layer3.*", width=136, css_classes=[PATTERN])
        self.offered = {tensor: settings(tensor) for tensor in TENSORS}
        self.menus = {
            tensor: kit.select(tensor, [AS_IT_IS, *offered], AS_IT_IS, width=112)
            for tensor, offered in self.offered.items()
        }
        self.view = kit.row(self.field, *self.menus.values(), height=50, width=380)
        self.field.param.watch(lambda event: self._typed(event.new), "value_input")
        for tensor, menu in self.menus.items():
            menu.param.watch(lambda event, tensor=tensor: self._set(tensor, event.new), "value")
        state.param.watch(lambda *_: self.label(), "marks")
        self.label()

    pattern = EVERY

    @property
    def targets(self) -> list[str]:
        """Whom a menu edits: the marked layers, or all that the pattern stands for where none is marked."""
        chosen = self.state.marks or matching(self.names, self.pattern)
        return self.state.quantizable(chosen)

    def _typed(self, text: str) -> None:
        self.pattern = pattern_of(text)
        self.filtered(self.pattern)
        self.label()

    def label(self) -> None:
        """Say on the menus whom they edit."""
        count, marked = len(self.targets), bool(self.state.marks)
        whom = f"{count} marked" if marked else f"all {count}" if self.pattern == EVERY else f"{count} shown"
        for tensor, menu in self.menus.items():
            menu.param.update(
                label=f"{tensor}, {whom}",
                disabled=not count,
                description=f"sets the {tensor} of {whom}",
            )

    def _set(self, tensor: str, words: str) -> None:
        if words == AS_IT_IS:
            return
        field, value = self.offered[tensor][words]
        column = self.state.layers.set_index("name")[tensor]
        names = [name for name in self.targets if isinstance(column[name], str)]
        pattern = "" if self.state.marks else self.pattern
        recipe = self.state.session.recipe
        self.state.attempt(lambda: self._adopt(with_field(recipe, names, pattern, tensor, field, value)))
        self.menus[tensor].value = AS_IT_IS

    def _adopt(self, recipe: Recipe) -> None:
        self.state.session.recipe = recipe
