"""Levels that are fitted to each group: no worse than slow searches and scikit-learn find, and read back exactly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from explorer.calibrate import CODEBOOKS, GrowingHistogram, Sample, fit_codebook
from explorer.calibrate import codebook as fitting
from explorer.errors import SchemeError
from explorer.formats import FORMATS, Codebook, CodebookFormat, QParams, granularity
from explorer.recipe import TensorScheme
from explorer.tensor import fake_quantize, oversized, quantize
from tests import oracles
from tests.strategies import CODEBOOKS as NAMES

CHANNEL, LAYER = granularity("channel"), granularity("layer")


def number(name: str) -> CodebookFormat:
    found = FORMATS[name]
    assert isinstance(found, CodebookFormat)
    return found


def fitted(values: Tensor, name: str, weights: Tensor | None = None) -> Tensor:
    """The levels of each row."""
    ends = values.amin(1), values.amax(1)
    params = fit_codebook(Sample(values, weights, *ends, torch.stack(ends)[None]), number(name))
    assert params.book is not None
    return params.book.levels


def errors(values: Tensor, levels: Tensor, weights: Tensor | None = None) -> np.ndarray:
    """The weighted sum of squared distances to the nearest level of each row, float64."""
    rows = []
    for index, (row, own) in enumerate(zip(values.double().numpy(), levels.double().numpy(), strict=True)):
        weight = 1.0 if weights is None else weights[index].double().numpy()
        distance = oracles.distance(row, np.broadcast_to(own, (len(row), len(own))))
        rows.append(float((weight * distance**2).sum()))
    return np.array(rows)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed) / normal(*shape, seed=seed + 100).abs().sqrt()


# --- codes and levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 7, 16])
def test_encoding_is_the_nearest_level_by_search(count: int) -> None:
    """Brute force in float64, ties to the even code; of one group and of several alike."""
    levels = torch.round(normal(5, count, seed=count) * 512).sort(1).values / 512
    levels[4] = torch.round(levels[4])
    middle = (levels[:, 1:] + levels[:, :-1]) / 2
    values = torch.cat([levels, middle, normal(5, 60), torch.full((5, 1), 9e9), torch.full((5, 1), -9e9)], 1)
    book = Codebook(levels)
    distance = (values[..., None].double() - levels[:, None].double()).abs().numpy()
    nearest = distance == distance.min(2, keepdims=True)
    # Equal levels mean the same: the value decides, and of a real tie the even code.
    even = nearest & (np.arange(count) % 2 == 0)
    chosen = np.where(even.any(2), even.argmax(2), nearest.argmax(2))
    expected = levels.gather(1, torch.from_numpy(chosen))
    several = book.round(values, torch.arange(5)[:, None])
    distinct = (levels.diff(dim=1) > 0).all(1)
    assert torch.equal(several[distinct], expected[distinct]) and bool(distinct.any())
    assert np.array_equal((several - values).abs().numpy(), (expected - values).abs().numpy())
    for group in range(5):
        alone = book.round(values[group], torch.tensor(group))
        assert torch.equal(alone, several[group])


@pytest.mark.parametrize("grain", ["layer", "channel", "group:2", "subchannel:5"])
@pytest.mark.parametrize("shape", [(9, 12), (4, 5, 3, 3), (3, 4, 7, 7)], ids=str)
def test_pieces_join_to_the_whole(
    shape: tuple[int, ...], grain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any axis, however few elements go through at a time, and in any layout."""
    tensor = normal(*shape)
    for values, axis in itertools.product((tensor, tensor.transpose(0, 1)), (0, 1)):
        scheme = TensorScheme("kmeans2", grain)
        exact = quantize(values, scheme, axis).values()
        for piece in (1, 7, 40):
            monkeypatch.setattr("explorer.formats.uniform.PIECE", piece)
            assert torch.equal(fake_quantize(values, scheme, axis), exact), piece
        monkeypatch.undo()


@pytest.mark.parametrize("name", NAMES)
def test_books_are_in_order_and_of_their_size(name: str) -> None:
    values = torch.cat([normal(4, 40), normal(1, 40) * 1e-41, normal(1, 40) * 1e37, torch.zeros(1, 40)])
    levels = fitted(values, name)
    assert levels.shape == (7, number(name).count) and levels.dtype == torch.float32
    assert bool(torch.isfinite(levels).all()) and bool((levels.diff(dim=1) >= 0).all())
    # No level is minus zero, which no code could tell from zero.
    assert not bool((torch.signbit(levels) & (levels == 0)).any())
    if number(name).family != "kmeans":
        assert torch.equal(levels, -levels.flip(1) + 0.0)
    result = quantize(values, TensorScheme(name))
    assert result.book is not None and torch.equal(result.book, levels)
    assert set(result.values()[0].tolist()) <= set(levels[0].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_in_both_tables(name: str) -> None:
    assert number(name).family in CODEBOOKS
    assert number(name).count <= 1 << number(name).bits


# --- codebooks ----------------------------------------------------------------------------------------------


def best_partition(values: np.ndarray, weights: np.ndarray, count: int) -> float:
    """The least squared error of ``count`` levels: every way to cut the values in order, one after the other."""
    order = values.argsort()
    x, w = values[order].astype(np.float64), weights[order].astype(np.float64)

    def run(first: int, last: int) -> float:
        part, mass = x[first:last], w[first:last]
        return float((mass * (part - np.average(part, weights=mass)) ** 2).sum())

    least = [0.0] + [math.inf] * len(x)
    for _ in range(count):
        least = [
            min([least[last], *(least[first] + run(first, last) for first in range(last))])
            for last in range(len(x) + 1)
        ]
    return least[-1]


@given(
    values=st.lists(st.integers(-20, 20) | st.floats(-9, 9, width=32), min_size=1, max_size=14),
    seed=st.integers(0, 99),
    weighted=st.booleans(),
)
@settings(max_examples=60)
def test_codebooks_are_the_best_there_are(values: list[float], seed: int, weighted: bool) -> None:
    row = torch.tensor([values], dtype=torch.float32)
    mass = torch.randint(1, 5, row.shape, generator=torch.Generator().manual_seed(seed)).float()
    weights = mass if weighted else None
    found = errors(row, fitted(row, "kmeans2", weights), weights)[0]
    plain = mass[0].numpy() if weighted else np.ones(len(values))
    assert found <= best_partition(row[0].numpy(), plain, 4) * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("name", ["kmeans2", "kmeans3", "kmeans4", "kmeans5", "kmeans6"])
@pytest.mark.parametrize("draw", [normal, heavy], ids=["normal", "heavy"])
@pytest.mark.parametrize("points", [300, 6000])
def test_codebooks_are_no_worse_than_scikit_learns(name: str, draw: object, points: int) -> None:
    """Also of more different values than are searched exactly."""
    values = (normal if draw is normal else heavy)(1, points)
    found = errors(values, fitted(values, name))[0]
    rival = KMeans(number(name).count, n_init=2, random_state=0).fit(values[0, :, None].double().numpy())
    assert found <= rival.inertia_ * (1 + 1e-6)


def test_a_search_among_some_places_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.cat([normal(2, 500), heavy(2, 500)])
    for name in ("kmeans2", "kmeans3", "kmeans4"):
        exact = errors(values, fitted(values, name))
        monkeypatch.setattr(fitting, "_WORK", 1 << 14)
        assert fitting.exact_points(number(name).count) < 500 // 7
        coarse = errors(values, fitted(values, name))
        monkeypatch.undo()
        assert bool((exact <= coarse * (1 + 1e-9)).all()) and bool((coarse <= exact * 1.02).all())


@pytest.mark.parametrize("name", ["kmeans2", "kmeans4", "kmeans8"])
def test_no_more_values_than_levels_are_reproduced_exactly(name: str) -> None:
    """However unlike they are, and however many elements repeat them."""
    few = torch.tensor([-3e38, -1e-41, 2e-30, 5e20])[: number(name).count]
    values = few[torch.randint(0, 4, (3, 3000), generator=torch.Generator().manual_seed(1))]
    assert torch.equal(fake_quantize(values, TensorScheme(name)), values)
    # More levels than elements: the codebook holds the elements.
    small = normal(5, 3)
    result = quantize(small, TensorScheme(name))
    assert torch.equal(result.values(), small)
    assert result.metadata_bytes == 5 * number(name).count * 4


def test_values_without_weight_do_not_count() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 50.0, -70.0, 50.5]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    assert fitted(values, "kmeans2", weights).tolist() == [[1, 2, 3, 4]]
    assert fitted(values, "binary", weights).tolist() == [[-2.5, 2.5]]
    assert fitted(values, "ternary", weights)[0, 2] < 4
    for name in NAMES:
        # Where nothing counts, everything counts alike.
        assert torch.equal(fitted(values, name, torch.zeros_like(values)), fitted(values, name)), name


# --- binary and ternary -------------------------------------------------------------------------------------


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=12), st.integers(0, 9))
@settings(max_examples=60)
def test_binary_and_ternary_are_the_best_there_are(values: list[float], seed: int) -> None:
    """For each set of values that may be non-zero the best magnitude is their mean one: all sets are tried."""
    row = torch.tensor([values], dtype=torch.float32)
    weights = torch.randint(1, 4, row.shape, generator=torch.Generator().manual_seed(seed)).float()
    x, w = row[0].abs().double().numpy(), weights[0].double().numpy()
    found = errors(row, fitted(row, "ternary", weights), weights)[0]
    limits = np.concatenate([[0.0], np.unique(x)])
    rivals = []
    for limit in limits:
        kept = x >= limit
        mean = np.average(x[kept], weights=w[kept])
        rivals.append((w * (x - kept * mean) ** 2).sum())
    assert found <= min(rivals) * (1 + 1e-5) + 1e-9
    levels = fitted(row, "binary", weights)
    assert float(levels[0, 1]) == pytest.approx(np.average(x, weights=w), rel=1e-6)
    assert errors(row, levels, weights)[0] <= rivals[0] * (1 + 1e-5) + 1e-9


def test_ternary_of_normal_values_is_the_published_one() -> None:
    """Li et al., section 2.2: for a normal distribution the threshold is about 0.6 of the standard deviation."""
    magnitude = float(fitted(normal(1, 200_000), "ternary")[0, 2])
    assert magnitude / 2 == pytest.approx(0.6, abs=0.02)


# --- sums of binary vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "terms"), [(5, 2), (7, 2), (4, 3)])
def test_sums_of_binary_vectors_are_near_the_best(points: int, terms: int) -> None:
    """Against all patterns of signs, each with its least-squares coefficients."""
    values = normal(40, points).double()
    best = torch.full((40,), math.inf, dtype=torch.float64)
    patterns = list(itertools.product([-1.0, 1.0], repeat=terms))
    for rows in itertools.product(patterns, repeat=points):
        vectors = torch.tensor(rows, dtype=torch.float64)
        rest = values.T - vectors @ (torch.linalg.pinv(vectors) @ values.T)
        best = torch.minimum(best, rest.square().sum(0))
    found = errors(values.float(), fitted(values.float(), f"basis{terms}"))
    signal = values.square().sum(1).numpy()
    assert bool((found >= best.numpy() - 1e-6 * signal).all())
    assert float(((found - best.numpy()) / signal).mean()) < 1e-3


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_sums_of_binary_vectors_are_no_worse_than_sketched(terms: int) -> None:
    """Fitting in turn only ever gains; the sketch is written out here, residual by residual."""
    values = torch.cat([normal(6, 200), heavy(6, 200)])
    sums = torch.zeros(len(values), 1, dtype=torch.float64)
    rest = values.double()
    for _ in range(terms):
        mean = rest.abs().mean(1, keepdim=True)
        rest = rest - mean * torch.where(rest < 0, -1.0, 1.0)
        sums = torch.cat([sums - mean, sums + mean], 1)
    found = errors(values, fitted(values, f"basis{terms}"))
    assert bool((found <= errors(values, sums.float()) * (1 + 1e-6)).all())
    finer = errors(values, fitted(values, f"kmeans{terms}")) if terms > 1 else 0 * found
    assert bool((found >= finer * (1 - 1e-6)).all())


def test_one_vector_is_binary() -> None:
    values = heavy(5, 33)
    assert torch.allclose(fitted(values, "basis1"), fitted(values, "binary"), rtol=1e-6)


def test_sums_of_scaled_vectors_are_found_again() -> None:
    """Values that are such sums already come back as they are."""
    signs = torch.where(normal(3, 400, 3) < 0, -1.0, 1.0)
    values = (signs * torch.tensor([4.0, 1.5, 0.25])).sum(2)
    assert torch.allclose(fake_quantize(values, TensorScheme("basis3")), values, rtol=1e-5)


# --- laws of all --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_stand_for_repeated_values(name: str) -> None:
    values = normal(3, 20)
    weights = torch.randint(1, 5, (3, 20), generator=torch.Generator().manual_seed(4)).float()
    for row, weight in zip(values, weights, strict=True):
        repeated = row.repeat_interleave(weight.long())[None]
        short, long = fitted(row[None], name, weight[None]), fitted(repeated, name)
        assert torch.allclose(short, long, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("points", [30, 900])
def test_groups_do_not_matter_to_each_other(name: str, points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, alone, and some at a time; a group of few values among others too."""
    values = torch.cat([normal(2, points), heavy(2, points), torch.zeros(1, points)])
    values[4, ::3], values[4, 1] = 1.5, -2.0
    together = fitted(values, name)
    for row in range(5):
        assert torch.equal(fitted(values[row : row + 1], name), together[row : row + 1]), row
    monkeypatch.setattr(fitting, "_CHUNK", 2 * points)
    monkeypatch.setattr(fitting, "_STEP", 1)
    assert torch.equal(fitted(values, name), together)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_values_does_not_matter(name: str) -> None:
    values = heavy(3, 120)
    mixed = values[:, torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    assert torch.allclose(fitted(values, name), fitted(mixed, name), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scaling_and_mirroring_carry_over(name: str) -> None:
    values = heavy(2, 150)
    levels = fitted(values, name)
    assert torch.equal(fitted(values * 4, name), levels * 4)
    mirrored = errors(-values, fitted(-values, name))
    assert np.allclose(mirrored, errors(values, levels), rtol=1e-5)


@pytest.mark.parametrize("name", ["kmeans2", "kmeans4", "basis2", "basis4", "binary", "ternary"])
def test_histograms_are_fitted_as_the_values_are(name: str) -> None:
    """Bins stand for values: the error of their levels is hardly larger."""
    values = heavy(1, 40_000).clamp(-20, 20).relu()
    tally = GrowingHistogram(1)
    for part in values.split(10_000, 1):
        tally.add(part)
    params = fit_codebook(tally.sample(), number(name))
    assert params.book is not None
    assert errors(values, params.book.levels)[0] <= errors(values, fitted(values, name))[0] * 1.002


def test_books_cannot_be_joined() -> None:
    params = QParams.of_levels(torch.zeros(2, 2))
    with pytest.raises(SchemeError, match="cannot be joined"):
        params.where(torch.tensor([True, False]), params)


# --- schemes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_fitted_levels_cannot_be_is_refused(name: str) -> None:
    for fields, message in (
        ({"symmetric": False}, "no zero point.*symmetric: true"),
        ({"convention": "torch"}, "integer formats only"),
        ({"objective": "kl"}, "least squares.*objective: mse, or for weights output"),
        ({"scale": "pow2"}, "share no scale.*scale: float"),
    ):
        with pytest.raises(SchemeError, match=message):
            TensorScheme(name, "layer", **fields)  # type: ignore[arg-type]
    assert TensorScheme(name, objective="minmax") == TensorScheme(name, objective="mse")
    if number(name).shape:
        assert TensorScheme(name, "token", mode="dynamic").mode == "dynamic"
    else:
        with pytest.raises(SchemeError, match="binary or ternary"):
            TensorScheme(name, "token", mode="dynamic")
        with pytest.raises(SchemeError, match="fitted to each group"):
            _ = number(name).values


@pytest.mark.parametrize("name", NAMES)
def test_a_format_is_changed_to_and_fro(name: str) -> None:
    """What the new format cannot be becomes what it can be, from anything that there was."""
    for scheme in (
        TensorScheme("uint8", "layer", symmetric=False, objective="kl", convention="torch", scale="pow2"),
        TensorScheme("int8", "token", mode="dynamic"),
        TensorScheme("int4", "channel", narrow=True, mode="off"),
    ):
        changed = scheme.with_format(name)
        assert (changed.format, changed.objective, changed.off) == (name, "mse", False)
        assert changed.with_format("int8").format == "int8"


def test_codebooks_larger_than_their_groups_are_named() -> None:
    assert oversized(TensorScheme("kmeans4", "layer"), (4, 4), 0) == ""
    assert "take kmeans3, or granularity: layer" in oversized(TensorScheme("kmeans4"), (4, 9), 0)
    assert oversized(TensorScheme("kmeans8", "layer"), (4, 9), 0).endswith("take kmeans5.")
    assert oversized(TensorScheme("basis3", "subchannel:2"), (4, 9), 0).endswith(
        "basis2, or granularity: layer."
    )
    assert "take binary" in oversized(TensorScheme("kmeans2", "layer"), (3,), 0)
    assert oversized(TensorScheme("int4", "subchannel:1"), (4, 9), 0) == ""
