"""Histograms of a tensor before and after quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explorer.calibrate import Sample
from explorer.formats import MOST_VALUES, FloatFormat, QParams
from explorer.recipe import TensorScheme
from explorer.study.metrics import ErrorSums
from explorer.study.shown import Drawn


@dataclass(frozen=True, eq=False)
class Histogram(Drawn):
    """A tensor's distribution before and after quantization.

    Args:
        layer: the layer's name.
        tensor: ``weight`` or ``input``.
        scheme: what it is quantized by, in words.
        edges: of the bins, float64 ``(bins + 1,)``, real units.
        counts: elements in each bin before, float64 ``(bins,)``.
        quantized_counts: elements in each bin after.
        levels: the real values of the codes, increasing, of the group with the widest range; empty for fp32
            and for ranges that change from example to example.
        clip: lowest and highest real value that any group can represent.
        groups: how many scales there are.
        scale: smallest, middle and largest scale; 0 where there is none.
        minimum: smallest value before.
        maximum: largest value before.
        elements: how many elements were counted.
        clipped_fraction: the share of elements outside of their own group's range.
        infinite_fraction: the share of elements that became infinity or NaN; they are in no bin of
            ``quantized_counts``.
        entropy_bits: of the codes of a weight (Shannon's, bits a code); None where the codes are not known.
        used_levels: how many of ``levels`` some element takes (in a histogram from bins: at most that many).
        sqnr_db: of this tensor under the scheme.
        exact: every element was looked at; otherwise bins of a calibration histogram stand for them.
    """

    layer: str
    tensor: str
    scheme: str
    edges: np.ndarray
    counts: np.ndarray
    quantized_counts: np.ndarray
    levels: np.ndarray
    clip: tuple[float, float]
    groups: int
    scale: tuple[float, float, float]
    minimum: float
    maximum: float
    elements: int
    clipped_fraction: float
    used_levels: int
    sqnr_db: float
    exact: bool
    infinite_fraction: float = 0.0
    entropy_bits: float | None = None


def _edges(low: float, high: float, bins: int) -> np.ndarray:
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _levels(params: QParams | None, scheme: TensorScheme, low: float, high: float) -> np.ndarray:
    if params is not None:
        widest = int((params.clip[1] - params.clip[0]).argmax())
        if params.book is not None:
            return np.unique(params.book.levels[widest].double().numpy())
        if params.levels is not None:
            return params.levels.values * float(params.scale[widest])
        if params.qmax - params.qmin >= MOST_VALUES:
            return np.empty(0)
        code = np.arange(params.qmin, params.qmax + 1) - int(params.zero_point[widest])
        return code * float(params.scale[widest])
    number = scheme.number
    if isinstance(number, FloatFormat) and not number.exact:
        values = number.values
        return values[(values >= low) & (values <= high)]
    return np.empty(0)


def histogram_of(
    layer: str,
    tensor: str,
    scheme: TensorScheme,
    before: Tensor,
    after: Tensor,
    params: QParams | None,
    weights: Tensor | None = None,
    clipped: float | None = None,
    bins: int = 256,
    exact: bool = True,
    entropy: float | None = None,
) -> Histogram:
    """The histogram of values before and after quantization.

    Args:
        layer: the layer's name.
        tensor: which of its tensors.
        scheme: how it is quantized.
        before: float, any shape.
        after: the same shape.
        params: scales and zero points, where there are any.
        weights: how often each value counts, the same shape; None for once each.
        clipped: the share of values out of range, where the caller knows it.
        bins: how many bins.
        exact: see :class:`Histogram`.
        entropy: of the codes, bits a code, where the caller knows it.
    """
    x, y = before.detach().reshape(-1).double().numpy(), after.detach().reshape(-1).double().numpy()
    w = None if weights is None else weights.detach().reshape(-1).double().numpy()
    finite = np.isfinite(y)
    every = bool(finite.all())
    kept, kept_w = (y, w) if every else (y[finite], None if w is None else w[finite])
    inside = kept if len(kept) else x
    low, high = float(min(x.min(), inside.min())), float(max(x.max(), inside.max()))
    edges = _edges(low, high, bins)
    # With its ends NumPy computes a value's bin, with all edges it sorts the values; the counts are the same.
    ends = float(edges[0]), float(edges[-1])
    counts = np.histogram(x, bins, ends, weights=w)[0].astype(float)
    quantized = np.histogram(kept, bins, ends, weights=kept_w)[0].astype(float)
    lost = not every and (w is None or bool((w[~finite] > 0).any()))
    error = x - y if every else x[finite] - kept
    error *= error
    total = float(len(x) if w is None else w.sum())
    signal = float((x * x).sum() if w is None else (w * x * x).sum())
    noise = math.inf if lost else float(error.sum() if kept_w is None else (kept_w * error).sum())
    sums = ErrorSums(1, signal, noise)
    clip, scale, groups = (low, high), (0.0, 0.0, 0.0), 1
    if params is not None:
        bottom, top = params.clip
        clip = float(bottom.min()), float(top.max())
        groups = len(params.scale)
    if params is not None and params.book is None:
        scale = float(params.scale.min()), float(params.scale.median()), float(params.scale.max())
    elif isinstance(scheme.number, FloatFormat) and not scheme.off:
        clip = -scheme.number.highest, scheme.number.highest
    levels = _levels(params, scheme, low, high)
    used = 0
    if len(levels):
        if groups == 1:
            used = min(len(np.unique(kept if kept_w is None else kept[kept_w > 0])), len(levels))
        elif params is not None:
            used = len(levels)
    return Histogram(
        layer,
        tensor,
        scheme.describe(),
        edges,
        counts,
        quantized,
        levels,
        clip,
        groups,
        scale,
        float(x.min()),
        float(x.max()),
        round(total),
        clipped if clipped is not None else _clipped(x, w, clip),
        used,
        sums.sqnr_db if total and not math.isnan(signal) else math.inf,
        exact,
        0.0 if every else _share(~finite, w),
        entropy,
    )


def _share(which: np.ndarray, w: np.ndarray | None) -> float:
    return float(which.mean() if w is None else (w * which).sum() / max(w.sum(), 1e-30))


def _clipped(x: np.ndarray, w: np.ndarray | None, clip: tuple[float, float]) -> float:
    # Half a unit in the last place of float32 is not clipping.
    slack = 1e-6 * max(abs(clip[0]), abs(clip[1]))
    outside = (x < clip[0] - slack) | (x > clip[1] + slack)
    return _share(outside, w)


def clipped_share(sample: Sample, params: QParams) -> float:
    """The share of values outside of their own group's range."""
    bottom, top = (bound[:, None] for bound in params.clip)
    slack = 1e-6 * torch.maximum(-bottom, top)
    outside = (sample.values < bottom - slack) | (sample.values > top + slack)
    if sample.weights is None:
        return float(outside.float().mean())
    return float((sample.weights * outside).sum() / sample.weights.sum())
