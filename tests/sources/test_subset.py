"""A subset has the same share of every class, is part of the whole, and depends on the seed alone."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from explorer.errors import DataError
from explorer.sources import load_data
from explorer.sources.strata import quotas, stratified
from explorer.subject import make_subject

DRAWN = (1, 11, 39, 40, 50, 54, 57, 70, 71, 77)
LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80)


@given(LABELS, st.data(), st.integers(0, 2**32))
def test_every_class_gives_its_share(labels: list[int], data: st.DataObject, seed: int) -> None:
    size = data.draw(st.integers(1, len(labels)))
    chosen = stratified(labels, len(labels), size, seed)
    assert len(chosen) == len(set(chosen)) == size
    assert list(chosen) == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < len(labels)
    taken, counts = Counter(labels[index] for index in chosen), Counter(labels)
    for label, count in counts.items():
        assert abs(taken[label] - Fraction(size * count, len(labels))) < 1
    assert chosen == stratified(labels, len(labels), size, seed)


@given(st.dictionaries(st.integers(), st.integers(1, 1000), min_size=1), st.data())
def test_quotas_are_those_of_the_largest_remainders(counts: dict[int, int], data: st.DataObject) -> None:
    total = sum(counts.values())
    size = data.draw(st.integers(1, total))
    found = quotas(counts, size)
    assert sum(found.values()) == size and all(found[label] <= counts[label] for label in counts)
    ideal = {label: Fraction(size * count, total) for label, count in counts.items()}
    rounded_up = [ideal[label] % 1 for label in counts if found[label] > ideal[label]]
    rounded_down = [ideal[label] % 1 for label in counts if found[label] < ideal[label]]
    assert min(rounded_up, default=Fraction(1)) >= max(rounded_down, default=Fraction(0))


@given(LABELS, st.data())
def test_what_is_not_usable_is_passed_over(labels: list[int], data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, len(labels) - 1)))
    size = data.draw(st.integers(1, len(labels)))
    chosen = stratified(labels, len(labels), size, 0, lambda index: index not in bad)
    assert not bad & set(chosen)
    wanted, there = (
        quotas(Counter(labels), size),
        Counter(labels[i] for i in range(len(labels)) if i not in bad),
    )
    taken = Counter(labels[index] for index in chosen)
    # Of equal remainders chance decides which class gives one more.
    assert all(abs(taken[label] - min(wanted[label], there[label])) <= 1 for label in wanted)


def test_seeds_differ_and_images_have_equal_chances() -> None:
    drawn = Counter(index for seed in range(400) for index in stratified([0, 0, 0, 1, 1, 1], 6, 2, seed))
    assert all(90 < drawn[index] < 180 for index in range(6))  # 133 are expected, with a deviation of 9


def test_the_draw_does_not_depend_on_the_process() -> None:
    assert stratified(["a", "b", "c"] * 30, 90, 10, 5) == DRAWN


def test_subsets_of_arrays_and_datasets() -> None:
    x, y = torch.arange(30.0).reshape(30, 1, 1, 1), torch.arange(30) % 3
    for spec in ((x, y), TensorDataset(x, y), torch.utils.data.Subset(TensorDataset(x, y), range(30))):
        found = load_data(spec, subset=12, seed=3)
        batch = found.read(range(12))
        assert batch.labels is not None and batch.labels.bincount().tolist() == [4, 4, 4]
        assert len(set(batch.images.flatten().tolist())) == 12
        assert torch.equal(batch.images, load_data((x, y), subset=12, seed=3).read(range(12)).images)
    plain = load_data(x, subset=12)
    assert len(set(plain.read(range(12)).images.flatten().tolist())) == 12
    assert len(load_data((x, y), subset=30)) == 30


@pytest.mark.parametrize("subset", [0, -1, 2.5, True, "3", 31])
def test_a_subset_that_makes_no_sense(subset: object) -> None:
    with pytest.raises(DataError, match="subset"):
        load_data(torch.zeros(30, 1, 2, 2), subset=subset)


def test_a_session_explores_a_subset() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    data = (torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3)
    one, two, other = (make_subject(net, data, subset=12, seed=seed) for seed in (1, 1, 2))
    assert one.evaluation.count(None) == 12
    [examples] = one.evaluation.batches()
    assert examples.labels is not None and examples.labels.bincount().tolist() == [4, 4, 4]
    assert one.evaluation.fingerprint() == two.evaluation.fingerprint() != other.evaluation.fingerprint()
