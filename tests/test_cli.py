"""The command line as its users call it: files in, JSON out, one sentence and exit code 2 for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from explorer.cli import main
from tests.small import images, tiny

FACTORY = """
import torch
from tests.small import TinyNet, images

def net():
    return TinyNet()

def data():
    return images()

def many():
    return images(1200)

def flat():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images()[0][0].numel(), 5))

def unlabelled():
    return images(300)[0]

def branches():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))
    return Branches()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(FACTORY)
    save_file(
        {k: v for k, v in tiny().state_dict().items() if v.is_floating_point()}, folder / "net.safetensors"
    )
    x, y = images()
    np.savez(folder / "images.npz", images=x.numpy(), labels=y.numpy())
    np.savez(folder / "large.npz", images=np.zeros((3, 3, 9, 9), np.float32))
    (folder / "empty").mkdir()
    (folder / "recipe.yaml").write_text("version: 1\nlayers:\n  m*: {weight: {format: int4}}\n")
    (folder / "bad.yaml").write_text("version: 1\nlayers:\n  mid: {weight: {format: int44}}\n")
    (folder / "none.yaml").write_text("version: 1\nlayers:\n  middle: {weight: {format: int4}}\n")
    return folder


def of(folder: Path, data: str = "images.npz") -> list[str]:
    return [
        "--model", f"{folder}/mine.py:net", "--checkpoint", f"{folder}/net.safetensors", "--data", f"{folder}/{data}",
    ]  # fmt: skip


def test_layers(folder, tmp_path):
    assert main(["layers", *of(folder), "--json", f"{tmp_path}/out.json"]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert [layer["name"] for layer in out["layers"]] == ["stem", "mid", "fc"]
    assert out["layers"][1]["shape"] == [4, 4, 3, 3] and out["layers"][1]["weight_bits"] == 8


def test_evaluate(folder, tmp_path):
    command = ["evaluate", *of(folder), "--recipe", f"{folder}/recipe.yaml", "--limit", "60"]
    assert main([*command, "--json", f"{tmp_path}/out.json"]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    evaluation = ["model", "data", "images", "top1", "top1_interval", "top1_float", "delta", "delta_interval"]
    evaluation += ["loss", "kl", "output_sqnr_db", "size_bytes", "size_bytes_float", "bops", "layers"]
    for key in evaluation:
        assert key in out, key
    assert out["images"] == 60 and len(out["top1_interval"]) == 2
    for key in [
        "name",
        "op",
        "shape",
        "macs",
        "weight",
        "input",
        "weight_sqnr_db",
        "input_sqnr_db",
        "size_bytes",
    ]:
        assert key in out["layers"][0], key
    assert "int4" in out["layers"][1]["weight"] and "int8" in out["layers"][2]["weight"]


def test_evaluate_until_the_interval_is_narrow(folder, capsys):
    command = ["evaluate", *of(folder)[:4], "--data", f"{folder}/mine.py:many"]
    assert main([*command, "--recipe", "w2a8", "--interval", "0.15", "--json", "-"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["stopped"] == "narrow enough" and 200 <= out["images"] < out["total_images"]
    assert out["delta_interval"][1] - out["delta_interval"][0] <= out["interval_target"] == 0.15
    assert len(out["lost_images"]) == out["lost"] and len(out["won_images"]) == out["won"]
    assert main([*command, "--interval", "0.001"]) == 0
    assert "still wider than asked" in capsys.readouterr().out


def test_compare(folder, tmp_path, capsys):
    command = ["compare", *of(folder), "--recipe", "w8a8", "--against", f"{folder}/recipe.yaml"]
    assert main([*command, "--json", f"{tmp_path}/out.json"]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["layers"] == ["mid"] and out["a"]["top1"] - out["b"]["top1"] == pytest.approx(out["delta"])
    assert out["size_delta"] > 0 and out["verdict"] in capsys.readouterr().out
    assert main(["compare", *of(folder), "--against", "w8a8"]) == 0
    assert "the same for this network" in capsys.readouterr().out


def test_compare_of_more_than_two(folder, tmp_path, capsys):
    command = ["compare", *of(folder), "--recipe", "w8a8", "--against", f"{folder}/recipe.yaml", "w4a4"]
    assert main([*command, "--json", f"{tmp_path}/out.json"]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["labels"] == ["w8a8", f"{folder}/recipe.yaml", "w4a4"] and out["images"] == 90
    assert [(pair["a"], pair["b"]) for pair in out["pairs"]][1] == ("w8a8", "w4a4")
    mid = next(row for row in out["rows"] if (row["layer"], row["tensor"]) == ("mid", "weight"))
    assert [scheme.split()[0] for scheme in mid["schemes"]] == ["int8", "int4", "int4"]
    text = capsys.readouterr().out
    assert all(pair["verdict"] in text for pair in out["pairs"]) and "95% interval" in text
    assert main([*command, "--interval", "0.02"]) == 2
    assert "--interval stops a comparison of two" in capsys.readouterr().err


def test_a_project_keeps_what_was_evaluated(folder, tmp_path, capsys):
    kept = ["--project", f"{tmp_path}/project"]
    assert main(["evaluate", *of(folder), *kept, "--recipe", "w4a8"]) == 0
    assert main(["history", *of(folder), *kept, "--json", f"{tmp_path}/out.json"]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (row["label"], row["images"], row["total_images"]) == ("w4a8", 90, 90)
    assert "project: 1" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert main(["history", *of(folder), "--project", f"{tmp_path}/file"]) == 2
    assert "cannot be used" in capsys.readouterr().err


def test_additivity(folder, tmp_path, capsys):
    command = ["additivity", *of(folder, "images.npz"), "--recipe", "w4a8", "--json", f"{tmp_path}/out.json"]
    assert main(command) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["predicted"] == pytest.approx(sum(value for _, value in found["layers"]))
    assert found["interval"][0] <= found["measured"] <= found["interval"][1]
    assert "whole, measured" in capsys.readouterr().out


def test_depth(folder, tmp_path, capsys):
    command = ["depth", *of(folder), "--recipe", "w4a8", "--limit", "60", "--json", f"{tmp_path}/out.json"]
    assert main(command) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["images"] == 60 and [row["layer"] for row in found["layers"]] == ["stem", "mid", "fc"]
    for row in found["layers"]:
        for kind in ("local", "cumulative"):
            low, high = row[f"{kind}_interval"]
            assert low < row[f"{kind}_db"] < high
    assert "dB, on 60 images" in capsys.readouterr().out


def test_sensitivity(folder, tmp_path):
    command = ["sensitivity", *of(folder, "images.npz"), "--formats", "int8,int2", "--measure", "sqnr"]
    assert main([*command, "--json", f"{tmp_path}/out.json"]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["layer"], row["format"]) for row in rows[:2]] == [("stem", "int8"), ("stem", "int2")]
    for row in rows:
        assert set(row) >= {"layer", "format", "tensor", "method", "measure", "value", "interval"}
        assert row["interval"][0] <= row["value"] <= row["interval"][1]


def test_tables_and_node_data_are_written(folder, tmp_path):
    files = [f"{tmp_path}/{name}" for name in ("t.csv", "t.parquet", "nodes.json", "more.json", "rows.json")]
    assert (
        main(["layers", *of(folder), "--csv", files[0], "--parquet", files[1], "--node-data", files[2]]) == 0
    )
    lines = Path(files[0]).read_text().splitlines()
    assert lines[0].startswith("name,op,shape") and [line.split(",")[0] for line in lines[1:]] == [
        "stem", "mid", "fc",
    ]  # fmt: skip
    assert Path(files[1]).read_bytes()[:4] == b"PAR1"
    assert main(["evaluate", *of(folder), "--limit", "10", "--node-data", files[3]]) == 0
    command = ["sensitivity", *of(folder), "--limit", "10", "--formats", "int2", "--node-data", files[4]]
    assert main(command) == 0
    for file in files[2:]:
        assert len(json.loads(Path(file).read_text())["graph"]["results"]) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["layers", "--score", "macs"], "there is no --node-data"),
        (["layers", "--node-data", "x", "--score", "mac"], "Did you mean 'macs'?"),
        (["layers", "--node-data", "x", "--score", "input_sqnr_db"], "takes an evaluation"),
        (["sensitivity", "--node-data", "x"], "name one format"),
    ],
)
def test_node_data_of_nothing_are_refused(folder, capsys, arguments, sentence):
    assert main([arguments[0], *of(folder), *arguments[1:]]) == 2
    assert sentence in capsys.readouterr().err


def test_people_get_text(folder, capsys):
    assert main(["evaluate", "--model", f"{folder}/mine.py:net", "--data", f"{folder}/mine.py:data"]) == 0
    text = capsys.readouterr().out
    assert "95% interval" in text and "float" in text


def test_json_to_standard_output_is_nothing_but_json(folder, capsys):
    assert main(["layers", *of(folder), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "{}/bad.yaml"], "line 3: layers.mid.weight.format: There is no format 'int44'"),
        (["--recipe", "{}/none.yaml"], "no layer of this network is called so. Did you mean 'mid'?"),
        (["--recipe", "w8a9"], "Did you mean 'w8a8'?"),
        (["--data", "{}/empty"], "no images"),
        (["--data", "{}/large.npz"], "shape"),
        (["--data", "{}/nothing.npz"], "nothing.npz"),
        (["--model", "{}/mine.py:nett"], "Did you mean 'net'?"),
        (["--model", "{}/mine.py:branches"], "branches on the values"),
        (["--model", "fashion-lenet5", "--checkpoint", "{}/net.safetensors"], "another network"),
        (["--preprocess", "mean=a"], "mean"),
        (["--json", "{}/nowhere/out.json"], "cannot be written"),
        (["--interval", "0"], "above 0 and up to 2, as a share, not 0.0; 0.02"),
        (["--interval", "nan"], "not nan"),
    ],
)
def test_bad_input_gets_one_sentence(folder, capsys, arguments, sentence):
    given = [word.format(folder) for word in arguments]
    base = of(folder)
    for option in ("--model", "--checkpoint"):
        if option in given or (option == "--checkpoint" and "--model" in given):
            at = base.index(option)
            del base[at : at + 2]
    assert main(["evaluate", *base, *given]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("explorer: ") and error.count("\n") == 1


def test_it_runs_as_a_module(folder):
    command = [sys.executable, "-m", "explorer", "evaluate", "--limit", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "whole number" in done.stderr
