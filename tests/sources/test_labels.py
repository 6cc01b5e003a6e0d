"""Labels are the network's own numbers, or there is one sentence that names both counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from explorer import cli
from explorer.errors import DataError
from explorer.sources import ArrayData, FolderData, LoadedModel, Preprocess, fit_labels, load_data
from explorer.sources.labels import wnids
from explorer.subject import make_subject


def pictures(root: Path, *classes: str, count: int = 2) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.full((6, 6, 3), 40 * number + index, np.uint8)).save(
                root / name / f"{index}.png"
            )
    return root


def labels(data: object) -> list[int]:
    found = data.read(range(len(data))).labels
    assert found is not None
    assert found.tolist() == list(data.targets())
    return found.tolist()


def test_folders_named_as_the_network_names_its_classes(tmp_path: Path) -> None:
    data = load_data(pictures(tmp_path, "Cat", "house_dog", "tench"))
    classes = ("cow", "tench, Tinca tinca", "cat", "goat", "house dog")
    fitted, how = fit_labels(data, classes, 5)
    assert labels(fitted) == [2, 2, 4, 4, 1, 1]
    assert (fitted.classes, fitted.name, how) == (
        classes, data.name, "The 3 class folders are matched to those of the network by name.",
    )  # fmt: skip
    assert fitted.steps() == data.steps() and fitted.name_of(0) == "Cat/0.png"


def test_identifiers_of_imagenet(tmp_path: Path) -> None:
    assert len(set(wnids())) == 1000 and list(wnids()) == sorted(wnids())
    data = load_data(pictures(tmp_path, "n02102040", "n01440764"))
    fitted, how = fit_labels(data, None, 1000)
    assert labels(fitted) == [0, 0, 217, 217]  # tench and English springer
    assert "numbered as in ImageNet" in how and fitted.classes == wnids()
    with pytest.raises(DataError, match="has 2 class folders and the network tells 10 classes apart"):
        fit_labels(data, None, 10)


def test_as_many_classes_keep_the_order_of_their_names(tmp_path: Path) -> None:
    data = load_data(pictures(tmp_path, "b", "a", "c"))
    for classes in (None, ("x", "y", "z")):
        fitted, how = fit_labels(data, classes, 3)
        assert fitted is data and how == "The 3 class folders are numbered in the order of their names."


def test_another_number_of_classes_is_one_sentence(tmp_path: Path) -> None:
    data = load_data(pictures(tmp_path, "a", "b"))
    with pytest.raises(
        DataError, match=r"has 2 class folders and the network tells 3 classes apart; .*\('b' is none"
    ):
        fit_labels(data, ("a", "x", "y"), 3)
    with pytest.raises(DataError, match=r"all names but 'c'; name them"):
        fit_labels(load_data(pictures(tmp_path / "more", "a", "b", "c")), ("a", "x", "b"), 3)
    with pytest.raises(DataError, match=r"'a' could be any of the network's classes 0, 2"):
        fit_labels(data, ("a", "b", "a"), 3)
    same = ArrayData("same", torch.zeros(2, 1), torch.tensor([0, 2]), ("a", "b", "a"))
    assert fit_labels(same, ("a", "b", "a"), 3)[0] is same


def test_what_has_no_names_stays_as_it_is() -> None:
    for data, part in (
        (load_data(torch.zeros(2, 3)), "no labels"),
        (load_data((torch.zeros(2, 3), [5, 6])), "numbers"),
    ):
        fitted, how = fit_labels(data, ("a",), 1)
        assert fitted is data and part in how


@given(st.permutations("abcdefg"), st.integers(1, 7), st.data())
def test_matching_finds_each_class_where_the_network_has_it(
    classes: list[str], count: int, data: st.DataObject
) -> None:
    names = data.draw(st.permutations(classes))[:count]
    found = ArrayData("x", torch.zeros(count, 1), torch.arange(count), tuple(names))
    fitted, _ = fit_labels(found, classes, 7)
    assert [classes[label] for label in labels(fitted)] == list(names)


def network() -> LoadedModel:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    return LoadedModel("net", net.eval(), preprocess=Preprocess(resize=4, crop=4), classes=("a", "b", "c"))


def test_a_network_gets_the_labels_it_means(tmp_path: Path) -> None:
    subject = make_subject(network(), pictures(tmp_path, "c", "a"))
    seen = {
        e.indices[k]: int(e.labels[k]) for e in subject.evaluation.batches() for k in range(len(e.indices))
    }
    assert seen == {0: 0, 1: 0, 2: 2, 3: 2}
    assert subject.classes == ("a", "b", "c")


def test_facts_about_the_data(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "a", "b", "c")
    (folder / "b" / "1.png").write_bytes(b"")
    facts = make_subject(network(), folder).data_facts
    assert (facts.images, facts.classes, facts.chosen) == (5, 3, "All images that can be read.")
    assert (facts.preprocess, facts.preprocess_from) == ("resize=4 crop=4", "the network's own")
    assert facts.steps[:2] == (
        "resize the shorter side to 4 pixels (bilinear, antialiased)", "cut out the middle 4 x 4 pixels",
    )  # fmt: skip
    assert facts.warning == f"1 image of {folder.name} left out (b/1.png: it is empty)."
    assert json.loads(json.dumps(facts.to_dict()))["skipped"] == [
        {"name": "b/1.png", "reason": "it is empty.", "replaced": False}
    ]
    asked = make_subject(
        network(), folder, preprocess="resize=4 crop=4 mean=0.5", subset=3, seed=7
    ).data_facts
    assert (asked.preprocess_from, asked.steps[-1]) == ("asked for", "subtract 0.5")
    assert asked.chosen == "3 of 6 images, drawn at random with seed 7, with the same share of each class."
    ready = make_subject(network(), (torch.zeros(3, 3, 4, 4), [0, 1, 2])).data_facts
    assert (ready.preprocess, ready.preprocess_from, ready.steps) == ("", "", ())


FACTORY = """
import torch
from explorer.sources import LoadedModel, Preprocess
def net():
    torch.manual_seed(0)
    return LoadedModel("net", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)),
                       preprocess=Preprocess(resize=4, crop=4), classes=("a", "b", "c"))
"""


def test_the_command_line_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "images", "a", "b", "c", count=4)
    (folder / "b" / "1.png").write_bytes(b"")
    (tmp_path / "own.py").write_text(FACTORY)
    common = ["--model", f"{tmp_path / 'own.py'}:net", "--data", str(folder), "--json", "-"]
    assert cli.main(["evaluate", *common]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "explorer: 1 image of images left out (b/1.png: it is empty)."
    found = json.loads(out)
    assert (found["images"], found["total_images"], found["complete"]) == (11, 11, True)
    assert found["data_facts"]["skipped"][0]["name"] == "b/1.png"
    assert cli.main(["evaluate", *common, "--subset", "6", "--seed", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["total_images"] == 6
    (folder / "a").rename(folder / "other")
    pictures(folder, "more", "most")
    assert cli.main(["evaluate", *common]) == 2
    assert capsys.readouterr().err.startswith(
        "explorer: images has 5 class folders and the network tells 3 classes apart; give one for each, or name them"
    )


def test_an_opened_folder_is_taken_as_one(tmp_path: Path) -> None:
    opened = FolderData.open(pictures(tmp_path, "a", "b"), Preprocess(channels=1))
    facts = make_subject(network_of_grey(), opened).data_facts
    assert facts.preprocess_from == "the data's own"
    assert facts.labels == "The 2 class folders are numbered in the order of their names."


def network_of_grey() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
