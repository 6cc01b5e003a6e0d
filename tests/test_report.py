"""The report: what it says, what it does not say unmarked, and that it needs nothing but itself."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from bokeh.document import Document
from bokeh.io.doc import patch_curdoc
from torch import Tensor, nn

from explorer import Recipe, Session
from explorer.cli import main
from explorer.errors import LayerError, RecipeError
from explorer.sources import Notes
from explorer.sources.notes import LONGEST_NOTE, load_notes
from explorer.views.report import STALE, report_html
from explorer.views.reportfacts import MOST_LAYERS, PARTS, Facts, drawn_layers, gather
from tests.small import images, tiny

EVIL = "<img src=x onerror=alert(1)>"


class Odd(nn.Module):
    """A network whose layers' names are markup."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({EVIL: nn.Linear(36, 4), "$$\\alpha$$": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x.flatten(1))
        return x


class Text(HTMLParser):
    """The words of a document without its scripts, and the tags it has."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.words, self.tags, self._quiet = [], [], 0
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self._quiet += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(tiny(), images(), recipe="w4a8")


@pytest.fixture(scope="module")
def facts(session: Session) -> Facts:
    table = session.sensitivity(["int8", "int2"], method="instant", images=40)
    notes = Notes("Fine by me.", {"mid": f"{EVIL} too low?"})
    return gather(session, session.evaluate(), table, session.diagnose(images=40), notes=notes)


def test_it_says_all_there_is(session: Session, facts: Facts) -> None:
    read = Text(report_html(facts))
    e = facts.evaluation
    assert e is not None
    wanted = [
        facts.model, facts.data, facts.weights_sha256, facts.images_sha256, facts.recipe.digest, facts.date,
        f"{e.lost:,} images right to wrong, {e.won:,} wrong to right", "granularity: channel",
        f"{facts.sensitivity['method'].iloc[0]}: ",
        "Fine by me.", f"{EVIL} too low?", "input_sqnr_db",
        *facts.layers, *facts.layers["name"], *facts.versions.values(),
        *(finding.change for finding in facts.diagnosis.findings),
    ]  # fmt: skip
    for words in wanted:
        assert re.sub(r"\s+", " ", words) in read.text
    assert "Stale" not in read.text and "img" not in read.tags
    assert (
        Recipe.from_yaml(re.search(r"version: 1.*?(?=</pre>)", report_html(facts), re.S)[0]) == facts.recipe
    )
    assert {(h.layer, h.tensor) for h in facts.histograms} == {
        (name, tensor) for name in session.layer_names for tensor in ("weight", "input")
    }


@pytest.mark.parametrize("part", PARTS)
def test_what_is_of_another_recipe_is_marked(facts: Facts, part: str) -> None:
    read = Text(report_html(replace(facts, stale=frozenset({part})))).text
    assert [each for each in PARTS if STALE[each] in read] == [part]


def test_an_evaluation_of_another_recipe_is_stale_by_itself(facts: Facts) -> None:
    session = Session(tiny(), images(), recipe="w8a8")
    found = gather(session, facts.evaluation)
    assert found.stale == {"evaluation"}
    document = report_html(found)
    # The layers' table takes no number from it either.
    assert "takes an evaluation of this recipe" in document
    assert 'class="old"><div class="cards">' in document


def test_what_was_not_computed_is_said(session: Session) -> None:
    read = Text(report_html(gather(session))).text
    assert "Not evaluated." in read and read.count("Not computed.") == 2 and "None." in read
    assert "none has been evaluated" in read


def test_it_is_made_while_another_session_is_taken_down(facts: Facts) -> None:
    """Bokeh's present document is that of whatever session the server is busy with."""
    leaving = Document()
    with patch_curdoc(leaving):
        leaving.callbacks.destroy()
        assert "Sensitivity by layer and format" in report_html(facts)


def test_foreign_text_is_text() -> None:
    session = Session(Odd(), images())
    name = session.layer_names[0]
    assert EVIL in name
    facts = gather(
        session,
        session.evaluate(),
        session.sensitivity("int2", method="instant"),
        notes=Notes(EVIL, {name: EVIL}),
    )
    document = report_html(facts)
    assert EVIL not in re.sub(r"<script.*?</script>", "", document, flags=re.S)
    assert "img" not in Text(document).tags and EVIL in Text(document).text


def test_histograms_are_those_of_the_worst_or_of_the_wanted() -> None:
    names = tuple(f"layer{k}" for k in range(30))
    noise = [float((7 * k) % 30) for k in range(29)] + [math.nan]
    table = pd.DataFrame({"name": names, "weight_sqnr_db": noise})
    session = SimpleNamespace(layer_names=names)
    drawn = drawn_layers(session, table)
    by_name = table.set_index("name")["weight_sqnr_db"]
    assert len(drawn) == MOST_LAYERS and list(drawn) == [name for name in names if name in drawn]
    assert by_name[list(drawn)].max() <= by_name.drop(list(drawn)).min() and "layer29" not in drawn
    assert drawn_layers(session, table, names[3:5]) == names[3:5]


def test_it_is_written_without_panel() -> None:
    code = (
        "import sys, explorer.views.report; "
        "print([m for m in sys.modules if m.split('.')[0] in ('panel', 'panel_material_ui', 'holoviews', 'param')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_command_line_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes, out = tmp_path / "notes.yaml", tmp_path / "report.html"
    command = [
        "report",
        "--model",
        "fashion-lenet5",
        "--limit",
        "50",
        "--out",
        str(out),
        "--notes",
        str(notes),
    ]
    notes.write_text(Notes("Good.", {"ip1": "Most of the size."}).to_yaml())
    assert main([*command, "--sensitivity", "weight"]) == 0
    read = Text(out.read_text()).text
    assert "Most of the size." in read and "weight: measured" in read and "the 50 evaluated" in read
    notes.write_text("version: 1\nlayers: {ip11: x}\n")
    assert main(command) == 2
    assert "no layer 'ip11'. Did you mean 'ip1'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Notes are a file with"),
        ("[1, 2]", "Notes are a file with"),
        ("version: 0", "reads notes of version 1, not 0"),
        ("version: 1\nover: x", "There is no field 'over'"),
        ("version: 1\noverall: 3", "a note is a text, not 3"),
        ("version: 1\nlayers: {fc: [x]}", "notes.fc: a note is a text"),
        ("version: 1\nlayers: x", "expected texts by layer names"),
        ("version: 1\n  overall: : x", "not YAML: line 2"),
        ("[" * 5000, "is nested too deeply"),
        ("version: !!bool perhaps", "The notes are not YAML"),
        (f"version: 1\noverall: {'x' * (LONGEST_NOTE + 1)}", "10,001 characters are too long"),
    ],
)
def test_bad_notes_are_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "n.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(sentence)) as caught:
        load_notes(str(file))
    assert "\n" not in str(caught.value)


def test_notes_on_what_is_no_layer_are_refused() -> None:
    Notes("x", {"fc": ""}).check(["stem"])
    with pytest.raises(LayerError, match="Did you mean 'fc'"):
        Notes("", {"fcc": "x"}).check(["fc"])
    with pytest.raises(RecipeError, match="cannot be read"):
        load_notes("nowhere.yaml")


def test_configurations_stand_side_by_side_and_the_present_one_has_its_name() -> None:
    session = Session(tiny(), images(), recipe="w4a8")
    session.evaluate()
    session.name("A plain")
    session.edit(["mid"], weight={"format": "int8"})
    found = session.evaluate()
    session.name(f"B {EVIL}")
    alone = report_html(gather(session, found, trials=[session.tried.get(session.recipe.digest)]))
    assert "Side by side" not in Text(alone).text and EVIL not in alone
    facts = gather(session, found, trials=list(session.tried))
    document = report_html(facts)
    text = Text(document).text
    assert facts.label == f"B {EVIL}" and EVIL not in document
    pair = facts.differences.pairs[0]
    assert pair.kl == tuple(trial.outcome.kl for trial in session.tried)
    assert pair.kl_intervals[1] == found.kl_interval
    for part in (
        "Side by side",
        "A plain minus B",
        pair.verdict,
        f"{pair.size_delta:+,}",
        "(this report)",
        "KL to float",
    ):
        assert part in text, part
    assert text.index("(this report)") > text.index("A plain")
    # What was never evaluated says so.
    session.edit(["mid"], weight={"format": "int7"})
    session.name("C")
    unseen = report_html(gather(session, trials=[*session.tried][-2:]))
    assert "not both evaluated" in Text(unseen).text and "not evaluated" in Text(unseen).text
