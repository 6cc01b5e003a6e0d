"""Ranges of a weight that keep the layer's output, measured by the second moments of the layer's inputs.

A layer whose output is linear in its weight has, at each position, the outputs ``w . x``, one for each row w
of the weight; so an error d of the row costs ``E (d . x)^2 = d' H d`` with ``H = E[x x']``.  Rows have errors
of their own, so the cost of a scale is the sum over the rows that share it.  Blocks of one row with scales of
their own (``subchannel:N``) act on each other through H; they are gone through in turn, each given the others.
Levels that are fitted take H's diagonal, the mean square of its input, for the importance of each value.

Source of the quadratic form: Frantar and Alistarh, "Optimal Brain Compression" (2022), arXiv:2208.11580; of its
diagonal in a codebook: Choi et al., "Towards the Limit of Network Quantization" (2017), arXiv:1612.01543.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from explorer.calibrate.codebook import fit_codebook
from explorer.calibrate.fit import params_of
from explorer.calibrate.rules import Objective, Range
from explorer.calibrate.sample import Sample
from explorer.calibrate.search import MSE
from explorer.formats import CodebookFormat, Granularity, Grid, QParams, fake_quantize_
from explorer.formats.granularity import Channel, Group, SubChannel

# Both ends shrink together through so many shares of the full range; so wide steps one end takes alone.
COARSE = torch.arange(20, 0, -1) / 20
ALONE = torch.tensor([-0.4, -0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3, 0.4])
FINE = torch.tensor([-0.04, -0.03, -0.02, -0.01, 0.01, 0.02, 0.03, 0.04])
LEAST_SHARE = 0.005
# How often the blocks of a row are gone through.
_ROUNDS = 2


@dataclass(frozen=True, eq=False)
class Moments:
    """The second moments of a layer's inputs, ``E[x x']``, or its diagonal blocks.

    Args:
        blocks: float32 ``(parts, blocks, size, size)``; the parts are those of a grouped convolution, each with
            as many of the output channels; what a last block has beyond ``columns`` is zero.
        columns: how many inputs an output channel has.

    >>> inputs = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> moments = Moments((inputs.T @ inputs / 2)[None, None], 2)
    >>> moments.energy(torch.tensor([[0.5, 1.0]])).item()  # of the outputs 2.5 and 1.5
    4.25
    """

    blocks: Tensor
    columns: int

    @classmethod
    def plain(cls, columns: int) -> Moments:
        """Inputs that are all alike and independent: the energy of an error is its own."""
        return cls(torch.ones(1, columns, 1, 1), columns)

    def importance(self, channels: int) -> Tensor:
        """The mean square of the input that each value of the weight meets, ``(channels, columns)``."""
        squares = self.blocks.diagonal(dim1=-2, dim2=-1).reshape(len(self.blocks), -1)[:, : self.columns]
        return squares.repeat_interleave(channels // len(squares), 0)

    def times(self, errors: Tensor, start: int, first: int, last: int) -> Tensor:
        """The columns ``first`` to ``last`` of the errors times H.

        Args:
            errors: ``(channels, width)``, of the columns from ``start`` on; zero elsewhere.
            start: the column at which they begin.
            first: the first column asked for.
            last: the column behind the last.

        Returns:
            ``(channels, last - first)``.
        """
        parts, _, size, _ = self.blocks.shape
        stop = start + errors.shape[1]
        rows = errors.reshape(parts, -1, errors.shape[1])
        out = torch.zeros(*rows.shape[:2], last - first)
        low, high = max(start, first), min(stop, last)
        if size == 1:
            diagonal = self.blocks[:, low:high, 0, 0][:, None]
            out[..., low - first : high - first] = rows[..., low - start : high - start] * diagonal
            return out.reshape(len(errors), -1)
        for index in range(start // size, -(-stop // size)):
            begin, end = index * size, min((index + 1) * size, self.columns)
            a, b, c, d = max(start, begin), min(stop, end), max(first, begin), min(last, end)
            if c < d:
                block = self.blocks[:, index, a - begin : b - begin, c - begin : d - begin]
                out[..., c - first : d - first] = rows[..., a - start : b - start] @ block
        return out.reshape(len(errors), -1)

    def energy(self, errors: Tensor) -> Tensor:
        """The mean squared error of the output that errors of the weight cause, for each channel.

        Args:
            errors: ``(channels, columns)``.

        Returns:
            float64 ``(channels,)``.
        """
        return (errors * self.times(errors, 0, 0, self.columns)).sum(1, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class OutputOfWeight(Objective):
    """The range of each group of one weight that changes the layer's output least.

    It starts from the ranges of least squared error of the weight, or from the full ones where these do better,
    and takes a step only where it lowers the cost; so it is worse than neither.

    Args:
        rows: the weight as ``(channels, columns)``.
        grain: which elements share a scale.
        moments: of the layer's inputs.
    """

    rows: Tensor
    grain: Granularity
    moments: Moments

    @property
    def name(self) -> str:
        return "output"

    def __call__(self, sample: Sample, grid: Grid) -> Range:
        grid = grid.spanning(sample.minimum, sample.maximum)
        search = _Search(self, sample, grid)
        search.start([(sample.minimum, sample.maximum), MSE()(sample, grid)])
        for _ in range(_ROUNDS if search.blocks > 1 else 1):
            for block in range(search.blocks):
                search.improve(block)
        return search.low.reshape(-1), search.high.reshape(-1)

    def levels(self, sample: Sample, number: CodebookFormat) -> QParams:
        """Levels of least squared error, each value weighted by its importance; without it where that does better."""
        importance, _ = self.grain.matrix(self.moments.importance(len(self.rows)), 0)
        plain = torch.ones_like(importance) if sample.weights is None else sample.weights
        # Of a group whose inputs are all zero every value is worth the same.
        weights = torch.where((importance * plain).amax(1, keepdim=True) > 0, importance * plain, plain)
        weighted = fit_codebook(replace(sample, weights=weights), number)
        unweighted = fit_codebook(sample, number)
        search = _Search(self, sample, Grid(number))
        better = search.summed(self._cost(weighted)) <= search.summed(self._cost(unweighted))
        assert weighted.book is not None and unweighted.book is not None
        chosen = better.repeat_interleave(search.blocks)[:, None]
        return QParams.of_levels(torch.where(chosen, weighted.book.levels, unweighted.book.levels))

    def _cost(self, params: QParams) -> Tensor:
        """What parameters cost, float64 ``(channels,)``."""
        group, rest = params.spread(lambda number: self.grain.expand(number, self.rows.shape, 0))
        return self.moments.energy(fake_quantize_(self.rows, group, rest, params).sub_(self.rows))


class _Search:
    """The ranges found so far, and the errors that they make.

    Groups are numbered as (bands of channels that share, blocks of columns that share).
    """

    def __init__(self, goal: OutputOfWeight, sample: Sample, grid: Grid) -> None:
        self.goal, self.grid, self.sample = goal, grid, sample
        channels, columns = goal.rows.shape
        grain = goal.grain
        together = {Channel: 1, SubChannel: 1, Group: getattr(grain, "size", 0)}.get(type(grain), channels)
        self.width = min(grain.size, columns) if isinstance(grain, SubChannel) else columns
        self.blocks = -(-columns // self.width)
        self.band = torch.arange(channels) // together
        self.bands = int(self.band[-1]) + 1
        shape = (self.bands, self.blocks)
        self.full = sample.minimum.clamp(max=0.0).reshape(shape), sample.maximum.clamp(min=0.0).reshape(shape)
        self.low, self.high = (end.clone() for end in self.full)

    def summed(self, costs: Tensor) -> Tensor:
        """Costs of channels ``(channels,)`` as costs of bands."""
        return torch.zeros(self.bands, dtype=torch.float64).index_add_(0, self.band, costs)

    def error(self, block: int, low: Tensor, high: Tensor) -> Tensor:
        """What ranges ``(bands,)`` of a block do to its part of the weight, ``(channels, width)``."""
        rows = self.goal.rows[:, block * self.width : (block + 1) * self.width]
        groups = torch.arange(self.bands) * self.blocks + block
        extremes = self.sample.minimum[groups], self.sample.maximum[groups]
        params = params_of(*extremes, self.grid, low, high)
        scale, zero_point = params.spread(lambda number: number[self.band][:, None])
        return fake_quantize_(rows, scale, zero_point, params).sub_(rows)

    def errors(self, low: Tensor, high: Tensor) -> Tensor:
        """What ranges ``(bands, blocks)`` do to the weight, ``(channels, columns)``."""
        return torch.cat([self.error(j, low[:, j], high[:, j]) for j in range(self.blocks)], 1)

    def start(self, ranges: list[Range]) -> None:
        """Begin with the best of some ranges ``(groups,)``, band by band; the first wins ties."""
        best = torch.full((self.bands,), torch.inf, dtype=torch.float64)
        found = torch.zeros_like(self.goal.rows)
        for low, high in ranges:
            low, high = low.reshape(self.low.shape), high.reshape(self.low.shape)
            errors = self.errors(low, high)
            cost = self.summed(self.goal.moments.energy(errors))
            better = cost < best
            best = torch.where(better, cost, best)
            self.low = torch.where(better[:, None], low, self.low)
            self.high = torch.where(better[:, None], high, self.high)
            found = torch.where(better[self.band][:, None], errors, found)
        self.found = found
        self.pull = self.goal.moments.times(found, 0, 0, found.shape[1])

    def improve(self, block: int) -> None:
        """Look for a better range of one block in every band, all others being as they are."""
        moments = self.goal.moments
        start, stop = block * self.width, min((block + 1) * self.width, self.found.shape[1])
        before = self.found[:, start:stop]
        own = moments.times(before, start, start, stop)
        # What the others do to this block's columns.
        others = self.pull[:, start:stop] - own
        low, high = self.full[0][:, block], self.full[1][:, block]
        best = self.summed((before * (own + 2 * others)).sum(1, dtype=torch.float64))
        ends = self.low[:, block], self.high[:, block]
        shares = [share_of(end, full) for end, full in zip(ends, (low, high), strict=True)]

        both_ends = not self.grid.symmetric and bool(((low < 0) & (high > 0)).any())
        for new in candidates(shares, both_ends):
            tried = low * new[0], high * new[1]
            error = self.error(block, *tried)
            cost = error * (moments.times(error, start, start, stop) + 2 * others)
            cost = self.summed(cost.sum(1, dtype=torch.float64))
            better = cost < best
            best = torch.where(better, cost, best)
            ends = torch.where(better, tried[0], ends[0]), torch.where(better, tried[1], ends[1])
            shares[:] = [torch.where(better, ours, share) for ours, share in zip(new, shares, strict=True)]
        self.low[:, block], self.high[:, block] = ends
        after = self.error(block, *ends)
        if self.blocks > 1:
            self.pull += moments.times(after - before, start, 0, self.found.shape[1])
        self.found[:, start:stop] = after


def share_of(end: Tensor, full: Tensor) -> Tensor:
    """``end`` as a share of ``full``; 1 where that is nothing."""
    return torch.where(full == 0, torch.ones_like(end), end / full).clamp(LEAST_SHARE, 1)


def candidates(shares: list[Tensor], both_ends: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Shares of the full range to try at its low and its high end, ``(groups,)`` each.

    Both ends shrink together; then, where the range has two free ends, each by itself; last come the
    neighbours of the best.

    Args:
        shares: the best so far at either end; the caller changes them in between.
        both_ends: whether each end may move by itself.
    """
    for share in COARSE:
        both = torch.full_like(shares[0], share)
        yield both, both
    for steps in (ALONE, FINE) if both_ends else ():
        for end in (0, 1):
            best = list(shares)
            for step in steps:
                moved = best.copy()
                moved[end] = (best[end] + step).clamp(LEAST_SHARE, 1)
                yield moved[0], moved[1]
    best = list(shares)
    for step in FINE:
        low, high = ((share + step).clamp(LEAST_SHARE, 1) for share in best)
        yield low, high
