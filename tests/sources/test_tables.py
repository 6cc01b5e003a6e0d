"""What is written for other programs says the same as the session does."""

from __future__ import annotations

import builtins
import csv
import hashlib
import json
import warnings
from io import BytesIO, StringIO
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import pandas as frames

from explorer import Session
from explorer.errors import ExplorerError, LayerError
from explorer.sources import NODE_SCORES, TABLE_FORMATS, csv_bytes, load_model, node_data, sha256_of
from explorer.study import LayerReport
from tests.small import images, tiny

COLUMNS = [
    frames.column(
        "name", elements=st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1)
    ),
    frames.column("value", elements=st.floats(allow_nan=False), dtype=float),
    frames.column("count", elements=st.integers(-(2**62), 2**62), dtype="int64"),
]


def read_csv(content: bytes) -> tuple[list[str], dict[str, list[str]]]:
    """By Python's own reader."""
    head, *rows = csv.reader(StringIO(content.decode(), newline=""))
    return head, dict(zip(head, map(list, zip(*rows, strict=True)), strict=True))


@settings(max_examples=40, deadline=None)
@given(frames.data_frames(COLUMNS, index=frames.range_indexes(min_size=1, max_size=6)))
def test_csv_reads_back_as_it_was(table: pd.DataFrame) -> None:
    head, read = read_csv(csv_bytes(table))
    assert head == list(table)
    assert read["name"] == table["name"].tolist()
    assert [float(text) for text in read["value"]] == table["value"].tolist()
    assert [int(text) for text in read["count"]] == table["count"].tolist()


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(tiny(), images(), recipe="w4a8")


def test_csv_and_parquet_are_the_sessions_table(session: Session) -> None:
    table = session.layers()
    head, read = read_csv(csv_bytes(table))
    assert head == list(table)
    for name in head:
        for text, value in zip(read[name], table[name], strict=True):
            assert text == ("" if pd.isna(value) else str(value)), name
    pytest.importorskip("pyarrow")
    pd.testing.assert_frame_equal(
        pd.read_parquet(BytesIO(TABLE_FORMATS["parquet"](table))), table, check_dtype=False
    )


def test_parquet_without_a_library_is_refused_in_a_sentence(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("pyarrow", "fastparquet"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ExplorerError, match=r"Parquet needs pyarrow.*\[parquet\].*CSV needs nothing"):
        TABLE_FORMATS["parquet"](session.layers())


@pytest.mark.parametrize("name", ["fashion-resnet20", "fashion-vit"])
def test_the_nodes_of_node_data_are_those_of_the_exported_program(name: str) -> None:
    """torch's own names for the nodes, as it exports them and after an empty decomposition."""
    session, loaded = Session(name), load_model(name)
    assert loaded.example is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(loaded.module, (loaded.example,))
        programs = (program, program.run_decompositions({}))
    values = {layer: float(place) for place, layer in enumerate(session.layer_names)}
    found = json.loads(node_data(session.graph, values))["graph"]
    for each in programs:
        nodes = {node.name: node for node in each.graph.nodes}
        assert set(found["results"]) <= set(nodes)
    places: dict[str, list[float]] = {}
    for layer, value in values.items():
        own = session.graph.by_name[session.graph.by_layer[layer].node]
        node = nodes[own.origin or own.name]
        # Both products of an attention are one node of the program.
        places.setdefault(node.name, []).append(value)
        path = [path for path, _ in node.meta["nn_module_stack"].values()][-1]
        assert layer.startswith(path)
    assert found["results"] == {
        node_name: {"value": sum(own) / len(own)} for node_name, own in places.items()
    }
    assert name != "fashion-vit" or max(map(len, places.values())) == 2


def test_node_data_leave_out_what_json_cannot_say(session: Session) -> None:
    names = session.layer_names
    values = dict.fromkeys(names, float("inf")) | {names[0]: 3.0}
    found = json.loads(node_data(session.graph, values))["graph"]
    assert list(found["results"].values()) == [{"value": 3.0}]
    stops = [stop["stop"] for stop in found["gradient"]]
    assert stops[0] == 0 and stops[-1] == 1 and stops == sorted(stops)
    with pytest.raises(LayerError, match="No layer has a finite value"):
        node_data(session.graph, dict.fromkeys(names, float("nan")))
    with pytest.raises(LayerError, match="no layer 'x'"):
        node_data(session.graph, {"x": 1.0})


def test_every_score_is_a_number_of_a_layer() -> None:
    assert set(NODE_SCORES) <= set(LayerReport.__dataclass_fields__)


def test_a_digest_is_sha256_of_names_types_shapes_and_bytes() -> None:
    tensor = torch.tensor([[1.5, -2.0]])
    told = b"w\x00torch.float32\x00(1, 2)\x00" + tensor.numpy().tobytes()
    assert sha256_of([("w", tensor)]) == hashlib.sha256(told).hexdigest()
    assert sha256_of([("w", tensor.t())]) != sha256_of([("w", tensor)])


def test_a_subject_names_its_weights_and_images(session: Session) -> None:
    subject = session.subject
    state = sorted(tiny().state_dict().items())
    assert subject.weights_sha256 == sha256_of(state) != sha256_of(sorted(tiny(1).state_dict().items()))
    other = Session(tiny(), images(), recipe="w8a8").subject
    assert other.images_sha256() == subject.images_sha256() != subject.images_sha256(10)
    assert subject.images_sha256() != Session(tiny(), images(seed=2)).subject.images_sha256()
