"""Recipes: frozen values that say how every tensor of a network is quantized.

A recipe is a default and a list of lines; a line is a pattern over layer names and the fields that it
changes.  Lines apply in order: what a later one says wins, what it leaves out stays as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import yaml

from explorer.errors import RecipeError, SchemeError, nearest, unknown
from explorer.formats import FORMATS
from explorer.plainyaml import LOADER, check_events, parsed
from explorer.scheme import FIELDS, MODES, TENSORS, WEIGHTS_STAY, LayerConfig, TensorScheme

__all__ = [
    "FIELDS",
    "MODES",
    "PRESETS",
    "TENSORS",
    "Difference",
    "LayerConfig",
    "Line",
    "Preset",
    "Recipe",
    "TensorScheme",
]

VERSION = 1
LONGEST_FILE = 1 << 20

Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Line:
    """A pattern over layer names, in which ``*`` and ``?`` stand for any text and any one letter."""

    pattern: str
    weight: Settings = ()
    input: Settings = ()

    def matches(self, name: str) -> bool:
        return _compiled(self.pattern).fullmatch(name) is not None

    def merged(self, other: Line) -> Line:
        """This line with the other's settings on top."""
        return Line(
            self.pattern,
            _ordered({**dict(self.weight), **dict(other.weight)}),
            _ordered({**dict(self.input), **dict(other.input)}),
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {tensor: dict(getattr(self, tensor)) for tensor in TENSORS if getattr(self, tensor)}


def _ordered(settings: Mapping[str, Any]) -> Settings:
    """The settings in the order of the fields, so that equal lines are equal values."""
    return tuple((name, settings[name]) for name in FIELDS if name in settings)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(
        "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern), re.DOTALL
    )


@dataclass(frozen=True)
class Difference:
    """One field in which two recipes differ; None stands for 'as the default says'."""

    where: str
    tensor: str
    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.where} {self.tensor}.{self.field}: {self.before} -> {self.after}"


def _settings(given: Mapping[str, Any] | TensorScheme | None, place: str) -> Settings:
    """Checked settings of one tensor.

    Raises:
        RecipeError: naming ``place``, for a field or a value that does not exist.
    """
    if given is None:
        return ()
    if isinstance(given, TensorScheme):
        return tuple((name, getattr(given, name)) for name in FIELDS)
    if not isinstance(given, Mapping):
        raise RecipeError(f"{place}: expected fields such as {{format: int8}}, not {given!r}.")
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in FIELDS:
            raise RecipeError(f"{place}: {unknown('field', key, FIELDS)}")
        if key == "format" and isinstance(value, str) and value in PRESETS and value not in FORMATS:
            raise RecipeError(f"{place}.{key}: {_no_format(value)}")
        try:
            # Each value by itself; whether they go together is known once the defaults are filled in.
            scheme = TensorScheme(**{"granularity": "layer", "mode": "off", key: value})
        except SchemeError as error:
            raise RecipeError(f"{place}.{key}: {error}") from None
        found[key] = getattr(scheme, key)
    return _ordered(found)


def _no_format(name: str) -> str:
    """What to write instead of a preset's name where a format is meant."""
    scheme, usual = PRESETS[name].recipe.default.weight, TensorScheme()
    fields = [
        field for field in FIELDS if field == "format" or getattr(scheme, field) != getattr(usual, field)
    ]
    words = ", ".join(f"{field}: {getattr(scheme, field)}" for field in fields)
    return f"{name!r} is a preset and no format; of weights it says {words}."


# One layer is asked for again and again, by plans, calibration and tables.
@lru_cache(maxsize=4096)
def _applied(config: LayerConfig, weight: Settings, input: Settings) -> LayerConfig:
    """The schemes with some settings replaced.

    Raises:
        SchemeError: when they do not go together.
    """
    if dict(weight).get("mode") == "dynamic":
        # Said before the granularity of a dynamic range is looked at, which is beside the point here.
        raise SchemeError(WEIGHTS_STAY)
    return LayerConfig(
        replace(config.weight, **dict(weight)) if weight else config.weight,
        replace(config.input, **dict(input)) if input else config.input,
    )


DEFAULT = LayerConfig()


@dataclass(frozen=True)
class Recipe:
    """How every tensor of a network is quantized: a default and lines for patterns of layer names.

    >>> recipe = Recipe.preset("w8a8").with_layer("layer3.*", weight={"format": "int4"})
    >>> recipe.config("layer3.0.conv1").weight.bits, recipe.config("fc").weight.bits
    (4, 8)
    """

    default: LayerConfig = DEFAULT
    layers: tuple[Line, ...] = ()

    def __post_init__(self) -> None:
        # Each line must make sense on top of the default, whichever other lines match as well.
        patterns = [line.pattern for line in self.layers]
        twice = next((pattern for pattern, times in Counter(patterns).items() if times > 1), None)
        if twice is not None:
            raise RecipeError(f"layers: {twice!r} stands twice; a file could hold only one of them.")
        for line in self.layers:
            try:
                _applied(self.default, line.weight, line.input)
            except RecipeError:
                raise
            except SchemeError as error:
                if not any(other is not line and _overlap(other, line) for other in self.layers):
                    raise RecipeError(f"layers.{line.pattern}: {error}") from None

    @staticmethod
    def preset(name: str) -> Recipe:
        """A recipe by its usual name.

        Raises:
            RecipeError: when there is no such preset, with the nearest one.
        """
        if name not in PRESETS:
            raise RecipeError(unknown("preset", name, PRESETS))
        return PRESETS[name].recipe

    def config(self, name: str) -> LayerConfig:
        """The schemes of the layer called ``name``.

        Raises:
            RecipeError: when the lines that match it do not go together.
        """
        weight: dict[str, Any] = {}
        inputs: dict[str, Any] = {}
        for line in self.layers:
            if line.matches(name):
                weight.update(line.weight)
                inputs.update(line.input)
        try:
            return _applied(self.default, tuple(weight.items()), tuple(inputs.items()))
        except SchemeError as error:
            raise RecipeError(f"layer {name!r}: {error}") from None

    def with_layer(
        self,
        pattern: str,
        weight: Mapping[str, Any] | TensorScheme | None = None,
        input: Mapping[str, Any] | TensorScheme | None = None,
    ) -> Recipe:
        """This recipe with more settings for the layers that ``pattern`` names.

        Raises:
            RecipeError: for a field or value that does not exist, or that does not go with the others.
        """
        line = Line(pattern, _settings(weight, f"{pattern}.weight"), _settings(input, f"{pattern}.input"))
        # The newest line comes last so that it wins; what an equal pattern said before is kept in it.
        before = [old for old in self.layers if old.pattern == pattern]
        others = tuple(old for old in self.layers if old.pattern != pattern)
        for old in reversed(before):
            line = old.merged(line)
        recipe = replace(self, layers=(*others, line))
        if not any(c in pattern for c in "*?"):
            recipe.config(pattern)
        return recipe

    def with_default(
        self,
        weight: Mapping[str, Any] | TensorScheme | None = None,
        input: Mapping[str, Any] | TensorScheme | None = None,
    ) -> Recipe:
        """This recipe with other defaults.

        Raises:
            RecipeError: as :meth:`with_layer`.
        """
        line = Line("default", _settings(weight, "default.weight"), _settings(input, "default.input"))
        try:
            return replace(self, default=_applied(self.default, line.weight, line.input))
        except SchemeError as error:
            raise RecipeError(f"default: {error}") from None

    def without_layer(self, pattern: str) -> Recipe:
        """This recipe without the line for ``pattern`` (unchanged if there is none)."""
        return replace(self, layers=tuple(line for line in self.layers if line.pattern != pattern))

    def check(self, names: Iterable[str]) -> None:
        """Refuse lines that name no layer.

        Raises:
            RecipeError: with the first such pattern and the nearest layer name.
        """
        names = list(names)
        for line in self.layers:
            if not any(line.matches(name) for name in names):
                raise RecipeError(
                    f"layers.{line.pattern}: no layer of this network is called so.{nearest(line.pattern, names)}"
                )
        for name in names:
            self.config(name)

    def fitting(self, names: Iterable[str]) -> tuple[Recipe, tuple[str, ...]]:
        """The part of this recipe whose lines name layers, and the patterns of the lines that name none.

        >>> recipe = Recipe.preset("w8a8").with_layer("fc", weight={"format": "int4"})
        >>> recipe.with_layer("head", weight={"format": "int4"}).fitting(["stem", "fc"]) == (recipe, ("head",))
        True
        """
        names = list(names)
        strange = {line.pattern for line in self.layers if not any(line.matches(name) for name in names)}
        fits = tuple(line for line in self.layers if line.pattern not in strange)
        return replace(self, layers=fits), tuple(p.pattern for p in self.layers if p.pattern in strange)

    def diff(self, other: Recipe, names: Iterable[str] | None = None) -> tuple[Difference, ...]:
        """What changes from this recipe to ``other``.

        With ``names`` the effective schemes of those layers are compared; without, the default and the lines
        as they are written.

        >>> a = Recipe.preset("w8a8")
        >>> print(*a.diff(a.with_layer("fc", weight={"format": "int4"})))
        fc weight.format: None -> int4
        """
        found = []

        def compare(where: str, tensor: str, before: dict[str, Any], after: dict[str, Any]) -> None:
            for key in FIELDS:
                if before.get(key) != after.get(key):
                    found.append(Difference(where, tensor, key, before.get(key), after.get(key)))

        if names is not None:
            for name in names:
                mine, theirs = self.config(name), other.config(name)
                for tensor in TENSORS:
                    a, b = getattr(mine, tensor), getattr(theirs, tensor)
                    if a.key != b.key:
                        compare(name, tensor, a.to_dict(), b.to_dict())
            return tuple(found)
        for tensor in TENSORS:
            compare(
                "default",
                tensor,
                getattr(self.default, tensor).to_dict(),
                getattr(other.default, tensor).to_dict(),
            )
        mine_lines = {line.pattern: line for line in self.layers}
        other_lines = {line.pattern: line for line in other.layers}
        for pattern in [*mine_lines, *(p for p in other_lines if p not in mine_lines)]:
            for tensor in TENSORS:
                a_line, b_line = mine_lines.get(pattern), other_lines.get(pattern)
                compare(
                    pattern,
                    tensor,
                    dict(getattr(a_line, tensor)) if a_line else {},
                    dict(getattr(b_line, tensor)) if b_line else {},
                )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, as it is written to files."""
        return {
            "version": VERSION,
            "default": {tensor: getattr(self.default, tensor).to_dict() for tensor in TENSORS},
            "layers": {line.pattern: line.to_dict() for line in self.layers},
        }

    def to_yaml(self) -> str:
        """The recipe as YAML.

        >>> Recipe.from_yaml(Recipe.preset("w4a8").to_yaml()) == Recipe.preset("w4a8")
        True
        """
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)

    def to_json(self) -> str:
        """The recipe as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @cached_property
    def digest(self) -> str:
        """A short name for what the recipe says."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    @staticmethod
    def from_dict(values: Any) -> Recipe:
        """A recipe from what :meth:`to_dict` has made.

        Raises:
            RecipeError: with the place and the nearest right word.
        """
        return _from_data(values, {})

    @staticmethod
    def from_yaml(text: str) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: with the line of the file and the nearest right word.
        """
        if len(text) > LONGEST_FILE:
            raise RecipeError(
                f"A recipe of {len(text):,} characters is too long; {LONGEST_FILE:,} are read at most."
            )

        def parse() -> tuple[Any, Any]:
            check_events(text, "A recipe")
            return yaml.load(text, LOADER), yaml.compose(text, LOADER)

        data, node = parsed("The recipe is", parse)
        return _from_data(data, _marks(node))

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Read a recipe written by :meth:`to_json`.

        Raises:
            RecipeError: with the place and the nearest right word.
        """
        if len(text) > LONGEST_FILE:
            raise RecipeError(
                f"A recipe of {len(text):,} characters is too long; {LONGEST_FILE:,} are read at most."
            )
        try:
            data = json.loads(text, object_pairs_hook=_once)
        except RecipeError:
            raise
        except json.JSONDecodeError as error:
            raise RecipeError(
                f"The recipe is not JSON: line {error.lineno}, column {error.colno}: {error.msg}."
            ) from None
        except ValueError as error:
            raise RecipeError(f"The recipe is not JSON that can be read: {error}.") from None
        except RecursionError:
            raise RecipeError("The recipe is nested too deeply.") from None
        return _from_data(data, {})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names all differ."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RecipeError(f"recipe: {name!r} stands twice.")
        found[name] = value
    return found


def _overlap(a: Line, b: Line) -> bool:
    """Whether some layer may be named by both lines; in doubt, yes."""
    wild = any(c in a.pattern or c in b.pattern for c in "*?")
    return wild or a.pattern == b.pattern


Place = tuple[str, ...]


def _marks(node: yaml.Node | None, place: Place = ()) -> dict[Place, int]:
    """The line of each field of a YAML document; refuses keys that stand twice."""
    found: dict[Place, int] = {}
    if node is None:
        return found
    found[place] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and len(place) < 6:
        for key, value in node.value:
            inner = (*place, str(key.value))
            if inner in found:
                raise RecipeError(f"line {key.start_mark.line + 1}: {'.'.join(inner)!r} stands twice.")
            found.update(_marks(value, inner))
            found[inner] = key.start_mark.line + 1
    return found


def _from_data(data: Any, marks: dict[Place, int]) -> Recipe:
    def at(*place: str) -> str:
        line = f"line {marks[place]}: " if place in marks else ""
        return line + (".".join(place) or "recipe")

    def mapping(value: Any, known: Iterable[str] | None, *place: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise RecipeError(f"{at(*place)}: expected named fields, not {value!r}.")
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(f"{at(*place)}: the name {key!r} is not a text; put it in quotes.")
            if known is not None and key not in known:
                raise RecipeError(f"{at(*place, key)}: {unknown('field', key, known)}")
        return value

    def settings(value: Any, *place: str) -> Settings:
        found: dict[str, Any] = {}
        for key, item in mapping(value, FIELDS, *place).items():
            try:
                found.update(_settings({key: item}, ""))
            except SchemeError as error:
                raise RecipeError(f"{at(*place, key)}: {str(error).split(': ', 1)[-1]}") from None
        return _ordered(found)

    top = mapping(data, ("version", "default", "layers"))
    if not top:
        raise RecipeError("The recipe is empty; it needs 'version: 1' and a 'default' or 'layers'.")
    version = top.get("version")
    if version != VERSION or isinstance(version, bool):
        raise RecipeError(
            f"{at('version')}: this program reads recipes of version {VERSION}, not {version!r}."
        )
    default = mapping(top.get("default"), TENSORS, "default")
    recipe = Recipe()
    try:
        recipe = Recipe(
            _applied(
                recipe.default, *(settings(default.get(tensor), "default", tensor) for tensor in TENSORS)
            )
        )
    except RecipeError:
        raise
    except SchemeError as error:
        raise RecipeError(f"{at('default')}: {error}") from None
    lines = []
    for pattern, value in mapping(top.get("layers"), None, "layers").items():
        entry = mapping(value, TENSORS, "layers", pattern)
        lines.append(
            Line(pattern, *(settings(entry.get(tensor), "layers", pattern, tensor) for tensor in TENSORS))
        )
    try:
        return replace(recipe, layers=tuple(lines))
    except RecipeError as error:
        first = next((line.pattern for line in lines if f"layers.{line.pattern}:" in str(error)), None)
        prefix = f"line {marks[('layers', first)]}: " if first and ("layers", first) in marks else ""
        raise RecipeError(f"{prefix}{error}") from None


@dataclass(frozen=True)
class Preset:
    """A line of the table of presets."""

    help: str
    recipe: Recipe


_OFF = TensorScheme("fp32")


def _preset(help: str, weight: TensorScheme, input: TensorScheme) -> Preset:
    return Preset(help, Recipe(LayerConfig(weight, input)))


def _mx(name: str, number: str) -> tuple[str, str, TensorScheme]:
    help = (
        f"OCP {name.upper()}: {number} in blocks of 32 with scales of powers of two, weights and activations"
    )
    return name, help, TensorScheme(number, "subchannel:32", scale="pow2")


_A16 = TensorScheme("int16", "layer", symmetric=True)
_A8 = TensorScheme("uint8", "layer", symmetric=False, objective="mse")
_W4 = TensorScheme("int4")

PRESETS: dict[str, Preset] = {
    "fp32": _preset("nothing is quantized", _OFF, _OFF),
    "w8a8": _preset("8-bit weights by channel, 8-bit activations", TensorScheme(), _A8),
    "w8a16": _preset("8-bit weights by channel, 16-bit activations", TensorScheme(), _A16),
    "w4a16": _preset("4-bit weights by channel, 16-bit activations", _W4, _A16),
    "w4a8": _preset("4-bit weights by channel, 8-bit activations", _W4, _A8),
    "w4a4": _preset("4-bit weights by channel, 4-bit activations", _W4, replace(_A8, format="uint4")),
    "w2a8": _preset(
        "2-bit weights by channel, 8-bit activations", replace(_W4, format="int2", objective="mse"), _A8
    ),
    "int8_dynamic": _preset(
        "8-bit weights by channel, 8-bit activations with ranges taken from each example",
        TensorScheme(),
        TensorScheme("uint8", "layer", symmetric=False, mode="dynamic"),
    ),
    "fp8": _preset(
        "8-bit float (e4m3) weights by channel and activations",
        TensorScheme("fp8_e4m3"),
        TensorScheme("fp8_e4m3", "layer"),
    ),
    "nf4a16": _preset(
        "4-bit normal-float weights in blocks of 64, 16-bit activations",
        TensorScheme("nf4", "subchannel:64"),
        _A16,
    ),
    **{
        name: _preset(help, scheme, replace(scheme, mode="dynamic"))
        for name, help, scheme in (
            _mx("mxfp8", "fp8_e4m3"),
            _mx("mxfp6", "fp6_e2m3"),
            _mx("mxfp4", "fp4_e2m1"),
            _mx("mxint8", "int8"),
            (
                "nvfp4",
                "NVFP4: fp4_e2m1 in blocks of 16 with e4m3 scales, weights and activations",
                TensorScheme("fp4_e2m1", "subchannel:16", scale="fp8"),
            ),
        )
    },
    "kmeans4": _preset(
        "weights from a codebook of 16 values for each layer, 8-bit activations",
        TensorScheme("kmeans4", "layer"),
        _A8,
    ),
    "ternary": _preset(
        "ternary weights by channel, 8-bit activations, in every layer (the first and last are often left in float)",
        TensorScheme("ternary"),
        _A8,
    ),
    "binary": _preset(
        "binary weights by channel, 8-bit activations, in every layer (the first and last are often left in float)",
        TensorScheme("binary"),
        _A8,
    ),
    "fp16": _preset("16-bit float weights and activations", TensorScheme("fp16"), TensorScheme("fp16")),
    "bf16": _preset("bfloat16 weights and activations", TensorScheme("bf16"), TensorScheme("bf16")),
}
