"""The loops of counting and of searches.

Each does in one pass what takes NumPy and torch a dozen, every one with a cost of its own.
"""

from __future__ import annotations

import math

import numpy as np

from explorer.compiled import compiled


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

    Numbers are compared by their bits, turned so that the lower number is the lower integer: that takes a quarter of
    the time.

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
        row = bits[index * block : min(index * block + block, size)]
        low, high = magnitude, np.int32(-0x80000000)
        for i in range(len(row)):
            value = row[i]
            value = value ^ ((value >> 31) & magnitude)
            low, high = min(low, value), max(high, value)
        least, largest = min(least, low), max(largest, high)
        lows[index], highs[index] = low ^ ((low >> 31) & magnitude), high ^ ((high >> 31) & magnitude)
        # What was compared is still at hand.
        while taken < len(some) and place < index * block + block:
            some[taken], some[taken + 1] = bits[place], bits[place + 1]
            taken += 2
            place += 2 * step
    ends[0], ends[1] = least ^ ((least >> 31) & magnitude), largest ^ ((largest >> 31) & magnitude)


@compiled
def beyond(
    values: np.ndarray, block: int, lows: np.ndarray, highs: np.ndarray, least: float, largest: float
) -> np.ndarray:
    """The values below ``least`` or above ``largest``, float32.

    Args:
        values: float32 ``(size,)``.
        block: how many values a block has.
        lows: the least value of each block, float32 ``(blocks,)``.
        highs: the largest.
        least: as a float32.
        largest: as a float32.
    """
    far = 0
    for index in range(len(lows)):
        far += lows[index] < least or highs[index] > largest
    found, count = np.empty(far * block, np.float32), 0
    for index in range(len(lows)):
        if lows[index] < least or highs[index] > largest:
            for i in range(index * block, min(index * block + block, len(values))):
                if values[i] < least or values[i] > largest:
                    found[count] = values[i]
                    count += 1
    return found[:count]


@compiled
def reached(ranges: np.ndarray, least: int, extremes: np.ndarray, exponents: np.ndarray) -> None:
    """The extremes of some batches together, and the lowest power of two that each group stays below.

    Args:
        ranges: the least and the largest values of each batch, float32 ``(batches, 2, groups)``.
        least: the lowest exponent there is.
        extremes: where those of all are put, float32 ``(2, groups)``.
        exponents: where the exponents are put, at most 128, int32 ``(groups,)``.
    """
    for group in range(ranges.shape[2]):
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for batch in range(ranges.shape[0]):
            low, high = min(low, ranges[batch, 0, group]), max(high, ranges[batch, 1, group])
        extremes[0, group], extremes[1, group] = low, high
        # |x| = mantissa * 2**exponent with mantissa in [0.5, 1).  Zero asks for no range at all.
        absmax = max(-low, high)
        exponent = least
        if absmax > 0:
            exponent = math.frexp(absmax)[1]
        exponents[group] = max(min(exponent, 128), least)


@compiled
def tally_some(
    some: np.ndarray, ends: np.ndarray, inverse: float, least: float, largest: float, found: np.ndarray
) -> tuple[int, int]:
    """Count values in the bins of a growing histogram, those of a sample and those at the ends.

    A value lies in the bin ``value * inverse + bins / 2``, worked out in float32: an edge may be off by less than a
    thousandth of a bin.  Zeros are not counted in bins.

    Args:
        some: a sample of values, float32; of it those from ``least`` to ``largest`` are counted.
        ends: the values beyond, float32, each of which is counted.
        inverse: how many bins a real one is, as a float32.
        least: where the middle begins, as a float32.
        largest: where it ends, as a float32.
        found: where the counts of both are put, int64 ``(2, bins)``.

    Returns:
        how many zeros the middle of the sample held, and how many the ends.
    """
    bins = found.shape[1]
    half, top, nothing = np.float32(bins // 2), np.float32(bins - 1), np.float32(0)
    factor, low, high = np.float32(inverse), np.float32(least), np.float32(largest)
    zeros = np.zeros(2, np.int64)
    # Behind the bins is room for what none of them gets; in one place each count would wait for the one before.
    places, counts = np.empty(256, np.int32), np.empty(bins + 8, np.int64)
    for side in range(2):
        for i in range(len(counts)):
            counts[i] = 0
        values, none = (some, 0) if side == 0 else (ends, 0)
        for start in range(0, len(values), len(places)):
            part = values[start : min(start + len(places), len(values))]
            # Places first, several at a time in one instruction; then the counts, which go one by one.
            for i in range(len(part)):
                value = part[i]
                inside = side == 1 or low <= value <= high
                place = max(nothing, min(top, value * factor + half))
                places[i] = np.int32(place) if inside and value != 0 else np.int32(bins + (i & 7))
                none += inside and value == 0
            for i in range(len(part)):
                counts[np.uint32(places[i])] += 1
        for i in range(bins):
            found[side, i] = counts[i]
        zeros[side] = none
    return zeros[0], zeros[1]


@compiled
def tally_all(
    values: np.ndarray,
    weights: np.ndarray | None,
    inverses: np.ndarray,
    counts: np.ndarray,
    zeros: np.ndarray,
) -> None:
    """Count each value of each group in the bins of a growing histogram.

    A value lies in the bin ``floor(value * inverse) + bins / 2``.  Zeros are not counted in bins.

    Args:
        values: float32 ``(groups, size)``.
        weights: how often each counts, float32 ``(groups, size)``, or None for once.
        inverses: how many bins a real one is, float32 ``(groups,)``.
        counts: of each bin, float64 ``(groups, bins)``, to which those of these values are added.
        zeros: float64 ``(groups,)``, likewise.
    """
    groups, bins = counts.shape
    half, top, nothing = np.float32(bins // 2), np.float32(bins - 1), np.float32(0)
    # As in tally_some.
    places, own = np.empty(256, np.int32), np.empty(bins + 8)
    for group in range(groups):
        inverse = inverses[group]
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
def averaged(counts: np.ndarray, reach: int, dispersion: float, mean: np.ndarray) -> bool:
    """Counts of bins averaged over ``reach`` neighbours to each side, unless they differ by more than chance.

    Args:
        counts: int64 ``(bins,)``.
        reach: to each side, less than there are bins.
        dispersion: the largest index of dispersion of counts that differ by chance.
        mean: float64 ``(bins,)``, where the averages are put; their sum is that of the counts.

    Returns:
        whether the counts differ by no more than chance.
    """
    bins = len(counts)
    inside = total = 0
    for i in range(bins):
        total += counts[i]
        if i < reach:
            inside += counts[i]
    even = deviation = 0.0
    filled = 0
    for i in range(bins):
        if i + reach < bins:
            inside += counts[i + reach]
        if i > reach:
            inside -= counts[i - reach - 1]
        mean[i] = inside / (min(i + reach, bins - 1) - max(i - reach, 0) + 1)
        if inside:
            filled += 1
            even += mean[i]
            deviation += (counts[i] - mean[i]) ** 2 / mean[i]
    factor = total / max(even, 1e-9)
    for i in range(bins):
        mean[i] *= factor
    return deviation <= dispersion * filled


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
    """The sum of squared errors of candidates, the values of each bin spread evenly over it.

    Between neighbouring codes the squared error changes by ``2 * scale * (edge - value)``; summed over the edges
    below a value, that takes the error of the highest code to its own.

    Args:
        sums: of each bin its mass, the mass below its left end and the distances from that to the values below it;
            float64 ``(groups, bins + 1, 3)``, of the last one the mass is 0.
        moments: the sum of all values and of their squares, in bins, float64 ``(groups, 2)``.
        first: the left end of the first bin, in bins.
        width: of a bin, float64 ``(groups,)``.
        scale: of candidates, float32 ``(groups, candidates)``.
        zero_point: int32, like ``scale``.
        qmin: the lowest code.
        qmax: the highest code.
        found: float64, like ``scale``, where the sums are put.
    """
    bins = sums.shape[1] - 1
    for group in range(scale.shape[0]):
        own, mass = sums[group], sums[group, bins, 1]
        for candidate in range(scale.shape[1]):
            step, zero = scale[group, candidate] / width[group], zero_point[group, candidate]
            hinges = 0.0
            for code in range(qmin, qmax):
                edge = max((code + 0.5 - zero) * step - first, 0.0)
                place = max(int(min(edge, float(bins))), 0)
                edge -= place
                hinges += (own[place, 0] * edge * 0.5 + own[place, 1]) * edge + own[place, 2]
            top = (qmax - zero) * step
            error = moments[group, 1] + top * (top * mass - 2 * moments[group, 0]) - 2 * step * hinges
            found[group, candidate] = max(error, 0.0) * width[group] ** 2


@compiled
def running_sums(counts: np.ndarray, first: int, sums: np.ndarray, moments: np.ndarray) -> None:
    """What :func:`squared_errors` needs of bins.

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
def running_entropies(counts: np.ndarray, each: float, noise: float, sums: np.ndarray) -> None:
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
def divergences(
    counts: np.ndarray,
    sums: np.ndarray,
    absmax: np.ndarray,
    each: float,
    noise: float,
    edges: np.ndarray,
    even: bool,
    scale: np.ndarray,
    zero_point: np.ndarray,
    least: int,
    found: np.ndarray,
) -> None:
    """The divergence from a histogram to that of each candidate, infinity where a range keeps too few bins.

    Args:
        counts: of bins from ``-absmax`` to ``absmax``, float64 ``(groups, bins)``.
        sums: those of :func:`running_entropies`.
        absmax: float32 ``(groups,)``.
        each: how many values one that was looked at stands for.
        noise: the variance of a count, in counts.
        edges: between the codes where the scale is 1 and the zero point 0, float32 ``(codes + 1,)``.
        even: that the edges lie 1 apart.
        scale: of candidates, float32 ``(groups, candidates)``.
        zero_point: int32, like ``scale``.
        least: how many bins a range has to keep.
        found: float64, like ``scale``, where the divergences are put.
    """
    bins, codes, bias = counts.shape[1], len(edges) - 1, (noise - 1) / 2
    half, one, middle = np.float32(bins / 2), np.float32(1), np.float32(0.5)
    for group in range(scale.shape[0]):
        own, count, reach = sums[group], counts[group], absmax[group]
        total = own[bins, 0]
        for candidate in range(scale.shape[1]):
            step, zero = scale[group, candidate], np.float32(zero_point[group, candidate])

            # The first bin whose middle is not below the edge; the outermost edges first.
            edge = np.ceil(((edges[0] - zero) * step / reach + one) * half - middle)
            first = max(int(min(edge, np.float32(bins))), 0)
            edge = np.ceil(((edges[codes] - zero) * step / reach + one) * half - middle)
            last = max(int(min(edge, np.float32(bins))), 0)
            if last - first < least:
                found[group, candidate] = np.inf
                continue
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
            found[group, candidate] = (reference - cross + gained) / total - math.log(total)


@compiled
def stand_ins(
    counts: np.ndarray,
    zeros: np.ndarray,
    widths: np.ndarray,
    extremes: np.ndarray,
    start: int,
    points: np.ndarray,
) -> None:
    """The middle of each bin and what it counts, and zero with the zeros behind the last.

    No middle is put beyond the extremes, or a range fitted to it would be.

    Args:
        counts: float64 ``(groups, bins)``.
        zeros: float64 ``(groups,)``.
        widths: of a bin, float64 ``(groups,)``.
        extremes: float32 ``(2, groups)``.
        start: the first bin that is wanted.
        points: float32 ``(2, groups, wanted + 1)``, where the middles are put and the counts.
    """
    groups, bins = counts.shape
    wanted = points.shape[2] - 1
    for group in range(groups):
        low, high = extremes[0, group], extremes[1, group]
        for i in range(wanted):
            middle = (start + i - bins // 2 + 0.5) * widths[group]
            points[0, group, i] = min(max(middle, low), high)
            points[1, group, i] = counts[group, start + i]
        points[0, group, wanted] = min(max(0.0, low), high)
        points[1, group, wanted] = zeros[group]
