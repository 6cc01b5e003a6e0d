"""The state of a page as a text for its address: versioned, limited in size, checked and never executed."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from explorer.errors import ExplorerError
from explorer.recipe import PRESETS, TENSORS, Recipe
from explorer.sources import Notes

VERSION = 1
# The name in the address, and how long what stands there may be: servers and mail programs cut longer ones.
NAME = "state"
LONGEST = 6_000
# Unpacked; what is packed tighter than any page would do it is not unpacked at all.
LONGEST_PLAIN = 1 << 18
FIELDS = ("network", "recipe", "layer", "tensor", "log", "marks", "views", "notes")


@dataclass(frozen=True)
class Link:
    """What a page shows.

    Args:
        network: its name; a recipe for another one means nothing here.
        recipe: the present one.
        layer: the chosen layer.
        tensor: which of its tensors is drawn.
        log: whether counts are drawn by decades.
        marks: layers for bulk edits, sorted.
        views: what is in sight of the tensor and below it.
        notes: the reviewer's.
    """

    network: str
    recipe: Recipe
    layer: str = ""
    tensor: str = "weight"
    log: bool = True
    marks: tuple[str, ...] = ()
    views: tuple[str, str] = ("", "")
    notes: Notes = field(default_factory=Notes)

    def to_text(self) -> str:
        """Letters, digits, ``-``, ``_`` and one dot after the version.

        Raises:
            ExplorerError: when it would be longer than ``LONGEST``.

        >>> Link.from_text(Link("net", Recipe.preset("w4a8"), "fc").to_text()).layer
        'fc'
        """
        preset = next((name for name, entry in PRESETS.items() if entry.recipe == self.recipe), None)
        data = {
            "network": self.network,
            "recipe": preset or self.recipe.to_dict(),
            "layer": self.layer,
            "tensor": self.tensor,
            "log": self.log,
            "marks": list(self.marks),
            "views": list(self.views),
            "notes": self.notes.to_dict(),
        }
        packed = zlib.compress(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(), 9)
        text = f"{VERSION}.{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"
        if len(text) > LONGEST:
            raise ExplorerError(
                f"This state takes {len(text):,} characters, too many for an address, which holds {LONGEST:,}; "
                "save the recipe as a file."
            )
        return text

    @staticmethod
    def from_text(text: str) -> Link:
        """Read :meth:`to_text`.

        Raises:
            ExplorerError: in a sentence, for another version and for all that no page has written.
        """
        version, dot, packed = text.partition(".")
        if not dot or not (version.isascii() and version.isdigit() and len(version) < 5):
            raise _damaged("it does not begin with a version")
        if int(version) != VERSION:
            raise ExplorerError(
                f"The address holds a state of version {int(version)}; this program reads version {VERSION}. "
                "What is shown is the page as it begins."
            )
        if len(text) > LONGEST:
            raise _damaged(f"it has {len(text):,} characters where {LONGEST:,} are read at most")
        return _from_data(_unpacked(packed))


def _damaged(why: str) -> ExplorerError:
    return ExplorerError(
        f"The state in the address cannot be read: {why}. What is shown is the page as it begins."
    )


def _unpacked(packed: str) -> Any:
    try:
        raw = base64.b64decode(
            packed.encode("ascii") + b"=" * (-len(packed) % 4), altchars=b"-_", validate=True
        )
        unpack = zlib.decompressobj()
        plain = unpack.decompress(raw, LONGEST_PLAIN)
        if not unpack.eof:
            raise _damaged("it is not whole, or unpacks to far more than a page's state")
        return json.loads(plain.decode())
    except ExplorerError:
        raise
    except (ValueError, zlib.error, RecursionError):
        # Base64, UTF-8 and JSON all fail with a ValueError.
        raise _damaged("it is damaged") from None


def _from_data(data: Any) -> Link:
    if not isinstance(data, dict) or set(data) != set(FIELDS):
        raise _damaged("its fields are others than a page's")
    texts = [data["network"], data["layer"], *_texts(data["marks"]), *_texts(data["views"])]
    if not all(isinstance(text, str) for text in texts) or len(data["views"]) != 2:
        raise _damaged("a name in it is no text")
    if data["tensor"] not in TENSORS or not isinstance(data["log"], bool):
        raise _damaged("it names a tensor or a scale that does not exist")
    recipe = data["recipe"]
    try:
        made = Recipe.preset(recipe) if isinstance(recipe, str) else Recipe.from_json(json.dumps(recipe))
        notes = Notes.from_dict(data["notes"])
    except ExplorerError as error:
        raise _damaged(str(error).rstrip(".")) from None
    return Link(
        data["network"], made, data["layer"], data["tensor"], data["log"], tuple(data["marks"]),
        (data["views"][0], data["views"][1]), notes,
    )  # fmt: skip


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def state_of(search: str) -> str | None:
    """What stands for the state in the query of an address; None where there is none.

    >>> state_of("?theme=dark&state=1.x"), state_of("")
    ('1.x', None)
    """
    return dict(parse_qsl(search.removeprefix("?"))).get(NAME)


def with_state(search: str, text: str) -> str:
    """The query of an address with another state; an empty one takes it away, what else stands there stays.

    >>> with_state("?theme=dark&state=1.x", "1.y"), with_state("?state=1.x", "")
    ('?theme=dark&state=1.y', '')
    """
    kept = [
        (name, value)
        for name, value in parse_qsl(search.removeprefix("?"), keep_blank_values=True)
        if name != NAME
    ]
    query = urlencode([*kept, *([(NAME, text)] if text else [])])
    return f"?{query}" if query else ""
