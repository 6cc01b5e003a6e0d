"""Results by themselves, as a notebook shows them: each kind with its words and, where it has one, its figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from explorer.errors import SchemeError
from explorer.study import (
    Additivity,
    Channels,
    Check,
    Comparison,
    Curves,
    Diagnosis,
    Evaluation,
    Finding,
    Histogram,
    Jackknife,
    Lens,
    NumberLine,
)
from explorer.views import theme
from explorer.views.drawing import Drawing
from explorer.views.text import (
    NOTHING,
    added_up,
    amount,
    caption,
    change,
    decibels,
    extent,
    in_points,
    kilobytes,
    large,
    line_caption,
    number,
    ratio,
    score,
    seen,
)

WIDTH = 780
# Of the layers of an evaluation so many, those with the lowest SQNR, are listed.
LISTED = 5
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Kind:
    """How one kind of result is drawn.

    Args:
        view: the page's name for it, which a line of ``EXPLAINED`` bears.
        figure: a Bokeh figure of it; the second argument is whether an axis is logarithmic.
        key: colours and what they mean.
        logarithmic: whether ``log`` has an effect.
    """

    view: str
    figure: Callable[[Any, bool], Any]
    key: Callable[[Any], Iterable[tuple[str, str]]]
    logarithmic: bool = False


def _histogram(h: Histogram, log: bool) -> Any:
    from explorer.views.figures import HistogramFigure

    made = HistogramFigure(log)
    made.update(h)
    return made.figure


def _line(line: NumberLine, log: bool) -> Any:
    from explorer.views.levels import NumberLineFigure

    made = NumberLineFigure(log)
    made.update(line)
    return made.figure


def _curves(found: Curves, _: bool) -> Any:
    from explorer.views.objective import CurvesFigure, coloured

    made = CurvesFigure()
    made.update(*coloured(found))
    if found.present is not None:
        made.hold(found.present.share)
    return made.figure


def _curves_key(found: Curves) -> Iterable[tuple[str, str]]:
    from explorer.views.objective import coloured

    curves, colours = coloured(found)
    return [
        (colours[each.objective], f"{each.objective} {number(round(each.share, 3))}")
        for each in curves.curves
    ]


def _channels(c: Channels, log: bool) -> Any:
    from explorer.views.channelview import ChannelFigure

    made = ChannelFigure(log)
    made.update(c)
    return made.figure


def _calibration(j: Jackknife, _: bool) -> Any:
    from explorer.views.calibrationview import CalibrationFigure

    made = CalibrationFigure()
    made.update(j)
    return made.figure


def fixed(*entries: tuple[str, str]) -> Callable[[Any], Key]:
    """A key that is the same for every result."""
    return lambda found: entries


FIGURES: dict[type, Kind] = {
    Histogram: Kind(
        "Histogram",
        _histogram,
        fixed((theme.BEFORE, "before"), (theme.AFTER, "after"), (theme.RANGE, "levels, range kept")),
        logarithmic=True,
    ),
    NumberLine: Kind(
        "Number line",
        _line,
        fixed(
            (theme.BEFORE, "values"),
            (theme.RANGE, "level used, error by clipping"),
            (theme.NEUTRAL, "level unused"),
            (theme.SENSITIVE, "error by rounding"),
        ),
        logarithmic=True,
    ),
    Curves: Kind("Objective", _curves, _curves_key),
    Channels: Kind(
        "Channels",
        _channels,
        fixed((theme.BEFORE, "values: all, 1 … 99%, 25 … 75%"), (theme.RANGE, "range kept")),
        logarithmic=True,
    ),
    Jackknife: Kind(
        "Calibration",
        _calibration,
        fixed(
            (theme.BEFORE, "range from so many images"),
            (theme.RANGE, "from all"),
            (theme.CHOSEN, "without a part"),
        ),
    ),
}


def drawing(found: Any, log: bool | None, height: int) -> Drawing:
    """The figure of a result by itself.

    Raises:
        SchemeError: for ``log`` where it has no effect, and a height that is no size.
    """
    kind = FIGURES[type(found)]
    if log is not None and not kind.logarithmic:
        raise SchemeError(f"This figure ({kind.view}) has no logarithmic axis to choose; leave log out.")
    if isinstance(height, bool) or not isinstance(height, int) or not 80 <= height <= 4000:
        raise SchemeError(f"A figure is from 80 to 4000 pixels high, not {height!r}; 280 is usual.")
    figure = kind.figure(found, log is not False)
    figure.update(sizing_mode="stretch_width", max_width=WIDTH, height=height)
    key = " &nbsp; ".join(
        f'<span style="white-space:nowrap"><span style="color:{colour}">&#9632;</span> {escape(name)}</span>'
        for colour, name in kind.key(found)
    )
    title = f"{kind.view} · {found.layer} · {getattr(found, 'tensor', 'input')}"
    return Drawing(figure, title, key, WORDS[type(found)](found))


# -- in words -----------------------------------------------------------------------------------------


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of plain text, all of it escaped.

    >>> grid(["a"], [["<b>"]])[-35:]
    '<tr><td>&lt;b&gt;</td></tr></table>'
    """
    first = "".join(f'<th style="text-align:left">{escape(cell)}</th>' for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{rest}</table>"


def _span(interval: tuple[float, float], show: Callable[[float], str]) -> str:
    return " … ".join(map(show, interval))


def _range(interval: tuple[float, float] | None, measure: str = "kl") -> str:
    return extent(interval, measure) if interval is not None else NOTHING


def _nats(value: float | None) -> str:
    return amount(value, "kl") if value is not None else NOTHING


def _measure(finding: Finding) -> str:
    return "kl" if finding.kl_delta is not None else "error"


def _harm(finding: Finding) -> str:
    value = finding.harm_delta
    return NOTHING if value is None else amount(value, _measure(finding))


def _signed(count: int) -> str:
    return f"{count:+,}".replace("-", "\N{MINUS SIGN}")


def evaluation(e: Evaluation) -> str:
    """Numbers with their intervals, the float network's beside them, and the layers with the lowest SQNR."""
    worth, far = partial(score, unit=e.unit), partial(change, unit=e.unit)
    rows = [
        [e.score_name, worth(e.top1), _span(e.top1_interval, worth), worth(e.top1_float)],
        [in_points("difference to float", e.unit), far(e.delta), _span(e.delta_interval, far), ""],
        ["images won, lost" if not e.scores else "images better, worse", f"{e.won:,}, {e.lost:,}", "", ""],
        ["loss", _nats(e.loss), "", _nats(e.loss_float)],
        ["its difference", _nats(e.loss_delta), _range(e.loss_interval), ""],
        ["KL to float", _nats(e.kl), _range(e.kl_interval), ""],
        ["output SQNR", decibels(e.output_sqnr_db), _range(e.output_sqnr_interval, "sqnr"), ""],
        ["size", kilobytes(e.size_bytes), f"{ratio(e.size_bytes_float, e.size_bytes)} smaller",
         kilobytes(e.size_bytes_float)],
        ["bit operations for an image", large(e.bops), f"{ratio(e.bops_float, e.bops)} fewer", large(e.bops_float)],
    ]  # fmt: skip
    known = [layer for layer in e.layers if layer.weight_sqnr_db is not None]
    low = sorted(known, key=lambda layer: layer.weight_sqnr_db or 0.0)[:LISTED]
    worst = grid(
        ["layer", "weight", "its SQNR", "input", "its SQNR"],
        (
            [layer.name, layer.weight or NOTHING, decibels(layer.weight_sqnr_db), layer.input or NOTHING,
             decibels(layer.input_sqnr_db)]
            for layer in low
        ),
    )  # fmt: skip
    return (
        f"<div><b>{escape(e.model)}</b> on {escape(e.data)}, recipe {escape(e.recipe[:12])}: {escape(seen(e))}</div>"
        f"{grid(['', 'value', '95% interval', 'float'], rows)}"
        f"<details><summary>the {len(low)} weights with the lowest SQNR</summary>{worst}</details>"
    )


def comparison(c: Comparison) -> str:
    """The verdict, and both recipes side by side with the paired differences."""
    a, b, far = c.a, c.b, partial(change, unit=c.unit)
    rows = [
        [
            c.score_name,
            score(a.top1, c.unit),
            score(b.top1, c.unit),
            far(c.delta) + (" points" if c.unit == "%" else ""),
            _span(c.delta_interval, far),
        ],
        ["KL to float", _nats(a.kl), _nats(b.kl), _nats(c.kl_delta), _range(c.kl_interval)],
        [
            "error of the result",
            number(a.error),
            number(b.error),
            number(c.error_delta),
            _range(c.error_interval, "error"),
        ],
        ["loss", _nats(a.loss), _nats(b.loss), _nats(c.loss_delta), _range(c.loss_interval)],
        ["size", kilobytes(a.size_bytes), kilobytes(b.size_bytes), _signed(c.size_delta) + " B", ""],
        ["bit operations for an image", large(a.bops), large(b.bops), _signed(c.bops_delta), ""],
    ]
    head = [
        "",
        f"first ({a.recipe[:8]})",
        f"second ({b.recipe[:8]})",
        "first minus second",
        "95% interval, paired",
    ]
    layers = len(c.layers)
    apart = (
        f"They differ in {layers:,} layers." if layers != 1 else f"They differ in the layer {c.layers[0]}."
    )
    state = "" if c.complete or c.stopped else f" So far {c.images:,} of {c.total_images:,} images."
    return f"<div><b>{escape(c.verdict)}</b> {escape(apart)}{state}</div>{grid(head, rows)}"


def diagnosis(d: Diagnosis) -> str:
    """What was found and what each change does to the network."""
    if not d.findings:
        return f"<div>The rules find nothing to change in {d.tensors:,} tensors.</div>"
    rows = (
        [each.layers[0] if len(each.layers) == 1 else f"{len(each.layers):,} layers", each.tensor, each.change,
         each.verdict, _harm(each),
         _range(each.harm_interval, _measure(each)) if each.harm_delta is not None else NOTHING,
         _signed(each.size_delta) + " B",
         "; ".join(each.evidence)]
        for each in d.findings
    )  # fmt: skip
    head = [
        "layers",
        "tensor",
        "change",
        "verdict",
        "error with it minus without" if d.error is not None else "KL with it minus without",
        "95% interval",
        "size",
        "why",
    ]
    tried = f"{d.tried:,} of {len(d.findings):,} changes tried on {d.images:,} images"
    return f"<div>{d.tensors:,} tensors looked at, {tried}.</div>{grid(head, rows)}"


def _channels_said(c: Channels) -> str:
    from explorer.views.channelview import said

    return said(c)


def _calibration_said(j: Jackknife) -> str:
    from explorer.views.calibrationview import said

    return said(j)


def _curves_said(found: Curves) -> str:
    from explorer.views.objective import said

    return said(found)


def _lens_said(lens: Lens) -> str:
    from explorer.views.conventions import lens_markup

    return lens_markup(lens)


WORDS: dict[type, Callable[[Any], str]] = {
    Evaluation: evaluation,
    Comparison: comparison,
    Check: lambda c: f"<p>{escape(c.sentence)}</p>{evaluation(c.evaluation)}",
    Diagnosis: diagnosis,
    Additivity: lambda a: escape(added_up(a)),
    Histogram: caption,
    NumberLine: line_caption,
    Curves: _curves_said,
    Channels: _channels_said,
    Jackknife: _calibration_said,
    Lens: _lens_said,
}


def told(found: Any) -> str:
    """A result in words and tables; of one with a figure also how to see it."""
    text = WORDS[type(found)](found)
    if type(found) not in FIGURES:
        return text
    return f"<div><b>{escape(found.layer)}</b> · {text} · <code>.plot()</code> draws it</div>"
