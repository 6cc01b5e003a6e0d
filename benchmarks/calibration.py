"""Fake quantization, calibration and searches against torch's own, each at equal granularity."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import HistogramObserver

from benchmarks.table import Line, timed
from explorer.calibrate import GrowingHistogram, fit, objective
from explorer.formats import QParams, fake_quantize_
from explorer.graph.fakequant import quantize_activation
from explorer.graph.memory import keep_pages
from explorer.recipe import TensorScheme

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
    """Gathering and search against HistogramObserver, and the error on the values themselves."""
    for kind, values in activations(count).items():
        parts = values.split(-(-count // batches), 1)
        for name in ("int8", "uint8", "int4"):
            symmetric = name != "uint8"
            for goal in ("mse", "kl"):
                scheme = TensorScheme(name, "layer", symmetric, goal)
                (own, params), (other, rival) = _calibrated(parts, scheme)
                note = (
                    f"times its speed; squared error {_error(values, params) / _error(values, rival):.3f} of its; "
                    f"{own / count * 1e9:.2f} ns each"
                )
                yield Line(f"calibration {kind} {name} {goal}, {count:,} values", other / own, "10", note)


def _calibrated(
    parts: tuple[Tensor, ...], scheme: TensorScheme
) -> tuple[tuple[float, QParams], tuple[float, QParams]]:
    """Seconds and parameters, ours and torch's."""
    number = scheme.number
    lowest, highest = (-(1 << (number.bits - 1)), (1 << (number.bits - 1)) - 1)
    if not scheme.symmetric:
        lowest, highest = 0, (1 << number.bits) - 1
    scheme_of = torch.per_tensor_symmetric if scheme.symmetric else torch.per_tensor_affine
    dtype = torch.qint8 if scheme.symmetric else torch.quint8

    def ours() -> QParams:
        tally = GrowingHistogram(1)
        for part in parts:
            tally.add(part)
        return fit(tally.sample(), scheme.grid, objective(scheme.objective))

    def theirs() -> QParams:
        observer = HistogramObserver(dtype=dtype, qscheme=scheme_of, quant_min=lowest, quant_max=highest)
        for part in parts:
            observer(part)
        scale, zero_point = observer.calculate_qparams()
        return QParams(scale.float(), zero_point.int(), lowest, highest, True)

    seconds = in_turn(ours, theirs, 3)
    return (seconds[0], ours()), (seconds[1], theirs())


def _error(values: Tensor, params: QParams) -> float:
    after = fake_quantize_(values, params.scale[:, None], params.zero_point[:, None], params)
    return float((after - values).double().square().mean())


def searches() -> Iterator[Line]:
    """Memory beyond a weight of 25 million parameters, GiB, and the seconds for a million of them."""
    for grain in ("channel", "subchannel:32", "group:64", "layer"):
        for goal in ("mse", "kl"):
            if (grain, goal) == ("subchannel:32", "kl"):
                continue  # Minutes: each group of 32 has a histogram of 2048 bins.
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
    yield from observers(1 << 20)
    yield from observers(8 << 20)
    if options.large:
        yield from searches()
