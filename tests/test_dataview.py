"""The page says what the images are, what happens to them, and which of them cannot be read; so does the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explorer as qx
from explorer.sources import LoadedModel, Preprocess
from explorer.views import dataview
from explorer.views.report import report_html
from explorer.views.reportfacts import gather

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


def session(folder: Path, damaged: int = 0) -> qx.Session:
    for number in range(6):
        file = folder / "ab"[number % 2] / f"<{number}>.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), 40 * number, np.uint8)).save(file)
        if number < damaged:
            file.write_bytes(b"")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(75, 2)).eval()
    own = Preprocess(resize=5, crop=5, mean=(0.5,))
    return qx.Session(LoadedModel("net", net, preprocess=own), data=folder, store_bytes=1 << 24)


def test_words_and_a_picture(tmp_path: Path) -> None:
    mark = dataview.mark(session(tmp_path / "pets"))
    assert (mark.sign, mark.warn) == ("Data", False)
    assert (
        "6 images. All images that can be read. The 2 class folders are numbered in the order" in mark.object
    )
    assert "Preprocessing (the network's own)" in mark.object.replace("&#x27;", "'")
    assert (
        "<li>cut out the middle 5 x 5 pixels</li>" in mark.object and "<li>subtract 0.5</li>" in mark.object
    )
    assert mark.object.count("<img ") == 1 and "as the network sees it, 5x5" in mark.object
    assert "cannot be read" not in mark.object and 'class="warning"' not in mark.object


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    found = session(tmp_path / "pets", damaged=5)
    mark = dataview.mark(found)
    assert (mark.sign, mark.warn) == ("Data, 5 unreadable", True)
    assert (
        "5 images of pets left out (a/&lt;0&gt;.png: it is empty;" in mark.object and "2 more" in mark.object
    )
    assert "<0>" not in mark.object
    report = report_html(gather(found))
    assert "5 images of pets left out (a/&lt;0&gt;.png: it is empty" in report
    assert "cut out the middle 5 x 5 pixels" in report


def test_what_is_found_damaged_later_is_said_later(tmp_path: Path) -> None:
    found = session(tmp_path / "pets")
    mark = dataview.mark(found)
    before = mark.object
    dataview.refresh(mark, found)
    assert mark.object is before
    found.subject.evaluation.data._replaced[3] = "it is damaged."
    dataview.refresh(mark, found)
    assert mark.sign == "Data, 1 unreadable" and "replaced by another of its class" in mark.object


def test_what_is_no_picture_has_none() -> None:
    net = torch.nn.Linear(7, 2).eval()
    found = qx.Session(net, data=(torch.zeros(4, 7), [0, 1, 0, 1]), store_bytes=1 << 24)
    assert "<img" not in dataview.markup(found) and "taken as they are" in dataview.markup(found)
