"""What the images are and what happens to them before the network sees them, beside their name at the top."""

from __future__ import annotations

from html import escape
from typing import Any

from explorer.errors import ExplorerError
from explorer.session import Session
from explorer.sources import DataFacts
from explorer.views import explained, kit
from explorer.views.flips import data_uri, pixels

CSS = (
    explained.CSS
    + """
:host { flex: none !important; width: max-content !important; }
button { border-radius: 11px; width: auto; padding: 0 8px; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
@media (max-width: 900px) { button { max-width: 60px; } }
button.warn { color: var(--bad); border-color: var(--bad); }
figure { float: right; margin: 2px 0 6px 12px; width: 112px; text-align: center; }
img { width: 112px; height: 112px; object-fit: contain; image-rendering: pixelated; border: 1px solid var(--line);
  border-radius: 4px; background: #777; }
figcaption { font-size: 11px; line-height: 14px; color: var(--faint); }
ol { margin: 2px 0 0; padding-left: 20px; } .warning { color: var(--bad); overflow-wrap: anywhere; }
.end { clear: both; }
"""
)


def steps(facts: DataFacts) -> str:
    """What happens to an image, as a list; HTML."""
    if not facts.steps:
        return "The images are taken as they are."
    source = f" ({facts.preprocess_from})" if facts.preprocess_from else ""
    return f"Preprocessing{source}:<ol>{''.join(f'<li>{escape(step)}</li>' for step in facts.steps)}</ol>"


def markup(session: Session) -> str:
    """The words behind the mark, HTML, with one of the images."""
    facts, calibration = session.data_facts, session.subject.calibration_facts
    warnings = dict.fromkeys(filter(None, (facts.warning, calibration.warning)))
    parts = [
        f"<b>{escape(facts.name)}</b>",
        _picture(session),
        f"<p>{facts.images:,} images. {escape(facts.chosen)} {escape(facts.labels)}</p>",
        f"<div>{steps(facts)}</div>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in warnings),
        f'<p class="end">Fixed ranges are from {escape(session.subject.calibration_name)}.',
    ]
    if calibration.steps != facts.steps:
        parts.append(f" {steps(calibration)}")
    return "".join([*parts, "</p>"])


def _picture(session: Session) -> str:
    stream = session.subject.evaluation
    index = stream.order[0]
    try:
        [image] = stream.data.read([index]).images
    except ExplorerError:
        return ""  # an evaluation says what is wrong
    found = pixels(image, session.subject.preprocess)
    if found is None:
        return ""
    size = "x".join(map(str, image.shape[1:]))
    return (
        f'<figure><img alt="image {index}" src="{data_uri(found)}">'
        f"<figcaption>image {index} as the network sees it, {size}</figcaption></figure>"
    )


def mark(session: Session) -> Any:
    """What opens the words; it counts the images that cannot be read, if there are any."""
    made = kit.help(CSS, width=None)
    refresh(made, session)
    return made


def refresh(made: Any, session: Session) -> None:
    """Bring the words up to date: an image may be found damaged when it is read."""
    count = len(session.data_facts.skipped)
    sign = f"Data, {count:,} unreadable" if count else "Data"
    if made.sign != sign:
        made.param.update(
            object=markup(session), sign=sign, title=f"{sign}: what the images are", warn=bool(count)
        )
