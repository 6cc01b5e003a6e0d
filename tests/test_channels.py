"""Channels of weights and inputs against each channel looked at by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import explorer as qx
from explorer.errors import LayerError
from explorer.recipe import TensorScheme
from explorer.study import weight_channels
from explorer.subject import Subject, make_subject
from explorer.tensor import as_scheme, fit_tensor
from tests.small import images, tiny
from tests.strategies import SCHEMES, fixed_tensors, label, tensors


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(tiny(), data=images(), store_bytes=1 << 24)


@pytest.fixture
def session(subject: Subject) -> qx.Session:
    return qx.Session(subject=subject)


def channels_of(weight: torch.Tensor, scheme: TensorScheme, axis: int = 0):
    params = fit_tensor(weight, scheme, axis) if scheme.scaled else None
    return weight_channels("fc", scheme, weight, params, axis)


@settings(max_examples=60, deadline=None)
@given(
    weight=tensors(dims=(1, 3)),
    scheme=st.sampled_from(
        [
            {"format": "int8", "granularity": "layer"},
            {"format": "int4", "granularity": "channel"},
            {"format": "uint5", "granularity": "group:2", "symmetric": False},
            {"format": "int4", "granularity": "subchannel:3"},
            {"format": "fp4_e2m1", "granularity": "channel"},
            {"format": "int4", "granularity": "layer", "objective": "percentile:90"},
            "bf16",
            "fp32",
        ]
    ),
    axis=st.integers(0, 2),
)
def test_each_channel_is_what_it_is_by_itself(weight, scheme, axis):
    axis, scheme = axis % weight.dim(), as_scheme(scheme)
    found = channels_of(weight, scheme, axis)
    whole = qx.quantize(weight, scheme, axis)
    after, codes = whole.values(), whole.codes
    assert len(found) == weight.shape[axis]
    for at in range(weight.shape[axis]):
        x, y, code = (part.select(axis, at).numpy().ravel() for part in (weight, after, codes))
        assert found.minimum[at] == x.min() and found.maximum[at] == x.max()
        np.testing.assert_allclose(
            found.quantiles[at], np.quantile(x, [0.01, 0.25, 0.5, 0.75, 0.99]), rtol=1e-5, atol=1e-5
        )
        noise = float(((x.astype(float) - y) ** 2).sum())
        if noise:
            assert found.sqnr_db[at] == pytest.approx(10 * math.log10((x.astype(float) ** 2).sum() / noise))
        else:
            assert found.sqnr_db[at] == math.inf
        distinct = len(np.unique(code)) if scheme.scaled else len(np.unique(y))
        assert found.codes[at] == distinct and found.bits[at] == pytest.approx(math.log2(distinct))


@pytest.mark.parametrize("scheme", SCHEMES, ids=label)
def test_every_scheme_has_channels(scheme):
    if scheme.granularity == "token":
        return
    found = channels_of(fixed_tensors()["convolution"], scheme)
    assert len(found) == 5 and (found.codes >= 1).all() and not np.isnan(found.sqnr_db).any()
    if scheme.scaled:
        assert (
            (found.clip_low <= 0).all()
            and (found.clip_high >= 0).all()
            and (found.codes <= found.available).all()
        )


def test_the_range_of_a_channel_is_that_of_its_group():
    weight = torch.tensor([[1.0, -2.0], [0.1, 0.2], [0.03, 0.0], [0.0, 0.0]])
    one = channels_of(weight, TensorScheme("int8", "layer"))
    assert one.ratio == pytest.approx(2 / 0.03) and one.shared == 4
    np.testing.assert_allclose(one.clip_high, np.full(4, 2.0), rtol=1e-6)
    each = channels_of(weight, TensorScheme("int8", "channel"))
    assert each.shared == 1 and each.starved == 0
    np.testing.assert_allclose(each.clip_high, [2.0, 0.2, 0.03, 127.0], rtol=1e-6)
    pairs = channels_of(weight, TensorScheme("int4", "group:2"))
    assert pairs.shared == 2 and pairs.starved == 1  # 0.2 is less than a step and a half of 2/7
    np.testing.assert_allclose(pairs.clip_high[:3], [2.0, 2.0, 0.03], rtol=1e-6)
    blocks = channels_of(torch.tensor([[0.1, 0.3, 4.0, -1.0]]), TensorScheme("int8", "subchannel:2"))
    np.testing.assert_allclose([blocks.clip_high[0], blocks.scale[0]], [4.0, 4 / 127], rtol=1e-6)


def test_what_lies_outside_of_the_range_is_counted():
    weight = torch.cat([torch.linspace(-1, 1, 99), torch.tensor([50.0])]).reshape(1, -1)
    found = channels_of(weight, TensorScheme("int8", "channel", objective="percentile:99"))
    assert found.clipped[0] == pytest.approx(0.01)


@pytest.mark.parametrize("granularity", ["layer", "channel", "group:2"])
def test_inputs_come_from_the_calibration_images(session, granularity):
    scheme = {"format": "uint8", "granularity": granularity, "symmetric": False, "objective": "minmax"}
    found = session.channels("mid", "input", scheme)
    batches = [batch.images for batch in session.subject.calibration_batches()]
    source = session.graph.by_layer["mid"].inputs[0]
    values = torch.cat(
        [
            session.engine.run(session.subject.floats, batch, [source])[source]
            for batch in session.subject.calibration_batches()
        ]
    )
    assert sum(map(len, batches)) == 90 and not found.exact
    rows = values.movedim(1, 0).flatten(1)
    np.testing.assert_allclose(found.minimum, rows.amin(1))
    np.testing.assert_allclose(found.maximum, rows.amax(1))
    # The bins are fine, so what they say of the error comes near to what the values say.
    after = qx.fake_quantize(values, scheme, axis=1).movedim(1, 0).flatten(1)
    exact = 10 * torch.log10(rows.square().sum(1) / (rows - after).square().sum(1))
    np.testing.assert_allclose(found.sqnr_db, exact, atol=0.4)


def test_ranges_that_come_with_each_example_have_no_clip_of_their_own(session):
    found = session.channels("mid", "input", {"format": "int8", "granularity": "layer", "mode": "dynamic"})
    assert np.isnan(found.clip_high).all() and np.isnan(found.codes).all()
    assert (found.sqnr_db > 20).all() and found.shared == 0


def test_the_table_has_a_row_for_each_channel(session):
    table = session.channels("fc").table()
    assert list(table["channel"]) == [0, 1, 2, 3]
    assert {"minimum", "q1", "q50", "q99", "maximum", "clip_low", "scale", "bits", "sqnr_db"} <= set(table)


def test_a_tensor_that_is_not_there_is_refused(session):
    with pytest.raises(LayerError, match="Did you mean 'weight'"):
        session.channels("fc", "weigth")
    with pytest.raises(LayerError, match="no number 3"):
        session.channels("fc", "input", index=3)
