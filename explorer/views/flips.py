"""The images that quantization changes: pictures of those lost and won, with their classes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from explorer.sources import Preprocess
from explorer.study import Evaluation, Flip
from explorer.views import kit, theme
from explorer.views.runs import Publisher, Runner
from explorer.views.state import PageState
from explorer.views.text import number, percent, sentence

# So many pictures of each kind; the rest is a number.
MOST = 24
NO_CLASSES = "The network's results are no scores of classes, so there are scores here instead of classes."
CSS = (
    theme.TOKENS
    + """
:host { color: var(--ink); font-size: 11.5px; line-height: 15px; padding: 2px 2px 8px; }
h4 { font-size: 12.5px; font-weight: 600; margin: 6px 0; } h4 span { color: var(--faint); font-weight: 400; }
.lost { color: var(--bad); } .won { color: var(--good); }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 8px 6px; }
figure { margin: 0; min-width: 0; text-align: center; }
img { width: 56px; height: 56px; object-fit: contain; image-rendering: pixelated; background: var(--wash);
  border: 1px solid var(--line); border-radius: 4px; }
figcaption, figcaption span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
figcaption span { color: var(--faint); }
.more, .note { color: var(--faint); padding: 4px 0; } .old { opacity: .55; }
"""
)


def pixels(image: Tensor, preprocess: Preprocess | None) -> np.ndarray | None:
    """What a network saw (channels, height, width) as uint8 for the eye; None for what is no picture.

    >>> pixels(torch.tensor([[[0.0, 1.0]]]), None).tolist()
    [[0, 255]]
    >>> pixels(torch.zeros(7), None) is None
    True
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        return None
    value = image.detach().float()
    if preprocess is not None:
        std, mean = (
            torch.tensor(numbers or (empty,)).view(-1, 1, 1)
            for numbers, empty in ((preprocess.std, 1.0), (preprocess.mean, 0.0))
        )
        value = value * std + mean
    low, high = float(value.min()), float(value.max())
    if low < -0.01 or high > 1.01:
        # Nobody knows how it was normalised: darkest to brightest.
        value = (value - low) / ((high - low) or 1.0)
    whole = (value.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return whole[:, :, 0] if whole.shape[2] == 1 else whole


def data_uri(picture: np.ndarray) -> str:
    """A picture as an address that holds it."""
    out = BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _figure(flip: Flip, image: Tensor, preprocess: Preprocess | None, names: Sequence[str] | None) -> str:
    def name(number: int) -> str:
        return escape(names[number] if names and number < len(names) else f"class {number}")

    found = pixels(image, preprocess)
    drawn = f'<img alt="image {flip.index}" src="{data_uri(found)}">' if found is not None else ""
    if flip.before is None or flip.after is None:
        return _graded(flip, drawn)
    before, after = name(flip.before), name(flip.after)
    label = f"label {name(flip.label)}" if flip.label is not None else "no label"
    title = (
        f"image {flip.index}: {before} ({percent(flip.confidence_before or 0.0, 0)}) "
        f"to {after} ({percent(flip.confidence_after or 0.0, 0)}), {label}"
    )
    return (
        f'<figure title="{title}">{drawn}<figcaption>{before}<br>→ {after}'
        f"<span>{label}</span></figcaption></figure>"
    )


def _graded(flip: Flip, drawn: str) -> str:
    """An image whose result is no class: what it scores before and after."""
    before, after = number(flip.score_before), number(flip.score_after)
    return (
        f'<figure title="image {flip.index}: score {before} to {after}">{drawn}<figcaption>{before} → {after}'
        f"<span>image {flip.index:,}</span></figcaption></figure>"
    )


def markup(state: PageState, e: Evaluation) -> str:
    """The pictures of an evaluation's changed images as HTML; reads the images.

    Raises:
        DataError: for an image that cannot be read.
    """
    subject = state.session.subject
    metric = state.session.metric
    said = (
        ("right to wrong: class in float → quantized", "wrong to right: class in float → quantized")
        if metric.binary
        else ("score fell most: score in float → quantized", "score grew most: score in float → quantized")
    )
    kinds = (("lost", said[0], e.lost_images), ("won", said[1], e.won_images))
    parts = [] if metric.classes else [f'<div class="note">{NO_CLASSES}</div>']
    for kind, words, flips in kinds:
        if not flips:
            continue
        shown = flips[:MOST]
        images = subject.evaluation.data.read([flip.index for flip in shown]).images
        figures = "".join(
            _figure(flip, image, subject.preprocess, subject.classes)
            for flip, image in zip(shown, images, strict=True)
        )
        more = f'<div class="more">and {len(flips) - MOST:,} more</div>' if len(flips) > MOST else ""
        parts.append(
            f'<h4><b class="{kind}">{len(flips):,} {kind}</b> <span>{words}</span></h4>'
            f'<div class="many">{figures}</div>{more}'
        )
    if not e.lost_images and not e.won_images:
        parts.append(f'<div class="note">No image changed, of {e.images:,}.</div>')
    return "".join(parts)


class FlipGallery:
    """The region with the pictures: read in the background, once an evaluation has ended."""

    def __init__(self, state: PageState, publisher: Publisher) -> None:
        self.state = state
        self.runner = Runner("flips", publisher)
        self.visible = False
        self._revision = -1
        self.pictures = kit.html(css=CSS)
        self.view = kit.column(kit.scrolled(self.pictures), styles={"padding": "0 10px"})
        state.param.watch(lambda *_: self._changed(), ["evaluation", "revision"])

    def _changed(self) -> None:
        e = self.state.evaluation
        if self.state.stale and self._revision >= 0:
            self._age()
        elif self.visible and e is not None and e.stopped:
            self.refresh()

    def _age(self) -> None:
        """Say that the pictures are of the recipe before."""
        text = self.pictures.object
        if 'class="old"' not in text:
            note = '<div class="note">Before the edit; the images of the present recipe follow.</div>'
            self.pictures.object = f'{note}<div class="old">{text}</div>'

    def turn(self, visible: bool) -> None:
        """Come into sight, or leave it."""
        self.visible = visible
        if visible:
            self.refresh()
        else:
            self.runner.cancel()

    def refresh(self) -> None:
        """Show the images of the latest evaluation."""
        e, revision = self.state.evaluation, self.state.evaluation_revision
        if e is None:
            self.pictures.object = '<div class="note">Nothing has been evaluated yet.</div>'
            return

        def steps() -> Iterator[str]:
            yield markup(self.state, e)

        def show(text: str) -> None:
            self.pictures.object = text
            self._revision = revision
            if self.state.stale:
                self._age()

        self.runner.start(steps, show, lambda: None, self._failed)

    def _failed(self, error: Exception) -> None:
        note = f'<div class="note" role="alert">The images were not read: {escape(sentence(error))}</div>'
        self.pictures.object = f'{note}<div class="old">{self.pictures.object}</div>'
