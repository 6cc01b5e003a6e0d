"""What the parts of the page share: the chosen layer, the marks, the latest numbers.  No widget in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import param

from explorer.cost import Cost, cost
from explorer.errors import ExplorerError
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.session import Session
from explorer.study import Evaluation


class PageState(param.Parameterized):
    """The state of one page on one session.

    ``layers`` and ``cost`` belong to the present recipe at any time; ``evaluation`` belongs to the revision
    that came with it and is stale when the session has moved on.
    """

    layer: Any = param.String(doc="the chosen layer's name")
    tensor: Any = param.Selector(
        default="weight", objects=["weight", "input"], doc="the tensor that is drawn"
    )
    marks: Any = param.ClassSelector(default=frozenset(), class_=frozenset, doc="layers for bulk edits")
    layers: Any = param.DataFrame(doc="session.layers() of the present recipe")
    evaluation: Any = param.ClassSelector(default=None, class_=Evaluation, doc="the latest, or None")
    evaluation_revision: Any = param.Integer(default=-1, doc="the revision that the evaluation belongs to")
    problem: Any = param.String(default="", doc="the latest refusal, in a sentence")

    def __init__(self, session: Session, **values: Any) -> None:
        super().__init__(**values)
        self.session = session
        self.layers = session.layers()
        quantizable = self.layers[self.layers["quantizable"]]
        if len(quantizable):
            noise = quantizable["weight_sqnr_db"].astype(float).fillna(float("inf")).to_numpy()
            self.layer = str(quantizable["name"].iloc[int(noise.argmin())])

    @property
    def stale(self) -> bool:
        """Whether the evaluation is of another recipe than the present one."""
        return self.evaluation is not None and self.evaluation_revision != self.session.revision

    @property
    def config(self) -> LayerConfig:
        """The schemes of the chosen layer."""
        return self.session.recipe.config(self.layer)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The row of the chosen layer."""
        found = self.layers[self.layers["name"] == self.layer]
        return dict(found.iloc[0]) if len(found) else {}

    def cost(self, recipe: Recipe | None = None) -> Cost:
        """What the network costs under a recipe, the present one if None."""
        return cost(self.session.graph, recipe or self.session.recipe)

    def refresh(self) -> None:
        """Read the layers of the present recipe."""
        self.layers = self.session.layers()

    def quantizable(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that a recipe acts on, in the order of execution."""
        wanted = set(names)
        return [name for name in self.session.layer_names if name in wanted]

    def toggle(self, name: str) -> None:
        """Mark a layer, or take its mark away."""
        if self.quantizable([name]):
            self.marks = self.marks ^ {name}

    def edit(
        self,
        names: Iterable[str],
        weight: Mapping[str, Any] | TensorScheme | None = None,
        input: Mapping[str, Any] | TensorScheme | None = None,
    ) -> str:
        """Change layers; the sentence of a refusal, or nothing.  A refused change changes nothing."""
        return self.attempt(lambda: self.session.edit(list(names), weight=weight, input=input))

    def adopt(self, recipe: Recipe) -> str:
        """Take another recipe; the sentence of a refusal, or nothing."""

        def assign() -> None:
            self.session.recipe = recipe

        return self.attempt(assign)

    def attempt(self, action: Any) -> str:
        """Do something that the explorer may refuse; what it says goes to ``problem`` and to the caller."""
        try:
            action()
        except ExplorerError as error:
            self.problem = str(error)
            return self.problem
        self.problem = ""
        return ""

    def reset(self, name: str) -> str:
        """Give a layer the recipe's default schemes again."""
        recipe = self.session.recipe.without_layer(name)
        default = recipe.default
        if recipe.config(name) != default:
            recipe = recipe.with_layer(name, weight=default.weight, input=default.input)
        return self.adopt(recipe)
