"""Every reader on damaged and hostile bytes: a short run of ``python -m fuzz``, and what longer runs have found."""

from __future__ import annotations

from pathlib import Path

import pytest

from explorer.errors import LONGEST, ExplorerError
from fuzz.engines import Runner, scratch, with_hypothesis
from fuzz.law import Broken, attempt
from fuzz.mutate import zipped
from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_the_law_holds_on_damaged_files(name: str, tmp_path: Path) -> None:
    with scratch() as folder:
        runner = Runner(TARGETS[name], "hypothesis", folder, tmp_path)
        for data in TARGETS[name].corpus():
            runner(data)
        with_hypothesis(TARGETS[name], 0, runner, examples=40)
    assert not runner.tally.found
    assert runner.tally.read > 0


# What broke the law once, by target.
FOUND = [
    ("recipe", b"version: !!int ''\ndefault: {}\n"),
    ("recipe", b'version: 1\ndefault: {weight: {"\\0": 1}}\n'),
    ("recipe-json", b'{"version": 1, "default": {"weight": "' + b"a" * 3000 + b'"}}'),
    ("notes", b"version: !!int ''\n"),
    ("notes", b"version: 1\nlayers: [" + b"a, " * 9000 + b"]\n"),
    (
        "notes",
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in b"abcdefghij")
        + b"version: 1\n",
    ),
    ("checkpoint", b"\x80\x02\x8d" + (1 << 40).to_bytes(8, "little")),
    ("image", b"P6 9000 9000 255\n"),
    ("npz", zipped([("images.npy", b"\x93NUMPY\x01\0\x06\0{(1,")])),
    ("encodings", b'{"param_encodings": {"fc.weight": [{"bitwidth": 1e12, "scale": 1, "offset": 0}]}}'),
    ("encodings", b'{"version": "1.0.0", "param_encodings": [{"name": "fc.weight", "bw": 8, "is_sym": true, '
                  b'"scale": [], "offset": []}]}'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_is_mended(name: str, data: bytes) -> None:
    with scratch() as folder:
        attempt(TARGETS[name], data, folder)


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ("KeyError", lambda data, folder: {}["x"]),
        ("no sentence", lambda data, folder: _refuse("damaged")),
        ("code in the file", lambda data, folder: (folder / "it-was-run").mkdir()),
        ("writing", lambda data, folder: (folder.parent / "elsewhere").write_bytes(b"")),
        ("more memory", lambda data, folder: _refuse("Too large.", MemoryError())),
    ],
)
def test_the_law_sees_what_breaks_it(part: str, read: object, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(Broken, match=part):
        attempt(Target("bad", list, read), b"", folder)  # type: ignore[arg-type]


def _refuse(text: str, cause: Exception | None = None) -> None:
    raise ExplorerError(text) from cause


def test_a_message_is_one_line_that_a_terminal_can_show() -> None:
    text = str(ExplorerError("a\x1b[2J\nb" + "c" * 2000 + "."))
    assert (
        text.isprintable()
        and len(text) < LONGEST
        and text.startswith("a\\x1b[2J\\nb")
        and text.endswith("c.")
    )
