"""Objectives: a range is as good as the best that a slow search finds, and streams count right."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from explorer.calibrate import (
    KL,
    MSE,
    OBJECTIVES,
    GrowingHistogram,
    MinMax,
    Sample,
    fit,
    objective,
    quantile,
    search,
)
from explorer.calibrate.analytic import Gaussian, Laplace, Law, best_bound
from explorer.calibrate.loops import settled
from explorer.calibrate.sample import FEWEST_SAMPLED, MOST_READ, Bins, stride
from explorer.calibrate.search import PowerSum, Search
from explorer.errors import SchemeError, TensorError
from explorer.formats import CONVENTIONS, FORMATS, Grid, IntegerFormat, QParams, granularity
from explorer.formats.levels import LEVEL_FORMATS
from explorer.recipe import TensorScheme
from explorer.study.curve import costs
from tests import oracles
from tests.strategies import ALL_GOALS, GOALS, INTEGERS

LAYER = granularity("layer")


def grid(name: str, symmetric: bool = True, convention: str = "onnx") -> Grid:
    number = FORMATS[name]
    assert isinstance(number, IntegerFormat)
    return Grid(number, symmetric, CONVENTIONS[convention])


def shapes() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    normal = torch.randn(200, generator=draw)
    outlier = normal.clone()
    outlier[7] = 15
    return {
        "normal": normal,
        "outlier": outlier,
        "laplace": normal.sign() * normal.abs().exp(),
        "relu": normal.relu(),
        "skewed": normal.exp() - 0.5,
        "negative": -normal.abs() - 1,
        "few": torch.tensor([-1.0, 0.5, 0.1, 3.0]),
    }


VALUES = shapes()


def one(params: QParams) -> tuple[float, int, int, int]:
    """The parameters of a single group as plain numbers."""
    return params.scale.item(), int(params.zero_point), params.qmin, params.qmax


def measure(goal: Search, sample: Sample, params: QParams) -> float:
    """The cost of one group, independently of the search."""
    scale, zero_point, qmin, qmax = one(params)
    if isinstance(goal, PowerSum):
        return oracles.power_error(sample.values[0].numpy(), scale, zero_point, qmin, qmax, goal.exponent)
    assert isinstance(goal, KL), "a new search needs a slow measure here"
    absmax = float(torch.maximum(-sample.minimum, sample.maximum))
    ones, bins = np.ones(sample.values.shape[1]), goal.resolution(sample.values.shape[1])
    flat = sample.values[0].tolist()
    return oracles.kl(flat, ones, absmax, scale, zero_point, qmin, qmax, bins, goal.least(bins))


SEARCHES = [goal for goal in GOALS if isinstance(objective(goal), Search)]


def goal_of(name: str) -> Search:
    goal = objective(name)
    assert isinstance(goal, Search)
    # A small histogram: the slow measure walks over each bin.
    return replace(goal, bins=256) if isinstance(goal, KL) else goal


@pytest.mark.parametrize("goal_name", SEARCHES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", ["int2", "int4", "uint5", "int8"])
@pytest.mark.parametrize("kind", VALUES)
def test_no_worse_than_a_brute_search(goal_name: str, symmetric: bool, name: str, kind: str) -> None:
    """Never worse than any range that shrinks both ends alike in steps of a hundredth."""
    goal = goal_of(goal_name)
    sample = Sample.of(VALUES[kind], LAYER, 0)
    levels = grid(name, symmetric).settle(sample.minimum)
    low, high = goal(sample, levels)
    found = measure(goal, sample, levels.params(low, high))
    # The slow measure of divergence walks over every bin: fewer shares for it.
    shares = (
        [k / 100 for k in range(1, 101)] if isinstance(goal, PowerSum) else [1.0, 0.9, 0.75, 0.5, 0.3, 0.1]
    )
    for share in shares:
        params = levels.params(sample.minimum.clamp(max=0) * share, sample.maximum.clamp(min=0) * share)
        rival = measure(goal, sample, params)
        # Sums in another order differ in the last digits.
        assert found <= rival * (1 + 1e-6) + 1e-9, share
    assert bool((low >= sample.minimum.clamp(max=0)).all() and (high <= sample.maximum.clamp(min=0)).all())


@pytest.mark.parametrize("stream", [False, True], ids=["tensor", "stream"])
@pytest.mark.parametrize("grain", ["layer", "channel", "subchannel:7"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("goal_name", ["mse", "kl"])
def test_candidates_one_by_one_cost_what_they_cost_together(
    goal_name: str, symmetric: bool, grain: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is left before its cost is known would not have won."""
    goal = goal_of(goal_name)
    draw = torch.Generator().manual_seed(3)
    for name, scale in (("int8", 1.0), ("int3", 1e-3), ("int4", 1e30)):
        tensor = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(6, 150, generator=draw)) * scale
        sample = Sample.of(tensor, granularity(grain), 0)
        if stream:
            histogram = GrowingHistogram(sample.groups, 1 << 11)
            histogram.add(sample.values)
            sample = histogram.sample()
        levels = grid(name, symmetric)
        found = [goal(sample, levels)]
        with monkeypatch.context() as patch:
            patch.setattr(Grid, "affine", None)
            found.append(goal(sample, grid(name, symmetric)))
        low, high = (torch.stack(ends, 1) for ends in zip(*found, strict=True))
        one, other = costs(goal, sample, levels, low, high).T
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "outlier", "laplace", "skewed", "few"])
@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int8"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_mse_is_near_the_best_of_all_ranges(symmetric: bool, name: str, kind: str) -> None:
    """Against a dense search, over both ends where both are free."""
    sample = Sample.of(VALUES[kind], LAYER, 0)
    levels = grid(name, symmetric).settle(sample.minimum)
    found = measure(MSE(), sample, levels.params(*MSE()(sample, levels)))
    fine = torch.arange(1, 1001) / 1000 if symmetric else torch.arange(1, 61) / 60
    lows, highs = (
        (fine, fine) if symmetric else (m.reshape(-1) for m in torch.meshgrid(fine, fine, indexing="ij"))
    )
    params = levels.params(sample.minimum * lows, sample.maximum * highs)
    exact = sample.values[0].double()
    code = (exact / params.scale[:, None].double()).round() + params.zero_point[:, None]
    real = (code.clamp(params.qmin, params.qmax) - params.zero_point[:, None]) * params.scale[
        :, None
    ].double()
    best = float((real - exact).square().sum(1).min())
    # Few values make a jagged cost with narrow valleys, which a coarse search may step over.
    assert found <= best * (1.5 if kind == "few" else 1.05)


@pytest.mark.parametrize("name", ["int4", "uint8", "int10", "int12", "uint13", "int16"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("kind", ["normal", "outlier", "relu", "skewed", "few"])
def test_divergence_is_as_defined(name: str, symmetric: bool, kind: str) -> None:
    """The fast cost of each candidate equals the slow one, for fewer and for more codes than bins."""
    goal = KL(bins=128)
    sample = Sample.of(VALUES[kind], LAYER, 0)
    levels = grid(name, symmetric).settle(sample.minimum)
    shares = torch.tensor([1.0, 0.83, 0.5, 0.21])
    flat = levels.params(sample.minimum.clamp(max=0) * shares, sample.maximum.clamp(min=0) * shares)
    params = replace(flat, scale=flat.scale[None], zero_point=flat.zero_point[None])
    costs = goal.cost(goal.prepare(sample, levels), params)[0]
    for index in range(len(shares)):
        alone = replace(flat, scale=flat.scale[index], zero_point=flat.zero_point[index])
        # Sums in another order; a bin's middle may lie on an edge and fall either way only by float32 error.
        assert float(costs[index]) == pytest.approx(measure(goal, sample, alone), rel=1e-6, abs=1e-9), index


@pytest.mark.parametrize("name", ["int12", "int16"])
def test_divergence_of_wide_steps_among_many_codes(name: str) -> None:
    """A group far below the others gets NNCF's least range, of steps wider than its bins."""
    goal = KL(bins=128)
    tensor = torch.stack([VALUES["normal"], VALUES["outlier"] * 1e-7])
    sample = Sample.of(tensor, granularity("channel"), 0)
    levels = grid(name, True, "nncf").settle(sample.minimum)
    flat = levels.params(sample.minimum, sample.maximum)
    params = replace(flat, scale=flat.scale[:, None], zero_point=flat.zero_point[:, None])
    costs = goal.cost(goal.prepare(sample, levels), params)[:, 0]
    for row in range(2):
        alone = replace(flat, scale=flat.scale[row], zero_point=flat.zero_point[row])
        slow = measure(goal, Sample.of(tensor[row], LAYER, 0), alone)
        assert float(costs[row]) == pytest.approx(slow, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("goal", GOALS)
def test_weights_stand_for_repeated_values(goal: str) -> None:
    """A point of weight three is three points."""
    values = torch.tensor([[-2.0, -0.5, 0.0, 0.3, 1.0, 4.0]])
    weights = torch.tensor([[3.0, 1.0, 4.0, 2.0, 1.0, 1.0]])
    repeated = values.repeat_interleave(weights[0].long(), dim=1)
    ends = values.min(1).values, values.max(1).values
    ranges = torch.stack(ends)[None]
    for symmetric in (True, False):
        levels = grid("int4", symmetric)
        short = objective(goal)(Sample(values, weights, *ends, ranges), levels)
        long = objective(goal)(Sample(repeated, None, *ends, ranges), levels)
        assert [end.item() for end in short] == pytest.approx([end.item() for end in long], rel=1e-6)


@pytest.mark.parametrize("goal", GOALS)
def test_groups_do_not_matter_to_each_other(goal: str) -> None:
    tensor = torch.stack([VALUES["normal"], VALUES["outlier"], VALUES["laplace"]])
    for symmetric in (True, False):
        levels = grid("int4", symmetric)
        together = fit(Sample.of(tensor, granularity("channel"), 0), levels, objective(goal))
        for row in range(3):
            alone = fit(Sample.of(tensor[row], LAYER, 0), levels, objective(goal))
            assert together.scale[row] == alone.scale[0] and together.zero_point[row] == alone.zero_point[0]


def test_divergence_does_not_fall_for_ranges_of_a_bin_or_two() -> None:
    """One far outlier: the bulk lies in some twenty bins, and a range of two of them would hide all it clips."""
    bulk = torch.randn(2000, generator=torch.Generator().manual_seed(6))
    sample = Sample.of(torch.cat([bulk, torch.tensor([300.0])]), LAYER, 0)
    for name in ("int4", "int8", "int16"):
        _, high = KL()(sample, grid(name))
        assert float(high) > float(bulk.abs().max()) / 2


def test_a_search_in_pieces_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample.of(torch.stack([VALUES["normal"], VALUES["laplace"]]), granularity("channel"), 0)
    for goal in (MSE(), KL()):
        whole = goal(sample, grid("int6", False))
        monkeypatch.setattr(search, "_CHUNK", 700)
        pieces = goal(sample, grid("int6", False))
        monkeypatch.undo()
        assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("kind", CONVENTIONS)
@pytest.mark.parametrize("goal", SEARCHES)
def test_groups_searched_in_turn_are_found_as_if_together(
    goal: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a group's least range depends on the largest group."""
    rows = [VALUES["normal"], VALUES["laplace"] * 1e-3, VALUES["skewed"], VALUES["relu"]]
    sample = Sample.of(torch.stack(rows), granularity("channel"), 0)
    for symmetric in (True, False):
        levels = grid("int5", symmetric, kind)
        whole = objective(goal)(sample, levels)
        monkeypatch.setattr(search, "_CHUNK", 1)
        turns = objective(goal)(sample, levels)
        monkeypatch.undo()
        assert all(torch.equal(a, b) for a, b in zip(whole, turns, strict=True))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", ["int2", "int5", "uint8"])
def test_running_sums_give_the_squared_error(name: str, symmetric: bool) -> None:
    """The cost of bins, from sums below each edge, is that of values spread evenly over each bin, and of zeros."""
    draw = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 4, (1, 4096), generator=draw).float()
    counts[0, -1] = 50
    first, width, fine = -1500, 2.0**-10, 400
    offsets = (torch.arange(fine) + 0.5) / fine
    places = torch.arange(4095).repeat_interleave(counts[0, :-1].long())
    values = ((first + places[:, None] + offsets) * width).double().numpy().reshape(-1)
    low, high = torch.tensor([first * width]), torch.tensor([(first + 4095) * width])
    bins = Bins(torch.tensor([width], dtype=torch.float64), first)
    sample = Sample(torch.zeros(1, 4096), counts, low, high, torch.stack([low, high])[None], bins)
    levels = grid(name, symmetric).settle(sample.minimum)
    shares = torch.tensor([1.0, 0.8, 0.45, 0.2])
    flat = levels.params(sample.minimum * shares, sample.maximum * shares)
    params = replace(flat, scale=flat.scale[None], zero_point=flat.zero_point[None])
    costs = MSE().cost(MSE().prepare(sample, levels), params)[0]
    for index in range(len(shares)):
        alone = replace(flat, scale=flat.scale[index], zero_point=flat.zero_point[index])
        slow = oracles.mse(values, *one(alone)) / fine
        assert float(costs[index]) == pytest.approx(slow, rel=1e-4)


def test_mse_of_a_large_group_is_binned_without_harm() -> None:
    """Above a million values a histogram stands in: the error found differs by less than a thousandth."""
    tensor = torch.randn(1, (1 << 20) + 5, generator=torch.Generator().manual_seed(0))
    sample = Sample.of(tensor, LAYER, 0)
    levels = grid("int4").settle(sample.minimum)
    found = measure(MSE(), sample, levels.params(*MSE()(sample, levels)))
    rivals = [
        measure(MSE(), sample, levels.params(sample.minimum * k / 20, sample.maximum * k / 20))
        for k in range(8, 21)
    ]
    assert found <= min(rivals) * 1.001


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("count", [1 << 18, (1 << 19) + 3])
def test_a_large_group_is_searched_by_a_sample_of_it(count: int, channels: int) -> None:
    """Up to twice as many as are wanted each is counted; of more a sample adds up to all, extremes are exact."""
    tensor = torch.randn(channels, count, generator=torch.Generator().manual_seed(1))
    tensor[:, -1] = 7.0
    sample = Sample.of(tensor, granularity("channel"), 0)
    assert torch.equal(sample.minimum, tensor.amin(1)) and torch.equal(sample.maximum, tensor.amax(1))
    binned = sample.binned(1 << 14, FEWEST_SAMPLED)
    assert (binned.share == 1) == (count <= 1 << 18) and binned.share > 0.15
    assert torch.allclose(binned.total, torch.tensor(float(count)))
    assert torch.equal(binned.minimum, sample.minimum) and torch.equal(binned.maximum, sample.maximum)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", ["int3", "uint8", "fp4_e2m1"])
def test_two_is_the_square_and_the_least_noise_the_largest_ratio(name: str, symmetric: bool) -> None:
    """``lp:2`` and ``sqnr`` choose what ``mse`` does, from values and from bins; other powers do not."""
    if name not in INTEGERS and not symmetric:
        return
    levels = Grid(FORMATS[name], symmetric)  # type: ignore[arg-type]
    tensor = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    stream = GrowingHistogram(1)
    stream.add(tensor)
    for sample in (Sample.of(tensor, LAYER, 0), stream.sample()):
        found = {g: objective(g)(sample, levels) for g in ("mse", "sqnr", "lp:2", "lp:1", "lp:4")}
        assert found["sqnr"] == found["lp:2"] == found["mse"]
        # By the width: of few codes the one more may lie on either side.
        widths = {g: float(high - low) for g, (low, high) in found.items()}
        assert widths["lp:1"] < widths["mse"] <= widths["lp:4"]


def test_the_ratio_found_is_the_largest_in_decibels() -> None:
    sample = Sample.of(VALUES["laplace"], LAYER, 0)
    levels = grid("int4")
    energy = float(sample.values.double().square().sum())

    def decibels(params: QParams) -> float:
        return 10 * math.log10(energy / oracles.mse(sample.values[0].numpy(), *one(params)))

    found = decibels(levels.params(*objective("sqnr")(sample, levels)))
    shares = [k / 200 for k in range(10, 201)]
    rivals = [decibels(levels.params(sample.minimum * k, sample.maximum * k)) for k in shares]
    assert found >= max(rivals) - 0.01 > rivals[-1]


@pytest.mark.parametrize("power", [-139, -100, 90, 120])
@pytest.mark.parametrize("goal", SEARCHES)
def test_a_search_is_the_same_for_tiny_and_for_huge_numbers(goal: str, power: int) -> None:
    """Errors neither vanish nor overflow when raised to a power; subnormals have fewer digits of their own."""
    values = (VALUES["laplace"] * 64).round() / 64
    for symmetric in (True, False):
        levels = grid("int4", symmetric)
        plain = levels.params(*objective(goal)(Sample.of(values, LAYER, 0), levels))
        scaled = Sample.of(torch.ldexp(values, torch.tensor(power)), LAYER, 0)
        params = levels.params(*objective(goal)(scaled, levels))
        if power < -130:
            assert params.scale.item() == torch.finfo(torch.float32).tiny
        else:
            assert params.scale.item() == math.ldexp(plain.scale.item(), power)


# --- analytical clipping ------------------------------------------------------------------------------------

# Tables 1 and following of arXiv:1810.05723 and of its published code, from 2 bits on.
PUBLISHED = {
    "gaussian": (1.710635, 2.151593, 2.559136, 2.936201, 3.286914, 3.615114, 3.924035),
    "laplace": (2.83068, 3.89722, 5.02864, 6.20476, 7.41312, 8.64561, 9.89675),
}
LAWS: dict[str, tuple[Law, Any]] = {
    "gaussian": (Gaussian(), stats.norm()),
    "laplace": (Laplace(), stats.laplace()),
}


@pytest.mark.parametrize("law", LAWS)
def test_bounds_are_the_papers(law: str) -> None:
    for bits, value in enumerate(PUBLISHED[law], start=2):
        assert best_bound(LAWS[law][0], bits) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("law", LAWS)
def test_an_expected_error_is_its_integral(law: str) -> None:
    """By numerical integration, cell by cell."""
    own, reference = LAWS[law]
    for levels in (np.array([-1.0, 0.0, 1.0]), np.array(LEVEL_FORMATS["fp4_e2m1"].levels) / 2):
        edges = [-40.0, *((levels[1:] + levels[:-1]) / 2), 40.0]
        parts = [
            integrate.quad(
                lambda x, v=v: (x - v) ** 2 * reference.pdf(x), a, b, points=[0] if a < 0 < b else None
            )[0]
            for v, a, b in zip(levels, edges[:-1], edges[1:], strict=True)
        ]
        assert own.error(levels) == pytest.approx(sum(parts), rel=1e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["fp4_e2m1", "nf4", "log3", "apot4"])
def test_the_bound_of_levels_is_the_best(law: str, name: str) -> None:
    number = LEVEL_FORMATS[name]
    levels, own = np.array(number.levels) / number.highest, LAWS[law][0]
    found = own.error(levels * best_bound(own, number))
    assert all(found <= own.error(levels * bound) * (1 + 1e-9) for bound in np.linspace(0.2, 20, 500))


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "off-centre", "negative"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_analytical_ranges_are_near_the_best_where_the_law_holds(kind: str, symmetric: bool) -> None:
    """By the squared error on the values themselves; codes are not quite 2**bits steps, hence some parts in a hundred.

    With more bits than here the best range of a sample hangs on its few largest values.
    """
    draw = torch.Generator().manual_seed(9)
    values = torch.randn(1, 60_000, generator=draw)
    if kind == "laplace":
        values = torch.empty(1, 60_000).exponential_(generator=draw) * values.sign()
    values = {"relu": values.relu(), "off-centre": values + 0.7, "negative": -values.relu()}.get(kind, values)
    sample = Sample.of(values, LAYER, 0)
    stream = GrowingHistogram(1, most=math.inf)
    stream.add(values)
    for name in ("int3", "int4", "uint6"):
        levels = grid(name, symmetric).settle(sample.minimum)
        errors = {
            goal: oracles.mse(values[0].numpy(), *one(levels.params(*objective(goal)(sample, levels))))
            for goal in ("aciq", "mse")
        }
        assert errors["aciq"] < errors["mse"] * (1.25 if kind == "off-centre" and symmetric else 1.1)
        binned = objective("aciq")(stream.sample(), levels)
        for found, exact in zip(binned, objective("aciq")(sample, levels), strict=True):
            assert found.item() == pytest.approx(exact.item(), rel=1e-3)


def test_the_likelier_law_is_taken() -> None:
    """By SciPy's own fits and likelihoods, on samples where one is clearly likelier."""
    draw = np.random.default_rng(3)
    kinds = {"gaussian": stats.norm, "laplace": stats.laplace}
    for name, reference in kinds.items():
        values = draw.standard_normal(4000) if name == "gaussian" else draw.laplace(size=4000)
        fits = {law: kind.logpdf(values, *kind.fit(values)).sum() for law, kind in kinds.items()}
        assert max(fits, key=fits.__getitem__) == name
        sample = Sample.of(torch.tensor(values).float(), LAYER, 0)
        low, high = objective("aciq")(sample, grid("int3", False))
        _, spread = reference.fit(values)
        centre = values.mean()
        half = best_bound(LAWS[name][0], 3) * spread
        assert high.item() == pytest.approx(min(centre + half, values.max()), rel=0.01)
        assert low.item() == pytest.approx(max(centre - half, values.min()), rel=0.01)


# --- percentiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [50.5, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("kind", VALUES)
def test_percentile_is_numpys(percent: float, kind: str) -> None:
    values = VALUES[kind]
    exact = values.double().numpy()
    sample = Sample.of(values, LAYER, 0)
    goal = objective(f"percentile:{percent:g}")
    low, high = goal(sample, grid("int8", False))
    # Interpolated in float64, kept in float32: half a unit in the last place.
    assert low.item() == pytest.approx(np.percentile(exact, 100 - percent), rel=1e-7, abs=1e-12)
    assert high.item() == pytest.approx(np.percentile(exact, percent), rel=1e-7, abs=1e-12)
    low, high = goal(sample, grid("int8", True))
    assert high.item() == pytest.approx(np.percentile(np.abs(exact), percent), rel=1e-7) == -low.item()


@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(lambda c: sum(c) > 0),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=80)
def test_weighted_quantile_is_numpys_of_repeated_values(counts: list[int], share: float, seed: int) -> None:
    values = torch.randn(1, len(counts), generator=torch.Generator().manual_seed(seed))
    repeated = np.repeat(values[0].double().numpy(), counts)
    found = quantile(values, torch.tensor([counts], dtype=torch.float32), share).item()
    assert found == pytest.approx(float(np.quantile(repeated, share)), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    "word", ["percentile:50", "percentile:0", "percentile:101", "percentile:nan", "percentile:-1"]
)
def test_percentiles_out_of_bounds_are_refused(word: str) -> None:
    with pytest.raises(SchemeError, match="above 50 and at most at 100"):
        objective(word)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (1, 1), (2.25, 2.25), (0.25, 0.75), (1.5, 0.125)])
def test_a_clip_is_a_share_of_each_end(low: float, high: float, kind: str) -> None:
    """Exactly, for shares and ends whose product is a float32; zero is part of the full range."""
    tensor = torch.stack([VALUES[kind], VALUES[kind] * 8]).mul(64).round().div(64)
    sample = Sample.of(tensor, granularity("channel"), 0)
    found = objective(f"clip:{low}:{high}")(sample, grid("int8", False))
    for row, values in enumerate(tensor.tolist()):
        assert Fraction(found[0][row].item()) == min(0, Fraction(min(values))) * Fraction(low)
        assert Fraction(found[1][row].item()) == max(0, Fraction(max(values))) * Fraction(high)


def test_a_clip_of_the_whole_range_is_minmax() -> None:
    for kind, values in VALUES.items():
        for symmetric in (True, False):
            levels = grid("int5", symmetric)
            found = [fit(Sample.of(values, LAYER, 0), levels, objective(g)) for g in ("clip:1", "minmax")]
            assert one(found[0]) == one(found[1]), kind


def test_a_clip_never_leaves_float32() -> None:
    most = torch.finfo(torch.float32).max
    sample = Sample.of(torch.tensor([-most, most]), LAYER, 0)
    for symmetric in (True, False):
        assert math.isfinite(fit(sample, grid("int8", symmetric), objective("clip:4")).scale.item())
        small = fit(
            Sample.of(torch.tensor([-1.0, 2.0]), LAYER, 0), grid("int8", symmetric), objective("clip:1e-99")
        )
        assert 0 < small.scale.item() < 1e-30


def test_a_symmetric_range_has_one_bound() -> None:
    with pytest.raises(SchemeError, match=r"one bound.*use objective: clip:0\.9, or symmetric: false"):
        TensorScheme(objective="clip:0.5:0.9")
    assert TensorScheme(objective="clip:0.9:0.90").objective == "clip:0.9"
    split = TensorScheme("uint8", "layer", symmetric=False, objective="clip:0.5:0.9")
    assert split.with_format("fp8_e4m3").objective == "clip:0.9"
    assert split.with_format("int4").objective == "clip:0.5:0.9"


@pytest.mark.parametrize("word", ["clip:0", "clip:-1", "clip:4.01", "clip:nan", "clip:0.5:0", "clip:inf"])
def test_clips_out_of_bounds_are_refused(word: str) -> None:
    with pytest.raises(SchemeError, match=r"above 0 and at most at 4, not at .*0\.9 is a usual choice"):
        objective(word)


def test_numbers_are_kept_to_the_last_digit() -> None:
    for word in ("percentile:99.999999", "clip:0.1234567:0.7654321", "clip:1e-09"):
        assert TensorScheme("uint8", "layer", symmetric=False, objective=word).objective == word


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("clip:1:2:3", "needs one to 2 numbers after the colon, for example 'clip:0.9'"),
        ("percentile:99:98", "needs a number after the colon"),
        ("mze", "Did you mean 'mse'"),
        ("percentile", "needs a number after the colon, for example 'percentile:99.9'"),
        ("percentile:x", "needs a number"),
        ("mse:3", "no objective 'mse:3'"),
    ],
)
def test_bad_names_are_refused(word: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        objective(word)


@pytest.mark.parametrize("goal", ALL_GOALS)
def test_names_come_back(goal: str) -> None:
    assert objective(goal).name == goal
    assert objective(objective(goal).name) == objective(goal)
    assert len(ALL_GOALS) == len(OBJECTIVES) and all(entry.help for entry in OBJECTIVES.values())


# --- streams ------------------------------------------------------------------------------------------------

# Numbers 2**100 times smaller than the range are counted as zero from above or below, whichever; none are drawn.
streams = st.lists(
    st.lists(
        st.one_of(
            st.floats(2.0**-40, 2.0**40, width=32),
            st.floats(-(2.0**40), -(2.0**-40), width=32),
            st.sampled_from([0.0, -0.0, 1.0, -2.0, 0.25, 4096.0]),
        ),
        min_size=1, max_size=8,
    ),
    min_size=1, max_size=6,
)  # fmt: skip


def tally(batches: list[list[float]], bins: int = 64) -> GrowingHistogram:
    result = GrowingHistogram(1, bins)
    for batch in batches:
        result.add(torch.tensor([batch]))
    return result


def state(histogram: GrowingHistogram) -> tuple[object, ...]:
    return (
        histogram.counts.tolist(), histogram.zeros.tolist(), histogram.exponent.tolist(),
        histogram.minimum.tolist(), histogram.maximum.tolist(),
    )  # fmt: skip


@given(streams)
@settings(max_examples=120)
def test_how_a_stream_is_cut_does_not_matter(batches: list[list[float]]) -> None:
    """One batch, many batches, another order, or merged parts: the same counts, none lost, extremes exact."""
    together = tally([[value for batch in batches for value in batch]])
    values = [value for batch in batches for value in batch]
    assert state(tally(batches)) == state(together)
    assert state(tally(batches[::-1])) == state(together)
    assert state(tally([[value] for value in values])) == state(together)
    for order in (1, -1):
        merged = GrowingHistogram(1, 64)
        for batch in batches[::order]:
            merged.merge(tally([batch]))
        assert state(merged) == state(together)
    assert int(together.count) == len(values)
    assert (together.minimum.item(), together.maximum.item()) == (min(values), max(values))


@given(streams)
@settings(max_examples=80)
def test_a_streams_sample_stands_near_its_values(batches: list[list[float]]) -> None:
    """Zeros exactly, every other value within half a bin, and no stand-in beyond the extremes."""
    histogram = tally(batches)
    sample = histogram.sample()
    values = np.sort([value for batch in batches for value in batch])
    assert float(sample.weights.sum()) == len(values)  # type: ignore[union-attr]
    points = np.repeat(sample.values[0].double().numpy(), sample.weights[0].long().numpy())  # type: ignore[index]
    width = 2.0 ** (int(histogram.exponent) + 1) / histogram.bins
    assert (np.abs(np.sort(points) - values) <= width * 0.5001).all()
    assert int((points == 0).sum()) >= int((values == 0).sum())
    assert points.min() >= values.min() and points.max() <= values.max()
    assert sample.ranges.shape == (len(batches), 2, 1)
    assert [r.item() for r in sample.ranges[:, 0]] == [min(b) for b in batches]


def test_merging_does_not_touch_the_other() -> None:
    one_part, other = tally([[1.0, 2.0]]), tally([[1000.0, -3.0]])
    before = state(other)
    one_part.merge(other)
    assert state(other) == before and int(one_part.count) == 4


def test_histograms_of_several_groups_keep_them_apart() -> None:
    draw = torch.Generator().manual_seed(4)
    batches = [torch.randn(3, 20, generator=draw) * torch.tensor([[1e-3], [1.0], [50.0]]) for _ in range(4)]
    together = GrowingHistogram(3, 64)
    for batch in batches:
        together.add(batch)
    for row in range(3):
        alone = tally([batch[row].tolist() for batch in batches])
        assert together.counts[row].tolist() == alone.counts[0].tolist()
        assert together.exponent[row] == alone.exponent[0]


def test_a_sample_of_many_bins_gives_the_range_of_the_values() -> None:
    """Percentile, mse and kl of a stream are those of the values, up to a bin."""
    tensor = torch.randn(1, 20000, generator=torch.Generator().manual_seed(8))
    stream = GrowingHistogram(1)
    for part in tensor.split(3000, 1):
        stream.add(part)
    for goal in ("minmax", "percentile:99.9", "mse", "lp:3", "aciq"):
        for symmetric in (True, False):
            levels = grid("int8", symmetric)
            exact = fit(Sample.of(tensor, granularity("channel"), 0), levels, objective(goal))
            binned = fit(stream.sample(), levels, objective(goal))
            # The search takes steps of a thousandth of the range.
            assert math.isclose(exact.scale.item(), binned.scale.item(), rel_tol=5e-3), goal


# --- streams of which some values are looked at --------------------------------------------------------------


@pytest.mark.parametrize("most", [1 << 10, 1 << 14, 100_000])
@pytest.mark.parametrize("count", [150_528, 1 << 17, 3 * 5 * 7 * 11 * 13 * 16, 262_144, 65_537])
def test_the_step_of_a_sample_favours_no_channel(count: int, most: int) -> None:
    """It shares no factor with the tensor's size, so each column, row and channel is met equally often."""
    step = stride(count, most)
    assert math.gcd(step, count) == 1 and step >= count / most
    assert all(math.gcd(rival, count) > 1 for rival in range(-(-count // most), step))
    for size in (size for size in range(2, 60) if count % size == 0):
        met = np.bincount(np.arange(0, count, step) % size, minlength=size)
        assert met.max() - met.min() <= 1


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "constant", "few levels", "odd size"])
def test_a_sampled_stream_keeps_mass_and_extremes(kind: str, groups: int) -> None:
    """Counts add up to all values, extremes and the values nearest to them are exact, each batch by itself."""
    draw = torch.Generator().manual_seed(7)
    size = 100_003 if kind == "odd size" else 98_304
    histogram = GrowingHistogram(groups, 1 << 12, most=1 << 12)
    batches = []
    for index in range(3):
        batch = torch.randn(groups, size, generator=draw) * (1 + index)
        if kind == "relu":
            batch = batch.relu()
        elif kind == "outlier":
            batch[:, 17 * index + 5], batch[-1, -1] = 900.0, -40.0
        elif kind == "constant":
            batch = torch.full_like(batch, 0.37)
        elif kind == "few levels":
            batch = (batch * 2).round() / 2
        batches.append(batch)
        histogram.add(batch)
    whole = torch.cat(batches, 1)
    sample = histogram.sample()
    assert torch.allclose(histogram.count, torch.tensor(whole.shape[1]).double())
    assert torch.equal(sample.minimum, whole.amin(1)) and torch.equal(sample.maximum, whole.amax(1))
    assert [r.tolist() for r in sample.ranges] == [[b.amin(1).tolist(), b.amax(1).tolist()] for b in batches]
    assert 0 < sample.share < 0.5 and histogram.share == sample.share
    everything = GrowingHistogram(groups, 1 << 12, most=math.inf)
    everything.add(whole)
    assert everything.share == 1.0
    far = [0, 1, -2, -1] if kind == "outlier" else []
    for row in range(groups):
        used = torch.nonzero(everything.counts[row])[:, 0]
        for place in used[far].tolist():
            assert histogram.counts[row, place] == everything.counts[row, place]


def test_small_batches_are_counted_one_by_one() -> None:
    values = torch.randn(2, MOST_READ, generator=torch.Generator().manual_seed(1))
    histogram = GrowingHistogram(2)
    histogram.add(values)
    assert histogram.share == 1.0 == histogram.sample().share
    assert (
        torch.equal(histogram.counts, histogram.counts.round())
        and histogram.count.tolist() == [MOST_READ] * 2
    )


def of_some_and_of_all(values: torch.Tensor) -> list[Any]:
    """What a histogram knows that reads some of the values of each batch, and what one that reads all."""
    found = []
    for most in (MOST_READ, math.inf):
        histogram = GrowingHistogram(1, most=most)
        for part in values.split(1 << 18, 1):
            histogram.add(part)
        found.append(histogram.sample())
    return found


@pytest.mark.parametrize("kind", ["normal", "heavy tail", "relu"])
@pytest.mark.parametrize("goal_name", ["mse", "percentile:99.99"])
def test_a_range_from_some_values_is_as_good(goal_name: str, kind: str) -> None:
    """By the squared error on all values, within 0.2% of the range that all values choose; a percentile within 3%."""
    draw = torch.Generator().manual_seed(5)
    values = torch.randn(1, 1 << 20, generator=draw)
    if kind == "heavy tail":
        values = values / torch.randn(3, 1 << 20, generator=draw).square().mean(0).sqrt()
    values = values.relu() if kind == "relu" else values
    goal = objective(goal_name)
    for levels in (grid("int8"), grid("uint8", False), grid("int4")):
        levels = levels.settle(values.amin(1))
        errors = []
        for sample in of_some_and_of_all(values):
            params = levels.params(*goal(sample, levels))
            errors.append(oracles.mse(values[0].numpy(), *one(params)))
        assert errors[0] == pytest.approx(errors[1], rel=2e-3 if goal_name == "mse" else 3e-2)


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "heavy tail"])
def test_the_divergence_from_some_values_is_as_good(kind: str) -> None:
    """By a histogram of all values, within a tenth of that of the range which all values choose."""
    draw = torch.Generator().manual_seed(6)
    values = torch.randn(1, 1 << 20, generator=draw)
    if kind == "laplace":
        values *= torch.empty_like(values).exponential_(generator=draw).mul_(2).sqrt()
    elif kind == "heavy tail":
        values /= torch.randn(3, 1 << 20, generator=draw).square().mean(0).sqrt()
    elif kind == "relu":
        values.relu_()
    goal = KL()
    for levels in (grid("int8"), grid("uint8", False), grid("int4")):
        levels = levels.settle(values.amin(1))
        samples = of_some_and_of_all(values)
        low, high = (torch.stack(ends, 1) for ends in zip(*(goal(s, levels) for s in samples), strict=True))
        flat = levels.params(low[0], high[0])
        params = replace(flat, scale=flat.scale[None], zero_point=flat.zero_point[None])
        some, every = goal.cost(goal.prepare(samples[1], levels), params)[0].tolist()
        assert some <= 1.1 * every + 1e-6


def test_counts_that_differ_by_chance_are_averaged_and_a_shape_is_not() -> None:
    draw = np.random.default_rng(3)
    density = 200 * np.exp(-(np.linspace(-3, 3, 2048) ** 2) / 2)

    def spread(counts: np.ndarray, first: int = 0) -> tuple[bool, np.ndarray]:
        """Two values stand for each that was counted; of a hundred zeros nothing is said."""
        bins = len(counts)
        ends, found = np.zeros(bins + 8, np.int64), np.zeros(bins)
        ends[0] = 3
        places = np.stack([np.pad(counts, (0, 8)), ends])
        # Bins that are 1 wide, in a range of a power of two.
        exponent = (bins - 1).bit_length() - 1
        middle = np.float32([first, bins - 1]) - bins // 2
        state, seen = np.array([exponent, 100, 7, 3]), 2 * (int(counts.sum()) + 100) + 3
        zeros, smooth = settled(places, state, middle, seen, exponent, 16, 1.1, found)
        assert zeros == pytest.approx(207) and found.sum() == pytest.approx(2 * counts.sum() + 3)
        found[0] -= 3
        return smooth, found / 2

    counts = draw.poisson(density)
    smooth, even = spread(counts)
    assert smooth and np.square(even - density).sum() < 0.1 * np.square(counts - density).sum()
    counts = draw.poisson(density * (1 + 0.5 * (np.arange(2048) % 7 == 0)))
    smooth, same = spread(counts)
    assert not smooth and np.allclose(same, counts)
    assert spread(np.array([5, 5]))[0]
    # One just beyond the middle, by the rounding of an edge, is kept.
    spread(np.array([0, 5, 5, 5]), 2)


@pytest.mark.parametrize("bins", [0, 3, 62])
def test_histograms_of_odd_bins_are_refused(bins: int) -> None:
    with pytest.raises(TensorError, match="multiple of 4"):
        GrowingHistogram(1, bins or 2)


def test_histograms_of_different_groups_do_not_merge() -> None:
    with pytest.raises(TensorError, match="cannot be merged"):
        GrowingHistogram(1, 64).merge(GrowingHistogram(2, 64))


def test_an_empty_stream_has_no_sample() -> None:
    histogram = GrowingHistogram(2)
    histogram.add(torch.zeros(2, 0))
    with pytest.raises(TensorError, match="at least one image"):
        histogram.sample()


def test_minmax_is_the_whole_range() -> None:
    sample = Sample.of(VALUES["skewed"], LAYER, 0)
    low, high = MinMax()(sample, grid("int8", False))
    assert (low.item(), high.item()) == (VALUES["skewed"].min().item(), VALUES["skewed"].max().item())
