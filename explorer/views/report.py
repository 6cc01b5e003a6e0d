"""The report: one HTML file that needs nothing else, with figures that can be zoomed.

Written without Panel, whose own way of saving asks other hosts for files.  Bokeh draws the figures from its script,
which stands in the file; a content security policy forbids the file to ask anybody for anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import pandas as pd
from bokeh.embed import components
from bokeh.models import BoxZoomTool, ColumnDataSource, PanTool, ResetTool, WheelZoomTool
from bokeh.resources import Resources

from explorer.sources import DataFacts
from explorer.study import Diagnosis, Evaluation, Finding, Histogram, Metric
from explorer.views.drawing import by_themselves
from explorer.views.figures import HistogramFigure
from explorer.views.figuresave import SAVE_JS
from explorer.views.maps import AXIS, SensitivityFigure, cell_text, describe, look
from explorer.views.reportfacts import Facts
from explorer.views.text import (
    NOTHING,
    between,
    caption,
    change,
    decibels,
    heading,
    in_points,
    kilobytes,
    large,
    number,
    ratio,
    score,
    seen,
)

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline' blob:; "
    "img-src data: blob:; font-src data:"
)
STALE = {
    "evaluation": "The evaluation is of another recipe than the one in this report.",
    "sensitivity": "The map was measured around another recipe than the one in this report.",
    "diagnosis": "The findings are about another recipe than the one in this report.",
}
LOOKS = {"estimate": "estimate", "open": "exact, still sharpening", "done": "measured"}
ROW, FIGURE = 22, 230
CSS = """
:root { color-scheme: light dark; --ink: #1d2227; --faint: #59626b; --line: #d5dade; --ground: #fff; --wash: #f3f5f7;
  --bad: #b34700; --good: #00704f; --mark: #E69F00; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --faint: #a3adb6; --line: #3a424a;
  --ground: #14181c; --wash: #1d2227; --bad: #f08a4b; --good: #3cc79c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 28px 60px; max-width: 1180px; background: var(--ground); color: var(--ink);
  font: 14px/1.45 Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 34px 0 8px; }
h3 { font-size: 14px; margin: 0 0 2px; overflow-wrap: anywhere; }
p { margin: 4px 0; } .faint, figcaption { color: var(--faint); font-size: 12.5px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 10px; }
.card, figure, blockquote, .finding { border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px; }
.card b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; }
.stale { border-left: 4px solid var(--mark); background: var(--wash); padding: 6px 12px; margin: 6px 0;
  font-weight: 600; }
.old { opacity: .6; background-image: repeating-linear-gradient(135deg, transparent 0 6px, var(--line) 6px 7px); }
.bad { color: var(--bad); } .good { color: var(--good); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 3px 9px; text-align: left; vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; background: var(--wash); } td.n { text-align: right; }
td.long { white-space: pre-wrap; min-width: 180px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 16px; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: 12px/1.45 Menlo, Consolas, monospace; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px;
  overflow-x: auto; }
blockquote { margin: 6px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 12px; }
figure { margin: 0; min-width: 0; } figure.map { max-width: 760px; }
.save { float: right; }
.save button { font: inherit; font-size: 11.5px; padding: 1px 8px; margin-left: 4px; border-radius: 4px;
  border: 1px solid var(--line); background: var(--wash); color: var(--ink); cursor: pointer; }
.finding { margin: 6px 0; } button:focus-visible { outline: 2px solid #CC79A7; outline-offset: 1px; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .save { display: none; }
  figure, .card, .finding, tr, blockquote { break-inside: avoid; }
  h2 { break-after: avoid; } .wide { overflow: visible; }
  table { font-size: 8.5px; } th, td { padding: 2px 4px; white-space: normal; } pre { white-space: pre-wrap; }
  .old { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
# Letters and lines on a canvas follow the ground; a button hands out the figure beside it.
SCRIPT = (
    SAVE_JS
    + """
const dark = matchMedia("(prefers-color-scheme: dark)")
const places = [...document.querySelectorAll("[data-figure]")]
const drawn = place => [...Bokeh.index.roots].find(view => view.model.id === place.dataset.figure)
const colour = () => {
  const style = getComputedStyle(document.documentElement)
  const ink = style.getPropertyValue("--ink").trim(), faint = style.getPropertyValue("--faint").trim()
  for (const view of places.map(drawn))
    for (const side of ["left", "right", "above", "below"])
      for (const axis of view.model[side])
        if ("major_label_text_color" in (axis.properties || {}))
          axis.setv({ major_label_text_color: faint, axis_label_text_color: ink })
}
const wait = () => places.every(drawn) ? colour() : setTimeout(wait, 50)
wait()
for (const change of [dark, matchMedia("print")]) change.addEventListener("change", colour)
document.addEventListener("click", async event => {
  const button = event.target.closest("[data-save]")
  if (!button) return
  const figure = button.closest("[data-figure]")
  const ground = getComputedStyle(document.body).backgroundColor
  const kind = button.dataset.save
  handOut(await figureFile(drawn(figure), kind, ground), figure.dataset.name + "." + kind)
})
"""
)


def _light(plot: Any) -> None:
    """Numbers with seven digits, which no zoom goes beyond, instead of seventeen: a report is shorter by a quarter."""
    for source in plot.select({"type": ColumnDataSource}):
        source.data = {
            name: [float(f"{value:.7g}") if isinstance(value, float) else value for value in column]
            for name, column in source.data.items()
        }


def _zoomable(plot: Any, height: int) -> Any:
    """A figure of the page for a file: of a fixed height, with the tools that the page has no room for."""
    zoom = BoxZoomTool()
    plot.add_tools(zoom, PanTool(), WheelZoomTool(), ResetTool())
    plot.update(
        sizing_mode="stretch_width", height=height, min_height=None, max_height=None, toolbar_location="above"
    )
    plot.toolbar.update(active_drag=zoom, logo=None, autohide=False)
    _light(plot)
    return plot


def _real(value: float) -> str:
    return f"{value:,.2f}" if math.isfinite(value) else "∞" if value > 0 else "\N{MINUS SIGN}∞"


def _cell(value: object) -> str:
    """A cell of a table; numbers to the right."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return f"<td>{NOTHING}</td>"
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    if isinstance(value, float):
        return f'<td class="n">{_real(value)}</td>'
    text = str(value)
    return f'<td class="long">{escape(text)}</td>' if len(text) > 60 else f"<td>{escape(text)}</td>"


def _table(heads: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _pairs(pairs: Mapping[str, str]) -> str:
    """Names and values; the values are markup."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in pairs.items()) + "</dl>"
    )


def _card(name: str, value: str, *notes: str, mood: str = "") -> str:
    lines = "".join(f'<div class="faint">{note}</div>' for note in notes if note)
    return f'<div class="card">{name}<b class="{mood}">{value}</b>{lines}</div>'


def _aged(facts: Facts, part: str, text: str) -> str:
    """A part; of another recipe it says so and is hatched."""
    if part not in facts.stale:
        return text
    return f'<p class="stale" role="note">Stale: {STALE[part]}</p><div class="old">{text}</div>'


def _span(interval: tuple[float, float], shown: Any) -> str:
    return f"95% interval {shown(interval[0])} … {shown(interval[1])}"


def _score(e: Evaluation) -> str:
    low, high = e.delta_interval
    mood = "bad" if high < 0 else "good" if low > 0 else ""
    worth, far = partial(score, unit=e.unit), partial(change, unit=e.unit)
    flips = f"{e.lost:,} images right to wrong, {e.won:,} wrong to right"
    if e.scores:
        flips = f"{e.lost:,} images worse, {e.won:,} better"
    cards = [
        _card(
            heading(e.score_name), worth(e.top1), _span(e.top1_interval, worth),
            f"float {worth(e.top1_float)} · {seen(e)}",
        ),
        _card(
            in_points("Difference to float", e.unit), far(e.delta), _span(e.delta_interval, far), f"paired; {flips}",
            mood=mood,
        ),
        _card("KL to float, nats", NOTHING, "none: results are no scores of classes")
        if e.kl is None or e.kl_interval is None
        else _card("KL to float, nats", number(e.kl), _span(e.kl_interval, number)),
        _card("Output SQNR", decibels(e.output_sqnr_db), _span(e.output_sqnr_interval, decibels)),
    ]  # fmt: skip
    if e.loss is not None and e.loss_float is not None:
        cards.append(_card("Loss, nats", number(e.loss), f"float {number(e.loss_float)}"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _costs(facts: Facts) -> str:
    now, floats = facts.now, facts.floats
    return '<div class="cards">' + "".join(
        _card(name, shown(mine), f"{ratio(before, mine)} less than float: {shown(before)}")
        for name, shown, mine, before in (
            ("Size", kilobytes, now.size, floats.size),
            ("Bit operations for one image", large, now.bops, floats.bops),
        )
    ) + "</div>"  # fmt: skip


def _layers(facts: Facts) -> str:
    """All columns of the layer table, the input's SQNR where the evaluation is of this recipe, and the notes."""
    table, notes = facts.layers, facts.notes.layers
    heads = [str(name) for name in table]
    e = facts.evaluation if "evaluation" not in facts.stale else None
    inputs = {report.name: report.input_sqnr_db for report in e.layers} if e is not None else {}
    rows = []
    for record in table.to_dict("records"):
        name = record["name"]
        rows.append([*record.values(), inputs.get(name), notes.get(name)])
    said = "" if e is not None else " The SQNR of inputs takes an evaluation of this recipe."
    return (
        _table([*heads, "input_sqnr_db", "note"], rows)
        + '<p class="faint">SQNR in decibels; ∞ where nothing differs; '
        + f"{NOTHING} where there is no such tensor.{said}</p>"
    )


def _figure(plot: Any, div: str, name: str, title: str, text: str, kind: str = "") -> str:
    buttons = "".join(
        f'<button type="button" data-save="{word}" aria-label="save {escape(title)} as {word.upper()}">'
        f"{word.upper()}</button>"
        for word in ("svg", "png")
    )
    return (
        f'<figure class="{kind}" data-figure="{plot.id}" data-name="{escape(name)}">'
        f'<span class="save">{buttons}</span><h3>{escape(title)}</h3>{div}<figcaption>{text}</figcaption></figure>'
    )


def _histogram(h: Histogram) -> Any:
    drawn = HistogramFigure(log=True)
    drawn.update(h)
    return _zoomable(drawn.figure, FIGURE)


def _map(facts: Facts) -> Any:
    table = facts.sensitivity
    assert table is not None
    names = [name for name in facts.layers["name"] if name in set(table["layer"])]
    drawn = SensitivityFigure(names)
    drawn.update(table)
    return _zoomable(drawn.figure, ROW * len(names) + AXIS + 40)


def _tiers(table: pd.DataFrame) -> pd.Series:
    return pd.Series(
        [
            f"{method}: {LOOKS[look(method, complete)]}"
            for method, complete in zip(table["method"], table["complete"], strict=True)
        ],
        dtype=str,
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _sensitivity(facts: Facts, figure: str) -> str:
    table = facts.sensitivity
    if table is None or table.empty:
        return '<p class="faint">Not computed.</p>'
    measure = str(table["measure"].iloc[0])
    tiers = _tiers(table)
    counts = ", ".join(f"{count:,} {escape(str(tier))}" for tier, count in tiers.value_counts().items())
    rows = [
        (
            row["layer"], row["format"], row["tensor"], cell_text(row["value"], measure),
            f"{cell_text(row['low'], measure)} … {cell_text(row['high'], measure)}", int(row["images"]), tier,
            row["reason"],
        )
        for row, tier in zip(table.to_dict("records"), tiers, strict=True)
    ]  # fmt: skip
    heads = ("layer", "format", "tensor", measure, "95% interval", "images", "tier", "reason")
    return (
        f"<p>Measure: {escape(measure)}. Tiers: {counts}.</p><p>{escape(_sentence(describe(table)))}</p>"
        f"{figure}<details><summary>The same as a table</summary>{_table(heads, rows)}</details>"
    )


def _finding(finding: Finding, metric: Metric, name: str) -> str:
    where = ", ".join(finding.layers)
    kinds = {"helps": "good", "hurts": "bad"}
    text = (
        f"<h3>{escape(where)} · {escape(finding.tensor)}: {escape(finding.change)} "
        f'<span class="{kinds.get(finding.verdict, "")}">({escape(finding.verdict)})</span></h3>'
        f"<p>{escape('; '.join(finding.evidence))}</p>"
    )
    if finding.harm_delta is None or finding.top1_delta is None:
        return f'<div class="finding">{text}</div>'
    measure, nats = ("error", "") if finding.kl_delta is None else ("KL", " nats")
    far, unit = partial(change, unit=metric.unit), " points" if metric.unit == "%" else ""
    return (
        f'<div class="finding">{text}<p class="faint">With the change minus without, on {finding.images:,} images: '
        f"{measure} {number(finding.harm_delta)}{nats} ({_span(finding.harm_interval, number)}), {escape(name)} "
        f"{far(finding.top1_delta)}{unit} ({_span(finding.top1_interval, far)}), {finding.size_delta:+,} bytes"
        "</p></div>"
    )


def _diagnosis(found: Diagnosis | None, metric: Metric) -> str:
    if found is None:
        return '<p class="faint">Not computed.</p>'
    state = "all tried" if found.complete else f"{found.tried:,} tried so far"
    head = (
        f'<p class="faint">{found.tensors:,} tensors looked at on {found.looked:,} calibration images; '
        f"{len(found.findings):,} changes, {state}.</p>"
    )
    rows = "".join(_finding(each, metric, metric.called(found.agreement)) for each in found.findings)
    return head + (rows or "<p>The rules find nothing to change.</p>")


def _compared(facts: Facts) -> str:
    """Configurations side by side: what each is worth, two by two, tensor by tensor."""
    found = facts.differences
    assert found is not None
    metric, scores = facts.metric, []
    what, worth_of = metric.called(found.agreement), partial(score, unit=metric.unit)
    far = partial(change, unit=metric.unit)
    for label, trial in zip(found.labels, facts.trials, strict=True):
        e, mine = trial.outcome, " (this report)" if trial.digest == facts.recipe.digest else ""
        worth = (
            (NOTHING,) * 3 + ("not evaluated",)
            if e is None
            else (
                between(e.top1, e.top1_interval, worth_of), between(e.delta, e.delta_interval, far),
                NOTHING if e.kl is None else between(e.kl, e.kl_interval, number), f"{e.images:,}",
            )
        )  # fmt: skip
        scores.append((label + mine, *worth, kilobytes(trial.size), large(trial.bops)))
    heads = (
        "configuration",
        what,
        "points to float" if metric.unit == "%" else "difference to float",
        "KL to float, nats",
        "images",
        "size",
        "bit operations",
    )
    pairs = [
        (
            f"{pair.a} minus {pair.b}",
            NOTHING if pair.delta is None else between(pair.delta, pair.delta_interval, far),
            pair.verdict,
            f"{pair.size_delta:+,}", f"{pair.bops_delta:+,}", pair.layers,
        )
        for pair in found.pairs
    ]  # fmt: skip
    columns = (
        "two by two",
        in_points(what, metric.unit),
        "in words",
        "bytes",
        "bit operations",
        "layers that differ",
    )
    text = _table(heads, scores) + '<div style="height: 10px"></div>' + _table(columns, pairs)
    text += '<p class="faint">In brackets 95% intervals, each for itself; those of two by two are paired.</p>'
    if not found.rows:
        return text + '<p class="faint">No tensor is quantized differently.</p>'
    rows = [(row.layer, row.tensor, *row.schemes) for row in found.rows]
    tensors = _table(("layer", "tensor", *found.labels), rows)
    return f"{text}<details open><summary>Tensor by tensor, where they differ</summary>{tensors}</details>"


def _notes(facts: Facts) -> str:
    notes = facts.notes
    if not notes:
        return '<p class="faint">None.</p>'
    parts = [f"<blockquote>{escape(notes.overall)}</blockquote>"] if notes.overall else []
    order = [name for name in facts.layers["name"] if name in notes.layers]
    parts += [
        f"<h3>{escape(name)}</h3><blockquote>{escape(notes.layers[name])}</blockquote>" for name in order
    ]
    return "".join(parts)


def _origin(facts: Facts) -> str:
    seen_images = "none has been evaluated"
    if facts.images:
        seen_images = (
            f"<code>{facts.images_sha256}</code> (the {facts.images:,} evaluated, as the network sees them, "
            "with their labels)"
        )
    return _pairs(
        {
            "network": escape(facts.model),
            "weights, sha256": f"<code>{facts.weights_sha256}</code> (the state_dict as loaded, by name)",
            "images": escape(facts.data),
            **_images(facts.prepared),
            "images, sha256": seen_images,
            "fixed ranges from": escape(facts.calibration),
            "recipe": f"<code>{facts.recipe.digest}</code>",
            "made": escape(facts.date),
            **{name: escape(text) for name, text in facts.versions.items()},
        }
    )


def _images(found: DataFacts | None) -> dict[str, str]:
    """Which images these are, what happens to them, and which could not be read."""
    if found is None:
        return {}
    source = f" ({found.preprocess_from})" if found.preprocess_from else ""
    rows = {
        "which of them": escape(f"{found.chosen} {found.labels}"),
        "preprocessing": escape("; ".join(found.steps) or "none") + source,
    }
    return rows | ({"images not read": escape(found.warning)} if found.warning else {})


def _section(title: str, text: str) -> str:
    return f"<section><h2>{title}</h2>{text}</section>"


def report_html(facts: Facts) -> str:
    """The report as one HTML document that asks nobody for anything.

    Names, notes and reasons are escaped; what is of another recipe is marked; what was not computed says so.
    """
    plots = [_histogram(h) for h in facts.histograms]
    mapped = facts.sensitivity is not None and not facts.sensitivity.empty
    if mapped:
        plots.append(_map(facts))
    script, divs = components(by_themselves(plots)) if plots else ("", ())
    figures = "".join(
        _figure(plot, div, f"{h.layer}-{h.tensor}", f"{h.layer} · {h.tensor}", caption(h))
        for h, plot, div in zip(facts.histograms, plots, divs, strict=False)
    )
    map_figure = (
        _figure(plots[-1], divs[-1], "sensitivity", "Sensitivity by layer and format", "", "map")
        if mapped
        else ""
    )
    left = (
        f" {facts.left_out:,} more layers are left out, those with better weights or not chosen."
        if facts.left_out
        else ""
    )
    e = facts.evaluation
    score = '<p class="faint">Not evaluated.</p>' if e is None else _aged(facts, "evaluation", _score(e))
    sections = [
        _section("Score", score + '<div style="height: 10px"></div>' + _costs(facts)),
        *([_section("Side by side", _compared(facts))] if facts.differences else []),
        _section("Reviewer's notes", _notes(facts)),
        _section("Layers", _layers(facts)),
        _section(
            "Distributions",
            '<p class="faint">Filled: before, outlined: after quantization; marks below: levels; dashed: the range '
            f"kept. Drag to zoom, the tools above each figure move it and set it back.{left}</p>"
            f'<div class="figures">{figures}</div>',
        ),
        _section("Sensitivity", _aged(facts, "sensitivity", _sensitivity(facts, map_figure))),
        _section("Diagnosis", _aged(facts, "diagnosis", _diagnosis(facts.diagnosis, facts.metric))),
        _section("Recipe", f"<pre>{escape(facts.recipe.to_yaml())}</pre>"),
        _section("Where this comes from", _origin(facts)),
    ]
    # Only Bokeh's own script: a page that has imported Panel would put Panel's beside it.
    bokeh = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    name = f" as {facts.label!r}" if facts.label else ""
    title = f"{facts.model}, quantized{name}, on {facts.data}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style>"
        f"<script>{bokeh}</script></head><body>"
        f'<header><h1>{escape(facts.model)}</h1><p class="faint">quantized{escape(name)}, on {escape(facts.data)} · '
        f"{escape(facts.date)} · Quantization Explorer</p></header><main>{''.join(sections)}</main>"
        f"{script}<script>{SCRIPT}</script></body></html>\n"
    )
