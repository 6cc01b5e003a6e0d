"""The notebook that is shipped runs, and what it says is so."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.notebook
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What the notebook says in words, and what must then be true of its numbers.
CLAIMS = {
    "The network falls to chance": "collapsed.top1_interval[1] < 0.2 and collapsed.top1_float > 0.88",
    "marked by a tilde": "set(table['method']) == {'instant'}",
    "A handful of layers does nearly all the harm": "table['value'].head(3).sum() > 0.95 * table['value'].sum()",
    "the guiltiest layer does not have the lowest one": "table['weight_sqnr_db'].idxmin() != table.index[0]",
    "One layer is enough to destroy the network": "one_layer.top1_interval[1] < 0.3",
    "Its channels have very different ranges": "channels.ratio > 50",
    "and they share one scale": "channels.shared >= len(channels)",
    "Most of them are left with the values -1, 0 and 1 step": "channels.starved > len(channels) / 2",
    "the SQNR of the whole weight does not show it": "line.sqnr_db > 15",
    "grey ones are not used": "line.unused > 0",
    "nothing is\nclipped, all error is from rounding": "line.clipped_fraction == 0 and line.clipping_share == 0",
    "In the three guiltiest layers": "len(guilty) == 3 and few.delta_interval[0] > -0.1",
    "By top-1 these images do not tell the two apart": "not compared.distinguishable",
    "by the divergence from the float network they do": "compared.kl_interval[1] < 0",
    "three layers buy nearly all of the accuracy": "few.top1 - collapsed.top1 > 0.9 * (all_.top1 - collapsed.top1)",
    "at half a kilobyte": "400 < few.size_bytes - collapsed.size_bytes < 700",
}


def make() -> ModuleType:
    """The script that writes the outputs."""
    spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shipped() -> Any:
    return nbformat.read(DOCS / "explore.ipynb", as_version=4)


def kinds(cell: Any) -> list[str]:
    """What the outputs of a cell are; a live figure and its picture are the same."""
    return [
        "figure"
        if output.get("data", {}).get("text/plain", "").startswith("Drawing(")
        else output.output_type
        for output in cell.get("outputs", [])
    ]


def test_the_outputs_are_there_and_small(shipped: Any) -> None:
    nbformat.validate(shipped)
    code = [cell for cell in shipped.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run all cells, in order"
    text = (DOCS / "explore.ipynb").read_text(encoding="utf-8")
    assert len(text) < 400_000 and "<script" not in text
    pictures = [data for data in make().figures(shipped) if "image/png" in data]
    assert len(pictures) == 3 == text.count('"image/png"')


def test_the_notebook_runs_and_its_words_are_true(shipped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prose = "\n".join(cell.source for cell in shipped.cells if cell.cell_type == "markdown")
    missing = [words for words in CLAIMS if words not in prose]
    assert not missing, "what is checked here is said there"
    fresh = copy.deepcopy(shipped)
    checks = "\n".join(f"print({words!r}, bool({check}), sep='=')" for words, check in CLAIMS.items())
    fresh.cells.append(nbformat.v4.new_code_cell(checks))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make().execute(fresh)
    said = "".join(output.text for output in fresh.cells[-1].outputs)
    wrong = [words for words in CLAIMS if f"{words}=True" not in said]
    assert not wrong, said
    assert [kinds(cell) for cell in fresh.cells[:-1]] == [kinds(cell) for cell in shipped.cells], (
        "docs/make_notebook.py writes the outputs again"
    )
