"""The chosen tensor under every convention, and beside what another tool has chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from explorer.errors import ExplorerError
from explorer.sources import FOREIGN_SUFFIXES
from explorer.study import Against, ForeignParameters, Lens
from explorer.study.lens import Reading
from explorer.views import kit, theme
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tensorview import TensorView
from explorer.views.text import decibels, percent, sentence

# What fits into one message of the browser's once it is written as text.
LARGEST_UPLOAD = 12 << 20
# A table that may be wider than its place, and that the arrow keys can move then.
WIDE = '<div class="wide" tabindex="0" role="region" aria-label="table">'
CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--ink); font-size: 12px; line-height: 17px; padding: 0 12px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 2px 8px 2px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 400; color: var(--faint); }} th:first-child, td:first-child {{
  text-align: left; position: sticky; left: 0; background: var(--card); }}
tr.present td {{ font-weight: 600; border-bottom-color: {theme.CHOSEN}; }}
tr.present td:first-child {{ box-shadow: inset 2px 0 {theme.CHOSEN}; padding-left: 6px; }}
td.apart {{ color: var(--bad); font-weight: 600; }}
.example {{ border-left: 1px solid var(--line); padding-left: 8px; }}
p {{ margin: 6px 0; color: var(--faint); white-space: normal; }} p b {{ color: var(--ink); font-weight: 600; }}
p.alert {{ color: var(--bad); }} details {{ margin: 4px 0; color: var(--faint); }}
"""
)


@dataclass(frozen=True)
class Shown:
    """What the view shows: the lens or why there is none, and another tool's parameters beside ours."""

    lens: Lens | None
    why: str
    foreign: ForeignParameters | None
    against: tuple[Against, ...]
    refused: str = ""


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _span(low: float, high: float) -> str:
    return _number(low) if low == high else f"{_number(low)} … {_number(high)}"


def lens_markup(lens: Lens) -> str:
    """The readings as a table: a row for each convention, and the codes of the example values."""
    head = "".join(f'<th class="example">{_number(value)}</th>' for value in lens.values)
    present = next(reading for reading in lens.readings if reading.present)
    rows = "".join(_reading(reading, present, lens.elements) for reading in lens.readings)
    looked = "" if lens.exact else " of the first batch of calibration images"
    return (
        f"{WIDE}<table><thead><tr><th>convention</th><th>SQNR</th><th>codes that differ</th>"
        f"<th>scale</th><th>zero point</th><th>codes</th><th>range</th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f"<p>{lens.elements:,} values{looked}, all but convention and symmetry as in <b>{escape(lens.scheme)}</b>, the "
        "marked row; codes are compared with its codes. The last columns are the codes of some of the values.</p>"
    )


def _reading(reading: Reading, present: Reading, elements: int) -> str:
    low, _, high = reading.scale
    apart = (
        f"{percent(reading.differing / elements, 1)}, by up to {reading.largest}"
        if reading.differing
        else "none"
    )
    codes = "".join(
        f'<td class="example{" apart" if code != own else ""}">{code}</td>'
        for code, own in zip(reading.codes, present.codes, strict=True)
    )
    kind = "symmetric" if reading.symmetric else "asymmetric"
    return (
        f'<tr class="{"present" if reading.present else ""}"><td>{reading.convention} {kind}</td>'
        f"<td>{decibels(reading.sqnr_db)}</td><td>{apart}</td><td>{_span(low, high)}</td>"
        f"<td>{_span(*reading.zero_point)}</td><td>{_span(reading.qmin, reading.qmax)}</td>"
        f"<td>{_span(*reading.clip)}</td>{codes}</tr>"
    )


def against_markup(found: ForeignParameters, rows: tuple[Against, ...]) -> str:
    """Our parameters and another tool's for one tensor, and what its file has besides."""
    parts = [f"<p><b>{escape(found.source)}</b>: {escape(found.describe().partition(': ')[2])}</p>"]
    if not rows:
        parts.append("<p>It has no parameters for this tensor.</p>")
    for row in rows:
        parts.append(_against(row))
    if found.left:
        items = "".join(f"<div>{escape(name)}: {escape(reason)}</div>" for name, reason in found.left)
        parts.append(f"<details><summary>{len(found.left)} that belong nowhere</summary>{items}</details>")
    return "".join(parts)


def _against(row: Against) -> str:
    def line(name: str, words: str, scale: Any, zero: Any, codes: Any, clip: Any, sqnr: float) -> str:
        spans = "".join(f"<td>{_span(*pair) if pair else '–'}</td>" for pair in (scale, zero, codes, clip))  # noqa: RUF001
        return f"<tr><td>{name}</td><td>{escape(words)}</td><td>{decibels(sqnr)}</td>{spans}</tr>"

    ours = line("ours", row.scheme, row.scale, row.zero_point, row.codes, row.clip, row.sqnr_db)
    theirs = line(
        "theirs", row.theirs, row.scale_theirs, row.zero_point_theirs, row.codes_theirs, row.clip_theirs,
        row.sqnr_db_theirs,
    )  # fmt: skip
    words = []
    if row.differing is not None:
        share = percent(row.differing / row.elements, 1)
        by = f", by up to {row.largest}" if row.differing else ""
        words.append(f"<b>{share}</b> of {row.elements:,} codes differ{by}.")
    else:
        words.append("The two have no codes to be compared one by one.")
    if row.agrees:
        words.append(f"Theirs is the whole range under {escape(', '.join(row.agrees))}.")
    words.append(f"Found as {escape(row.name)}: {escape(row.how)}.")
    words += [escape(row.note) + "."] if row.note else []
    return (
        f"{WIDE}<table><thead><tr><th></th><th>scheme</th><th>SQNR</th><th>scale</th>"
        f"<th>zero point</th><th>codes</th><th>range</th></tr></thead>"
        f"<tbody>{ours}{theirs}</tbody></table></div><p>{' '.join(words)}</p>"
    )


class ConventionsView(TensorView):
    """The lens, and a file of another tool's parameters."""

    tall = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self._given: tuple[str, bytes] | None = None
        self.table = kit.html(css=CSS)
        self.theirs = kit.html(css=CSS)
        self.load = kit.upload("Another tool's file", ",".join(FOREIGN_SUFFIXES), LARGEST_UPLOAD)
        self.note = kit.html("<p>ONNX, AIMET or PyTorch, up to 12 MB</p>", css=CSS)
        row = kit.row(self.load, self.note, height=36, styles={"padding": "0 6px"})
        self.view = kit.scrolled(row, self.theirs, self.table, self.caption)
        self.load.param.watch(self._loaded, "value")

    def _loaded(self, event: Any) -> None:
        if event.new:
            self._given = str(self.load.filename or "file"), event.new
            self.refresh()

    def steps(self) -> Callable[[], Iterator[Shown]]:
        state, given = self.state, self._given
        session, layer, tensor, scheme, foreign = (
            state.session,
            state.layer,
            state.tensor,
            self.scheme,
            state.foreign,
        )

        def steps() -> Iterator[Shown]:
            refused, chosen = "", foreign
            if given is not None:
                try:
                    chosen = session.foreign(*given)
                except ExplorerError as error:
                    refused = sentence(error)
            rows = []
            for where in chosen.tensors if chosen is not None else ():
                if chosen is not None and where[:2] == (layer, tensor):
                    rows.append(session.against_tensor(chosen, *where))
            try:
                yield Shown(session.lens(layer, tensor, scheme), "", chosen, tuple(rows), refused)
            except ExplorerError as error:
                yield Shown(None, sentence(error), chosen, tuple(rows), refused)

        return steps

    def draw(self, found: Shown) -> None:
        self._given = None
        self.table.object = lens_markup(found.lens) if found.lens else f"<p>{escape(found.why)}</p>"
        alert = f'<p class="alert" role="alert">{escape(found.refused)}</p>' if found.refused else ""
        self.theirs.object = alert + (against_markup(found.foreign, found.against) if found.foreign else "")
        self.state.foreign = found.foreign
        self.say("")
