"""The inspector: every field of the chosen layer's schemes, a refusal beside the control that caused it."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from explorer.calibrate import OBJECTIVES
from explorer.formats import (
    CONVENTIONS,
    FORMATS,
    GRANULARITIES,
    OVERFLOWS,
    ROUNDINGS,
    SCALES,
    CodebookFormat,
    LevelFormat,
    Parameter,
    family,
    spelled,
)
from explorer.recipe import MODES, TensorScheme
from explorer.scheme import FITTED, WEIGHED
from explorer.views import choices, kit, theme
from explorer.views.state import PageState
from explorer.views.text import decibels, kilobytes, large

CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--ink); font-size: 12px; line-height: 17px; }}
.name {{ font-size: 14px; font-weight: 600; overflow-wrap: anywhere; line-height: 18px; }}
.facts {{ color: var(--faint); margin-top: 2px; }}
.title {{ font-size: 11px; font-weight: 700; letter-spacing: .06em; text-transform: uppercase; color: var(--faint); }}
.refused {{ color: var(--bad); font-weight: 500; }}
.help {{ color: var(--faint); font-size: 11.5px; line-height: 16px; border-top: 1px solid var(--line);
  padding-top: 8px; }}
.help b {{ color: var(--ink); font-weight: 500; }}
.why {{ border-left: 3px solid {theme.SENSITIVE}; padding: 4px 8px; background: var(--wash); }}
"""
)
SIZE = 32


class TensorControls:
    """The fields of one tensor's scheme.

    A change is tried on the recipe at once; what is refused says so below, and the controls go back to
    what the recipe says.
    """

    def __init__(self, state: PageState, tensor: str) -> None:
        self.state, self.tensor = state, tensor
        self._quiet = False
        grains = [name for name in GRANULARITIES if not (tensor == "weight" and name == "token")]
        modes = [name for name in MODES if tensor == "input"]
        self.format = kit.select("format", choices.formats(), "int8", description=None)
        self.symmetric = kit.switch("symmetric", True, width=112)
        self.grain = kit.select("granularity", grains, "layer")
        self.size = kit.whole("N", SIZE, start=1, width=84)
        self.goal = kit.select("objective", list(OBJECTIVES), "minmax")
        # The numbers of an objective that takes any: one, or one for each end of an asymmetric range.
        self.numbers = [kit.real("", 1.0), kit.real("", 1.0)]
        self._echoes = kit.Echoes()
        self.number_row = kit.show(kit.row(*self.numbers), False)
        self.convention = kit.select("convention", choices.conventions(), "onnx")
        self.scale = kit.select("scale", choices.scales(), "float")
        self.overflow = kit.show(kit.select("overflow", choices.overflows(), "saturate"), False)
        self.rounding = kit.select("rounding", choices.roundings(), "nearest")
        self.seed = kit.whole("seed", 0, start=0, width=104)
        self.mode = kit.select("mode", modes, "static", width=112) if modes else None
        self.last = kit.row(*([self.mode] if self.mode is not None else []), self.overflow)
        self.refused = kit.show(kit.html(css=CSS), False)
        self.view = kit.column(*self._rows(), sizing_mode="stretch_width", css=":host { gap: 8px; }")
        self._watch()

    def _rows(self) -> list[Any]:
        return [
            kit.html(f'<div class="title">{self.tensor}</div>', css=CSS, height=17),
            kit.row(self.format, self.symmetric),
            kit.row(self.grain, self.size),
            kit.row(self.goal),
            self.number_row,
            kit.row(self.convention, self.scale),
            self.last,
            kit.row(self.rounding, self.seed),
            self.refused,
        ]

    def _watch(self) -> None:
        simple = {"format": self.format, "symmetric": self.symmetric, "convention": self.convention}
        simple |= {"scale": self.scale, "overflow": self.overflow}
        if self.mode is not None:
            simple["mode"] = self.mode
        for field, widget in simple.items():
            widget.param.watch(lambda event, field=field: self._change(field, event.new), "value")
        for widget in (self.grain, self.size):
            widget.param.watch(lambda *_: self._change("granularity", self._granularity()), "value")
        for widget in (self.rounding, self.seed):
            widget.param.watch(lambda *_: self._change("rounding", self._rounding()), "value")
        self.goal.param.watch(lambda *_: self._pick_goal(), "value")
        for widget in self.numbers:
            widget.param.watch(self._typed, "value")

    def _granularity(self) -> str:
        return str(self.grain.value).replace(":N", f":{self.size.value}")

    def _rounding(self) -> str:
        seeded = ROUNDINGS[self.rounding.value].parameter is not None
        return str(self.rounding.value).replace(":SEED", f":{self.seed.value}" if seeded else "")

    def _objective(self) -> str:
        word = str(self.goal.value).partition(":")[0]
        typed = [widget.value for widget in self.numbers if kit.shown(widget)]
        return ":".join([word, *("" if number is None else spelled(number) for number in typed)])

    def _pick_goal(self) -> None:
        """The objective that was picked, with the usual numbers if it takes any."""
        if self._quiet:
            return
        self._quiet = True
        try:
            parameter = OBJECTIVES[self.goal.value].parameter
            self._show_numbers([parameter.usual] if parameter else [])
        finally:
            self._quiet = False
        self._change("objective", self._objective())

    def _show_numbers(self, given: list[float]) -> None:
        """Fields for the numbers that the objective takes, with those ``given``."""
        parameter: Parameter | None = OBJECTIVES[self.goal.value].parameter
        letter = str(self.goal.value).partition(":")[2]
        count = parameter.count if parameter and not self.symmetric.value else int(parameter is not None)
        kit.show(self.number_row, count > 0)
        for place, widget in enumerate(self.numbers):
            kit.show(widget, place < count)
            if parameter is not None and kit.shown(widget):
                label = letter if count == 1 else f"{letter} {('low', 'high')[place]}"
                value = given[place] if place < len(given) else given[0]
                self._echoes.give(widget, value)
                widget.param.update(
                    label=label, start=parameter.above, end=parameter.most, step=parameter.step, value=value
                )

    def _typed(self, event: Any) -> None:
        """A number was entered, if it is no echo of one that a moving range has shown."""
        if not self._echoes.hears(event.obj, event.new):
            self._change("objective", self._objective())

    def _change(self, field: str, value: object) -> None:
        if self._quiet:
            return
        changed = choices.consequences(field, value, self.scheme)
        sentence = self.state.edit([self.state.layer], **{self.tensor: changed})
        self.state.problem = ""
        self.sync()
        self.refused.object = f'<div class="refused" role="alert">{escape(sentence)}</div>'
        kit.show(self.refused, bool(sentence))

    @property
    def scheme(self) -> TensorScheme:
        """The recipe's scheme for this tensor of the chosen layer."""
        return getattr(self.state.config, self.tensor)

    def sync(self) -> None:
        """Show what the recipe says."""
        self._quiet = True
        try:
            self._show(self.scheme)
        finally:
            self._quiet = False
        kit.show(self.refused, False)

    def _show(self, scheme: TensorScheme) -> None:
        self.format.value = scheme.format
        self.symmetric.value = scheme.symmetric
        size = scheme.granularity.partition(":")[2]
        self.grain.value = choices.granularity_family(scheme.granularity)
        if size:
            self.size.value = int(size)
        fitted = isinstance(scheme.number, CodebookFormat)
        goals = [FITTED, WEIGHED] if fitted and self.tensor == "weight" else list(OBJECTIVES)
        if self.goal.options != goals:
            self.goal.options = goals
        self.goal.value = choices.objective_family(scheme.objective)
        self._show_numbers([float(number) for number in scheme.objective.split(":")[1:]])
        self.convention.value = scheme.convention
        self.scale.value, self.overflow.value = scheme.scale, scheme.overflow
        self.rounding.value = family(scheme.rounding, ROUNDINGS)
        self.seed.value = int(scheme.rounding.partition(":")[2] or 0)
        kit.show(self.seed, ROUNDINGS[self.rounding.value].parameter is not None)
        if self.mode is not None:
            self.mode.value = scheme.mode
        kit.show(self.size, GRANULARITIES[self.grain.value].sized)
        # What has no effect is off; each is set once, for of two changes at once the browser may keep the first.
        listed = isinstance(scheme.number, LevelFormat | CodebookFormat)
        self.grain.disabled = self.size.disabled = not scheme.scaled
        self.symmetric.disabled = self.convention.disabled = not scheme.scaled or listed
        for widget in self.numbers:
            widget.disabled = not scheme.scaled
        self.goal.disabled = not scheme.scaled or (fitted and self.tensor == "input")
        self.scale.disabled = not scheme.ranged
        self.rounding.disabled = self.seed.disabled = scheme.off
        kit.show(self.overflow, scheme.number.beyond is not None)
        kit.show(self.last, self.mode is not None or kit.shown(self.overflow))
        self.format.disabled = scheme.mode == "off"


class Inspector:
    """The region on the right: the chosen layer, its controls, and what can be done with them."""

    def __init__(self, state: PageState) -> None:
        self.state = state
        self.head = kit.html(css=CSS, min_height=56)
        self.weight, self.input = TensorControls(state, "weight"), TensorControls(state, "input")
        self.why = kit.show(kit.html(css=CSS), False)
        self.apply = kit.button(
            "Apply to marked (0)", "all", on_click=lambda *_: self._apply(), disabled=True
        )
        self.reset = kit.button(
            "Reset to default", "reset", variant="text", on_click=lambda *_: self._reset()
        )
        self.help = kit.show(kit.html(css=CSS), False)
        self.actions = kit.row(self.apply, self.reset, css=":host { flex-wrap: wrap; }")
        self.view = kit.column(
            self.head, self.why, self.weight.view, self.input.view, self.actions, self.help,
            css=theme.CARD + ":host { padding: 10px 12px; gap: 10px; overflow-y: auto; }",
            css_classes=["place-inspector"],
        )  # fmt: skip
        state.param.watch(lambda *_: self.refresh(), ["layer", "revision", "layers", "tensor"])
        state.param.watch(lambda *_: self._label(), "marks")
        self.refresh()
        self._label()

    def _label(self) -> None:
        count = len(self.state.marks)
        self.apply.param.update(label=f"Apply to marked ({count})", disabled=not count or not self._open)

    @property
    def _open(self) -> bool:
        return bool(self.state.facts) and not self.state.facts["reason"]

    def refresh(self) -> None:
        """Show the chosen layer under the present recipe."""
        facts = self.state.facts
        if not facts:
            return
        shape = str(facts["shape"]).replace("x", "\N{MULTIPLICATION SIGN}")
        sqnr = f" · weight SQNR {decibels(facts['weight_sqnr_db'])}" if self._open else ""
        if self._open and not math.isnan(facts["weight_bits_per_value"]):
            sqnr += f" · {facts['weight_bits_per_value']:.3g} bits a weight"
        tied = f" · the same weight as {escape(str(facts['shares']))}" if facts["shares"] else ""
        self.head.object = (
            f'<div class="name">{escape(self.state.layer)}</div>'
            f'<div class="facts">{escape(str(facts["op"]))} {escape(shape)} · {facts["parameters"]:,} parameters<br>'
            f"{large(facts['macs'])} MACs · {kilobytes(facts['size_bytes'])}{sqnr}{tied}</div>"
        )
        self.why.object = f'<div class="why">Stays in float: {escape(str(facts["reason"]))}.</div>'
        kit.show(self.why, bool(facts["reason"]))
        kit.show(self.weight.view, self._open and _has(facts["weight"]))
        kit.show(self.input.view, self._open and _has(facts["input"]))
        kit.show(self.actions, self._open)
        if self._open:
            self.weight.sync()
            self.input.sync()
            drawn = self.weight if self.state.tensor == "weight" else self.input
            self.help.object = f'<div class="help">{help_of(drawn.scheme)}</div>'
        kit.show(self.help, self._open)
        self._label()

    def _apply(self) -> None:
        config = self.state.config
        names = self.state.quantizable(self.state.marks)
        facts = self.state.facts
        self.state.edit(
            names,
            weight=config.weight.to_dict() if _has(facts["weight"]) else None,
            input=config.input.to_dict() if _has(facts["input"]) else None,
        )

    def _reset(self) -> None:
        self.state.reset(self.state.layer)


def _has(text: object) -> bool:
    return isinstance(text, str)


def help_of(scheme: TensorScheme) -> str:
    """The tables' own words on what a scheme uses, as HTML."""
    names = [(scheme.format, FORMATS[scheme.format].help)]
    if isinstance(scheme.number, CodebookFormat):
        # Levels that are fitted have no range to pick and no convention.
        grain = choices.granularity_family(scheme.granularity)
        names.append((scheme.granularity, GRANULARITIES[grain].help))
        names += [(WEIGHED, OBJECTIVES[WEIGHED].help)] if scheme.objective == WEIGHED else []
    elif scheme.scaled:
        grain = choices.granularity_family(scheme.granularity)
        goal = choices.objective_family(scheme.objective)
        names += [
            (scheme.granularity, GRANULARITIES[grain].help),
            (scheme.objective, OBJECTIVES[goal].help),
            (scheme.convention, CONVENTIONS[scheme.convention].help),
        ]
        names += [(scheme.scale, SCALES[scheme.scale].help)] if scheme.scale != "float" else []
    if scheme.overflow != "saturate":
        names.append((scheme.overflow, OVERFLOWS[scheme.overflow]))
    if scheme.rounding != "nearest" and not scheme.off:
        names.append((scheme.rounding, ROUNDINGS[family(scheme.rounding, ROUNDINGS)].help))
    if scheme.mode != "static":
        names.append((scheme.mode, MODES[scheme.mode]))
    return "<br>".join(f"<b>{escape(name)}</b>: {escape(text)}" for name, text in names)
