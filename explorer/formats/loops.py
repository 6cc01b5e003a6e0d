"""The loops of fake quantization."""

from __future__ import annotations

import numpy as np

from explorer.compiled import Real, compiled


@compiled
def rounded(
    values: np.ndarray, inner: int, steps: np.ndarray, zero_points: np.ndarray, qmin: int, qmax: int,
    reciprocal: bool, out: np.ndarray,
) -> None:  # fmt: skip
    """Values rounded to whole steps, ties to the even one, and clamped: in one pass what takes torch five.

    Args:
        values: float32 ``(size,)``, in runs of ``inner`` neighbours of one group; group follows group, and after the
            last the first.
        inner: how many neighbours belong to one group.
        steps: of each group, float32 ``(groups,)``.
        zero_points: the codes of zero, int32 ``(groups,)``, or ``(1,)`` for all.
        qmin: the lowest code.
        qmax: the highest code.
        reciprocal: multiply by ``1 / step`` and do not divide by the step.
        out: float32 ``(size,)``, may be ``values``.
    """
    groups, size, nothing, one = len(steps), len(values), np.float32(0), np.float32(1)
    shared = len(zero_points) == 1
    # Zero is added for -0.0, which codes cannot tell from 0.0.
    if inner > 1:
        for run in range(size // inner):
            group = run % groups
            step, zero = steps[group], zero_points[0 if shared else group]
            low, high, factor = np.float32(qmin - zero), np.float32(qmax - zero), one / step
            part, to = values[run * inner : run * inner + inner], out[run * inner : run * inner + inner]
            if reciprocal:
                for i in range(inner):
                    to[i] = (max(min(np.rint(part[i] * factor), high), low) + nothing) * step
            else:
                for i in range(inner):
                    to[i] = (max(min(np.rint(part[i] / step), high), low) + nothing) * step
        return
    lows, highs, factors = (
        np.empty(groups, np.float32),
        np.empty(groups, np.float32),
        np.empty(groups, np.float32),
    )
    for group in range(groups):
        zero = zero_points[0 if shared else group]
        factors[group] = one / steps[group]
        lows[group], highs[group] = np.float32(qmin - zero), np.float32(qmax - zero)
    low, high = lows[0], highs[0]
    for start in range(0, size, groups):
        part, to = values[start : start + groups], out[start : start + groups]
        if reciprocal:
            for i in range(groups):
                to[i] = np.rint(part[i] * factors[i])
        elif shared:
            # The usual case in one loop.
            for i in range(groups):
                to[i] = (max(min(np.rint(part[i] / steps[i]), high), low) + nothing) * steps[i]
            continue
        else:
            for i in range(groups):
                to[i] = np.rint(part[i] / steps[i])
        for i in range(groups):
            to[i] = (max(min(to[i], highs[i]), lows[i]) + nothing) * steps[i]


@compiled
def affine(
    low: Real,
    high: Real,
    symmetric: bool,
    steps: Real,
    lowest: int,
    highest: int,
    centre: int,
    floor: Real,
    least_range: Real,
) -> tuple[Real, int]:
    """The scale and the zero point of a range, of which nothing else is asked: all in float32.

    Args:
        low: as a float32; a range is widened to hold zero.
        high: as a float32.
        symmetric: that the range is even about zero, or begins there.
        steps: how many the range has, a symmetric one how many from zero on, as a float32.
        lowest: the lowest code.
        highest: the highest code.
        centre: the zero point of a symmetric range.
        floor: the smallest scale, as a float32.
        least_range: the smallest width of an asymmetric range, as a float32.
    """
    low, high, one = min(low, np.float32(0)), max(high, np.float32(0)), np.float32(1)
    if symmetric:
        absmax = max(-low, high)
        return max(absmax / steps if absmax > 0 else one, floor), centre
    if least_range > 0:
        high = max(high, low + least_range)
    width = high - low
    # The width of a range beyond half the largest float is not a float; its step still is.
    step = high / steps - low / steps if np.isinf(width) else width / steps
    scale = max(step if width > 0 else one, floor)
    # The lowest code is even, so rounding the quotient alone is the same and does not round twice.
    return scale, int(
        max(min(np.float32(lowest) - np.rint(low / scale), np.float32(highest)), np.float32(lowest))
    )


@compiled
def affines(
    low: np.ndarray, high: np.ndarray, symmetric: bool, steps: Real, lowest: int, highest: int, centre: int,
    floor: Real, least_range: Real, scale: np.ndarray, zero_point: np.ndarray,
) -> Real:  # fmt: skip
    """:func:`affine` of ranges.

    Args:
        low: float32 ``(groups,)``.
        high: float32 ``(groups,)``.
        symmetric, steps, lowest, highest, centre, floor, least_range: as there.
        scale: float32 ``(groups,)``, where the scales are put.
        zero_point: int32 ``(groups,)``, where the zero points are put.

    Returns:
        the largest scale.
    """
    largest = np.float32(0)
    for i in range(len(low)):
        scale[i], zero_point[i] = affine(
            low[i], high[i], symmetric, np.float32(steps), lowest, highest, centre, np.float32(floor),
            np.float32(least_range),
        )  # fmt: skip
        largest = max(largest, scale[i])
    return largest
