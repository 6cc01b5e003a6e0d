"""Leaving calibration images out, against calibrating anew without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import explorer as qx
from explorer.errors import DataError, LayerError, SchemeError
from explorer.graph import Batch, Calibration
from explorer.study import jackknife as study
from explorer.study.jackknife import settled, standard_error
from explorer.subject import Subject, make_subject
from explorer.tensor import as_scheme
from tests.small import images, tiny
from tests.strategies import GOALS

COUNT = 40


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(tiny(), data=images(), calibration_images=COUNT, store_bytes=1 << 24)


@pytest.fixture
def session(subject: Subject) -> qx.Session:
    return qx.Session(subject=subject)


def calibrated(subject: Subject, scheme: object, left_out: tuple[int, ...], first: int = COUNT):
    """The range from a calibration of its own without some of the images."""

    def batches():
        seen = 0
        for examples in subject.calibration_stream.batches(COUNT):
            kept = [
                at
                for at, number in enumerate(examples.indices)
                if number not in left_out and seen + at < first
            ]
            seen += len(examples.indices)
            if kept:
                yield Batch.of(examples.batch.images[kept])

    alone = Calibration(subject.engine, subject.floats, batches)
    return [end.double().numpy() for end in alone.params(subject.graph.by_layer["mid"], 0, scheme).clip]


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("goal", GOALS)
def test_what_is_left_out_is_as_if_it_had_never_been_there(session, monkeypatch, goal, granularity):
    monkeypatch.setattr(study, "MOST_BLOCKS", 6)
    fields = {"format": "uint8", "granularity": granularity, "symmetric": False, "objective": goal}
    scheme = as_scheme(fields)
    *_, found = session.jackknife_steps("mid", 0, scheme)
    assert sorted(n for part in found.parts for n in part) == sorted(
        n for batch in session.subject.calibration_stream.batches(COUNT) for n in batch.indices
    )
    for at, part in list(enumerate(found.parts))[:: 1 + len(found.parts) // 5]:
        low, high = calibrated(session.subject, scheme, part)
        np.testing.assert_array_equal(found.low_without[at], low)
        np.testing.assert_array_equal(found.high_without[at], high)
    for at in (0, len(found.counts) // 2, -1):
        low, high = calibrated(session.subject, scheme, (), first=int(found.counts[at]))
        np.testing.assert_array_equal(found.low_with[at], low)
        np.testing.assert_array_equal(found.high_with[at], high)
    first, group = found.influences[0], found.widest_error
    ends = calibrated(session.subject, scheme, (first.image,))
    moved = max(abs(ends[0][group] - found.low[group]), abs(ends[1][group] - found.high[group]))
    assert first.moved == pytest.approx(moved / found.width[group])
    assert [each.moved for each in found.influences] == sorted(
        (each.moved for each in found.influences), reverse=True
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_the_error_of_a_mean_is_the_usual_one(numbers):
    values = np.array(numbers)
    without = np.array([np.delete(values, at).mean() for at in range(len(values))])
    usual = values.std(ddof=1) / np.sqrt(len(values))
    assert standard_error(without[:, None])[0] == pytest.approx(usual, abs=1e-9)


def test_settled_is_the_last_time_it_was_away():
    assert settled(np.array([[0.0], [0.0]]), 0.05) == 0
    assert settled(np.array([[0.0, 0.2], [0.0, 0.0]]), 0.05) == 1


def one_outlier(where: int, count: int = COUNT) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = images(count)
    x = x.clamp(-2, 2)
    x[where] *= 20
    return x, y


@pytest.mark.parametrize("goal", ["minmax", "mse"])
def test_the_image_that_sets_the_range_is_found(goal):
    session = qx.Session(tiny(), data=one_outlier(7), store_bytes=1 << 24)
    scheme = {"format": "uint8", "granularity": "layer", "symmetric": False, "objective": goal}
    found = session.jackknife("stem", 0, scheme)
    assert found.influences[0].image == 7 and found.influences[0].moved > 0.4
    assert found.influences[0].maximum == pytest.approx(found.high[0], rel=0.3)
    assert found.relative_error[0] > 0.3
    order = [n for batch in session.subject.calibration_stream.batches() for n in batch.indices]
    # It settles when the outlier has come, and not before.
    assert found.needed() >= order.index(7) + 1
    calm = qx.Session(tiny(), data=(images()[0].clamp(-2, 2), images()[1]), store_bytes=1 << 24)
    assert calm.jackknife("stem", 0, scheme).relative_error[0] < 0.05


def test_orders_are_shuffled_for_extremes_only(session):
    scheme = {"format": "uint8", "granularity": "layer", "symmetric": False}
    found = session.jackknife("mid", 0, {**scheme, "objective": "minmax"})
    low, middle, high = found.needed_in_other_orders()
    assert 1 <= low <= middle <= high <= COUNT and found.unit == "image"
    found = session.jackknife("mid", 0, {**scheme, "objective": "mse"})
    assert found.needed_in_other_orders() is None and found.unit == "block"
    plain = found.to_dict()
    assert plain["needed"] == found.needed() and len(plain["influences"]) == len(found.influences)


def test_what_no_image_sets_is_refused(session):
    with pytest.raises(SchemeError, match="mode: static"):
        session.jackknife("mid", 0, {"format": "int8", "granularity": "layer", "mode": "dynamic"})
    with pytest.raises(SchemeError, match="not at the values alone"):
        session.jackknife("mid", 0, {"format": "uint8", "granularity": "layer", "objective": "output"})
    with pytest.raises(SchemeError, match="no range"):
        session.jackknife("mid", 0, "fp16")
    with pytest.raises(DataError, match="at least two"):
        session.jackknife("mid", images=1)
    with pytest.raises(LayerError, match="no number 2"):
        session.jackknife("mid", 2)
