"""Results as a notebook shows them: every kind has words, figures hold the result's numbers and need nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bokeh.document import Document

import explorer as qx
from explorer.errors import SchemeError
from explorer.study import Drawn, Told
from explorer.views import drawing, notebook
from explorer.views.single import FIGURES, WORDS
from tests.small import images, tiny

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def session() -> qx.Session:
    return qx.Session(tiny(), data=images(), store_bytes=1 << 24, recipe="w4a8")


@pytest.fixture(scope="module")
def results(session: qx.Session) -> dict[type, Any]:
    found = (
        session.evaluate(images=40), session.compare("w4a8", "w8a8", images=40), session.diagnose(images=40),
        session.check(0.5, images=40),
        session.additivity(images=40), session.histogram("mid"), session.number_line("mid"), session.curves("mid"),
        session.channels("mid"), session.jackknife("mid", images=20), session.lens("mid"),
    )  # fmt: skip
    return {type(each): each for each in found}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_carrier", None)


def below(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield from (each, *below(each))


def test_the_tables_hold_every_kind_of_result() -> None:
    assert set(WORDS) == set(below(Told)) - {Drawn}
    assert set(FIGURES) == set(below(Drawn))


def item(markup: str) -> dict[str, Any]:
    """What a figure's script hands to BokehJS."""
    found = re.search(r"embed_item\((.*), \"figure-", markup)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("kind", WORDS, ids=lambda kind: kind.__name__)
def test_words_are_escaped(kind: type, results: dict[type, Any]) -> None:
    found = results[kind]
    named = [
        field.name for field in fields(found) if isinstance(getattr(found, field.name), str)
        and field.name not in ("measure", "tensor", "unit")
    ]  # fmt: skip
    changed = replace(found, **dict.fromkeys(named, EVIL))
    assert EVIL not in changed._repr_html_()
    text = found._repr_html_()
    assert "<script" not in text and not re.search(r"\bnan\b", text) and len(text) > 40


@pytest.mark.parametrize("kind", FIGURES, ids=lambda kind: kind.__name__)
def test_a_figure_is_complete_and_from_here(kind: type, results: dict[type, Any]) -> None:
    changed = replace(results[kind], layer=EVIL)
    made = changed.plot(height=200)
    assert made.figure.height == 200
    markup = made.html()
    assert EVIL not in markup and markup.count("<script") == 1
    assert not re.search(r"https?://(?!www\.w3\.org)", markup)
    Document.from_json(item(markup)["doc"])
    assert len(markup) < 150_000
    # The first one brings BokehJS, the next one finds it there.
    first, second = made._repr_html_(), made._repr_html_()
    assert len(first) - len(second) > 1_000_000 and "root.Bokeh" in first


def test_the_histogram_that_is_drawn_is_the_one_that_was_found(session: qx.Session) -> None:
    found = session.histogram("mid", bins=32)
    roots = item(found.plot(log=False).html())["doc"]["roots"]
    text = json.dumps(roots)
    assert json.dumps(found.quantized_counts.tolist()) in text and json.dumps(found.counts.tolist()) in text


def test_a_file_needs_nothing_else(session: qx.Session, tmp_path: Path) -> None:
    path = session.number_line("mid").plot().save(tmp_path / "line.html")
    text = path.read_text()
    assert len(text) > 1_200_000 and "<link" not in text and "src=" not in text.split("embed_item")[1]


def test_options_without_effect_are_refused(session: qx.Session) -> None:
    with pytest.raises(SchemeError, match="no logarithmic axis"):
        session.curves("mid").plot(log=True)
    with pytest.raises(SchemeError, match="80 to 4000"):
        session.histogram("mid").plot(height=5)


def test_the_cell_that_has_bokehjs_brings_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([("a", 1), ("b", 2), ("a", 3), ("a", 3), ("", 4)])
    monkeypatch.setattr(notebook, "cell", lambda: next(runs))
    assert [bool(drawing.carried()) for _ in range(5)] == [True, False, True, False, False]
    monkeypatch.setattr(notebook, "_page", True)
    assert drawing.carried() == ""


def test_a_table_is_marked_and_stays_a_table(session: qx.Session) -> None:
    frame = session.sensitivity(["int4", "int2"], images=40)
    assert type(frame) is pd.DataFrame
    # Of so small a network all is measured at once; two rows are called what they would be of a larger one.
    frame.loc[[0, 3], "method"] = "instant"
    before = frame.copy()
    shown = qx.styled(frame).data
    pd.testing.assert_frame_equal(frame, before)
    assert shown["value"].str.endswith(" nats").all()
    assert list(shown["value"].str.startswith("~")) == list(frame["method"] == "instant")
    for name, part in frame.groupby("format"):
        worst = part.loc[part["value"].astype(float).idxmax(), "layer"]
        marked = shown[shown["note"] == f"worst at {name}"]
        assert list(marked["layer"]) == [worst]
    exact = qx.styled(session.sensitivity("int4", images=40)).data
    assert not exact["value"].str.startswith("~").any() and set(exact["tier"]) == {"exact"}


@pytest.mark.parametrize("measure", ["kl", "loss", "top1", "sqnr"])
def test_the_worst_row_is_worst_in_its_measure(session: qx.Session, measure: str) -> None:
    frame = session.sensitivity("int2", measure, images=40)
    values = frame["value"].astype(float).to_numpy()
    worst = values.min() if measure == "sqnr" else values.max()
    notes = qx.styled(frame).data["note"]
    assert values[int(np.flatnonzero(notes != "")[0])] == worst


def test_other_tables(session: qx.Session) -> None:
    layers = qx.styled(session.layers()).data
    assert (layers["note"] == "lowest SQNR").sum() == 3
    rivals = session.formats("mid")
    assert list(qx.styled(rivals).data["note"] == "present") == list(rivals["present"])
    hostile = session.layers().assign(name=EVIL)
    assert EVIL not in qx.styled(hostile).to_html()
    with pytest.raises(SchemeError, match=r"session\.layers"):
        qx.styled(pd.DataFrame({"a": [1]}))
