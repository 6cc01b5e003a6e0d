"""The loops of counting and of searches.

Each does in one pass what takes NumPy and torch a dozen, every one with a cost of its own.
"""

from __future__ import annotations

import math

import numpy as np

from explorer.compiled import Real, compiled, summing
from explorer.formats.loops import affine


@compiled
def turned_ends(bits: np.ndarray) -> tuple[np.int32, np.int32]:
    """The extremes of values, turned.

    Numbers are compared by their bits, turned so that the lower number is the lower integer: that takes a quarter of
    the time.  Turning once more gives the bits.

    Args:
        bits: of float32 values, int32 ``(size,)``.
    """
    magnitude = np.int32(0x7FFFFFFF)
    low, high = magnitude, np.int32(-0x80000000)
    for i in range(len(bits)):
        value = bits[i]
        value = value ^ ((value >> 31) & magnitude)
        low, high = min(low, value), max(high, value)
    return low, high


@compiled
def survey(
    bits: np.ndarray,
    block: int,
    step: int,
    lows: np.ndarray,
    highs: np.ndarray,
    ends: np.ndarray,
    some: np.ndarray,
) -> None:
    """The extremes of values, and of each block of them, and a sample, in one pass.

    Args:
        bits: of float32 values, int32 ``(size,)``.
        block: how many values a block has, an even number; the last may have fewer.
        step: of so many pairs of neighbours one is taken, from the first on.
        lows: where the bits of the least value of each block are put, int32 ``(blocks,)``.
        highs: those of the largest.
        ends: those of the least and the largest of all, int32 ``(2,)``.
        some: those of the pairs, int32 ``(2 * pairs,)``, as many as are asked for.
    """
    magnitude = np.int32(0x7FFFFFFF)
    least, largest = magnitude, np.int32(-0x80000000)
    size, place, taken = len(bits), 0, 0
    for index in range(len(lows)):
        low, high = turned_ends(bits[index * block : min(index * block + block, size)])
        least, largest = min(least, low), max(largest, high)
        lows[index], highs[index] = low ^ ((low >> 31) & magnitude), high ^ ((high >> 31) & magnitude)
        # What was compared is still at hand.
        while taken < len(some) and place < index * block + block:
            some[taken], some[taken + 1] = bits[place], bits[place + 1]
            taken += 2
            place += 2 * step
    ends[0], ends[1] = least ^ ((least >> 31) & magnitude), largest ^ ((largest >> 31) & magnitude)


@compiled
def power_above(low: Real, high: Real, least: int) -> int:
    """The lowest power of two that numbers from ``low`` to ``high`` stay below, from ``least`` to 128: its exponent."""
    # |x| = mantissa * 2**exponent with mantissa in [0.5, 1).  Zero asks for no range at all.
    absmax = max(-low, high)
    return max(min(math.frexp(absmax)[1], 128), least) if absmax > 0 else least


@compiled
def widen(counts: np.ndarray, bins: int, times: int) -> None:
    """Join neighbouring bins, so that a range that is even about zero doubles, some times over.

    Args:
        counts: ``(rows, bins or more)``, changed in place.
        bins: how many of each row are bins, a multiple of 4.
        times: how often.
    """
    joined = np.empty(bins // 2, counts.dtype)
    for row in range(len(counts)):
        for _ in range(times):
            held = False
            for i in range(bins // 2):
                joined[i] = counts[row, 2 * i] + counts[row, 2 * i + 1]
                held |= joined[i] != 0
            if not held:
                break
            for i in range(bins):
                counts[row, i] = 0
            for i in range(bins // 2):
                counts[row, bins // 4 + i] = joined[i]


@compiled
def furthest(values: np.ndarray, step: int, place: int, sign: int) -> Real:
    """Of each ``step``-th value the largest but ``place`` others, or the least one where ``sign`` is -1."""
    kept = np.full(place + 1, -np.inf, np.float32)
    for i in range(0, len(values), step):
        value = sign * values[i]
        if value > kept[place]:
            at = place
            while at > 0 and kept[at - 1] < value:
                kept[at] = kept[at - 1]
                at -= 1
            kept[at] = value
    return sign * kept[place]


@compiled
def tally_some(
    some: np.ndarray,
    values: np.ndarray,
    block: int,
    lows: np.ndarray,
    highs: np.ndarray,
    shown: int,
    few: int,
    least: int,
    middle: np.ndarray,
    state: np.ndarray,
    found: np.ndarray,
) -> int:
    """Count a batch in the bins of a growing histogram: of the middle the values of a sample, at the ends all.

    A value lies in the bin ``value * inverse + bins / 2``, worked out in float32: an edge may be off by less than a
    thousandth of a bin.  Zeros are not counted in bins.

    Args:
        some: a sample of the values, float32.
        values: all values, float32 ``(size,)``.
        block: how many of them a block has.
        lows: the least value of each block, float32 ``(blocks,)``.
        highs: the largest.
        shown: one of so many blocks shows where the middle lies.
        few: so many of those may lie beyond it at each end.
        least: the lowest exponent of a range.
        middle: where the middle begins and ends, float32 ``(2,)``, NaN before the first batch.
        state: int64 ``(4,)``: the exponent of the range; how many zeros the middle of the samples held, and how many
            the ends; how many values lay there.
        found: the counts of the middle and of the ends, int64 ``(2, bins + 8)``, to which these are added; behind the
            bins is room for what none of them gets.

    Returns:
        how many values were looked at.
    """
    bins = found.shape[1] - 8
    low, high = lows[0], highs[0]
    for index in range(len(lows)):
        low, high = min(low, lows[index]), max(high, highs[index])
    exponent = power_above(low, high, least)
    if exponent > state[0]:
        widen(found, bins, exponent - state[0])
        state[0] = exponent
    if np.isnan(middle[0]):
        whole = len(values) // block
        middle[0], middle[1] = furthest(lows[:whole], shown, few, -1), furthest(highs[:whole], shown, few, 1)
    factor = np.float32(bins / math.ldexp(1.0, int(state[0]) + 1))
    half, top, nothing = np.float32(bins // 2), np.float32(bins - 1), np.float32(0)
    # In one place behind the bins each count would wait for the one before.
    places, inner, outer = np.empty(256, np.int32), found[0], found[1]
    low, high = middle[0], middle[1]
    zeros = none = far = 0
    for start in range(0, len(some), len(places)):
        part = some[start : min(start + len(places), len(some))]
        # Places first, several at a time in one instruction; then the counts, which go one by one.
        for i in range(len(part)):
            value = part[i]
            inside = low <= value <= high
            place = max(nothing, min(top, value * factor + half))
            places[i] = np.int32(place) if inside and value != 0 else np.int32(bins + (i & 7))
            zeros += inside and value == 0
        for i in range(len(part)):
            inner[np.uint32(places[i])] += 1
    for index in range(len(lows)):
        if lows[index] < low or highs[index] > high:
            for i in range(index * block, min(index * block + block, len(values))):
                value = values[i]
                if value < low or value > high:
                    far += 1
                    if value == 0:
                        none += 1
                    else:
                        outer[np.uint32(max(nothing, min(top, value * factor + half)))] += 1
    state[1] += zeros
    state[2] += none
    state[3] += far
    return len(some) + far


@compiled
def look(
    values: np.ndarray,
    block: int,
    step: int,
    wanted: int,
    shown: int,
    few: int,
    least: int,
    middle: np.ndarray,
    state: np.ndarray,
    found: np.ndarray,
    ends: np.ndarray,
) -> int:
    """:func:`survey` and :func:`tally_some` of a batch.

    Args:
        values: float32 ``(size,)``.
        block: how many of them a block has.
        step: of so many pairs of neighbours one is taken.
        wanted: how many are.
        shown, few, least, middle, state, found: as there.
        ends: where the least and the largest value are put, float32 ``(2,)``.

    Returns:
        how many values were looked at.
    """
    blocks = (len(values) + block - 1) // block
    lows, highs = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    some = np.empty(2 * wanted, np.float32)
    survey(
        values.view(np.int32), block, step, lows.view(np.int32), highs.view(np.int32), ends.view(np.int32),
        some.view(np.int32),
    )  # fmt: skip
    return tally_some(some, values, block, lows, highs, shown, few, least, middle, state, found)


@compiled
def tally_all(
    values: np.ndarray,
    weights: np.ndarray | None,
    least: int,
    exponents: np.ndarray,
    counts: np.ndarray,
    zeros: np.ndarray,
    ends: np.ndarray,
) -> None:
    """Count each value of each group in the bins of a growing histogram.

    A value lies in the bin ``floor(value * inverse) + bins / 2``.  Zeros are not counted in bins.

    Args:
        values: float32 ``(groups, size)``.
        weights: how often each counts, float32 ``(groups, size)``, or None for once.
        least: the lowest exponent of a range.
        exponents: those of the ranges, int32 ``(groups,)``; they grow where a value asks for it.
        counts: of each bin, float64 ``(groups, bins)``, to which those of these values are added.
        zeros: float64 ``(groups,)``, likewise.
        ends: where the least and the largest values are put, float32 ``(groups, 2)``.
    """
    groups, bins = counts.shape
    half, top, nothing = np.float32(bins // 2), np.float32(bins - 1), np.float32(0)
    magnitude, turned = np.int32(0x7FFFFFFF), ends.view(np.int32)
    # As in tally_some.
    places, own = np.empty(256, np.int32), np.empty(bins + 8)
    for group in range(groups):
        low, high = turned_ends(values[group].view(np.int32))
        turned[group, 0], turned[group, 1] = (
            low ^ ((low >> 31) & magnitude),
            high ^ ((high >> 31) & magnitude),
        )
        exponent = power_above(ends[group, 0], ends[group, 1], least)
        if exponent > exponents[group]:
            widen(counts[group : group + 1], bins, exponent - exponents[group])
            exponents[group] = exponent
        inverse = np.float32(bins / math.ldexp(1.0, int(exponents[group]) + 1))
        for i in range(len(own)):
            own[i] = 0.0
        for start in range(0, values.shape[1], len(places)):
            part = values[group, start : min(start + len(places), values.shape[1])]
            for i in range(len(part)):
                place = max(nothing, min(top, np.floor(part[i] * inverse) + half))
                places[i] = np.int32(place) if part[i] != 0 else np.int32(bins + (i & 7))
            for i in range(len(part)):
                own[np.uint32(places[i])] += 1.0 if weights is None else weights[group, start + i]
        for i in range(bins):
            counts[group, i] += own[i]
        for i in range(bins, len(own)):
            zeros[group] += own[i]


@compiled
def settled(
    found: np.ndarray, state: np.ndarray, middle: np.ndarray, seen: int, exponent: int, reach: int, dispersion: Real,
    counts: np.ndarray,
) -> tuple[float, bool]:  # fmt: skip
    """Add counts of a sample to those of all values, as often as they stand for others.

    The steps of a quantizer resolve what chance did to a bin, and a search would find the steps that suit it; so each
    bin gets the average over ``reach`` neighbours to each side, unless the counts differ by more than chance.

    Args:
        found: the counts of the middle and of the ends, as :func:`tally_some` leaves them; the ends count once.
        state: likewise.
        middle: likewise.
        seen: how many values there were.
        exponent: that of the range of ``counts``, at least the sample's own.
        reach: to each side.
        dispersion: the largest index of dispersion of counts that differ by chance.
        counts: float64 ``(bins,)``.

    Returns:
        the number of zeros, which no bin has, and whether the counts of the sample differ by no more than chance.
    """
    bins = len(counts)
    widen(found, bins, exponent - state[0])
    factor, half = np.float32(bins / math.ldexp(1.0, int(exponent) + 1)), np.float32(bins // 2)
    first = int(max(min(middle[0] * factor + half, np.float32(bins - 1)), np.float32(0)))
    last = int(max(min(middle[1] * factor + half, np.float32(bins - 1)), np.float32(0)))
    # A value that lies on an edge may have been counted on its other side.
    while first > 0 and found[0, first - 1]:
        first -= 1
    while last + 1 < bins and found[0, last + 1]:
        last += 1
    own = found[0, first : last + 1]
    wide, total = len(own), 0
    for i in range(wide):
        total += own[i]
    reach = min(reach, wide - 1)
    inside = filled = 0
    for i in range(reach):
        inside += own[i]
    mean = np.empty(wide)
    even = deviation = 0.0
    for i in range(wide):
        if i + reach < wide:
            inside += own[i + reach]
        if i > reach:
            inside -= own[i - reach - 1]
        mean[i] = inside / (min(i + reach, wide - 1) - max(i - reach, 0) + 1)
        if inside:
            filled += 1
            even += mean[i]
            deviation += (own[i] - mean[i]) ** 2 / mean[i]
    smooth, scale = bool(deviation <= dispersion * filled), (seen - state[3]) / max(total + state[1], 1)
    # Averages near an end do not add up to what was counted.
    level = scale * total / max(even, 1e-9)
    for i in range(wide):
        counts[first + i] += mean[i] * level if smooth else own[i] * scale
    for i in range(bins):
        counts[i] += found[1, i]
    return state[1] * scale + state[2], smooth


@summing
def rounding_error(
    row: np.ndarray,
    weights: np.ndarray | None,
    step: Real,
    zero: int,
    qmin: int,
    qmax: int,
    best: Real,
) -> Real:
    """The sum of squared errors of a candidate, infinity where it is no less than ``best``.

    Values are multiplied by ``1 / scale``: at a tie, where that may decide otherwise, both codes have the same error.

    Args:
        row: float32 ``(points,)``.
        weights: how often each counts, float32 ``(points,)``, or None for once.
        step: the scale, as a float32.
        zero: the code of zero.
        qmin: the lowest code.
        qmax: the highest code.
        best: the cost of another.
    """
    low, high = np.float32(qmin - zero), np.float32(qmax - zero)
    total: Real = 0.0
    # In float64, or a division by the scale would be made of the product.
    factor = np.float32(1 / np.float64(step))
    # So many float32 numbers are added with an error in the seventh digit; then it is seen whether to go on.
    for start in range(0, len(row), 512):
        some: np.ndarray = row[start : start + 512]
        part: Real = np.float32(0)
        if weights is None:
            for i in range(len(some)):
                error = max(min(np.rint(some[i] * factor), high), low) * step - some[i]
                part += error * error
        else:
            often = weights[start : start + 512]
            for i in range(len(some)):
                error = max(min(np.rint(some[i] * factor), high), low) * step - some[i]
                part += error * error * often[i]
        total += part
        # Not a number is as bad.
        if not total < best:
            return np.inf
    return total


@compiled
def rounding_errors(
    values: np.ndarray,
    weights: np.ndarray | None,
    scale: np.ndarray,
    zero_point: np.ndarray,
    qmin: int,
    qmax: int,
    found: np.ndarray,
) -> None:
    """:func:`rounding_error` of candidates, infinity for one that is no better than an earlier one of its group.

    Args:
        values: float32 ``(groups, points)``.
        weights: float32 like ``values``, or None.
        scale: of candidates, float32 ``(groups, candidates)``.
        zero_point: int32, like ``scale``.
        qmin: the lowest code.
        qmax: the highest code.
        found: float64, like ``scale``, where the sums are put.
    """
    for group in range(len(values)):
        best = np.inf
        for candidate in range(scale.shape[1]):
            found[group, candidate] = rounding_error(
                values[group], None if weights is None else weights[group], scale[group, candidate],
                zero_point[group, candidate], qmin, qmax, best,
            )  # fmt: skip
            best = min(best, found[group, candidate])


@compiled
def squared_error(
    sums: np.ndarray, moments: np.ndarray, first: int, step: Real, zero_point: int, qmin: int, qmax: int
) -> float:
    """The sum of squared errors of a candidate, the values of each bin spread evenly over it, in units of the bins.

    Between neighbouring codes the squared error changes by ``2 * scale * (edge - value)``; summed over the edges
    below a value, that takes the error of the highest code to its own.

    Args:
        sums: of each bin its mass, the mass below its left end and the distances from that to the values below it;
            float64 ``(bins + 1, 3)``, of the last one the mass is 0.
        moments: the sum of all values and of their squares, in bins, float64 ``(2,)``.
        first: the left end of the first bin, in bins.
        step: the scale, in bins.
        zero_point: the code of zero.
        qmin: the lowest code.
        qmax: the highest code.
    """
    bins = len(sums) - 1
    hinges = 0.0
    for code in range(qmin, qmax):
        edge = max((code + 0.5 - zero_point) * step - first, 0.0)
        place = max(int(min(edge, float(bins))), 0)
        edge -= place
        hinges += (sums[place, 0] * edge * 0.5 + sums[place, 1]) * edge + sums[place, 2]
    top = (qmax - zero_point) * step
    return max(moments[1] + top * (top * sums[bins, 1] - 2 * moments[0]) - 2 * step * hinges, 0.0)


@compiled
def squared_errors(
    sums: np.ndarray,
    moments: np.ndarray,
    first: int,
    width: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    qmin: int,
    qmax: int,
    found: np.ndarray,
) -> None:
    """:func:`squared_error` of candidates, in real units.

    Args:
        sums: float64 ``(groups, bins + 1, 3)``.
        moments: float64 ``(groups, 2)``.
        first: the left end of the first bin, in bins.
        width: of a bin, float64 ``(groups,)``.
        scale: of candidates, float32 ``(groups, candidates)``.
        zero_point: int32, like ``scale``.
        qmin: the lowest code.
        qmax: the highest code.
        found: float64, like ``scale``, where the sums are put.
    """
    for group in range(scale.shape[0]):
        for candidate in range(scale.shape[1]):
            step, zero = scale[group, candidate] / width[group], zero_point[group, candidate]
            error = squared_error(sums[group], moments[group], first, step, zero, qmin, qmax)
            found[group, candidate] = error * width[group] ** 2


@compiled
def running_sums(counts: np.ndarray, first: int, sums: np.ndarray, moments: np.ndarray) -> None:
    """What :func:`squared_error` needs of bins.

    Args:
        counts: float32 or float64 ``(groups, bins)``.
        first: the left end of the first bin.
        sums: float64 ``(groups, bins + 1, 3)``.
        moments: float64 ``(groups, 2)``.
    """
    groups, bins = counts.shape
    for group in range(groups):
        below = hinge = value = square = 0.0
        for i in range(bins):
            mass, middle = float(counts[group, i]), first + i + 0.5
            sums[group, i, 0], sums[group, i, 1], sums[group, i, 2] = mass, below, hinge
            # From one end to the next all that is below comes nearer by a bin, and the bin's own by half of one.
            hinge += below + mass / 2
            below += mass
            value += mass * middle
            square += mass * (middle * middle + 1 / 12)
        sums[group, bins, 0], sums[group, bins, 1], sums[group, bins, 2] = 0.0, below, hinge
        moments[group, 0], moments[group, 1] = value, square


@compiled
def running_entropies(counts: np.ndarray, each: Real, noise: Real, sums: np.ndarray) -> None:
    """Running sums of counts, of the bins that are not empty, and of ``count * log(count)``.

    Half the variance of a count over the count is what its entropy is too much; it is taken off where the count is
    not one of values that were counted one by one.
    Source: Miller, "Note on the bias of information estimates" (1955).

    Args:
        counts: float64 ``(groups, bins)``.
        each: how many values one that was looked at stands for.
        noise: the variance of a count, in counts.
        sums: float64 ``(groups, bins + 1, 3)``, where the sums to the left end of each bin are put.
    """
    groups, bins = counts.shape
    for group in range(groups):
        mass = entropy = 0.0
        filled = 0
        for i in range(bins):
            sums[group, i, 0], sums[group, i, 1], sums[group, i, 2] = mass, filled, entropy
            count = counts[group, i]
            if count > 0:
                filled += 1
                mass += count
                entropy += count * math.log(count)
                if count >= each:
                    entropy -= (noise - 1) / 2
        sums[group, bins, 0], sums[group, bins, 1], sums[group, bins, 2] = mass, filled, entropy


@compiled
def divergence(
    count: np.ndarray,
    own: np.ndarray,
    reach: Real,
    each: Real,
    noise: Real,
    edges: np.ndarray,
    even: bool,
    step: Real,
    zero: Real,
    least: int,
) -> float:
    """The divergence from a histogram to that of a candidate, infinity where its range keeps too few bins.

    Args:
        count: of bins from ``-reach`` to ``reach``, float64 ``(bins,)``.
        own: its sums, those of :func:`running_entropies`, float64 ``(bins + 1, 3)``.
        reach: as a float32.
        each: how many values one that was looked at stands for.
        noise: the variance of a count, in counts.
        edges: between the codes where the scale is 1 and the zero point 0, float32 ``(codes + 1,)``.
        even: that the edges lie 1 apart.
        step: the scale, as a float32.
        zero: the zero point, as a float32.
        least: how many bins a range has to keep.
    """
    bins, codes, bias = len(count), len(edges) - 1, (noise - 1) / 2
    half, one, middle = np.float32(bins / 2), np.float32(1), np.float32(0.5)
    total = own[bins, 0]

    # The first bin whose middle is not below the edge; the outermost edges first.
    edge = np.ceil(((edges[0] - zero) * step / reach + one) * half - middle)
    first = max(int(min(edge, np.float32(bins))), 0)
    edge = np.ceil(((edges[codes] - zero) * step / reach + one) * half - middle)
    last = max(int(min(edge, np.float32(bins))), 0)
    if last - first < least:
        return np.inf
    inside = max(own[last, 0] - own[first, 0], 1e-30)
    reference = own[last, 2] - own[first, 2]
    cross = reference - (inside * math.log(inside))
    below, above = count[first] / inside, count[last - 1] / inside
    if not even or step * bins > 2 * reach:
        # Steps are wider than bins.  Of even ones those beyond all bins hold nothing.
        start, stop = 0, codes
        if even:
            start = int(min(max(zero - edges[0] - reach / step - 2, 0.0), float(codes)))
            stop = int(min(max(zero - edges[0] + reach / step + 3, 0.0), float(codes)))
        cross, left, mass, filled = 0.0, first, own[first, 0], own[first, 1]
        for code in range(start, stop):
            right = last
            if code + 1 < codes:
                edge = np.ceil(((edges[code + 1] - zero) * step / reach + one) * half - middle)
                right = max(int(min(edge, np.float32(bins))), 0)
            if right == left:
                continue
            level = own[right, 0] - mass
            spread = max(own[right, 1] - filled, 1.0) * inside
            mass, filled = own[right, 0], own[right, 1]
            if level > 0:
                cross += level * math.log(level / spread)
                if level >= each:
                    cross -= bias
            if left == first:
                below = level / spread
            if right == last:
                above = level / spread
            left = right

    # What is clipped is added to the outermost bins.  One that held nothing before has candidate mass 0;
    # a floor keeps the divergence finite.
    gained = 0.0
    for side in range(2):
        held = count[first] if side == 0 else count[last - 1]
        clipped = own[first, 0] if side == 0 else total - own[last, 0]
        share = max((below if side == 0 else above) if held > 0 else 0.0, 1e-6)
        if held + clipped > 0:
            gained += (held + clipped) * math.log(held + clipped)
            if held + clipped >= each:
                gained -= bias
        if held > 0:
            gained -= held * math.log(held)
            if held >= each:
                gained += bias
        if clipped > 0:
            gained -= clipped * math.log(share)
    return (reference - cross + gained) / total - math.log(total)


@compiled
def divergences(
    counts: np.ndarray,
    sums: np.ndarray,
    absmax: np.ndarray,
    each: Real,
    noise: Real,
    edges: np.ndarray,
    even: bool,
    scale: np.ndarray,
    zero_point: np.ndarray,
    least: int,
    found: np.ndarray,
) -> None:
    """:func:`divergence` of candidates.

    Args:
        counts: float64 ``(groups, bins)``.
        sums: float64 ``(groups, bins + 1, 3)``.
        absmax: float32 ``(groups,)``.
        each, noise, edges, even, least: as there.
        scale: of candidates, float32 ``(groups, candidates)``.
        zero_point: int32, like ``scale``.
        found: float64, like ``scale``, where the divergences are put.
    """
    for group in range(scale.shape[0]):
        for candidate in range(scale.shape[1]):
            found[group, candidate] = divergence(
                counts[group], sums[group], absmax[group], each, noise, edges, even, scale[group, candidate],
                np.float32(zero_point[group, candidate]), least,
            )  # fmt: skip


@compiled
def descend(
    full: np.ndarray,
    factors: np.ndarray,
    offsets: np.ndarray,
    bounds: np.ndarray,
    starts: np.ndarray,
    symmetric: bool,
    steps: Real,
    lowest: int,
    highest: int,
    centre: int,
    floor: Real,
    least_range: Real,
    values: np.ndarray | None,
    weights: np.ndarray | None,
    unit: np.ndarray,
    ends: np.ndarray,
    sums: np.ndarray,
    width: np.ndarray,
    moments: np.ndarray | None,
    first: int,
    counts: np.ndarray | None,
    each: Real,
    noise: Real,
    edges: np.ndarray,
    least: int,
    shares: np.ndarray,
) -> None:
    """The shares of full ranges that cost least, the candidates of each stage lying about the best so far.

    Args:
        full: the ranges, which hold zero, float32 ``(2, groups)``.
        factors: of the best shares of both ends, float64 ``(2, candidates)``, stage after stage.
        offsets: what is then added, like ``factors``.
        bounds: the smallest and the largest share that each may be, likewise.
        starts: where the stages begin, and behind the last, ``(stages + 1,)``.
        symmetric, steps, lowest, highest, centre, floor, least_range: as in :func:`affine`.
        values, weights: for :func:`rounding_error`, float32 ``(groups, points)``; None where the cost is another.
        unit: how many units of the values a real one is, float32 ``(groups,)``.
        ends: the least and the largest value of each group, in units, float32 ``(2, groups)``, or nothing for all.
        sums: of the bins, as the other costs need them, float64 ``(groups, bins + 1, 3)``.
        width: of a bin, float64 ``(groups,)``, or how far the bins reach, float32 ``(groups,)``.
        moments: for :func:`squared_error`, None where the cost is another.
        first: for it, too.
        counts: for :func:`divergence`, None where the cost is another.
        each, noise, edges, least: for it, too.
        shares: float32 ``(2, groups)``, where those found are put.
    """
    largest = np.float32(np.finfo(np.float32).max)
    for group in range(full.shape[1]):
        best: Real = np.inf
        cost: Real = np.inf
        left = right = np.float32(1)
        for stage in range(len(starts) - 1):
            base_left, base_right = left, right
            for i in range(starts[stage], starts[stage + 1]):
                low, high = (
                    base_left * factors[0, i] + offsets[0, i],
                    base_right * factors[1, i] + offsets[1, i],
                )
                low, high = (
                    min(max(low, bounds[0, i]), bounds[1, i]),
                    min(max(high, bounds[0, i]), bounds[1, i]),
                )
                share, other = np.float32(low), np.float32(high)
                step, zero = affine(
                    full[0, group] * share, full[1, group] * other, symmetric, np.float32(steps), lowest, highest,
                    centre, np.float32(floor), np.float32(least_range),
                )  # fmt: skip
                if values is not None:
                    # A least scale may be beyond all that the group holds, in its units beyond all numbers.
                    step = min(step * unit[group], largest)
                    # What the ends alone lose may be too much.
                    below = max(step * (lowest - zero) - ends[0, group], 0.0)
                    above = max(ends[1, group] - step * (highest - zero), 0.0)
                    if below * below >= best or above * above >= best:
                        continue
                    cost = rounding_error(
                        values[group], None if weights is None else weights[group], step, zero, lowest, highest, best
                    )  # fmt: skip
                if moments is not None:
                    cost = squared_error(
                        sums[group], moments[group], first, step / width[group], zero, lowest, highest
                    )
                if counts is not None:
                    cost = divergence(
                        counts[group], sums[group], width[group], each, noise, edges, True, step,
                        np.float32(zero), least,
                    )  # fmt: skip
                if cost < best:
                    best, left, right = cost, share, other
        shares[0, group], shares[1, group] = left, right


@compiled
def recount(
    counts: np.ndarray,
    first: int,
    width: np.ndarray,
    absmax: np.ndarray,
    zeros: np.ndarray,
    found: np.ndarray,
) -> None:
    """Counts in other bins: whole ones moved over would leave some too full and some too empty.

    Args:
        counts: of bins, float32 ``(groups, own bins)``.
        first: the left end of the first of them, in bins.
        width: of one of them, float64 ``(groups,)``.
        absmax: float32 ``(groups,)``; the new bins reach from ``-absmax`` to it, the last has what lies beyond, too.
        zeros: how many zeros there are besides, float32 ``(groups,)``; they are in the bin right of the middle.
        found: where the new counts are put, float64 ``(groups, bins)``.
    """
    bins, own = found.shape[1], counts.shape[1]
    for group in range(len(counts)):
        place, below, before, reach = 0, 0.0, 0.0, absmax[group] / width[group]
        for i in range(bins):
            edge = ((i + 1) * (2 / bins) - 1) * reach - first if i + 1 < bins else float(own)
            while place < own and place + 1 <= edge:
                below += counts[group, place]
                place += 1
            # The part of the bin that the edge lies in.
            part = counts[group, place] * (edge - place) if place < own and edge > place else 0.0
            found[group, i] = below + part - before
            before = below + part
        found[group, bins // 2] += zeros[group]


@compiled
def stand_ins(
    counts: np.ndarray, zeros: np.ndarray, widths: np.ndarray, ranges: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray]:
    """The middle of each bin and what it counts, and zero with the zeros behind the last.

    No middle is put beyond the extremes, or a range fitted to it would be.  Bins at the ends that are empty in all
    groups are left out, but for one.

    Args:
        counts: float64 ``(groups, bins)``.
        zeros: float64 ``(groups,)``.
        widths: of a bin, float64 ``(groups,)``.
        ranges: the least and the largest values of each batch, float32 ``(batches, 2, groups)``.

    Returns:
        the first bin that is there, the middles and the counts, float32 ``(2, groups, wanted + 1)``, and the extremes
        of each group, float32 ``(2, groups)``.
    """
    groups, bins = counts.shape
    start, stop = bins, 0
    for group in range(groups):
        low, high = 0, bins
        while low < start and counts[group, low] == 0:
            low += 1
        while high > stop and counts[group, high - 1] == 0:
            high -= 1
        start, stop = min(start, low), max(stop, high)
    if start >= stop:
        start, stop = bins // 2, bins // 2 + 1
    points, extremes = np.empty((2, groups, stop - start + 1), np.float32), np.empty((2, groups), np.float32)
    for group in range(groups):
        least, largest = np.float32(np.inf), np.float32(-np.inf)
        for batch in range(len(ranges)):
            least, largest = min(least, ranges[batch, 0, group]), max(largest, ranges[batch, 1, group])
        extremes[0, group], extremes[1, group] = least, largest
        for i in range(stop - start):
            middle = (start + i - bins // 2 + 0.5) * widths[group]
            points[0, group, i] = min(max(middle, least), largest)
            points[1, group, i] = counts[group, start + i]
        points[0, group, stop - start] = min(max(0.0, least), largest)
        points[1, group, stop - start] = zeros[group]
    return start, points, extremes
