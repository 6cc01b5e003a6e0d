"""Words and numbers as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from explorer.errors import ExplorerError
from explorer.study import Additivity, Evaluation, Histogram, NumberLine

NOTHING = "–"  # noqa: RUF001 (an en dash stands for "no value")


def percent(share: float, digits: int = 2) -> str:
    """A share as percent.

    >>> percent(0.9134)
    '91.34%'
    """
    return NOTHING if math.isnan(share) else f"{100 * share:.{digits}f}%"


def points(share: float, digits: int = 2) -> str:
    """A signed difference of shares in percentage points, with a true minus sign.

    >>> points(0.0125)
    '+1.25'
    """
    if math.isnan(share):
        return NOTHING
    text = f"{100 * share:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{digits}f}"


def score(value: float, unit: str) -> str:
    """A score of a metric: a share as percent, or a number.

    >>> score(0.9134, "%"), score(0.99871, "")
    ('91.34%', '0.99871')
    """
    if unit == "%":
        return percent(value)
    return NOTHING if math.isnan(value) else f"{value:.5g}".replace("-", "\N{MINUS SIGN}")


def change(value: float, unit: str) -> str:
    """A signed difference of scores: of shares in percentage points.

    >>> change(0.0125, "%"), change(0.00125, "")
    ('+1.25', '+0.00125')
    """
    if unit == "%":
        return points(value)
    if math.isnan(value):
        return NOTHING
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def heading(name: str) -> str:
    """A metric's name where a line begins; a user's function may be called anything.

    >>> heading("top-1"), heading("mean <b>")
    ('Top-1', 'Mean &lt;b&gt;')
    """
    return escape(name[:1].upper() + name[1:])


def in_points(words: str, unit: str) -> str:
    """A heading for differences of scores; of shares it says that they are points.

    >>> in_points("difference to float", "%"), in_points("difference to float", "")
    ('difference to float, points', 'difference to float')
    """
    return f"{words}, points" if unit == "%" else words


def decibels(value: float | None, digits: int = 1) -> str:
    """A ratio in decibels; infinite means exact.

    >>> decibels(31.27), decibels(float("inf"))
    ('31.3 dB', 'exact')
    """
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "exact" if value > 0 else "\N{MINUS SIGN}\N{INFINITY} dB"
    return f"{value:.{digits}f} dB".replace("-", "\N{MINUS SIGN}")


def kilobytes(count: float) -> str:
    """Bytes as kB, or as MB where there are many (1 kB = 1,000 bytes).

    >>> kilobytes(44426)
    '44.4 kB'
    """
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def large(count: float) -> str:
    """A count with a prefix: k, M, G, T.

    >>> large(416520 * 64)
    '26.7 M'
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:.3g}"


def ratio(before: float, after: float) -> str:
    """How many times smaller something became.

    >>> ratio(100, 25)[:-1]
    '4.00'
    """
    return NOTHING if not after else f"{before / after:.2f}\N{MULTIPLICATION SIGN}"


def number(value: float) -> str:
    """A real value with as many digits as a reader wants.

    >>> number(0.0123456)
    '0.01235'
    """
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def between(value: float, interval: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    """A value with its interval, where it is known.

    >>> between(0.00622, (0.00514, 0.00776), number), between(0.00622, None, number)
    ('0.00622 (0.00514 … 0.00776)', '0.00622')
    """
    return shown(value) + (f" ({shown(interval[0])} … {shown(interval[1])})" if interval else "")


def short(name: str, most: int = 18) -> str:
    """A layer's name truncated from the left, since its tail tells layers apart.

    >>> short("blocks.3.attention.projection", 12)
    '….projection'
    """
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[-(most - 1) :]


def sentence(error: Exception) -> str:
    """What went wrong; the explorer's own errors are sentences, others begin with their kind.

    >>> sentence(ValueError("no room"))
    'ValueError: no room.'
    """
    if isinstance(error, ExplorerError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(".") + "."


def duration(seconds: float | None) -> str:
    """About how long something takes; nothing where it is not known.

    >>> duration(0.4), duration(12.2), duration(200), duration(None)
    ('less than 1 s', '12 s', '3 min', '')
    """
    if seconds is None:
        return ""
    if seconds < 1:
        return "less than 1 s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def seen(e: Evaluation) -> str:
    """From how many images an evaluation is, and whether more are to come."""
    if e.complete:
        return f"{e.images:,} images"
    if e.stopped:
        return f"{e.stopped} at {e.images:,} of {e.total_images:,} images"
    return f"estimate from {e.images:,} of {e.total_images:,} images"


def amount(value: float, measure: str) -> str:
    """A value of one of the measures with its unit.

    >>> amount(0.01234, "kl"), amount(0.0125, "top1"), amount(31.27, "sqnr")
    ('0.01234 nats', '+1.25 points', '31.3 dB')
    """
    if math.isnan(value):
        return NOTHING
    if measure == "sqnr":
        return decibels(value)
    if measure in ("kl", "loss"):
        return f"{number(value)} nats"
    return f"{points(value)} points" if measure == "top1" else number(value)


def extent(interval: tuple[float, float], measure: str) -> str:
    """An interval of a measure with its unit.

    >>> extent((0.01, 0.0234), "kl")
    '0.01 … 0.0234 nats'
    """
    low, units = amount(interval[0], measure), (" dB", " points", " nats")
    shared = next((unit for unit in units if low.endswith(unit)), "")
    return f"{low.removesuffix(shared)} … {amount(interval[1], measure)}"


def added_up(a: Additivity) -> str:
    """Whether the layers' own shares add up to the whole, in a sentence."""
    low, high = a.interval
    if a.predicted < low:
        verdict = "the whole is worse than its parts"
    elif a.predicted > high:
        verdict = "the whole is better than its parts"
    else:
        verdict = "errors add up"
    return (
        f"The layers' own shares ({a.method}) add up to {amount(a.predicted, a.measure)}, measured "
        f"{amount(a.measured, a.measure)} ({extent(a.interval, a.measure)}): {verdict}."
    )


def caption(h: Histogram) -> str:
    """What a histogram shows, in one line of HTML.

    The range, the share that is clipped, the levels in use, the scale and the signal-to-noise ratio.
    """
    span = f"values {number(h.minimum)} … {number(h.maximum)}"
    facts = [f"<b>{escape(h.scheme)}</b>", f"SQNR <b>{decibels(h.sqnr_db)}</b>"]
    if h.scheme != "fp32":
        facts.append(f"clipped <b>{percent(h.clipped_fraction, 3)}</b>")
    if h.infinite_fraction:
        facts.append(f"infinity or NaN <b>{percent(h.infinite_fraction, 3)}</b>")
    if len(h.levels):
        used = f"{h.used_levels:,} of {len(h.levels):,} levels used" if h.groups == 1 else ""
        facts.append(used or f"{len(h.levels):,} levels a group")
    if h.entropy_bits is not None:
        facts.append(f"entropy {h.entropy_bits:.2f} bits")
    if h.groups == 1 and h.scale[1]:
        facts.append(f"scale {number(h.scale[1])}")
    elif h.scale[1]:
        facts.append(f"{h.groups:,} scales {number(h.scale[0])} … {number(h.scale[2])}")
    facts.append(span)
    facts.append(f"{h.elements:,} values" + ("" if h.exact else " (from calibration bins)"))
    return " · ".join(facts)


def line_caption(line: NumberLine) -> str:
    """What a number line shows, in one line of HTML."""
    whose = (
        f"group {line.group:,} of {line.groups:,}"
        if line.group is not None
        else f"all {line.groups:,} groups"
    )
    facts = [
        f"<b>{escape(line.scheme)}</b>",
        *([whose] if line.groups > 1 else []),
        f"SQNR <b>{decibels(line.sqnr_db)}</b>",
        f"{line.used:,} of {len(line.levels):,} levels used, <b>{line.unused:,}</b> unused",
        f"clipped <b>{percent(line.clipped_fraction, 3)}</b>",
    ]
    if line.error:
        share = line.clipping_share
        facts.append(f"error: <b>{percent(share, 1)}</b> clipping, {percent(1 - share, 1)} rounding")
    facts.append(f"{line.elements:,.0f} values" + ("" if line.exact else " (from calibration images)"))
    return " · ".join(facts)


def foreign_caption(h: Histogram) -> str:
    """What a histogram under another tool's parameters says, beside ours."""
    low, high = (f"{edge:.3g}".replace("-", "\N{MINUS SIGN}") for edge in h.clip)
    return (
        f"Another tool: <b>{escape(h.scheme)}</b>, range {low} to {high}, {percent(h.clipped_fraction)} clipped, "
        f"SQNR <b>{decibels(h.sqnr_db)}</b>."
    )
