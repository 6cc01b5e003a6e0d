"""The shipped networks reach on all 10,000 test images what data/README.md says of them."""

from __future__ import annotations

import re

import pytest

import explorer as qx
from explorer.sources import ZOO
from explorer.sources.files import data_folder

LEAST = {
    "fashion-resnet20": 0.94,
    "fashion-mobilenet": 0.935,
    "fashion-vit": 0.91,
    "fashion-lenet5": 0.91,
    "fashion-lenet300": 0.90,
}


def test_every_network_has_a_bound():
    assert set(LEAST) == set(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_accuracy_is_the_recorded_one(name):
    text = (data_folder() / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {name} \| [\d,]+ \| ([\d.]+)% \|$", text, re.MULTILINE)
    assert row, f"data/README.md does not say what {name} reaches"
    found = qx.Session(model=name, recipe="fp32", store_bytes=1 << 28).evaluate()
    assert found.images == 10_000
    # Two images may fall to the other side where another processor rounds differently.
    assert found.top1 == pytest.approx(float(row[1]) / 100, abs=2.1e-4)
    assert found.top1 >= LEAST[name]
