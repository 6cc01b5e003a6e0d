"""The number line: what goes to each level, and where the error comes from, against loops by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import explorer as qx
from explorer.errors import LayerError, SchemeError
from explorer.formats import FORMATS
from explorer.recipe import TensorScheme
from explorer.study import ErrorSums
from explorer.study.grouped import Grouped, grouped_weight
from explorer.study.numberline import number_line
from explorer.study.rivals import TOLERANCE, bits_per_value
from tests import strategies
from tests.laws.cases import TENSORS
from tests.small import images, tiny

SCHEMES = [scheme for scheme in strategies.SCHEMES if not scheme.off and scheme.granularity != "token"]
# Each scheme meets one tensor, and each tensor several schemes.
CASES = [
    (scheme, strategies.TENSOR_KINDS[i % len(strategies.TENSOR_KINDS)]) for i, scheme in enumerate(SCHEMES)
]


def of(scheme: TensorScheme, name: str) -> Grouped:
    return grouped_weight("here", TENSORS[name], 0, scheme)


@pytest.fixture(scope="module")
def session() -> qx.Session:
    return qx.Session(tiny(), data=images(), store_bytes=1 << 24)


@pytest.mark.parametrize(
    ("scheme", "name"), CASES, ids=[f"{strategies.label(s)} {name}" for s, name in CASES]
)
def test_masses_and_errors_add_up(scheme, name):
    """All elements are somewhere, and all error belongs to a level, to a bin, and to clipping or rounding."""
    plain = TENSORS[name]
    tensor = of(scheme, name)
    whole = number_line(tensor)
    sums = ErrorSums.of(plain, qx.fake_quantize(plain, scheme))
    assert whole.elements == whole.mass.sum() == whole.counts.sum() == plain.numel()
    assert whole.error == pytest.approx(sums.noise, rel=1e-5, abs=1e-30)
    assert whole.rounding.sum() + whole.clipping.sum() == pytest.approx(whole.error, rel=1e-9, abs=1e-30)
    assert whole.sqnr_db == pytest.approx(sums.sqnr_db, abs=1e-3) or sums.noise == 0
    assert whole.used + whole.unused == len(whole.levels)
    assert (np.diff(whole.levels) > 0).all()
    if whole.groups > 1:
        parts = [number_line(tensor, group) for group in range(whole.groups)]
        assert sum(part.elements for part in parts) == whole.elements
        assert sum(part.clipped for part in parts) == whole.clipped
        assert sum(part.error for part in parts) == pytest.approx(whole.error, rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("name", ["int3", "uint4", "fp4_e2m1", "nf4", "log4", "apot5", "fp16"])
def test_each_value_goes_to_the_nearest_level(name):
    """Against a search over all levels in float64, value by value."""
    torch.manual_seed(0)
    plain = torch.randn(3, 50)
    grain, symmetric = ("channel", name != "uint4") if FORMATS[name].scaled else ("channel", True)
    scheme = TensorScheme(name, grain, symmetric=symmetric, objective="percentile:95")
    tensor = grouped_weight("here", plain, 0, scheme)
    group = 1 if FORMATS[name].scaled else 0
    line = number_line(tensor, group)
    mass, error, clipped = np.zeros(len(line.levels)), np.zeros(len(line.levels)), 0.0
    for value in (plain[1] if FORMATS[name].scaled else plain.flatten()).double().tolist():
        place = int(np.abs(line.levels - value).argmin())
        mass[place] += 1
        error[place] += (line.levels[place] - value) ** 2
        if FORMATS[name].scaled and not line.levels[0] - 1e-6 <= value <= line.levels[-1] + 1e-6:
            clipped += (line.levels[place] - value) ** 2
    assert line.mass.tolist() == mass.tolist()
    assert line.squared_error == pytest.approx(error, rel=1e-4, abs=1e-12)
    assert line.clipping.sum() == pytest.approx(clipped, rel=1e-4)
    assert (clipped > 0) == FORMATS[name].scaled


def test_of_a_session(session):
    layer = session.layers().set_index("name")
    for name in session.layer_names:
        assert session.number_line(name).sqnr_db == pytest.approx(layer.weight_sqnr_db[name], abs=1e-3)
        static = session.number_line(name, "input")
        assert static.sqnr_db == pytest.approx(session.histogram(name, "input").sqnr_db, abs=1e-3)
        assert not static.exact
        dynamic = session.number_line(
            name, "input", {"format": "int8", "granularity": "layer", "mode": "dynamic"}
        )
        assert dynamic.groups == dynamic.elements / dynamic.counts.sum() * dynamic.groups > 1
    with pytest.raises(SchemeError, match="stays in float32, so there are no levels"):
        session.number_line("fc", scheme="fp32")
    with pytest.raises(LayerError, match="4 groups under 'channel', numbered from 0; there is no group 4"):
        session.number_line("fc", group=4)


@pytest.mark.parametrize("tensor", ["weight", "input"])
def test_formats_at_equal_bits(session, tensor):
    session.edit(["mid"], weight={"format": "int4"}, input={"format": "uint4"})
    table = session.formats("mid", tensor)
    present = table[table.present].iloc[0]
    assert present.format == ("int4" if tensor == "weight" else "uint4")
    assert (abs(table.bits_per_value - present.bits_per_value) <= TOLERANCE).all()
    assert table.sqnr_db.is_monotonic_decreasing
    assert {"fp4_e2m1", "nf4", "log4", "apot4"} <= set(table.format)
    for row in table.itertuples():
        scheme = {"format": row.format, "granularity": row.granularity, "symmetric": row.symmetric}
        scheme["objective"] = row.objective
        line = session.number_line("mid", tensor, scheme)
        assert (line.sqnr_db, line.used) == (row.sqnr_db, row.used_levels)
    other = session.formats("mid", tensor, bits=8)
    assert (abs(other[~other.present].bits_per_value - 8) <= TOLERANCE).all()
    session.undo()


def test_formats_for_ranges_that_come_with_each_position(session):
    """Levels that are fitted beforehand cannot be; the others keep the granularity."""
    session.edit(["mid"], input=TensorScheme("ternary", "token", mode="dynamic"))
    table = session.formats("mid", "input")
    assert set(table.granularity[~table.format.isin(["fp16", "bf16"])]) == {"token"}
    assert "ternary" in set(table.format) and not any(table.format.str.startswith("kmeans"))
    session.undo()


def test_bits_count_scales_and_zero_points():
    """A (8, 40) weight: blocks of 32 and 8, so two scales a channel."""
    sizes = {
        ("int4", True): 4 + 16 * 32 / 320,
        ("uint4", False): 4 + 16 * 36 / 320,
        ("fp16", True): 16.0,
    }
    for (name, symmetric), bits in sizes.items():
        assert bits_per_value(TensorScheme(name, "subchannel:32", symmetric), (8, 40), 0) == pytest.approx(
            bits
        )


@pytest.mark.parametrize("bits", [0, -1, math.nan, math.inf, "4", True])
def test_bits_are_a_number(session, bits):
    with pytest.raises(SchemeError, match="The bits for a value are a number above 0"):
        session.formats("fc", bits=bits)
