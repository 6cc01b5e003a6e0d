"""A project folder loses at most the entry that is damaged, and nothing of what was kept before a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from explorer.errors import ProjectError
from explorer.recipe import PRESETS, Recipe
from explorer.sources import Project
from explorer.sources.project import MOST_TABS, pack
from explorer.study import Outcome, Trial

KEY, TAB = "0" * 32, "f" * 32
ABOUT = {"model": "net", "data": "images"}
NAMES = list(PRESETS)


def trial(number: int, images: int = 400, name: str = "") -> Trial:
    """A trial that is told from others by its number."""
    recipe = Recipe.preset("w8a8").with_layer(f"layer{number}", weight={"format": "int4"})
    flips = tuple(range(number % 7))
    outcome = Outcome(
        images, 1000, False, 0.9, (0.88, 0.92), 0.91, -0.01, (-0.02, 1e-9 / 3), 0.1, (5,), flips
    )
    return Trial(recipe, 1000 + number, 4000, 10, 40, outcome, float(number), name, float(bool(name)))


def project(folder: Path, key: str = KEY) -> Project:
    return Project(folder, key, ABOUT)


def found(folder: Path, key: str = KEY) -> dict[str, Trial]:
    return {each.digest: each for each in project(folder, key).trials()}


@pytest.mark.parametrize("preset", NAMES)
def test_what_is_kept_is_found_again(tmp_path: Path, preset: str) -> None:
    recipe = (
        Recipe.preset(preset)
        .with_layer("b*", weight={"format": "int4"})
        .with_layer("a", input={"mode": "off"})
    )
    kept = replace(trial(1, name="ein Name “mit” <b>"), recipe=recipe)
    project(tmp_path).keep(kept)
    project(tmp_path).keep(replace(kept, recipe=Recipe.preset(preset), outcome=None))
    assert found(tmp_path)[kept.digest] == kept
    assert len(found(tmp_path)) == 2 and not found(tmp_path, "1" * 32)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_costs_the_damaged_entries_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Keep some, damage some files in any way, read, keep again: all others are as they were."""
    folder = tmp_path_factory.mktemp("project")
    numbers = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True))
    kept = {trial(number).digest: project(folder).keep(trial(number)) for number in numbers}
    files = sorted((folder / KEY / "trials").glob("*.json"))
    damaged = data.draw(st.lists(st.sampled_from(files), unique=True))
    for file in damaged:
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            del content[place:]
        else:
            before = content[place]
            content[place] ^= data.draw(st.integers(1, 255))
            # Between the values of JSON one white space is as good as another.
            assume(not bytes([before, content[place]]).isspace())
        file.write_bytes(content)
    whole = {digest: each for digest, each in kept.items() if digest not in {file.stem for file in damaged}}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert found(folder) == whole
        assert len(told) == len(damaged)
        for number in numbers:
            assert project(folder).keep(trial(number)) == trial(number)
        assert {d: t for d, t in found(folder).items() if d in whole} == whole
    names = {path.name for path in (folder / KEY / "trials").iterdir()}
    assert names >= {file.name for file in files}


def test_another_version_is_left_as_it_is(tmp_path: Path) -> None:
    kept = project(tmp_path).keep(trial(1))
    file = tmp_path / KEY / "trials" / f"{kept.digest}.json"
    newer = file.read_text().replace('"version": 1', '"version": 2', 1)
    file.write_text(newer)
    with pytest.warns(RuntimeWarning, match="it has version 2, this program reads version 1"):
        assert not found(tmp_path)
    assert file.read_text() == newer


@pytest.mark.parametrize(
    "body", [[], {}, {"recipe": 1, "outcome": None}, {**trial(1).to_dict(), "colour": 1}, trial(2).to_dict()]
)
def test_an_entry_that_is_none_is_put_aside_and_told_of_once(tmp_path: Path, body: object) -> None:
    project(tmp_path)
    file = tmp_path / KEY / "trials" / f"{trial(1).digest}.json"
    file.write_text(pack(body))
    with pytest.warns(RuntimeWarning, match="put aside"):
        assert not found(tmp_path)
    assert not found(tmp_path) and not file.exists()


def test_of_two_that_keep_the_same_configuration_the_better_known_wins(tmp_path: Path) -> None:
    one, other = project(tmp_path), project(tmp_path)
    one.keep(trial(1, 1000))
    other.keep(replace(trial(1, 400), time=99.0))
    assert found(tmp_path)[trial(1).digest] == trial(1, 1000)
    one.keep(replace(trial(1, 1000), name="mine", named=5.0))
    assert other.keep(trial(1, 600)).name == "mine"
    other.keep(replace(trial(1, 600), name="", named=6.0))
    assert found(tmp_path)[trial(1).digest].name == ""


# A process that makes writers and kills each of them in the middle of its work; it says what they had told.
KILLER = """
import json, os, random, signal, sys, time
from tests.sources.test_project import TAB, project, trial
for attempt in range(8):
    folder = os.path.join(sys.argv[1], str(attempt))
    reading, writing = os.pipe()
    writer = os.fork()
    if not writer:
        kept, recipes = project(folder), []
        for number in range(100000):
            kept.keep(trial(number))
            recipes.append(trial(number).recipe)
            kept.keep_steps(TAB, recipes[-9:], len(recipes[-9:]) - 1)
            os.write(writing, b"%d\\n" % number)
    os.close(writing)
    told = os.read(reading, 1)
    time.sleep(random.random() * 0.1)
    os.kill(writer, signal.SIGKILL)
    assert os.waitpid(writer, 0)[1] == signal.SIGKILL
    while more := os.read(reading, 1 << 16):
        told += more
    print(told.split()[-1].decode(), flush=True)
"""


def test_a_kill_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    """What a writer has told of is there after a kill at any time; what is left of a write is no entry."""
    root = Path(__file__).parents[2]
    surroundings = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)],
        capture_output=True, text=True, cwd=root, env=surroundings, timeout=120,
    )  # fmt: skip
    assert (done.stderr, done.returncode) == ("", 0)
    for attempt, told in enumerate(map(int, done.stdout.split())):
        folder = tmp_path / str(attempt)
        assert set(found(folder)) >= {trial(number).digest for number in range(told + 1)}
        steps = project(folder).steps(TAB)
        assert steps is not None and trial(told).recipe in steps[0]
        assert steps[0][steps[1]] in [trial(told).recipe, trial(told + 1).recipe]


def test_steps_belong_to_their_tab(tmp_path: Path) -> None:
    recipes = [trial(number).recipe for number in range(4)]
    kept = project(tmp_path)
    assert kept.steps(TAB) is None
    kept.keep_steps(TAB, recipes, 2)
    kept.keep_steps("a" * 32, recipes[:1], 0)
    assert project(tmp_path).steps(TAB) == (recipes, 2)
    assert project(tmp_path).steps("a" * 32) == (recipes[:1], 0)
    assert project(tmp_path, "1" * 32).steps(TAB) is None
    kept.keep_steps(TAB, recipes[1:2], 0)
    assert len(list((tmp_path / KEY / "steps" / TAB).iterdir())) == 2


def test_a_damaged_step_costs_that_step(tmp_path: Path) -> None:
    recipes = [trial(number).recipe for number in range(4)]
    project(tmp_path).keep_steps(TAB, recipes, 2)
    folder = tmp_path / KEY / "steps" / TAB
    (folder / f"{recipes[1].digest}.json").write_text("{")
    with pytest.warns(RuntimeWarning, match="put aside"):
        assert project(tmp_path).steps(TAB) == ([recipes[0], *recipes[2:]], 1)
    for index in ({"recipes": ["../../etc"], "at": 0}, {"recipes": 5, "at": 0}, {"at": 0}, []):
        (folder / "steps.json").write_text(pack(index))
        with pytest.warns(RuntimeWarning, match="put aside"):
            assert project(tmp_path).steps(TAB) is None


@pytest.mark.parametrize("owner", ["", "..", "../" * 6 + "etc", "g" * 32, "a" * 7, "a" * 65, "A" * 32])
def test_an_owner_is_a_digest_and_no_path(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ProjectError, match="not the digest of a browser tab"):
        project(tmp_path).steps(owner)


def test_the_tabs_of_long_ago_are_forgotten(tmp_path: Path) -> None:
    kept = project(tmp_path)
    for number in range(MOST_TABS + 2):
        owner = f"{number:032x}"
        kept.keep_steps(owner, [trial(1).recipe], 0)
        path = tmp_path / KEY / "steps" / owner / "steps.json"
        if path.exists():
            os.utime(path, (number, number))
    left = [kept.steps(f"{number:032x}") is not None for number in range(MOST_TABS + 2)]
    assert left == [False] * 2 + [True] * MOST_TABS


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectError, match=r"'.*file' cannot be used: "):
        project(tmp_path / "file")
    read = json.loads((tmp_path / "p" / KEY / "about.json").read_text()) if project(tmp_path / "p") else {}
    assert read == ABOUT


def test_a_full_disk_stops_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = project(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="was not written: No space"):
        assert kept.keep(trial(1)) == trial(1)
    assert kept.problems and not found(tmp_path)
