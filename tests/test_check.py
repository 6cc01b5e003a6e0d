"""Checks for a build server: the verdict, how often it errs although it looks early, exit codes, JSON and XML."""

from __future__ import annotations

import itertools
import json
from collections import deque
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import explorer as qx
from explorer.cli import main
from explorer.errors import ExplorerError
from explorer.sources import junit
from explorer.study import check_steps, paired
from explorer.study.check import EARLY, EXCLUDED, MINIMUM_IMAGES, UNDECIDED, verdict
from explorer.study.evaluate import Evaluation
from tests.small import TinyNet, images
from tests.test_cli import folder as folder
from tests.test_cli import of

shares = st.floats(-1, 1, allow_nan=False)


def seen(won: int, lost: int, count: int, total: int) -> Evaluation:
    """An evaluation of which only the flips matter."""
    half = count // 2
    return Evaluation(
        model="", data="", recipe="", images=count, total_images=total, complete=count >= total, agreement=False,
        top1=0.5, top1_interval=(0, 1), top1_float=half / count, delta=(won - lost) / count,
        delta_interval=paired(won, lost, count), won=won, lost=lost, loss=None, loss_float=None, kl=0.0,
        kl_interval=(0, 0), output_sqnr_db=0.0, size_bytes=1, size_bytes_float=1, bops=1, bops_float=1, layers=(),
    )  # fmt: skip


@given(shares, shares, st.floats(0, 0.99))
def test_a_verdict_is_where_the_interval_lies(one, other, drop):
    low, high = min(one, other), max(one, other)
    found = verdict((low, high), drop)
    assert (found == "established") == (high < -drop)
    assert (found == "excluded") == (low > -drop and not high < -drop)


def errs(drop: float, runs: int, ends: tuple[int, ...]) -> float:
    """The share of checks that take a drop that is just the one allowed for a larger or for a smaller one."""
    generator, wrong = np.random.default_rng(0), 0
    won, total = 0.02, ends[-1]
    for _ in range(runs):
        drawn = generator.choice([1, -1, 0], total, p=[won, won + drop, 1 - 2 * won - drop])
        wins, losses = (np.cumsum(drawn == sign) for sign in (1, -1))
        evaluations = (seen(int(wins[end - 1]), int(losses[end - 1]), end, total) for end in ends)
        wrong += deque(check_steps(evaluations, drop), maxlen=1)[0].decided
    return wrong / runs


def test_looking_early_errs_no_more_often_than_is_said():
    runs = 1500
    share = errs(0.01, runs, (200, 400, 800, 1600, 3200))
    # 5%, and 0.1% for each of four early looks; three standard errors of a simulation.
    assert share <= 0.054 + 3 * (0.054 * 0.946 / runs) ** 0.5
    assert share >= 0.03


def test_an_early_look_is_strict_and_seldom():
    steps = list(check_steps((seen(0, k // 20, k, 6400) for k in range(100, 6500, 100)), 0.05))
    looks = [step for step in steps if step.evaluation.images in (200, 400, 800, 1600, 3200)]
    assert all(step.confidence == EARLY for step in looks) and steps[-1].confidence == 0.95
    assert all(step.verdict == UNDECIDED for step in steps[:-1])


def test_it_ends_where_it_is_decided():
    steps = list(check_steps((seen(0, 0, k, 10**5) for k in range(100, 10**5, 100)), 0.05))
    last = steps[-1]
    assert last.verdict == EXCLUDED and last.evaluation.images == MINIMUM_IMAGES * 2
    assert [step.decided for step in steps] == [False] * (len(steps) - 1) + [True]


def test_it_says_how_many_images_would_decide():
    (found,) = check_steps([seen(10, 18, 1000, 1000)], 0.0)
    assert found.verdict == UNDECIDED and found.images_needed > 1000
    assert f"about {found.images_needed:,} images" in found.sentence
    (luck,) = check_steps([seen(5, 5, 1000, 1000)], 0.0)
    assert luck.images_needed is None and "neither" in luck.sentence


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan"), "0.5", True])
def test_a_drop_that_is_none(drop):
    session = qx.Session(TinyNet().eval(), data=images())
    with pytest.raises(ExplorerError, match="from 0 to below 1"):
        session.check(drop)


def test_without_labels_it_is_the_agreement():
    session = qx.Session(TinyNet().eval(), data=images()[0])
    found = session.check(0.9, "w8a8")
    assert found.evaluation.agreement and "agreement with the float network" in found.sentence


CASES = {0: ["--max-drop", "60"], 1: ["--recipe", "binary", "--max-drop", "0"], 3: ["--max-drop", "1"]}


@pytest.mark.parametrize("code", CASES)
def test_exit_codes(folder, tmp_path, capsys, code):
    files = ["--json", f"{tmp_path}/out.json", "--junit", f"{tmp_path}/out.xml"]
    data = ["--model", f"{folder}/mine.py:flat", "--data", f"{folder}/mine.py:unlabelled"]
    assert main(["check", *data, "--limit", "300", *CASES[code], *files]) == code
    printed = capsys.readouterr()
    assert printed.err == ""  # no bar where nobody watches
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["exit_code"] == code and printed.out.strip() == out["sentence"]
    low, high = out["interval"]
    assert code == (1 if high < -out["max_drop"] else 0 if low > -out["max_drop"] else 3)
    root = ElementTree.parse(tmp_path / "out.xml").getroot()
    (case,) = root.iter("testcase")
    kinds = {0: ["system-out"], 1: ["failure", "system-out"], 3: ["error", "system-out"]}
    assert [each.tag for each in case] == kinds[code]
    assert [root.get(key) for key in ("tests", "failures", "errors")] == [
        "1",
        str(int(code == 1)),
        str(int(code == 3)),
    ]


@pytest.mark.parametrize("points", ["-1", "100", "nan"])
def test_bad_points(folder, capsys, points):
    assert main(["check", *of(folder), f"--max-drop={points}"]) == 2
    assert "--max-drop is in points" in capsys.readouterr().err


@given(st.text(), st.text(), st.text())
def test_any_text_is_readable_as_xml(suite, name, sentence):
    root = ElementTree.fromstring(junit(suite, name, sentence, 1.0, failure="x", properties={"p": name}))
    assert len(list(itertools.chain(root.iter("failure"), root.iter("property")))) == 2
