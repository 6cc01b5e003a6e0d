"""Schemes: frozen values that say how one tensor, or one layer, is quantized."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from explorer.calibrate import ELEMENTS, Objective, objective
from explorer.errors import SchemeError, unknown
from explorer.formats import (
    FORMATS,
    OVERFLOWS,
    SCALES,
    CodebookFormat,
    Format,
    Granularity,
    Grid,
    IntegerFormat,
    LevelFormat,
    Rounding,
    convention,
    format_named,
    granularity,
    rounding,
)

MODES: dict[str, str] = {
    "static": "ranges are fixed beforehand on calibration images",
    "dynamic": "ranges are taken from each example as it comes",
    "off": "not quantized",
}

# The usual objective of formats whose levels are fitted to each group, and what weighs a weight's values.
FITTED, WEIGHED = "mse", "output"


@dataclass(frozen=True)
class TensorScheme:
    """How one tensor is quantized.

    Args:
        format: a name in ``explorer.formats.FORMATS``; ``fp32`` means not at all.
        granularity: which elements share a scale: ``layer``, ``channel``, ``group:N``, ``subchannel:N``, ``token``.
        symmetric: the range is centred on zero (or starts there, for data that is never negative).
        objective: what the clipping range minimises: ``minmax``, ``percentile:P``, ``clip:F``, ``mse``, ``kl``, ...
        mode: for activations ``static``, ``dynamic`` or ``off``.
        convention: whose arithmetic: ``onnx``, ``torch``, ``aimet``, ``nncf``.
        narrow: leave out the lowest code of a symmetric signed format; None does as the convention does.
        scale: which scales are allowed: ``float``, ``pow2`` (as in MX) or ``fp8`` (as in NVFP4).
        overflow: what becomes of values beyond a float format's range: ``saturate``, or ``infinity`` (in fp8_e4m3 NaN).
        rounding: which neighbouring level a value becomes: ``nearest``, ``stochastic`` or ``stochastic:SEED``.

    Raises:
        SchemeError: for a value that does not exist or values that do not go together.

    >>> TensorScheme("int4", "subchannel:32").bits
    4
    """

    format: str = field(default="int8", metadata={"help": "number format"})
    granularity: str = field(default="channel", metadata={"help": "which elements share a scale"})
    symmetric: bool = field(default=True, metadata={"help": "range centred on zero"})
    objective: str = field(default="minmax", metadata={"help": "what the clipping range minimises"})
    mode: str = field(default="static", metadata={"help": "when activation ranges are set"})
    convention: str = field(default="onnx", metadata={"help": "whose integer arithmetic"})
    narrow: bool | None = field(default=None, metadata={"help": "leave out the lowest code"})
    scale: str = field(default="float", metadata={"help": "which scales are allowed"})
    overflow: str = field(default="saturate", metadata={"help": "values beyond a float format's range"})
    rounding: str = field(default="nearest", metadata={"help": "which neighbouring level is taken"})

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds):
                wanted = "true or false" if bool in kinds else "a name"
                raise SchemeError(f"The field {name!r} takes {wanted}, not {value!r}.")
        format_named(self.format)
        grain = granularity(self.granularity)
        goal = objective(self.objective)
        convention(self.convention)
        if self.mode not in MODES:
            raise SchemeError(unknown("mode", self.mode, MODES))
        if self.scale not in SCALES:
            raise SchemeError(unknown("scale rule", self.scale, SCALES))
        if self.overflow not in OVERFLOWS:
            raise SchemeError(unknown("rule of overflow", self.overflow, OVERFLOWS))
        # One spelling for one meaning, so that equal schemes are equal values.
        object.__setattr__(self, "granularity", grain.name)
        object.__setattr__(self, "objective", goal.name)
        object.__setattr__(self, "rounding", rounding(self.rounding).name)
        if self.off:
            return
        if isinstance(self.number, LevelFormat | CodebookFormat):
            self._check_levels()
        if isinstance(self.number, CodebookFormat):
            self._check_fitted(self.number)
        if self.symmetric and goal.centred() != goal:
            raise SchemeError(
                f"A symmetric range has one bound, so it cannot have those of {goal.name!r}; "
                f"use objective: {goal.centred().name}, or symmetric: false."
            )
        if goal.needs != ELEMENTS and not self.scaled:
            raise SchemeError(
                f"The format {self.format!r} has no scale, so there is no range that the objective {goal.name!r} "
                "could choose; use objective: minmax with it."
            )
        if self.scaled:
            self._check_scale()
        if self.overflow == "infinity" and self.number.beyond is None:
            raise SchemeError(
                f"The format {self.format!r} has no code for infinity or NaN, so values beyond its range always "
                "saturate; set overflow: saturate, or take fp8_e5m2, fp8_e4m3, fp16 or bf16."
            )
        if self.narrow is not None and not (self.symmetric and self.scaled):
            raise SchemeError(
                "The field 'narrow' has an effect on symmetric integer formats only; "
                "leave it out, or set symmetric: true."
            )
        fitted = isinstance(self.number, CodebookFormat)
        if self.mode == "dynamic" and self.scaled and self.objective != "minmax" and not fitted:
            raise SchemeError(
                f"Dynamic ranges are taken from each example as it comes, so the objective {self.objective!r} "
                "has nothing to search; use objective: minmax, or mode: static."
            )
        if (
            self.mode == "dynamic"
            and self.scaled
            and (self.granularity.startswith("group") or self.granularity == "channel")
        ):
            raise SchemeError(
                f"Dynamic ranges are taken for each example or each position, not by {self.granularity!r}; "
                "use granularity: layer or token, or mode: static."
            )

    def _check_levels(self) -> None:
        """Refuse what only integers can be."""
        if not self.symmetric:
            raise SchemeError(
                f"The format {self.format!r} has no zero point, so its range cannot be asymmetric; "
                "set symmetric: true, or take an integer format such as uint8."
            )
        if self.convention != "onnx" or self.narrow is not None:
            raise SchemeError(
                f"The fields 'convention' and 'narrow' have an effect on integer formats only, not on "
                f"{self.format!r}; leave them out."
            )

    def _check_scale(self) -> None:
        """Refuse scales that share a factor where there is one scale only, and with zero points."""
        if not SCALES[self.scale].shared_bits:
            return
        if self.granularity == "layer":
            raise SchemeError(
                f"The scale rule {self.scale!r} has one small number for each block and one float32 for the tensor, "
                "but granularity 'layer' has one scale only; use granularity: subchannel:16, or scale: float."
            )
        if not self.symmetric:
            raise SchemeError(
                f"The scale rule {self.scale!r} is for ranges without a zero point; set symmetric: true, "
                "or scale: float."
            )

    def _check_fitted(self, number: CodebookFormat) -> None:
        """Refuse what levels that are fitted cannot be; give the objective its one spelling."""
        if self.objective not in ("minmax", FITTED, WEIGHED):
            raise SchemeError(
                f"The levels of {self.format!r} are fitted by least squares and have no range for the objective "
                f"{self.objective!r} to pick; use objective: {FITTED}, or for weights {WEIGHED}."
            )
        if self.objective != WEIGHED:
            object.__setattr__(self, "objective", FITTED)
        if self.scale != "float":
            raise SchemeError(
                f"The levels of {self.format!r} are stored as float32 numbers and share no scale, so scale: "
                f"{self.scale} has no effect; use scale: float."
            )
        if self.mode == "dynamic" and not number.dynamic:
            raise SchemeError(
                f"The levels of {self.format!r} are fitted beforehand, which takes too long for each example as it "
                "comes; use mode: static, or the format binary or ternary."
            )

    @property
    def off(self) -> bool:
        """Whether the tensor stays in float32."""
        return self.format == "fp32" or self.mode == "off"

    @property
    def scaled(self) -> bool:
        """Whether codes become real numbers through a scale."""
        return not self.off and self.number.scaled

    @property
    def ranged(self) -> bool:
        """Whether a range is chosen, which sets the scale; levels that are fitted have none."""
        return self.scaled and not isinstance(self.number, CodebookFormat)

    @property
    def number(self) -> Format:
        """The format itself."""
        number = FORMATS["fp32"] if self.off else FORMATS[self.format]
        return number if self.overflow == "saturate" else number.unsaturated

    @property
    def bits(self) -> int:
        """Bits for one value, scales not counted."""
        return self.number.bits

    @property
    def grain(self) -> Granularity:
        """The granularity itself."""
        return granularity(self.granularity)

    @property
    def rounds(self) -> Rounding:
        """The rounding itself."""
        return rounding(self.rounding)

    @property
    def goal(self) -> Objective:
        """The objective itself."""
        return objective(self.objective)

    @property
    def grid(self) -> Grid:
        """The family of level sets from which a range picks one.

        Raises:
            SchemeError: when the format has no scale.
        """
        number = self.number
        if not isinstance(number, IntegerFormat | LevelFormat | CodebookFormat):
            raise SchemeError(f"The format {self.format!r} is used as it is and has no scale.")
        return Grid(number, self.symmetric, convention(self.convention), self.narrow, SCALES[self.scale])

    @property
    def _overflow_word(self) -> list[str]:
        return [] if self.off or self.overflow == "saturate" else [self.overflow]

    @cached_property
    def key(self) -> str:
        """A text that two schemes share exactly if they do the same to every tensor.

        >>> TensorScheme("fp32", "layer").key == TensorScheme("int8", mode="off").key
        True
        """
        if not self.scaled:
            return self.describe()
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, sort_keys=True)

    def with_format(self, name: str) -> TensorScheme:
        """This scheme with another format, switched on; what that format cannot be becomes what it can be.

        >>> TensorScheme("uint8", "layer", symmetric=False, mode="off").with_format("fp8_e4m3").describe()
        'fp8_e4m3 layer sym minmax'
        """
        number = format_named(name)
        changes = self.changes_for(number)
        if not number.scaled:
            return TensorScheme(name, overflow=str(changes.get("overflow", self.overflow)))
        settings: dict[str, Any] = {"format": name, "mode": "static" if self.mode == "off" else self.mode}
        if changes.get("symmetric"):
            settings["objective"] = self.goal.centred().name
        return replace(self, **settings | changes)

    def changes_for(self, number: Format) -> dict[str, object]:
        """What has to change for another format, by field.

        >>> TensorScheme("uint8", "layer", symmetric=False, mode="dynamic").changes_for(format_named("int8"))
        {'objective': 'minmax'}
        """
        changed: dict[str, object] = {}
        if isinstance(number, LevelFormat | CodebookFormat):
            # A list of levels has no zero point and no integers for a convention to differ in.
            changed |= {"symmetric": True, "convention": "onnx", "narrow": None}
        if isinstance(number, CodebookFormat):
            changed |= {"objective": FITTED, "scale": "float"}
            if self.mode == "dynamic" and not number.dynamic:
                changed |= {"mode": "static", "granularity": "layer"}
        elif self.mode == "dynamic" or (not number.scaled and self.goal.needs != ELEMENTS):
            changed["objective"] = "minmax"
        if number.beyond is None and self.overflow != "saturate":
            changed["overflow"] = "saturate"
        return changed

    def describe(self) -> str:
        """A short text for tables.

        >>> TensorScheme("int4", "subchannel:32", objective="mse").describe()
        'int4 subchannel:32 sym mse'
        """
        chance = [self.rounding] if self.rounding != "nearest" and not self.off else []
        if not self.scaled:
            return " ".join([self.number.name, *self._overflow_word, *chance])
        words = [self.format, self.granularity, self.objective]
        if not isinstance(self.number, CodebookFormat):
            words.insert(2, "sym" if self.symmetric else "asym")
        words += ["dynamic"] if self.mode == "dynamic" else []
        words += [self.convention] if self.convention != "onnx" else []
        words += [] if self.narrow is None else ["narrow" if self.narrow else "full"]
        words += [self.scale] if self.scale != "float" else []
        words += self._overflow_word
        return " ".join(words + chance)

    def to_dict(self) -> dict[str, Any]:
        """The fields that a reader needs; ``narrow`` and ``rounding`` are left out while they are the usual ones."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if (f.name, getattr(self, f.name)) not in (("narrow", None), ("rounding", "nearest"))
        }


_KINDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "granularity": (str,),
    "symmetric": (bool,),
    "objective": (str,),
    "mode": (str,),
    "convention": (str,),
    "narrow": (bool, type(None)),
    "scale": (str,),
    "overflow": (str,),
    "rounding": (str,),
}
FIELDS: tuple[str, ...] = tuple(_KINDS)
TENSORS: tuple[str, ...] = ("weight", "input")


WEIGHTS_STAY = "A weight does not change from example to example; use mode: static for weights."


@dataclass(frozen=True)
class LayerConfig:
    """The schemes of one layer: its weight's and its input activation's.

    Raises:
        SchemeError: when a scheme makes no sense for that tensor.
    """

    weight: TensorScheme = TensorScheme()
    input: TensorScheme = TensorScheme("uint8", "layer", symmetric=False, objective="mse")

    def __post_init__(self) -> None:
        if self.weight.mode == "dynamic":
            raise SchemeError(WEIGHTS_STAY)
        if self.weight.scaled and self.weight.granularity == "token":
            raise SchemeError("A weight has no tokens; use granularity: channel for weights.")
        if isinstance(self.input.number, CodebookFormat) and self.input.objective == WEIGHED:
            raise SchemeError(
                f"The levels of {self.input.format!r} are fitted to the values of an input; the objective {WEIGHED!r} "
                f"weighs those of weights only. Use objective: {FITTED} for inputs."
            )
        grain = self.input.granularity
        if (
            self.input.scaled
            and self.input.mode == "static"
            and (grain == "token" or grain.startswith("subchannel"))
        ):
            raise SchemeError(
                f"The positions of an activation are not known beforehand, so {grain!r} needs mode: dynamic; "
                "for mode: static use granularity: layer."
            )
