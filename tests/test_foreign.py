"""Another tool's parameters beside the recipe: numbers of both, differing codes, histograms, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.ao.quantization import PerChannelMinMaxObserver

import explorer as qx
from explorer.cli import main
from explorer.errors import ParametersError, SchemeError
from explorer.recipe import Recipe
from explorer.study import ForeignTensor
from explorer.study.foreign import agreeing
from tests.small import images, tiny


@pytest.fixture(scope="module")
def session() -> qx.Session:
    x, y = images()
    return qx.Session(tiny(), data=(x, y), calibration=x[:40])


def given(scale: Any, zero_point: int = 0, qmin: int = -128, qmax: int = 127) -> dict[str, Any]:
    return {"scale": scale, "zero_point": zero_point, "qmin": qmin, "qmax": qmax}


def test_our_own_parameters_differ_nowhere(session: qx.Session) -> None:
    """A round trip: what we choose, given back as another tool's, with onnx's own division."""
    theirs: dict[str, Any] = {}
    for name in session.layer_names:
        weight = session.graph.constants[session.graph.by_layer[name].weight or ""]
        ours = qx.quantize(weight, session.recipe.config(name).weight)
        theirs[name] = {"weight": given(ours.scale, 0, ours.qmin, ours.qmax)}
        layer, scheme = session.graph.by_layer[name], session.recipe.config(name).input
        params = session.subject.calibration.params(layer, 0, scheme)
        theirs[name]["input"] = given(float(params.scale), int(params.zero_point), params.qmin, params.qmax)
    table = session.against(session.foreign(theirs))
    assert len(table) == 2 * len(session.layer_names)
    weights = table[table["tensor"] == "weight"]
    assert (weights["differing"] == 0).all() and (weights["exact"]).all()
    # In memory it is torch's arithmetic, which multiplies by the reciprocal: a tie may fall to the other side.
    assert (table["largest"] <= 1).all() and (table["differing"] <= table["elements"] // 1000 + 1).all()
    assert np.allclose(table["sqnr_db"], table["sqnr_db_theirs"], atol=0.05)
    assert all("onnx symmetric" in agrees for agrees in weights["agrees"])


def test_codes_that_differ_are_counted(session: qx.Session) -> None:
    weight = session.graph.constants[session.graph.by_layer["fc"].weight or ""]
    ours = qx.quantize(weight, session.recipe.config("fc").weight)
    found = session.foreign({"fc": {"weight": given(0.02, 130, 0, 255)}})
    row = session.against_tensor(found, "fc")
    codes = ((weight / 0.02).round() + 130).clamp(0, 255).int()
    # Signed codes are set beside unsigned ones half the codes above.
    apart = (codes - 128 - ours.codes).abs()
    assert (row.differing, row.largest) == (int((apart > 0).sum()), int(apart.max()))
    assert row.zero_point_theirs == (130, 130) and row.codes_theirs == (0, 255) and row.codes == (-127, 127)
    noise = (weight - (codes - 130) * 0.02).square().sum()
    assert row.sqnr_db_theirs == pytest.approx(
        float(10 * torch.log10(weight.square().sum() / noise)), abs=1e-3
    )


def test_other_widths_have_no_codes_to_compare(session: qx.Session) -> None:
    found = session.foreign({"fc": {"weight": given(0.1, 0, -8, 7)}})
    row = session.against_tensor(found, "fc")
    assert row.differing is None and row.scale is not None and row.theirs == "int4 layer"
    other = qx.Session(subject=session.subject, recipe=Recipe.preset("fp32"))
    plain = other.against_tensor(found, "fc")
    assert plain.scale is None and plain.sqnr_db == float("inf") and plain.scheme == "fp32"


def test_conventions_are_recognised() -> None:
    values = torch.randn(5, 20, generator=torch.Generator().manual_seed(2))
    for kind, word in (
        (torch.per_channel_symmetric, "torch symmetric"),
        (torch.per_channel_affine, "torch asymmetric"),
    ):
        observer = PerChannelMinMaxObserver(dtype=torch.qint8, qscheme=kind)
        observer(values)
        scale, zero_point = observer.calculate_qparams()
        theirs = ForeignTensor("w", scale, zero_point.to(torch.int32), -128, 127, axis=0, tool="torch")
        assert word in agreeing(values, theirs)
        assert "nncf symmetric" not in agreeing(values, theirs)


def test_histogram_under_their_parameters(session: qx.Session) -> None:
    found = session.foreign({"mid": {"weight": given(0.01), "input": given(0.02, 0, 0, 15)}})
    weight = session.histogram("mid", foreign=found)
    assert weight.clip == pytest.approx((-1.28, 1.27)) and len(weight.levels) == 256
    assert weight.sqnr_db == pytest.approx(session.against_tensor(found, "mid").sqnr_db_theirs, abs=1e-6)
    entering = session.histogram("mid", "input", foreign=found)
    assert entering.clip == pytest.approx((0, 0.3)) and entering.clipped_fraction > 0.1
    assert weight.scheme == "torch int8 layer" and weight.exact and not entering.exact
    with pytest.raises(ParametersError, match="no parameters for the weight of 'fc'"):
        session.histogram("fc", foreign=found)
    with pytest.raises(SchemeError, match="not both"):
        session.histogram("mid", foreign=found, scheme="int8")


def test_an_input_by_channel(session: qx.Session) -> None:
    found = session.foreign({"mid": {"input": {**given([0.1, 0.2, 0.3, 0.4], 0, 0, 255), "axis": 1}}})
    row = session.against_tensor(found, "mid", "input")
    assert row.scale_theirs == pytest.approx((0.1, 0.4)) and row.differing and not row.exact
    assert session.histogram("mid", "input", foreign=found).groups == 4


def test_a_block_larger_than_the_tensor_is_the_tensor() -> None:
    one = torch.full((4, 1), 0.1)
    theirs = ForeignTensor("w", one, torch.zeros(4, 1, dtype=torch.int32), -128, 127, axis=1, block=1 << 40)
    assert theirs.fitted((4, 6)).apply(torch.full((4, 6), 0.12)).eq(0.1).all()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.encodings"
    encoding = {
        "bitwidth": 8,
        "dtype": "int",
        "is_symmetric": "True",
        "min": -1.28,
        "max": 1.27,
        "scale": 0.01,
    }
    file.write_text(
        json.dumps(
            {
                "version": "0.6.1",
                "param_encodings": {
                    "ip3.weight": [{**encoding, "offset": -128}],
                    "other.weight": [{**encoding, "offset": -128}],
                },
                "activation_encodings": {},
            }
        )
    )
    common = [
        "foreign",
        "--model",
        "fashion-lenet300",
        "--parameters",
        str(file),
        "--calibration-images",
        "8",
    ]
    assert main([*common, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tool"] == "aimet" and [row["layer"] for row in result["rows"]] == ["ip3"]
    assert result["left"] == [{"name": "other.weight", "reason": "no layer is called 'other'"}]
    assert main(common) == 0
    assert "left: other.weight" in capsys.readouterr().out
    assert main([*common[:4], str(tmp_path / "no.onnx")]) == 2
    assert "There is no file" in capsys.readouterr().err


def test_schemes_that_are_dynamic(session: qx.Session) -> None:
    own = qx.Session(subject=session.subject, recipe="int8_dynamic")
    assert own.recipe.config("mid").input.mode == "dynamic"
    row = own.against_tensor(own.foreign({"mid": {"input": given(0.02, 0, 0, 255)}}), "mid", "input")
    assert row.scale is None and row.differing is None and row.sqnr_db > 20
