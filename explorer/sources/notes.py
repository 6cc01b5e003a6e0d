"""A reviewer's notes: one on the whole, one on any layer, in a file of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from explorer.errors import LayerError, RecipeError, nearest, unknown
from explorer.plainyaml import LOADER, check_events, parsed

VERSION = 1
# Characters of one note, and of a file of them.
LONGEST_NOTE, LONGEST_FILE = 10_000, 1 << 18
FIELDS = ("version", "overall", "layers")


@dataclass(frozen=True)
class Notes:
    """What a reviewer has written.

    Args:
        overall: on the recipe as a whole.
        layers: by the layers' names; an empty note is none.

    Raises:
        RecipeError: for a note of more than ``LONGEST_NOTE`` characters.

    >>> notes = Notes("ship it").with_layer("fc", "stays in float?")
    >>> Notes.from_yaml(notes.to_yaml()) == notes
    True
    """

    overall: str = ""
    layers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for where, text in (("overall", self.overall), *self.layers.items()):
            if len(text) > LONGEST_NOTE:
                raise RecipeError(
                    f"notes.{where}: {len(text):,} characters are too long; a note has {LONGEST_NOTE:,} at most."
                )
        object.__setattr__(
            self, "layers", MappingProxyType({name: text for name, text in self.layers.items() if text})
        )

    def __bool__(self) -> bool:
        return bool(self.overall or self.layers)

    def with_layer(self, name: str, text: str) -> Notes:
        """These notes with another one on a layer; an empty text takes it away."""
        return Notes(self.overall, {**self.layers, name: text})

    def check(self, names: Iterable[str]) -> None:
        """Refuse a note on what is no layer.

        Raises:
            LayerError: with the nearest name.
        """
        known = list(names)
        for name in self.layers:
            if name not in known:
                raise LayerError(f"notes.layers: this network has no layer {name!r}.{nearest(name, known)}")

    def to_dict(self) -> dict[str, Any]:
        return {"version": VERSION, "overall": self.overall, "layers": dict(self.layers)}

    def to_yaml(self) -> str:
        """The notes as a file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)

    @staticmethod
    def from_dict(data: Any) -> Notes:
        """Notes from plain values.

        Raises:
            RecipeError: with the place of what is no note.
        """
        if not isinstance(data, dict):
            raise RecipeError(
                "Notes are a file with 'version: 1', 'overall: TEXT' and 'layers: {NAME: TEXT}'."
            )
        for key in data:
            if key not in FIELDS:
                raise RecipeError(f"notes: {unknown('field', key, FIELDS)}")
        if data.get("version") != VERSION or isinstance(data.get("version"), bool):
            raise RecipeError(
                f"notes.version: this program reads notes of version {VERSION}, not {data.get('version')!r}."
            )
        overall, layers = data.get("overall") or "", data.get("layers") or {}
        if not isinstance(layers, dict):
            raise RecipeError(f"notes.layers: expected texts by layer names, not {layers!r}.")
        for where, text in (("overall", overall), *layers.items()):
            if not isinstance(where, str) or not isinstance(text, str):
                raise RecipeError(f"notes.{where}: a note is a text, not {text!r}; put it in quotes.")
        return Notes(overall, layers)

    @staticmethod
    def from_yaml(text: str) -> Notes:
        """Read a file of notes.

        Raises:
            RecipeError: with the place of what is no note.
        """
        if len(text) > LONGEST_FILE:
            raise RecipeError(
                f"Notes of {len(text):,} characters are too long; {LONGEST_FILE:,} are read at most."
            )

        def parse() -> Any:
            check_events(text, "A file of notes")
            return yaml.load(text, LOADER)

        return Notes.from_dict(parsed("The notes are", parse))


def load_notes(path: str) -> Notes:
    """Notes from a YAML file.

    Raises:
        RecipeError: when it cannot be read or holds no notes; the message begins with its name.
    """
    try:
        return Notes.from_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The notes {path!r} cannot be read: {error}.") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
