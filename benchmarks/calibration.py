"""Fake quantization, calibration and searches against torch's own, each at equal granularity."""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import HistogramObserver

from benchmarks.table import Line, timed
from explorer.calibrate import KL, GrowingHistogram, fit, objective
from explorer.calibrate.sample import MOST_READ
from explorer.formats import QParams, fake_quantize_
from explorer.graph.fakequant import quantize_activation
from explorer.graph.memory import keep_pages
from explorer.recipe import TensorScheme
from explorer.tensor import fit_tensor

# Shape and channel axis: linear and convolution weights, a transposed convolution's, activations.
SHAPES = (
    ((64, 1024), 0), ((1024, 1024), 0), ((2048, 2048), 0), ((2048, 2048), 1), ((512, 1024, 3, 3), 0),
    ((512, 1024, 3, 3), 1), ((4, 64, 16, 16), 1), ((16, 64, 32, 32), 1), ((16, 64, 64, 64), 1),
)  # fmt: skip
# A search over 25 million parameters, in a process of its own: seconds and bytes beyond the weight.
SEARCH = """
import re, sys, time, torch
from explorer.recipe import TensorScheme
from explorer.tensor import fit_tensor

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

format, grain, goal = sys.argv[1:]
weight = torch.randn(5000, 5000)
scheme = TensorScheme(format, grain, objective=goal)
fit_tensor(weight[:64], scheme, 0)
before, begun = peak(), time.perf_counter()
fit_tensor(weight, scheme, 0)
print(peak() - before, time.perf_counter() - begun)
"""


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], times: int = 9) -> tuple[float, float]:
    """Median seconds of two pieces of work done in turn, after one of each to warm up."""
    ours(), theirs()
    pairs = [(timed(ours)[0], timed(theirs)[0]) for _ in range(times)]
    mine, other = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(other)


def fake_quantization() -> Iterator[Line]:
    """How many times as fast as torch's fake quantization: as the engine calls it, and into a reused buffer."""
    draw = torch.Generator().manual_seed(0)
    for shape, axis in SHAPES:
        values, channels = torch.randn(shape, generator=draw), shape[axis]
        scale = torch.rand(channels, generator=draw) * 0.02 + 0.02
        out = torch.empty_like(values)
        for kind, zero_point in (
            ("symmetric", torch.zeros(channels, dtype=torch.int32)),
            ("asymmetric", torch.randint(-20, 20, (channels,), generator=draw, dtype=torch.int32)),
        ):
            for grain in ("layer", "channel"):
                many = grain == "channel"
                params = QParams(*(p if many else p[:1] for p in (scale, zero_point)), -127, 127)
                scheme = TensorScheme("int8", grain, False)
                rival = _rival(values, params, axis if many else None)
                spread = params.spread(lambda p, s=scheme, v=values, a=axis: s.grain.expand(p, v.shape, a))
                new, torchs = in_turn(
                    lambda v=values, s=scheme, p=params, a=axis: quantize_activation(v, s, p, a), rival
                )
                reused, _ = in_turn(
                    lambda v=values, s=spread, p=params, o=out: fake_quantize_(v, *s, p, o), rival
                )
                what = f"fake quantization {'x'.join(map(str, shape))} {grain} axis {axis} {kind}"
                note = f"times torch's speed; in place {torchs / reused:.1f}; {new / values.numel() * 1e9:.2f} ns each"
                yield Line(what, torchs / new, "4", note)


def _rival(values: Tensor, params: QParams, axis: int | None) -> Callable[[], Tensor]:
    scale, zero_point = params.scale, params.zero_point
    if axis is None:
        one, zero = float(scale), int(zero_point)
        return lambda: torch.fake_quantize_per_tensor_affine(values, one, zero, params.qmin, params.qmax)
    return lambda: torch.fake_quantize_per_channel_affine(
        values, scale, zero_point, axis, params.qmin, params.qmax
    )


def activations(count: int) -> dict[str, Tensor]:
    """Kinds of distributions that activations have, ``(1, count)`` each."""
    torch.manual_seed(0)
    normal = torch.randn(1, count)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "laplace": torch.distributions.Laplace(0.0, 1.0).sample((1, count)),
        "heavy-tailed": torch.distributions.StudentT(3.0).sample((1, count)),
        "bimodal": torch.where(torch.rand(1, count) < 0.3, normal * 0.2 + 3, normal * 0.5 - 1),
    }


def observers(count: int, batches: int = 8) -> Iterator[Line]:
    """Gathering and search against HistogramObserver on the same levels: speed, and error on the values themselves.

    The error is what each objective minimises: the squared error, or the divergence of finely counted histograms.
    """
    for kind, values in activations(count).items():
        parts = values.split(-(-count // batches), 1)
        for name in ("int8", "uint8", "int4"):
            for goal in ("mse", "kl"):
                # The levels of torch: 255 codes in place of 256 would cost 0.8% of the error by themselves.
                scheme = TensorScheme(name, "layer", name != "uint8", goal, convention="torch")
                (own, params), (other, rival) = _calibrated(parts, scheme)
                what = f"calibration {kind} {name} {goal}, {count:,} values"
                note = (
                    f"times its speed; {own / count * 1e9:.2f} ns each, {_share(parts):.0%} of them looked at"
                )
                yield Line(what, other / own, "10", note)
                squared = _error(values, params) / _error(values, rival)
                if goal == "mse":
                    yield Line(f"{what}: error", squared, "1", "of its squared error")
                else:
                    ours, theirs = _divergence(values, params), _divergence(values, rival)
                    note = f"of its divergence, {theirs:.2e}; squared error {squared:.3f} of its"
                    yield Line(f"{what}: error", ours / theirs, "1", note)


def weights(rows: int = 1024, columns: int = 2560) -> Iterator[Line]:
    """Ranges of a weight by layer against HistogramObserver, each given the tensor at once: speed and error."""
    for kind, values in activations(rows * columns).items():
        weight = values.reshape(rows, columns)
        for name in ("int8", "int4"):
            for goal in ("mse", "kl"):
                scheme = TensorScheme(name, "layer", objective=goal, convention="torch")
                own, other = in_turn(
                    lambda w=weight, s=scheme: fit_tensor(w, s, 0),
                    lambda w=weight, s=scheme: _observed((w,), s),
                    5,
                )
                what = f"weight {kind} {name} {goal}, {rows}x{columns}"
                yield Line(
                    what, other / own, "10", f"times its speed; {own / values.numel() * 1e9:.2f} ns each"
                )
                error = _error if goal == "mse" else _divergence
                ours, theirs = (
                    error(values, found)
                    for found in (fit_tensor(weight, scheme, 0), _observed((weight,), scheme))
                )
                yield Line(f"{what}: error", ours / theirs, "1", f"of its {goal}, {theirs:.2e}")


def _gathered(
    parts: tuple[Tensor, ...], bins: int | None = None, most: float = MOST_READ
) -> GrowingHistogram:
    tally = GrowingHistogram(1, bins, most)
    for part in parts:
        tally.add(part)
    return tally


def _share(parts: tuple[Tensor, ...]) -> float:
    """The share of the values that a histogram of them looks at."""
    return _gathered(parts).share


def _divergence(values: Tensor, params: QParams) -> float:
    """The Kullback-Leibler divergence of a range by a histogram of every value, finer than a search has."""
    goal, sample = KL(), _gathered((values,), 1 << 16, math.inf).sample()
    candidates = replace(params, scale=params.scale[:, None], zero_point=params.zero_point[:, None])
    grid = TensorScheme("int8", "layer").grid
    return float(goal.cost(goal.prepare(sample, grid), candidates))


def _calibrated(
    parts: tuple[Tensor, ...], scheme: TensorScheme
) -> tuple[tuple[float, QParams], tuple[float, QParams]]:
    """Seconds and parameters, ours and torch's."""

    def ours() -> QParams:
        return fit(_gathered(parts).sample(), scheme.grid, objective(scheme.objective))

    def theirs() -> QParams:
        return _observed(parts, scheme)

    seconds = in_turn(ours, theirs, 3)
    return (seconds[0], ours()), (seconds[1], theirs())


def _observed(parts: tuple[Tensor, ...], scheme: TensorScheme) -> QParams:
    """What HistogramObserver finds for the levels of ``scheme``, of 8 bits at most."""
    bits = scheme.number.bits
    lowest, highest = (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if scheme.symmetric else (0, (1 << bits) - 1)
    )
    kind = torch.per_tensor_symmetric if scheme.symmetric else torch.per_tensor_affine
    dtype = torch.qint8 if scheme.symmetric else torch.quint8
    observer = HistogramObserver(dtype=dtype, qscheme=kind, quant_min=lowest, quant_max=highest)
    for part in parts:
        observer(part)
    scale, zero_point = observer.calculate_qparams()
    return QParams(scale.float(), zero_point.int(), lowest, highest, True)


def _error(values: Tensor, params: QParams) -> float:
    after = fake_quantize_(values, params.scale[:, None], params.zero_point[:, None], params)
    return float((after - values).double().square().mean())


def by_channel(channels: int = 512, batches: int = 4) -> Iterator[Line]:
    """Gathering an activation by channel, beside the same values in one group; torch has no observer for it."""
    parts = torch.randn(channels, batches * 4096).split(4096, 1)

    def gather() -> GrowingHistogram:
        tally = GrowingHistogram(channels)
        for part in parts:
            tally.add(part)
        return tally

    own, one = in_turn(gather, lambda: _gathered(tuple(p.reshape(1, -1) for p in parts), most=math.inf), 3)
    count = channels * batches * 4096
    note = f"times the time of one group, each value counted; {own / count * 1e9:.2f} ns each"
    yield Line(f"gathering {channels} channels of 4096 values in {batches} batches", own / one, None, note)


def searches() -> Iterator[Line]:
    """Memory beyond a weight of 25 million parameters, GiB, and the seconds for a million of them."""
    for grain in ("channel", "subchannel:32", "group:64", "layer"):
        for goal in ("mse", "kl"):
            for name in ("int8", "int4"):
                run = subprocess.run(
                    [sys.executable, "-c", SEARCH, name, grain, goal],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                held, seconds = map(float, run.stdout.split())
                yield Line(f"search of 5000x5000, {grain} {name} {goal}", held / (1 << 30), "1",
                           f"GiB beyond the weight; {seconds / 25:.3f} s for a million parameters")  # fmt: skip


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """All figures of this module; the searches only with ``--large``."""
    keep_pages()
    yield from fake_quantization()
    yield from observers(5 << 19, batches=5)
    yield from observers(8 << 20)
    yield from observers(32 << 20, batches=16)
    yield from weights()
    yield from by_channel()
    if options.large:
        yield from searches()
