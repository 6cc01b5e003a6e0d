"""What the images are that a network is explored on, and what happens to them before it sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from explorer.sources.images import Data, Skipped
from explorer.sources.preprocess import Preprocess

ASKED, NETWORK, DATA = "asked for", "the network's own", "the data's own"
"""Where a preprocessing comes from."""


@dataclass(frozen=True)
class DataFacts:
    """The images of a data set, as far as they are known now.

    Args:
        name: of the data.
        images: how many there are to evaluate on.
        chosen: which of the source's images these are, a sentence.
        labels: how labels were found, a sentence.
        classes: how many classes are told apart by name, or None.
        preprocess: as ``Preprocess.parse`` reads it; empty where nothing is applied or it is not known.
        preprocess_from: ``asked for``, ``the network's own``, ``the data's own``, or empty.
        steps: what happens to an image before the network sees it, in words and in order.
        skipped: images left out, or replaced by another of their class, since they cannot be read.

    >>> DataFacts("x", 3, "All images.", "", None, "", "", ()).warning
    ''
    """

    name: str
    images: int
    chosen: str
    labels: str
    classes: int | None
    preprocess: str
    preprocess_from: str
    steps: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def warning(self) -> str:
        """How many images cannot be read, with the first few names; empty when there are none."""
        parts = []
        for replaced, what in ((False, "left out"), (True, "replaced by another of its class")):
            names = [
                f"{each.name}: {each.reason.rstrip('.')}"
                for each in self.skipped
                if each.replaced == replaced
            ]
            if names:
                more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
                plural = "image" if len(names) == 1 else "images"
                parts.append(f"{len(names):,} {plural} of {self.name} {what} ({'; '.join(names[:3])}{more}).")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def facts_of(
    data: Data, chosen: str, labels: str, wish: Preprocess | None, own: Preprocess | None
) -> DataFacts:
    """What is known about some data.

    Args:
        data: the data.
        chosen: which of the source's images these are, a sentence.
        labels: how labels were found, a sentence.
        wish: the preprocessing that was asked for.
        own: the network's.
    """
    applied = data.preprocess
    source = ""
    if applied is not None:
        source = ASKED if applied == wish else NETWORK if applied == own else DATA
    return DataFacts(
        data.name,
        len(data),
        chosen,
        labels,
        None if data.classes is None else len(data.classes),
        "" if applied is None else str(applied),
        source,
        data.steps(),
        data.skipped,
    )
