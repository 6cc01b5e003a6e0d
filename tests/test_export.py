"""What the page hands out: each file of the table, and the ones that are refused."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("panel")

from explorer import Session
from explorer.errors import ExplorerError
from explorer.sources import Notes, csv_bytes
from explorer.views.export import FILES, Material
from tests.small import images, tiny


@pytest.fixture(scope="module")
def material() -> Material:
    session = Session(tiny(), images(), recipe="w4a8")
    table = session.sensitivity(["int8", "int2"], method="weight")
    return Material(session, session.evaluate(), table, notes=Notes("Fine.", {"mid": "Low."}))


def made(material: Material, name: str) -> bytes:
    return next(make(material) for file, make in FILES.values() if file == name)


@pytest.mark.parametrize("label", FILES)
def test_each_file_is_made(material: Material, label: str) -> None:
    name, make = FILES[label]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    assert len(make(material)) > 20 and len({file for file, _ in FILES.values()}) == len(FILES)


def test_files_say_what_the_session_says(material: Material) -> None:
    session = material.session
    assert made(material, "layers.csv") == csv_bytes(session.layers())
    assert Notes.from_yaml(made(material, "notes.yaml").decode()) == material.notes
    found = json.loads(made(material, "input_sqnr_db.json"))["graph"]["results"]
    for report in material.evaluation.layers:
        assert found[session.graph.by_layer[report.name].node] == {"value": report.input_sqnr_db}


@pytest.mark.parametrize(
    ("name", "part", "sentence"),
    [
        ("sensitivities.csv", "sensitivity", "before the last edits"),
        ("input_sqnr_db.json", "evaluation", "once this recipe has been evaluated"),
    ],
)
def test_what_is_of_another_recipe_is_not_handed_out(
    material: Material, name: str, part: str, sentence: str
) -> None:
    old = Material(**{**vars(material), "stale": frozenset({part})})
    with pytest.raises(ExplorerError, match=sentence):
        made(old, name)
    with pytest.raises(ExplorerError):
        made(Material(material.session), name)
