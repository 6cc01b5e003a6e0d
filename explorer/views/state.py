"""What the parts of the page share: the chosen layer, the marks, the latest numbers.  No widget in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import param

from explorer.cost import Cost, cost
from explorer.errors import ExplorerError
from explorer.recipe import LayerConfig, Recipe, TensorScheme
from explorer.session import Session
from explorer.sources import Notes
from explorer.study import Additivity, Evaluation, ForeignParameters
from explorer.study.ranges import with_objectives


class PageState(param.Parameterized):
    """The state of one page on one session.

    ``revision`` and ``cost`` belong to the present recipe at any time.  What takes longer comes later:
    ``layers`` belongs to ``layers_recipe``, ``evaluation`` and ``additivity`` to the revisions that came with
    them, and all are stale when the session has moved on.
    """

    layer: Any = param.String(doc="the chosen layer's name")
    tensor: Any = param.Selector(
        default="weight", objects=["weight", "input"], doc="the tensor that is drawn"
    )
    log: Any = param.Boolean(default=True, doc="counts are drawn by decades")
    marks: Any = param.ClassSelector(default=frozenset(), class_=frozenset, doc="layers for bulk edits")
    revision: Any = param.Integer(default=0, doc="the session's revision that is shown")
    layers: Any = param.DataFrame(doc="session.layers() of the recipe in layers_recipe")
    layers_recipe: Any = param.ClassSelector(default=None, class_=Recipe, doc="what layers belongs to")
    evaluation: Any = param.ClassSelector(default=None, class_=Evaluation, doc="the latest, or None")
    evaluation_revision: Any = param.Integer(default=-1, doc="the revision that the evaluation belongs to")
    additivity: Any = param.ClassSelector(default=None, class_=Additivity, doc="the latest, or None")
    additivity_revision: Any = param.Integer(default=-1, doc="the revision that additivity belongs to")
    ranking: Any = param.Dict(
        default={}, doc="for each layer the KL that its weight at 4 bits costs, and how sure"
    )
    ranking_old: Any = param.Boolean(default=False, doc="whether the recipe has moved on since")
    foreign: Any = param.ClassSelector(
        default=None, class_=ForeignParameters, doc="what another tool has chosen, or None"
    )
    notes: Any = param.ClassSelector(default=Notes(), class_=Notes, instantiate=False, doc="the reviewer's")
    problem: Any = param.String(default="", doc="the latest refusal, in a sentence")

    def __init__(self, session: Session, **values: Any) -> None:
        super().__init__(**values)
        self.session, self.notes = session, session.notes
        self.param.watch(lambda event: setattr(session, "notes", event.new), "notes")
        self._facts: tuple[tuple[Any, ...], Mapping[str, Any]] = ((None,) * 4, {})
        # What takes a search through the whole network comes later, from the background.
        later = dict.fromkeys(session.subject.resolver.coordinates(session.recipe), "minmax")
        self.revision, self.layers_recipe = session.revision, with_objectives(session.recipe, later)
        self.layers = session.layers(self.layers_recipe)
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

    def rows(self) -> list[dict[str, Any]]:
        """The layers under the present recipe; an SQNR that is still being computed is NaN."""
        return self._present(self.layers)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The row of the chosen layer; it is asked for by many and made once for each state of things."""
        of = self.layer, self.session.recipe, self.layers_recipe, self.layers
        if any(one is not other for one, other in zip(of, self._facts[0], strict=True)):
            found = self._present(self.layers[self.layers["name"] == self.layer])
            self._facts = of, found[0] if found else {}
        return self._facts[1]

    def _present(self, table: pd.DataFrame) -> list[dict[str, Any]]:
        recipe, before, sizes = self.session.recipe, self.layers_recipe, self.cost().layers
        rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
        for row in rows:
            name = row["name"]
            row["size_bytes"] = sizes[name].size
            if recipe.config(name).weight != before.config(name).weight:
                row["weight_sqnr_db"] = row["weight_bits_per_value"] = math.nan
        return rows

    def cost(self, recipe: Recipe | None = None) -> Cost:
        """What the network costs under a recipe, the present one if None."""
        return cost(self.session.graph, recipe or self.session.recipe)

    def read_layers(self) -> Iterator[tuple[Recipe, pd.DataFrame]]:
        """The layers of the present recipe, once; searching for ranges may take its time."""
        recipe = self.session.recipe
        yield recipe, self.session.layers(recipe)

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
        join: Any = "",
    ) -> str:
        """Change layers; the sentence of a refusal, or nothing.  A refused change changes nothing.

        Edits that follow each other with the same text as ``join`` are one step of history.
        """
        return self.attempt(lambda: self.session.edit(list(names), weight=weight, input=input, join=join))

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
