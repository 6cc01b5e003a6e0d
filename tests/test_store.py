"""The store: never above its budget, the dear stay, and a folder that survives a kill and tells damage."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import explorer as qx
from explorer.errors import JobError
from explorer.graph import Batch, Disk, Engine, Store
from explorer.graph.eviction import _ADMIT, _AGE, Ranking
from explorer.graph.store import ENTRY_BYTES
from explorer.recipe import Recipe
from explorer.study.metrics import ErrorSums
from tests.nets import Residual, captured, images
from tests.small import images as small_images
from tests.small import tiny
from tests.test_engine import W8A8, cold, planned

ROOT = Path(__file__).parent.parent
KEYS = "abcdefgh"


# --- the budget ---------------------------------------------------------------------------------------------


class Plain:
    """The rule of the ranking, written down without a heap."""

    def __init__(self, budget: int) -> None:
        self.budget, self.age = budget, 0.0
        self.members: dict[str, tuple[int, float, float]] = {}

    @property
    def bytes(self) -> int:
        return sum(size for size, _, _ in self.members.values())

    def add(self, key: str, size: int, seconds: float) -> bool:
        self.members.pop(key, None)
        worth = seconds / size
        if self.bytes + size > self.budget:
            self.age += worth * min(size / self.budget, 1.0) * _AGE
        if size > self.budget:
            return False
        left = dict(self.members)
        while sum(n for n, _, _ in left.values()) + size > self.budget:
            least = min(left, key=lambda k: left[k][2])
            if left.pop(least)[2] - self.age >= _ADMIT * worth:
                return False
        self.members = {**left, key: (size, worth, self.age + worth)}
        return True

    def touch(self, key: str) -> None:
        if key in self.members:
            size, worth, _ = self.members[key]
            self.members[key] = size, worth, self.age + worth


STEPS = st.lists(
    st.tuples(st.sampled_from(KEYS), st.integers(1, 120), st.integers(0, 50), st.booleans()), max_size=60
)


@given(STEPS)
@settings(max_examples=150)
def test_a_ranking_follows_its_rule(steps: list[tuple[str, int, int, bool]]) -> None:
    """Against the same rule without a heap; never above the budget, and the victims are those that went."""
    ranking, model = Ranking(100), Plain(100)
    for key, size, cost, put in steps:
        before = set(model.members) - {key}
        if put:
            gone = ranking.add(key, size, cost + KEYS.index(key) / 64)
            assert model.add(key, size, cost + KEYS.index(key) / 64) == (gone is not None)
            assert set(gone or ()) == before - set(model.members)
        else:
            ranking.touch(key)
            model.touch(key)
        assert ranking.bytes == model.bytes <= 100
        assert {k for k in KEYS if k in ranking} == set(model.members) and len(ranking) == len(model.members)


def test_a_scan_larger_than_the_budget_finds_a_part() -> None:
    """What is in use stays in use: the same passes over three times what fits hit a third of it."""
    ranking = Ranking(100)
    for _ in range(6):
        hits = 0
        for key in map(str, range(30)):
            if key in ranking:
                hits += 1
                ranking.touch(key)
            else:
                ranking.add(key, 10, seconds=1.0)
    assert hits == 10


def test_what_nobody_uses_gives_way() -> None:
    """Others of the same worth have taken over after some passes."""
    ranking = Ranking(100)
    for key in range(10):
        ranking.add(f"old{key}", 10, seconds=1.0)
    for _ in range(8):
        for key in range(20):
            ranking.touch(f"new{key}") if f"new{key}" in ranking else ranking.add(f"new{key}", 10, 1.0)
    assert sum(f"new{key}" in ranking for key in range(20)) == 10


def test_a_ranking_does_not_grow_with_use() -> None:
    ranking = Ranking(1000)
    for step in range(5000):
        ranking.add(str(step % 7), 10, seconds=1.0)
        ranking.touch(str(step % 5))
    assert len(ranking) == 7 and len(ranking._heap) < 200


def test_views_are_counted_with_what_they_keep_alive() -> None:
    store = Store(10 * ENTRY_BYTES)
    whole = torch.zeros(100_000)
    store.put("view", whole[:10])
    assert store.facts.entries == 1 and store.get("view").untyped_storage().nbytes() == 40
    half = torch.zeros(1000)
    store.put("half", half[:600])
    assert (
        store.get("half").data_ptr() == half.data_ptr() and store.facts.bytes == 2 * ENTRY_BYTES + 40 + 4000
    )
    store.put("large", torch.zeros(10 * ENTRY_BYTES))
    assert not store.has("large") and store.facts.refused == 1
    store.clear()
    assert store.facts.bytes == store.facts.entries == 0 and store.get("view") is None


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, "1"])
def test_a_store_needs_a_budget(budget: object) -> None:
    with pytest.raises(JobError, match="at least one byte, a whole number, not"):
        Store(budget)  # type: ignore[arg-type]


def test_a_budget_smaller_than_one_activation_is_refused() -> None:
    with pytest.raises(
        JobError, match=r"5,000 bytes .* largest, of '\w+' for \d+ images, takes [\d,]+ bytes; give"
    ):
        qx.Session(tiny(), data=small_images(), store_bytes=5000)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_part_of_the_need_spares_a_part_of_the_work(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quarter or half of what would be kept, an edit of the last layer computes much less than all."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))  # each node takes as long
    monkeypatch.setattr("explorer.graph.engine.time", clock)
    graph = captured(Residual)
    batches = [Batch.of(images((2, 8, 8), 40, seed)) for seed in range(12)]
    base = planned(Residual, W8A8)
    whole = Engine(graph, Store(1 << 28))
    for batch in batches:
        whole.run(base, batch)
    engine = Engine(graph, Store(int(share * whole.store.facts.bytes)))
    counts = []
    for bits in range(6):
        recipe = W8A8.with_layer("fc", weight={"format": f"int{2 + bits}"})
        engine.computed.clear()
        for batch in batches:
            found = engine.run(planned(Residual, recipe), batch)[graph.output]
            assert torch.equal(found, cold(Residual, recipe, batch))
            assert engine.store.facts.bytes <= engine.store.budget
        counts.append(engine.computed.total())
    assert counts[0] == len(graph.nodes) * len(batches)
    assert max(counts[2:]) < (1 - 0.7 * share) * counts[0], counts


# --- the folder ---------------------------------------------------------------------------------------------

DEAR = 10.0  # seconds, so that everything is worth writing


def disk(folder: Path, budget: int = 1 << 24) -> Disk:
    return Disk(folder, budget, kinds=(ErrorSums,))


def filled(folder: Path, values: dict[str, object]) -> list[Path]:
    """A folder that holds some values; its packs."""
    written = disk(folder)
    for key, value in values.items():
        written.put(key, value, DEAR)
    written.flush()
    return sorted(folder.glob("*.safetensors"))


VALUES: dict[str, object] = {
    "a/../b: any text": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "view": torch.arange(12.0).reshape(3, 4).t(),
    "whole numbers": torch.tensor([1, -2], dtype=torch.int8),
    "scalar": torch.tensor(float("nan")),
    "nothing": torch.zeros(0, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "sums": ErrorSums(3, 1 / 3, 2.0, 1e-300, float("inf"), 0.1),
    "large": torch.randn(300_000, generator=torch.Generator().manual_seed(1)),
}


def same(found: object, value: object) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(found, torch.Tensor):
        return (
            found.dtype == value.dtype and found.equal(value)
            if value.numel() != 1
            else str(found) == str(value)
        )
    return found == value


def test_a_folder_gives_back_what_it_got(tmp_path: Path) -> None:
    filled(tmp_path / "new" / "store", VALUES)
    again = disk(tmp_path / "new" / "store")
    assert len(again) == len(VALUES) and again.get("other") is None
    for key, value in VALUES.items():
        found = again.get(key)
        assert found is not None and same(found[0], value) and found[1] == DEAR, key
    assert all(len(path.name) == 44 for path in (tmp_path / "new" / "store").iterdir())


def test_what_is_computed_as_fast_as_read_is_not_written(tmp_path: Path) -> None:
    written = disk(tmp_path)
    written.put("cheap", torch.zeros(1 << 20), 1e-4)
    written.put("of another kind", {"a": 1}, DEAR)
    written.flush()
    assert len(written) == 0 and not list(tmp_path.iterdir())


def test_a_folder_has_a_budget(tmp_path: Path) -> None:
    written = Disk(tmp_path, 3_000_000)
    for step in range(8):
        written.put(str(step), torch.full((300_000,), float(step)), DEAR * 3**step)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk == written.bytes <= 3_000_000
    assert written.get("7") is not None and written.get("0") is None
    # One that is opened with less makes room.
    smaller = Disk(tmp_path, 1_500_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == smaller.bytes <= 1_500_000


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=40, deadline=None)
def test_any_damaged_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, position: float, flip: int
) -> None:
    """Every byte of a pack matters: a changed one gives the right value or none at all."""
    folder = tmp_path_factory.mktemp("store")
    values = {key: value for key, value in VALUES.items() if key in ("view", "sums", "whole numbers")}
    (pack,) = filled(folder, values)
    data = bytearray(pack.read_bytes())
    data[int(position * len(data))] ^= flip
    pack.write_bytes(data)
    # A blank in the header may change without any effect; then there is nothing to tell.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = disk(folder)
        for key, value in values.items():
            found = again.get(key)
            assert found is None or same(found[0], value), key


@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_a_pack_that_was_cut_off_is_dropped(tmp_path: Path, length: int) -> None:
    (pack,) = filled(tmp_path, {"a": torch.arange(100.0)})
    pack.write_bytes(pack.read_bytes()[:length])
    with pytest.warns(
        RuntimeWarning, match=r"is damaged \(.*\); it was dropped and is computed again"
    ) as caught:
        again = disk(tmp_path)
        assert again.get("a") is None
    assert len(caught) == 1 and not pack.exists()


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    foreign = tmp_path / ("0" * 32 + ".safetensors")
    foreign.write_bytes((ROOT / "data" / "fashion-lenet5.safetensors").read_bytes())
    (tmp_path / f".999999999.{'0' * 32}.tmp").write_bytes(b"left by a process that was killed")
    with pytest.warns(RuntimeWarning, match="is damaged"):
        disk(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "model.safetensors"}


def test_a_pack_that_another_process_removed_is_no_error(tmp_path: Path) -> None:
    (pack,) = filled(tmp_path, {"a": torch.arange(100.0)})
    again = disk(tmp_path)
    pack.unlink()
    assert again.get("a") is None and len(again) == 0


def test_a_folder_that_is_no_good_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(JobError, match=r"The store cannot use the folder .*file.*: \w+"):
            qx.Session(tiny(), data=small_images(), store_folder=folder)
    with pytest.raises(JobError, match="at least one byte, not 0"):
        Disk(tmp_path, 0)


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    written = disk(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="writes no more to .*: No space left on device") as caught:
        for key in "ab":
            written.put(key, torch.zeros(10), DEAR)
            written.flush()
    assert len(caught) == 1 and not list(tmp_path.iterdir()) and len(written) == 0


# A process that evaluates recipe after recipe, writes all it may, and says so; its writing takes its time.
EVALUATES = """
import sys, time, os
import explorer as qx
from explorer.graph import disk
from tests.small import images, tiny
disk._SHARE, disk._WORTH_READING, disk._PACK_BYTES = 1e9, 0.0, 1 << 14
if sys.argv[2] == "slowly":
    sync = os.fsync
    os.fsync = lambda file: (time.sleep(0.02), sync(file), print("written", flush=True))
session = qx.Session(tiny(), data=images(400), store_folder=sys.argv[1])
session.engine.batch_size = lambda: 50
for recipe in ("w8a8", "w4a8", "w2a8"):
    print(repr({**session.evaluate(recipe).to_dict(), "layers": str(session.evaluate(recipe).layers)}), flush=True)
print("read", session.engine.store.facts.read, file=sys.stderr)
"""


def evaluating(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", EVALUATES, str(folder), how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_a_killed_process_leaves_a_folder_that_serves(tmp_path: Path) -> None:
    """Killed in the middle of writing; the next finds what was whole, and gives the same numbers."""
    undisturbed, victim = evaluating(tmp_path / "fresh", "fast"), evaluating(tmp_path / "store", "slowly")
    assert victim.stdout is not None
    # Between them lies what an evaluation has come to.
    written = (line for line in victim.stdout if "written" in line)
    assert len([next(written) for _ in range(4)]) == 4
    time.sleep(0.01)  # inside the next one, most likely
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    fresh, _ = undisturbed.communicate(timeout=120)
    found, told = evaluating(tmp_path / "store", "fast").communicate(timeout=120)
    assert found == fresh and "damaged" not in told
    assert int(told.split("read")[-1]) > 0
    assert not list((tmp_path / "store").glob(".*"))
    # And damage to files is told and changes nothing.
    for pack in (tmp_path / "store").glob("*.safetensors"):
        data = bytearray(pack.read_bytes())
        data[-1] ^= 1
        pack.write_bytes(data)
    found, told = evaluating(tmp_path / "store", "fast").communicate(timeout=120)
    assert found == fresh and "is damaged" in told


def test_keys_do_not_change_with_the_share_of_threads() -> None:
    """A sweep must find the float network's values though another job has begun meanwhile."""
    before, threads = planned(Residual, Recipe.preset("w8a8")).keys, torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert before == planned(Residual, Recipe.preset("w8a8")).keys
    finally:
        torch.set_num_threads(threads)
