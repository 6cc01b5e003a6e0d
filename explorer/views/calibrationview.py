"""How the fixed range of an input hangs on the calibration images: curve, spread, and the images that set it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations import BoxAnnotation, Span
from torch import Tensor

from explorer.sources import Preprocess
from explorer.study import Influence, Jackknife
from explorer.study.jackknife import SETTLED
from explorer.views import kit, theme
from explorer.views.figures import columns, plain, ticked
from explorer.views.flips import data_uri, pixels
from explorer.views.runs import Publisher
from explorer.views.state import PageState
from explorer.views.tensorview import TensorView
from explorer.views.text import number, percent

NO_WEIGHT = (
    "A weight needs no calibration: its values are known before any image is seen, and its ranges are fitted to them. "
    "Choose the input."
)
# So many pictures of the images that move the range most.
MOST = 8
CSS = (
    theme.TOKENS
    + f"""
:host {{ color: var(--ink); font-size: 11.5px; line-height: 15px; }}
.key {{ color: var(--faint); font-size: 12px; line-height: 17px; }}
.key span {{ white-space: nowrap; margin-right: 10px; }}
.key i {{ display: inline-block; width: 14px; height: 0; margin-right: 4px; vertical-align: 3px; }}
.with {{ border-top: 2px solid {theme.BEFORE}; }} .kept {{ border-top: 2px dashed {theme.RANGE}; }}
.key .without {{ width: 7px; height: 7px; border-radius: 50%; background: {theme.CHOSEN}; vertical-align: 0; }}
.key .near {{ height: 9px; background: {theme.RANGE}; opacity: .25; vertical-align: -1px; }}
.set {{ display: grid; grid-template-columns: 1fr 1fr; gap: 6px; padding: 2px 6px; color: var(--faint); }}
.set > span {{ grid-column: 1 / -1; }}
figure {{ margin: 0; min-width: 0; text-align: center; color: var(--ink); }}
img {{ width: 36px; height: 36px; object-fit: contain; image-rendering: pixelated; background: var(--wash);
  border: 1px solid var(--line); border-radius: 4px; }}
figcaption {{ white-space: nowrap; }} figcaption span {{ display: block; color: var(--faint); }}
"""
)
KEY = (
    '<div class="key"><span><i class="with"></i>range from so many images</span> '
    f'<span><i class="kept"></i>from all</span> <span><i class="near"></i>within {100 * SETTLED:.0f}% of it</span> '
    '<span><i class="without"></i>without a part</span></div>'
)


class CalibrationFigure:
    """The ends of a range against the number of images; at the right the range without each part."""

    def __init__(self) -> None:
        self.curve = ColumnDataSource({"x": [], "low": [], "high": []})
        self.without = ColumnDataSource({"x": [], "y": [], "part": []})
        self.x_range, self.y_range = Range1d(), Range1d()
        self.figure = plain(
            x_range=self.x_range, y_range=self.y_range, x_axis_type="log"
        )  # fmt: skip
        plot = self.figure
        look = {"source": self.curve, "line_color": theme.BEFORE, "line_width": 2}
        lines = [plot.step("x", name, mode="after", name=name, **look) for name in ("low", "high")]
        dots = plot.scatter(
            "x", "y", source=self.without, size=6, fill_color=theme.CHOSEN, line_color=None, fill_alpha=0.6,
            name="without",
        )  # fmt: skip
        self.ends = [
            Span(dimension="width", line_color=theme.RANGE, line_dash="dashed", line_width=2)
            for _ in range(2)
        ]
        self.near = [
            BoxAnnotation(fill_color=theme.RANGE, fill_alpha=0.15, line_color=None) for _ in range(2)
        ]
        for part in (*self.near, *self.ends):
            plot.add_layout(part)
        tips = [("images", "@x"), ("lowest", "@low{0.000}"), ("highest", "@high{0.000}")]
        plot.add_tools(
            HoverTool(renderers=lines[1:], mode="vline", tooltips=tips),
            HoverTool(renderers=[dots], tooltips=[("without", "@part"), ("end", "@y{0.000}")]),
        )

    def update(self, j: Jackknife) -> None:
        """Draw another range, of the group with the largest error."""
        group = j.widest_error
        low, high, width = float(j.low[group]), float(j.high[group]), float(j.width[group])
        self.curve.data = columns(x=j.counts, low=j.low_with[:, group], high=j.high_with[:, group])
        names = [
            f"image {part[0]}" if len(part) == 1 else f"a block of {len(part)} images" for part in j.parts
        ]
        outer = np.concatenate([j.low_without[:, group], j.high_without[:, group]])
        self.without.data = {
            **columns(x=np.full(len(outer), 1.18 * j.images), y=outer),
            "part": names + names,
        }
        for span, box, end in zip(self.ends, self.near, (low, high), strict=True):
            span.location = end
            box.update(bottom=end - SETTLED * width, top=end + SETTLED * width)
        drawn = [low - 1.2 * SETTLED * width, high + 1.2 * SETTLED * width]
        drawn += [float(outer.min()), float(outer.max()), float(j.low_with[:, group].min())]
        drawn += [float(j.high_with[:, group].max())]
        room = 0.04 * (max(drawn) - min(drawn) or 1.0)
        self.y_range.update(start=min(drawn) - room, end=max(drawn) + room)
        self.x_range.update(start=0.9 * float(j.counts[0]), end=1.35 * j.images)
        ticks = [2**power for power in range(int(np.log2(j.images)) + 1) if 2**power <= 0.7 * j.images]
        ticked(self.figure.xaxis[0], [*ticks, j.images])


def _picture(influence: Influence, image: Tensor, preprocess: Preprocess | None) -> str:
    found = pixels(image, preprocess)
    drawn = f'<img alt="image {influence.image}" src="{data_uri(found)}">' if found is not None else ""
    title = f"values {number(influence.minimum)} … {number(influence.maximum)}"
    return (
        f'<figure title="{title}">{drawn}<figcaption>image {influence.image}'
        f"<span>moves {percent(influence.moved, 1)}</span></figcaption></figure>"
    )


def said(j: Jackknife) -> str:
    """What the jackknife shows, in a line of HTML."""
    group = j.widest_error
    low_error, high_error = (float(error[group]) for error in j.error)
    where = f"channel group {group}, the least sure of {len(j.low):,}: " if len(j.low) > 1 else ""
    many = j.needed()
    facts = [
        f"<b>{escape(j.scheme)}</b>",
        f"{where}{number(float(j.low[group]))} ± {number(low_error)} … {number(float(j.high[group]))} ± "
        f"{number(high_error)} (standard error, jackknife over {len(j.parts):,} {j.unit}s)",
        f"within {percent(SETTLED, 0)} of its width from <b>{many:,}</b> of {j.images:,} images on",
    ]
    others = j.needed_in_other_orders()
    if others is not None:
        facts.append(f"in other orders from {others[1]:,} on (90% of orders: {others[0]:,} … {others[2]:,})")
    if "minmax" in j.scheme or "moving_average" in j.scheme:
        facts.append("of extremes the error is an indication only")
    if many > j.images // 2:
        facts.append("more images, a percentile or dynamic ranges would make it steadier")
    return " · ".join(facts)


class CalibrationView(TensorView):
    """The jackknife of the chosen layer's input."""

    tall = True

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        super().__init__(state, publisher)
        self.plot = CalibrationFigure()
        self.pane = kit.bokeh(self.plot.figure)
        publisher.panes.append(self.pane)
        self.images = kit.html(css=CSS)
        beside = kit.column(
            self.images,
            css=":host { overflow-y: auto; flex: 0 0 150px !important; }",
            width=150,
            sizing_mode="stretch_height",
        )
        self.middle = kit.column(self.pane, beside, css=":host { flex-direction: row !important; }")
        self.key = kit.html(KEY, css=CSS, styles={"padding": "0 12px"}, min_height=18)
        self.view = kit.column(self.key, self.middle, self.caption)

    def steps(self) -> Callable[[], Iterator[tuple[Jackknife, str] | None]]:
        layer, tensor, scheme = self.state.layer, self.state.tensor, self.scheme

        def steps() -> Iterator[tuple[Jackknife, str] | None]:
            if tensor == "weight":
                yield None
                return
            for found in self.state.session.jackknife_steps(layer, scheme=scheme):
                yield found, self._pictures(found)

        return steps

    def _pictures(self, found: Jackknife) -> str:
        """The images that move the range most, as HTML; reads them."""
        subject = self.state.session.subject
        chosen = [each for each in found.influences[:MOST] if each.moved > 0]
        if not chosen:
            return ""
        images = subject.calibration_stream.data.read([each.image for each in chosen]).images
        figures = "".join(
            _picture(each, image, subject.preprocess) for each, image in zip(chosen, images, strict=True)
        )
        return f'<div class="set">{figures}</div>'

    def _shown(self, visible: bool) -> None:
        for part in (self.key, self.middle):
            part.visible = visible

    def draw(self, found: Any) -> None:
        self._shown(found is not None)
        if found is None:
            self.say(NO_WEIGHT)
            return
        jackknife, pictures = found
        self.plot.update(jackknife)
        none = "no single image moves the range" if jackknife.influences else "looking for the images …"
        self.images.object = pictures or f'<div class="set"><span>{none}</span></div>'
        self.say(said(jackknife))

    def refresh(self) -> None:
        if not self.middle.visible:
            # The words were of a tensor without a figure.
            self.caption.object = ""
        super().refresh()

    def failed(self, error: Exception) -> None:
        self._shown(False)
        super().failed(error)
