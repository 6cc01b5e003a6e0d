"""Choosing some of the images: the same share of every class, fixed by a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch

Label = TypeVar("Label", bound=Hashable)


def quotas(counts: Mapping[Label, int], size: int) -> dict[Label, int]:
    """How many to take of each class so that all give the same share, by largest remainder (Hamilton).

    Each quota differs from ``size * count / total`` by less than one.  Of equal remainders those that come first in
    ``counts`` win.  ``size`` is at most the total.

    >>> quotas({"a": 50, "b": 50, "c": 20}, 10)
    {'a': 4, 'b': 4, 'c': 2}
    """
    total = sum(counts.values())
    # In whole numbers, so that no rounding decides.
    taken = {label: size * count // total for label, count in counts.items()}
    left = size - sum(taken.values())
    by_remainder = sorted(counts, key=lambda label: -(size * counts[label] % total))
    for label in by_remainder[:left]:
        taken[label] += 1
    return taken


def stratified(
    labels: Sequence[int] | None,
    count: int,
    size: int,
    seed: int,
    usable: Callable[[int], bool] = lambda index: True,
) -> tuple[int, ...]:
    """``size`` of the numbers below ``count``, in increasing order, drawn at random with the same share of each class.

    Without labels the draw is plain.  The draw depends on the arguments alone, not on the process.

    Args:
        labels: of all ``count``, or None.
        count: how many there are.
        size: how many are drawn, at most ``count``.
        seed: of the draw.
        usable: numbers for which this is false are passed over for others of their class, as far as there are.

    >>> len(stratified([0] * 6 + [1] * 3, 9, 3, seed=0)), stratified([0, 0, 1], 3, 3, seed=1)
    (3, (0, 1, 2))
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    classes = [0] * count if labels is None else labels
    # In the order of the draw, so that chance, not the name, decides between classes of equal remainders.
    left = quotas(Counter(classes[index] for index in order), size)
    chosen: list[int] = []
    for index in order:
        if len(chosen) == size:
            break
        if left[classes[index]] and usable(index):
            left[classes[index]] -= 1
            chosen.append(index)
    return tuple(sorted(chosen))
