"""Labels as the network numbers its classes: by the names of the classes where these are known."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from explorer.errors import DataError
from explorer.sources.files import shipped
from explorer.sources.folder import FOLDERS, FolderData
from explorer.sources.images import Batch, Data, Skipped, Subset

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, eq=False)
class Renumbered(Data):
    """Data whose label k is ``numbers[k]`` of ``classes``."""

    data: Data
    numbers: tuple[int, ...]
    classes: tuple[str, ...] | None
    name: str = field(init=False)
    labelled: bool = field(init=False)

    def __post_init__(self) -> None:
        for name in ("name", "labelled", "preprocess", "pixels"):
            object.__setattr__(self, name, getattr(self.data, name))

    def __len__(self) -> int:
        return len(self.data)

    def read(self, indices: Sequence[int]) -> Batch:
        found = self.data.read(indices)
        labels = None if found.labels is None else torch.tensor(self.numbers)[found.labels]
        return Batch(found.images, labels)

    def targets(self) -> Sequence[int] | None:
        found = self.data.targets()
        return None if found is None else [self.numbers[label] for label in found]

    def name_of(self, index: int) -> str:
        return self.data.name_of(index)

    def damage(self, index: int) -> str:
        return self.data.damage(index)

    def steps(self) -> tuple[str, ...]:
        return self.data.steps()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.data.skipped


def fit_labels(data: Data, classes: Sequence[str] | None, outputs: int) -> tuple[Data, str]:
    """The data with its labels as the network numbers its classes, and a sentence that says how they were found.

    The names of the data's classes are looked up among those of the network, whatever their case and with ``_``, ``-``
    or ``/`` for spaces, or are identifiers of ImageNet's classes (``n01440764``) where the network tells 1,000 apart.
    Where fewer than half are found, there must be as many classes as the network has, and they keep their own order.

    Args:
        data: any; what has no labels, or no names for them, stays as it is.
        classes: the names of the network's classes, if they are known.
        outputs: how many classes the network tells apart.

    Raises:
        DataError: for another number of classes, or a name that several of the network's classes have.

    >>> from explorer.sources import ArrayData
    >>> pets = ArrayData("pets", torch.zeros(2, 1), torch.tensor([0, 1]), ("cat", "house_dog"))
    >>> fitted, how = fit_labels(pets, ("House dog", "Cat", "Cow"), 3)
    >>> fitted.read([0, 1]).labels.tolist(), how
    ([1, 0], 'The 2 classes are matched to those of the network by name.')
    """
    if not data.labelled:
        return data, "There are no labels; what the float network says counts as right."
    names = data.classes
    if names is None:
        return data, "The labels are the numbers in the data."
    kind = _kind(data)
    known = tuple(classes) if classes is not None and len(classes) == outputs else ()
    found = _looked_up(names, known) if known else None
    if found is not None:
        how = f"The {len(names)} {kind} are matched to those of the network by name."
        return _renumbered(data, found, known), how
    if outputs == 1000 and all(map(_WNID.fullmatch, names)) and set(names) <= set(wnids()):
        places = {name: number for number, name in enumerate(wnids())}
        how = f"The {len(names)} {kind} are numbered as in ImageNet, by their identifiers."
        return _renumbered(data, tuple(places[name] for name in names), known or wnids()), how
    missing = _missing(names, known)
    if len(names) == outputs and 2 * len(missing) > len(names):
        order = "in the order of their names" if kind == FOLDERS else "as in the data"
        return data, f"The {len(names)} {kind} are numbered {order}."
    if len(names) == outputs:
        raise DataError(
            f"Of the {len(names)} {kind} of {data.name} the network's classes have all names but "
            f"{', '.join(map(repr, missing[:3]))}{', ...' if len(missing) > 3 else ''}; name them as the network does."
        )
    raise DataError(
        f"{data.name} has {len(names)} {kind} and the network tells {outputs} classes apart; give one for each"
        + (
            f", or name them as the network does ({missing[0]!r} is none of its classes)."
            if missing and known
            else "."
        )
    )


def _kind(data: Data) -> str:
    inner = data.data if isinstance(data, Subset) else data
    return inner.kind if isinstance(inner, FolderData) else "classes"


def _renumbered(data: Data, numbers: tuple[int, ...], classes: tuple[str, ...]) -> Data:
    same = numbers == tuple(range(len(classes)))
    return data if same and data.classes == classes else Renumbered(data, numbers, classes)


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_/-]+", name.casefold())).strip()


def _by_name(classes: Sequence[str]) -> Mapping[str, list[int]]:
    """Where each name stands; a class may have several, with commas between them."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(classes):
        for name in dict.fromkeys(map(_plain, (each, *each.split(",")))):
            found[name].append(number)
    return found


def _looked_up(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    """The network's number of each class, or None where one is not among the network's."""
    known = _by_name(classes)
    if any(_plain(name) not in known for name in names):
        return None
    if tuple(names) == tuple(classes):
        return tuple(range(len(names)))
    for name in names:
        places = known[_plain(name)]
        if len(places) > 1:
            raise DataError(
                f"The class {name!r} could be any of the network's classes {', '.join(map(str, places))}, which "
                "have the same name; take identifiers such as n01440764, or class folders for all in their order."
            )
    return tuple(known[_plain(name)][0] for name in names)


def _missing(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    known = _by_name(classes)
    return [name for name in names if _plain(name) not in known]


@cache
def wnids() -> tuple[str, ...]:
    """The identifiers of ImageNet's 1,000 classes, in their order."""
    return tuple(shipped("imagenet-wnids.txt", DataError).decode().split())
